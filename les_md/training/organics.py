"""Trains the bundled organics model: ``python -m les_md.training.organics --data DIR --out DIR``.

Elements H, C, N, O; energies and forces at one level of theory, ωB97M-D3(BJ)/def2-TZVPPD, from two published parts of
SPICE (see ``spice.py``): neutral monomers, dimers, peptides, drug-like molecules, water clusters and solvated amino
acids. There is no bulk liquid in the data.

The split follows compositions: all frames of one composition, whichever set they come from, are in one part, so no
test molecule was trained on in another conformation. The exception are the five dipeptides of the second set that
are trained on, of which every twelfth conformer helps to choose the epoch. A dimer or a solvated molecule has its own
composition, its parts may occur in training.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from les_md.allocator import keep_freed_memory
from les_md.architectures.cace import native_checkpoint
from les_md.architectures.cace_network import CACEConfiguration
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.training.bond_guard import BondGuard
from les_md.training.contact_guard import ContactGuard
from les_md.training.crowd_guard import CrowdGuard
from les_md.training.dataset import Frame
from les_md.training.fit import EnergyModel, Fit, Guard, Schedule, errors, fit
from les_md.training.record import circumstances, stored_stage, write_checkpoint, write_history, write_stage
from les_md.training.spice import ATOMIC_NUMBERS, DIPOLAR, Sample, read_absolute, read_dipolar

ABSOLUTE_FILE, DIPOLAR_FILE = "spice_bec.xyz", "spice_dipeptides_dipolar.xyz"

#: Compositions held out by hand where there are few: clusters of 4 and 10 waters, solvated Asp, Thr and Gln, and one of
#: the six dipeptides of the second set (test); clusters of 9 waters and solvated Glu (validation).
TEST = ("H8O4", "H20O10", "C7H52N2O24", "C7H54N2O23", "C8H55N3O23", "C14H26N6O5")
VALIDATION = ("H18O9", "C8H54N2O24")
#: Of the other subsets, in Hill order of the compositions: every eighth to the test, every sixteenth to validation.
BY_RANK = ("des370k_dimers", "des370k_monomers", "dipeptides", "pubchem", "qmugs")
#: Every so manyth conformer of the dipeptides of the second set is for validation.
VALIDATION_CONFORMER = 12

CONFIGURATION = CACEConfiguration(
    atomic_numbers=ATOMIC_NUMBERS,
    cutoff=4.2,
    num_embedding=3,
    num_radial=8,
    max_l=3,
    max_nu=3,
    hidden=(64, 32),
    charge_scale=0.3,
    repulsion=True,
)
LONG_RANGE = LongRangeParameters()
#: How often frames of a subset are used in an epoch, and those of others: what is nearest to a solution is rare in the
#: data, and the second set holds many conformers of few molecules.
REPEATS = {DIPOLAR: 1, "water": 4, "solvated_amino_acids": 6}
OTHERS = 2
FRAMES_PER_STEP = 4
#: Frames on which the initial weights are scaled.
STANDARDISE_ON = 60
H, C, N, O = range(4)
GUARDS = (
    BondGuard(centre=O, ligand=H, bonded=1.25, stretched=(1.08, 1.5), clearance=1.2, fraction=0.2, every=4),
    BondGuard(centre=N, ligand=H, bonded=1.3, stretched=(1.15, 1.55), clearance=1.2, fraction=0.3, every=4),
    BondGuard(centre=C, ligand=H, bonded=1.35, stretched=(1.25, 1.65), clearance=1.2, fraction=0.2, every=4),
)
CONTACTS = ContactGuard(ATOMIC_NUMBERS, every=4)
CROWDS = CrowdGuard(ATOMIC_NUMBERS, every=1)


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes: ``schedule``; ``guards`` of bonds, contacts and crowds; ``charge_restraint``, which keeps the charges
    near a guess.
    """

    schedule: Schedule
    guards: tuple[Guard, ...]
    charge_restraint: float

    def to_dict(self) -> dict:
        return {
            "schedule": self.schedule.to_dict(),
            "guards": [guard.to_dict() for guard in self.guards],
            "charge_restraint": self.charge_restraint,
        }


COMMON = Schedule(warmup_steps=200, average=0.995, energy_weight=10.0, gradient_limit=0.5, validate_every=2)
STAGES = (
    # The short range is learned around charges that are held near a guess: left free from the start, they shrink to
    # nothing, since at first whatever they add near by is wrong, and once small they grow slowly.
    Stage(replace(COMMON, epochs=22, learning_rate=5e-3), GUARDS, charge_restraint=1.0),
    # Then energies and forces alone decide.
    Stage(replace(COMMON, epochs=20, learning_rate=4e-3), GUARDS, charge_restraint=0.0),
    Stage(replace(COMMON, epochs=10, learning_rate=3e-3), (*GUARDS, CONTACTS), charge_restraint=0.0),
    Stage(replace(COMMON, epochs=50, learning_rate=4e-3), (*GUARDS, CONTACTS), charge_restraint=0.0),
    Stage(replace(COMMON, epochs=60, learning_rate=4e-3), (*GUARDS, CONTACTS, CROWDS), charge_restraint=0.0),
)


def split(samples: list[Sample]) -> dict[str, list[int]]:
    """Indices of the training, validation and test frames."""
    trained = {s.composition for s in samples if s.subset == DIPOLAR} - set(TEST)
    part_of = dict.fromkeys(VALIDATION, "validation") | dict.fromkeys(TEST, "test")
    for subset in BY_RANK:
        compositions = sorted({s.composition for s in samples if s.subset == subset} - trained)
        for rank, composition in enumerate(compositions):
            if rank % 8 == 3:
                part_of.setdefault(composition, "test")
            elif rank % 16 == 7:
                part_of.setdefault(composition, "validation")
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    conformers: Counter[str] = Counter()
    for i, sample in enumerate(samples):
        part = part_of.get(sample.composition, "train")
        if sample.subset == DIPOLAR and part == "train":
            conformers[sample.composition] += 1
            if conformers[sample.composition] % VALIDATION_CONFORMER == 0:
                part = "validation"
        parts[part].append(i)
    return parts


