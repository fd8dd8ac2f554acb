"""Trains the bundled water model: ``python -m les_md.training.water --data water_rpbe_d3.xyz --out DIR``.

The 40 frames of 64 molecules come from six separate trajectories, whose own frames may differ by as little as 0.1 Å per
atom. The split below follows the trajectories: test frames belong to two trajectories of which training and the choice
of the model see nothing. ``--short-range`` trains the twin without charges, everything else being equal.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from les_md.allocator import keep_freed_memory
from les_md.architectures.cace import native_checkpoint
from les_md.architectures.cace_network import CACEConfiguration
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.training.bond_guard import BondGuard
from les_md.training.dataset import Frame, read_frames
from les_md.training.fit import EnergyModel, Schedule, errors, fit
from les_md.training.record import circumstances, stored_stage, write_checkpoint, write_history, write_stage

#: Frames that neither training nor the choice of the model sees: two whole trajectories.
TEST = (5, 15, 16, 22, 28)
#: Frames on which the best epoch is chosen: one whole trajectory, and the most distant frame of another.
VALIDATION = (2, 23, 39)

CONFIGURATION = CACEConfiguration(atomic_numbers=(1, 8), cutoff=4.5, num_embedding=2, max_l=3, max_nu=3, repulsion=True)
LONG_RANGE = LongRangeParameters()
SCHEDULE = Schedule()
#: A second, shorter training in which bonds are kept from breaking.
GUARDED_SCHEDULE = Schedule(epochs=50, learning_rate=2e-3)
GUARD = BondGuard(centre=1, ligand=0)


def split(frames: list[Frame]) -> dict[str, list[int]]:
    """Indices of the training, validation and test frames."""
    if len(frames) != 40:
        raise ValueError(f"the split belongs to the 40 frames of water_rpbe_d3.xyz; this file holds {len(frames)}")
    training = [i for i in range(len(frames)) if i not in TEST and i not in VALIDATION]
    return {"train": training, "validation": list(VALIDATION), "test": list(TEST)}


def train(data: Path, out: Path, short_range: bool, schedule: Schedule, guarded_schedule: Schedule) -> Path:
    """Train one model in two stages and write checkpoint and history to ``out``; return the checkpoint's path.

    The first stage fits the data; its result is kept in ``out`` and taken from there if it was made with the same
    schedule, configuration and data. The second goes on from it with the bond guard.
    """
    long_range = None if short_range else LONG_RANGE
    configuration = replace(CONFIGURATION, num_charges=0 if short_range else 1)
    frames = read_frames(data, configuration.atomic_numbers)
    indices = split(frames)
    parts = {name: [frames[i] for i in chosen] for name, chosen in indices.items()}
    out.mkdir(parents=True, exist_ok=True)
    path = out / ("water_rpbe_d3_short_range.pth" if short_range else "water_rpbe_d3.pth")
    first_stage = path.with_name(path.stem + "_unguarded.pth")
    total = schedule.epochs + guarded_schedule.epochs
    with tqdm(total=total, unit="epoch") as bar:

        def report(line: dict) -> None:
            bar.update(line["epoch"] - (bar.n if bar.n < schedule.epochs else bar.n - schedule.epochs))
            bar.set_postfix_str(f"{line['training_forces']:.1f}, validation {line['validation_forces']:.1f} meV/Å")

        made_with = {
            "schedule": schedule.to_dict(),
            "configuration": configuration.to_dict(),
            "data_sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
        }
        first = stored_stage(first_stage, configuration, made_with)
        if first is not None:
            bar.update(schedule.epochs)
        else:
            first = fit(configuration, long_range, parts["train"], parts["validation"], schedule, report)
            write_stage(first_stage, first, configuration, long_range, made_with)
        result = fit(
            configuration,
            long_range,
            parts["train"],
            parts["validation"],
            guarded_schedule,
            report,
            GUARD,
            first.network,
        )
    model = EnergyModel(result.network, result.reference_energies, long_range)
    measured = {name: errors(model, part) for name, part in parts.items()}
    metadata = {
        "data": data.name,
        "split": indices,
        "schedule": schedule.to_dict(),
        "best_epoch": first.best_epoch,
        "guarded_schedule": guarded_schedule.to_dict(),
        "guard": GUARD.to_dict(),
        "guarded_best_epoch": result.best_epoch,
        "seconds": round(first.seconds + result.seconds),
        "errors": {name: error.to_dict() for name, error in measured.items()},
        "error_units": {"energy": "RMSE, meV/atom", "forces": "RMSE, meV/Å"},
        **circumstances(),
    }
    write_checkpoint(
        path, native_checkpoint(result.network, configuration, result.reference_energies, long_range, metadata)
    )
    write_history(path.with_suffix(".csv"), (first.history, result.history))
    for name, error in measured.items():
        print(f"{name:10s} {error.forces:6.2f} meV/Å  {error.energy:6.3f} meV/atom  ({len(parts[name])} frames)")
    print(
        f"wrote {path} ({path.stat().st_size} bytes, epochs {first.best_epoch} and {result.best_epoch}, "
        f"{first.seconds + result.seconds:.0f} s)"
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled water model.")
    parser.add_argument("--data", type=Path, required=True, help="water_rpbe_d3.xyz: energies in eV, forces in eV/Å")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and history")
    parser.add_argument("--short-range", action="store_true", help="train the twin without latent charges")
    parser.add_argument("--epochs", type=int, default=SCHEDULE.epochs, help="of the first stage")
    parser.add_argument("--guarded-epochs", type=int, default=GUARDED_SCHEDULE.epochs, help="of the second stage")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (results vary with it by rounding)")
    arguments = parser.parse_args()
    if min(arguments.epochs, arguments.guarded_epochs) < 1:
        parser.error("--epochs and --guarded-epochs must be at least 1")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    train(
        arguments.data,
        arguments.out,
        arguments.short_range,
        replace(SCHEDULE, epochs=arguments.epochs),
        replace(GUARDED_SCHEDULE, epochs=arguments.guarded_epochs),
    )


if __name__ == "__main__":
    main()
