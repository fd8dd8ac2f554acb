"""Trains a small CHGNet-LES and its short-range twin: ``python -m les_md.training.chgnet_ionic --out DIR``.

The labels are energies and forces of a model molten salt with the charges +1, +2 and −1 (``molten_salt.py``), in cells
wider than twice the receptive field of the networks, which have one block. Charges are not among the labels: that the
model finds them, sign and ratio, is what this is for. Training, validation and test frames come from trajectories of
their own. Needs OpenMM.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import torch
from ase.data import atomic_numbers, chemical_symbols
from tqdm import tqdm

from les_md.allocator import keep_freed_memory
from les_md.architectures.chgnet import native_checkpoint
from les_md.architectures.chgnet_network import CHGNetConfiguration, CHGNetNetwork
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.training.dataset import Frame, checked_frame, reference_energies
from les_md.training.fit import EnergyModel, Schedule, errors, optimise
from les_md.training.molten_salt import CHARGES, trajectory
from les_md.training.record import circumstances, write_checkpoint, write_history

NAME = "molten_salt_chgnet"

CONFIGURATION = CHGNetConfiguration(
    atomic_numbers=tuple(sorted(atomic_numbers[symbol] for symbol in CHARGES)),
    cutoff=5.0,
    num_blocks=1,
    atom_width=32,
    bond_width=32,
    angle_width=4,
    atom_hidden=(32,),
    readout_hidden=(32, 32),
    charge_hidden=(32, 32),
    max_n=12,
    max_f=1,
)
#: A finer sum than usual: with dl = 2 Å it cuts off where a Gaussian of σ = 1 Å still has 0.7 % of its weight.
LONG_RANGE = LongRangeParameters(dl=1.5)
SCHEDULE = Schedule(epochs=240, learning_rate=4e-3, gradient_limit=1.0)

#: Seeds and numbers of frames of the trajectories of each part; each trajectory has a cell, and a density, of its own.
PARTS = {
    "train": tuple((seed, 8) for seed in range(1, 9)),
    "validation": ((9, 4), (10, 4)),
    "test": ((11, 4), (12, 4)),
}


def structures(part: str) -> list[ase.Atoms]:
    """Labelled structures of a part: ``train``, ``validation`` or ``test``."""
    return [atoms for seed, frames in PARTS[part] for atoms in trajectory(seed, frames)]


def as_frames(labelled: list[ase.Atoms], part: str) -> list[Frame]:
    """Structures as frames for the training."""
    return [
        checked_frame(atoms, f"{part}, frame {i}", CONFIGURATION.atomic_numbers) for i, atoms in enumerate(labelled)
    ]


@torch.no_grad()
def mean_charges(
    network: CHGNetNetwork, frames: list[Frame], numbers: tuple[int, ...]
) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of the latent charge of each element, e."""
    charges = []
    for frame in frames:
        edge_index, offsets = frame.neighbours(network.cutoff)
        vectors = frame.positions[edge_index[1]] - frame.positions[edge_index[0]] + offsets
        charges.append(network(vectors, edge_index, frame.types)[1][:, 0])
    charge, types = torch.cat(charges), torch.cat([frame.types for frame in frames])
    of_type = [charge[types == i] for i in range(len(numbers))]
    return {chemical_symbols[z]: (float(q.mean()), float(q.std())) for z, q in zip(numbers, of_type, strict=True)}


def train(out: Path, labelled: dict[str, list[ase.Atoms]], short_range: bool, schedule: Schedule) -> Path:
    """Train one model and write checkpoint and history to ``out``; return the checkpoint's path."""
    configuration = replace(CONFIGURATION, num_charges=0 if short_range else 1)
    long_range = None if short_range else LONG_RANGE
    parts = {part: as_frames(atoms, part) for part, atoms in labelled.items()}
    path = out / (f"{NAME}_short_range.pth" if short_range else f"{NAME}.pth")
    torch.manual_seed(schedule.seed)
    network = CHGNetNetwork(configuration).float()
    # At nπ the radial functions vanish at the cutoff. Trained frequencies do not stay there: the energy then jumps when
    # a neighbour comes or goes, which forces do not show, and which spoils the energy as a function of density.
    for basis in (network.bond_expansion, network.threebody_bond_expansion):
        basis.frequencies.requires_grad_(False)
    energies = reference_energies(parts["train"], len(configuration.atomic_numbers))
    with tqdm(total=schedule.epochs, unit="epoch") as bar:

        def report(line: dict) -> None:
            bar.update(line["epoch"] - bar.n)
            bar.set_postfix_str(f"{line['training_forces']:.1f}, validation {line['validation_forces']:.1f} meV/Å")

        result = optimise(network, energies, long_range, parts["train"], parts["validation"], schedule, report)
    model = EnergyModel(result.network, energies, long_range)
    measured = {part: errors(model, frames) for part, frames in parts.items()}
    charges = {} if short_range else mean_charges(result.network, parts["test"], configuration.atomic_numbers)
    training = {
        "force_field_charges": CHARGES,
        "charges": charges,
        "trajectories": PARTS,
        "schedule": schedule.to_dict(),
        "best_epoch": result.best_epoch,
        "seconds": round(result.seconds),
        "errors": {part: error.to_dict() for part, error in measured.items()},
        "error_units": {"energy": "RMSE, meV/atom", "forces": "RMSE, meV/Å"},
        **circumstances(),
    }
    write_checkpoint(path, native_checkpoint(result.network, configuration, energies, long_range, training))
    write_history(path.with_suffix(".csv"), (result.history,))
    for part, error in measured.items():
        print(f"{part:10s} {error.forces:6.2f} meV/Å  {error.energy:6.3f} meV/atom  ({len(parts[part])} frames)")
    for symbol, (mean, deviation) in charges.items():
        print(f"charge of {symbol}: {mean:+.3f} ± {deviation:.3f} e (force field {CHARGES[symbol]:+g})")
    print(f"wrote {path} ({path.stat().st_size} bytes, epoch {result.best_epoch}, {result.seconds:.0f} s)")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CHGNet-LES on a model molten salt, and its twin.")
    parser.add_argument("--out", type=Path, required=True, help="folder for labels, checkpoints and histories")
    parser.add_argument("--epochs", type=int, default=SCHEDULE.epochs)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (results vary with it by rounding)")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    arguments.out.mkdir(parents=True, exist_ok=True)
    labelled = {}
    for part in PARTS:
        labelled[part] = structures(part)
        ase.io.write(arguments.out / f"{part}.xyz", labelled[part])
    for short_range in (False, True):
        train(arguments.out, labelled, short_range, replace(SCHEDULE, epochs=arguments.epochs))


if __name__ == "__main__":
    main()