def read(data: Path) -> list[Sample]:
    """All samples of the two files in the folder ``data``."""
    return read_absolute(data / ABSOLUTE_FILE) + read_dipolar(data / DIPOLAR_FILE)


def training_frames(samples: list[Sample], chosen: list[int]) -> list[Frame]:
    """Frames of an epoch, repeated as ``REPEATS`` says."""
    return [samples[i].frame for i in chosen for _ in range(REPEATS.get(samples[i].subset, OTHERS))]


def train(data: Path, out: Path, short_range: bool, stages: tuple[Stage, ...] = STAGES) -> Path:
    """Train one model and write checkpoint and history to ``out``; return the checkpoint's path.

    The result of every stage but the last is kept in ``out`` and taken from there if it was made with the same
    stages, configuration and data.
    """
    long_range = None if short_range else LONG_RANGE
    configuration = replace(CONFIGURATION, num_charges=0 if short_range else 1)
    samples = read(data)
    indices = split(samples)
    training = training_frames(samples, indices["train"])
    validation = [samples[i].frame for i in indices["validation"]]
    out.mkdir(parents=True, exist_ok=True)
    path = out / ("organics_wb97m_short_range.pth" if short_range else "organics_wb97m.pth")
    digests = {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in (ABSOLUTE_FILE, DIPOLAR_FILE)}
    results: list[Fit] = []
    for number, stage in enumerate(stages, start=1):
        made_with = {
            "stages": [earlier.to_dict() for earlier in stages[:number]],
            "configuration": configuration.to_dict(),
            "repeats": REPEATS | {"others": OTHERS},
            "frames_per_step": FRAMES_PER_STEP,
            "standardise_on": STANDARDISE_ON,
            "data_sha256": digests,
        }
        kept = path.with_name(f"{path.stem}_stage{number}.pth")
        result = stored_stage(kept, configuration, made_with)
        if result is None:
            with tqdm(total=stage.schedule.epochs, unit="epoch", desc=f"stage {number}") as bar:
                result = fit(
                    configuration,
                    long_range,
                    training,
                    validation,
                    stage.schedule,
                    partial(show, bar),
                    stage.guards,
                    initial=results[-1].network if results else None,
                    frames_per_step=FRAMES_PER_STEP,
                    standardise_on=STANDARDISE_ON,
                    guess_charges=True,
                    charge_restraint=0.0 if short_range else stage.charge_restraint,
                )
            write_stage(kept, result, configuration, long_range, made_with)
        results.append(result)
    result = results[-1]
    model = EnergyModel(result.network, result.reference_energies, long_range)
    measured = {part: errors_by_subset(model, samples, chosen) for part, chosen in indices.items()}
    metadata = {
        **made_with,
        "split": {part: [samples[i].source for i in chosen] for part, chosen in indices.items()},
        "best_epochs": [each.best_epoch for each in results],
        "seconds": round(sum(each.seconds for each in results)),
        "errors": measured,
        "error_units": {"energy": "RMSE, meV/atom", "forces": "RMSE, meV/Å"},
        **circumstances(),
    }
    write_checkpoint(
        path, native_checkpoint(result.network, configuration, result.reference_energies, long_range, metadata)
    )
    write_history(path.with_suffix(".csv"), [each.history for each in results])
    for part, subsets in measured.items():
        for subset, error in subsets.items():
            print(
                f"{part:10s} {subset:22s} {error['forces']:7.1f} meV/Å {error['energy']:6.2f} meV/atom "
                f"({error['frames']} frames)"
            )
    print(f"wrote {path} ({path.stat().st_size} bytes, {metadata['seconds']} s)")
    return path


def show(bar: tqdm, line: dict) -> None:
    """Bring a progress bar up to a line of the history."""
    bar.update(line["epoch"] - bar.n)
    bar.set_postfix_str(f"{line['training_forces']:.1f}, validation {line['validation_forces']:.1f} meV/Å")


def errors_by_subset(model: EnergyModel, samples: list[Sample], chosen: list[int]) -> dict[str, dict]:
    """Root mean square errors of each subset among the chosen samples, and of all: meV/atom, meV/Å."""
    groups: dict[str, list[Frame]] = {}
    for i in chosen:
        groups.setdefault(samples[i].subset, []).append(samples[i].frame)
    groups = dict(sorted(groups.items())) | {"all": [samples[i].frame for i in chosen]}
    return {name: errors(model, frames).to_dict() | {"frames": len(frames)} for name, frames in groups.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled organics model.")
    parser.add_argument("--data", type=Path, required=True, help=f"folder of {ABSOLUTE_FILE} and {DIPOLAR_FILE}")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and history")
    parser.add_argument("--short-range", action="store_true", help="train the twin without latent charges")
    parser.add_argument("--epochs", type=int, help="of every stage, for trying out")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (results vary with it by rounding)")
    arguments = parser.parse_args()
    stages = STAGES
    if arguments.epochs is not None:
        if arguments.epochs < 1:
            parser.error("--epochs must be at least 1")
        stages = tuple(replace(s, schedule=replace(s.schedule, epochs=arguments.epochs)) for s in STAGES)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    train(arguments.data, arguments.out, arguments.short_range, stages)


if __name__ == "__main__":
    main()
