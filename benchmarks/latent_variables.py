"""What latent dipoles, quadrupoles, κ and α change: the same short training with and without them.

    python benchmarks/latent_variables.py ../shared/data/spice_bec.xyz [--epochs 120] [--kinds charges dipoles ...]

Water molecules and clusters (SPICE; subset ``water``), trained on energies and forces alone with the same settings,
split and seed. Printed are root mean square errors on test frames, also of what was not trained on: Born effective
charges and dipole moments, which isolated systems have without any screening.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import ase.io
import numpy as np
import torch

from les_md.electrostatics.latent_inputs import les_inputs
from les_md.training.configuration import DataSection, ModelSection, TrainingConfiguration, TrainingSection
from les_md.training.dataset import Frame
from les_md.training.deviations import deviations_of
from les_md.training.energy_model import EnergyModel
from les_md.training.spice import born_effective_charges
from les_md.training.trainer import Trainer
from les_md.training.training_run import prepare

KINDS = {
    "charges": {},
    "dipoles": {"dipoles": True},
    "dipoles, quadrupoles": {"dipoles": True, "quadrupoles": True},
    "kappas, alphas": {"kappas": True, "alphas": True},
    "all": {"dipoles": True, "quadrupoles": True, "kappas": True, "alphas": True},
}
PARTS = {"train": 41, "validation": 12, "test": 12}


def write_parts(source: Path, folder: Path) -> list[ase.Atoms]:
    """Write the water clusters in three files; return the test frames with their labels."""
    frames = [atoms for atoms in ase.io.read(source, ":") if atoms.info["subset"] == "water"]
    order = np.random.default_rng(0).permutation(len(frames))
    if len(frames) != sum(PARTS.values()):
        raise SystemExit(f"{source} has {len(frames)} frames of water, expected {sum(PARTS.values())}")
    first = 0
    for part, count in PARTS.items():
        chosen = [frames[i] for i in order[first : first + count]]
        first += count
        ase.io.write(folder / f"{part}.xyz", chosen)
    return chosen


def response(model: EnergyModel, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Born effective charges [N, 3, 3] in e and dipole moment [3] in e Å of an isolated frame."""
    index, offsets = frame.neighbours(model.network.cutoff)
    positions = frame.positions.clone().requires_grad_(True)
    _, latent = model.network(positions[index[1]] - positions[index[0]] + offsets, index, frame.types)
    inputs = {name: value.double() for name, value in les_inputs(latent, model.network.latent).items()}
    result = model.long_range(positions, frame.cell, compute_bec=True, **inputs)
    charges = inputs["latent_charges"].sum(1)
    if result["induced_charges"] is not None:
        charges = charges + result["induced_charges"].sum(1)
    moment = ((charges - charges.mean())[:, None] * positions).sum(0)
    for dipoles in (inputs.get("latent_dipoles"), result["induced_dipoles"]):
        if dipoles is not None:
            moment = moment + dipoles.sum((0, 1))
    return result["BEC"].detach().numpy(), moment.detach().numpy()


def compare(model: EnergyModel, frames: list[Frame], labelled: list[ase.Atoms]) -> tuple[float, float]:
    """Root mean square errors of Born charges (e) and dipole moments (e Å per molecule of water)."""
    born, labels, moments = [], [], []
    for frame, atoms in zip(frames, labelled, strict=True):
        got, moment = response(model, frame)
        born.append(got)
        labels.append(born_effective_charges(atoms))
        moments.append((moment, atoms.calc.results["dipole"], len(atoms) / 3.0))
    got, want = np.concatenate(born), np.concatenate(labels)
    sign = np.sign((got * want).sum())  # that of all latent variables is arbitrary
    differences = np.array([(sign * got - want) / count for got, want, count in moments])
    return float(np.sqrt(np.mean((sign * np.concatenate(born) - want) ** 2))), float(np.sqrt(np.mean(differences**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    print("| latent variables | seed | energy, meV/atom | forces, meV/Å | Born charges, e | dipole, e Å | ms a step |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labelled = write_parts(arguments.data, folder)
        for kind in arguments.kinds:
            for seed in arguments.seeds:
                configuration = TrainingConfiguration(
                    output="out",
                    data=DataSection(("train.xyz",), ("validation.xyz",), ("test.xyz",)),
                    model=ModelSection(4.5, max_l=2, max_nu=3, **KINDS[kind]),
                    training=TrainingSection(arguments.epochs, batch_size=2),
                    seed=seed,
                )
                start = prepare(configuration, folder)
                frames = start.data.frames
                trainer = Trainer(start.model, frames["train"], frames["validation"], configuration.training, seed)
                while not trainer.finished:
                    trainer.run_epoch()
                model = trainer.average
                model.network.load_state_dict(trainer.best.weights)
                errors = deviations_of(model, frames["test"]).rmse()
                born, dipole = compare(model, frames["test"], labelled)
                step = 1e3 * trainer.seconds / trainer.step
                values = [kind, str(seed), f"{errors['energy']:.2f}", f"{errors['forces']:.1f}"]
                print(f"| {' | '.join([*values, f'{born:.3f}', f'{dipole:.3f}', f'{step:.0f}'])} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
