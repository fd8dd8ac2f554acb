"""Training: labels, gradients, and the bundled water models."""

from __future__ import annotations

import copy
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

import les_md
from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.electrostatics import LongRangeParameters
from les_md.training.bond_guard import BondGuard, edges_within, stretch_bonds
from les_md.training.dataset import Frame, read_frames, reference_energies
from les_md.training.fit import EnergyModel, Schedule, errors, fit, loss, standardise_inputs
from les_md.training.water import CONFIGURATION as WATER
from les_md.training.water import GUARD, GUARDED_SCHEDULE, SCHEDULE

MODELS = Path(les_md.__file__).parent / "models"

CONFIGURATION = CACEConfiguration(
    (1, 8), 4.0, 2, num_bessel=5, num_radial=4, max_l=2, max_nu=3, hidden=(8,), repulsion=True
)
LONG_RANGE = LongRangeParameters()


def molecules(seed: int) -> ase.Atoms:
    """Four distorted molecules in a cell without symmetry, with forces of springs and of opposite charges."""
    generator = np.random.default_rng(seed)
    cell = np.array([[6.5, 0.0, 0.0], [0.4, 6.2, 0.0], [-0.3, 0.5, 6.0]])
    corners = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]) * 0.5
    water = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    positions, forces, energy = [], [], 0.0
    for corner in corners:
        rotation = np.linalg.qr(generator.normal(size=(3, 3)))[0]
        molecule = water @ rotation + generator.normal(scale=0.05, size=(3, 3))
        force = np.zeros((3, 3))
        for i, j, length in ((0, 1, 0.96), (0, 2, 0.96), (1, 2, 1.52)):
            bond = molecule[j] - molecule[i]
            stretch = np.linalg.norm(bond) - length
            energy += 5.0 * stretch**2
            force[i] += 10.0 * stretch * bond / np.linalg.norm(bond)
            force[j] -= 10.0 * stretch * bond / np.linalg.norm(bond)
        positions.append(molecule + corner @ cell)
        forces.append(force)
    atoms = ase.Atoms("OHH" * 4, np.concatenate(positions), cell=cell, pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=energy - 470.0 * 4, forces=np.concatenate(forces))
    return atoms


@pytest.fixture
def frames(tmp_path):
    path = tmp_path / "data.xyz"
    ase.io.write(path, [molecules(seed) for seed in range(3)])
    return read_frames(path, (1, 8))


def untrained(frames, seed: int = 0) -> EnergyModel:
    torch.manual_seed(seed)
    network = CACENetwork(CONFIGURATION).float()
    standardise_inputs(network, frames)
    return EnergyModel(network, reference_energies(frames, 2), LONG_RANGE)


def test_training_reduces_the_error(frames):
    lines = []
    schedule = Schedule(epochs=60, warmup_steps=10, average=0.9, validate_every=15, seed=3)
    result = fit(CONFIGURATION, LONG_RANGE, frames, frames, schedule, report=lines.append)
    assert [line["epoch"] for line in lines] == [15, 30, 45, 60]
    assert lines[-1]["validation_forces"] < 0.3 * errors(untrained(frames), frames).forces
    # The network handed back is the best one of the history.
    best = min(line["validation_forces"] for line in lines)
    assert errors(EnergyModel(result.network, result.reference_energies, LONG_RANGE), frames).forces == pytest.approx(
        best, rel=1e-6
    )


def test_training_is_reproducible(frames):
    schedule = Schedule(epochs=2, validate_every=1)
    first, second = (fit(CONFIGURATION, LONG_RANGE, frames, frames, schedule).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_message_passing_networks_train_too(frames):
    configuration = CACEConfiguration(**(CONFIGURATION.to_dict() | {"num_message_passing": 1, "max_nu": 2}))
    fit(configuration, LONG_RANGE, frames[:1], frames[:1], Schedule(epochs=2))


def test_charges_and_long_range_parameters_belong_together(frames):
    configuration = CACEConfiguration(**(CONFIGURATION.to_dict() | {"num_charges": 0}))
    result = fit(configuration, None, frames, frames, Schedule(epochs=1))
    assert result.network.num_charges == 0
    with pytest.raises(ValueError, match="if and only if"):
        fit(configuration, LONG_RANGE, frames, frames, Schedule(epochs=1))


def test_frames_are_needed(frames):
    with pytest.raises(ValueError, match="at least one training frame and one validation frame"):
        fit(CONFIGURATION, LONG_RANGE, frames, [], Schedule(epochs=1))


def test_divergence_stops_the_training(frames):
    schedule = Schedule(epochs=50, learning_rate=1e30, warmup_steps=1)
    with pytest.raises(FloatingPointError, match="loss is not finite in epoch"):
        fit(CONFIGURATION, LONG_RANGE, frames, frames, schedule)


def test_standardised_inputs_have_unit_variance(frames):
    model = untrained(frames)
    seen = []
    model.network.energy_readout.hidden[0].register_forward_hook(lambda _m, _i, output: seen.append(output))
    model(frames[0], differentiable=False)
    # Weights of a linear layer of n inputs are below 1/√n: unit inputs give outputs of order one.
    assert 0.05 < float(seen[0].detach().std()) < 5.0


def test_gradient_of_the_loss_is_its_finite_difference(frames):
    model = untrained(frames).double()
    loss(model, frames[0], 100.0)[0].backward()
    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        values = []
        for sign in (1.0, -1.0):
            shifted = copy.deepcopy(model)
            with torch.no_grad():
                shifted.get_parameter(name).add_(sign * step * direction)
            values.append(float(loss(shifted, frames[0], 100.0)[0].detach()))
        numeric = (values[0] - values[1]) / (2.0 * step)
        assert float((parameter.grad * direction).sum()) == pytest.approx(numeric, rel=1e-5, abs=1e-7), name


def test_forces_are_the_derivative_of_the_energy(frames):
    model = untrained(frames).double()
    frame = frames[0]
    _, forces = model(frame, differentiable=False)
    direction = torch.randn(frame.positions.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def energy(displacement: float) -> float:
        moved = Frame(frame.types, frame.positions + displacement * direction, frame.cell, frame.energy, frame.forces)
        return float(model(moved, differentiable=False)[0].detach())

    slope = (energy(1e-5) - energy(-1e-5)) / 2e-5
    assert float((forces * direction).sum()) == pytest.approx(-slope, rel=1e-6)


def test_guard_stretches_bonds_along_themselves(frames):
    guard = BondGuard(centre=1, ligand=0, fraction=0.6, every=1)
    stretched = stretch_bonds(frames[0], guard, torch.Generator().manual_seed(0))
    assert len(stretched.ligand) > 0
    moved = (stretched.frame.positions - frames[0].positions).abs().sum(1) > 0
    assert set(stretched.ligand.tolist()) <= set(moved.nonzero()[:, 0].tolist())
    edge_index, vectors = edges_within(stretched.frame, guard.stretched[1] + 1e-6)
    for ligand, direction in zip(stretched.ligand, stretched.direction, strict=True):
        bonds = vectors[(edge_index[1] == ligand) & (stretched.frame.types[edge_index[0]] == guard.centre)]
        along = torch.linalg.cross(bonds, direction.expand_as(bonds)).norm(dim=1) < 1e-8
        assert (along & (torch.linalg.norm(bonds, dim=1) > guard.stretched[0])).any()
    pull = torch.zeros_like(frames[0].positions)
    pull = pull.index_add(0, stretched.ligand, -guard.least_force * stretched.direction)
    assert float(stretched.shortfall(pull, guard.least_force)) == pytest.approx(0.0, abs=1e-20)
    assert float(stretched.shortfall(-pull, guard.least_force)) == pytest.approx(4.0 * guard.least_force**2)


def test_guarded_training_makes_bonds_pull_back(frames):
    guard = BondGuard(centre=1, ligand=0, fraction=1.0, every=1, weight=1.0)
    short = Schedule(epochs=20, warmup_steps=5, average=0.9, validate_every=20)
    start = fit(CONFIGURATION, LONG_RANGE, frames, frames, short)
    guarded = fit(CONFIGURATION, LONG_RANGE, frames, frames, short, guard=guard, initial=start.network)

    def shortfall(network: CACENetwork) -> float:
        model = EnergyModel(network, start.reference_energies, LONG_RANGE)
        stretched = stretch_bonds(frames[0], guard, torch.Generator().manual_seed(9))
        return float(stretched.shortfall(model(stretched.frame, differentiable=False)[1], guard.least_force))

    assert shortfall(guarded.network) < 0.5 * shortfall(start.network)


@pytest.mark.parametrize("missing", ["energy", "forces"])
def test_missing_label(tmp_path, missing):
    atoms = molecules(0)
    labels = {name: value for name, value in atoms.calc.results.items() if name != missing}
    atoms.calc = SinglePointCalculator(atoms, **labels)
    ase.io.write(tmp_path / "data.xyz", atoms)
    with pytest.raises(ValueError, match=f"frame 0: no label '{missing}'"):
        read_frames(tmp_path / "data.xyz", (1, 8))


@pytest.mark.parametrize("label", ["energy", "forces"])
def test_label_that_is_not_a_number(tmp_path, label):
    atoms = molecules(0)
    atoms.calc.results[label] = atoms.calc.results[label] * float("nan")
    ase.io.write(tmp_path / "data.xyz", [molecules(1), atoms])
    with pytest.raises(ValueError, match=f"frame 1: label '{label}' holds a value that is not a finite number"):
        read_frames(tmp_path / "data.xyz", (1, 8))


def test_unknown_element_partial_periodicity_and_missing_file(tmp_path):
    path = tmp_path / "data.xyz"
    ase.io.write(path, molecules(0))
    with pytest.raises(ValueError, match=r"frame 0: element O is not among the model's elements \(H\)"):
        read_frames(path, (1,))
    atoms = molecules(0)
    atoms.pbc = (True, True, False)
    ase.io.write(path, atoms)
    with pytest.raises(ValueError, match="periodic along some directions only"):
        read_frames(path, (1, 8))
    with pytest.raises(FileNotFoundError, match="no such data file"):
        read_frames(tmp_path / "absent.xyz", (1, 8))


@pytest.mark.parametrize("name", ["water_rpbe_d3", "water_rpbe_d3_short_range"])
def test_bundled_checkpoint(name):
    assert (MODELS / f"{name}.pth").stat().st_size <= 1_000_000
    checkpoint = torch.load(MODELS / f"{name}.pth", weights_only=True)
    assert (checkpoint["long_range"] is None) == name.endswith("short_range")
    split = [index for part in checkpoint["training"]["split"].values() for index in part]
    assert sorted(split) == list(range(40))
    # What can be made anew from the script is what the script makes.
    assert checkpoint["training"]["schedule"] == SCHEDULE.to_dict()
    assert checkpoint["training"]["guarded_schedule"] == GUARDED_SCHEDULE.to_dict()
    assert checkpoint["training"]["guard"] == {**GUARD.to_dict(), "stretched": GUARD.stretched}
    assert checkpoint["configuration"] | {"num_charges": 1} == WATER.to_dict()


@pytest.mark.parametrize("name", ["water_rpbe_d3", "water_rpbe_d3_short_range"])
def test_bundled_model_on_frames_it_never_saw(shared, name):
    """The errors that the card states, measured again; the model's own is at most 45 meV/Å on the test frames."""
    checkpoint = torch.load(MODELS / f"{name}.pth", weights_only=True)
    network = CACENetwork(CACEConfiguration(**checkpoint["configuration"])).float()
    network.load_state_dict(checkpoint["state_dict"])
    stored = checkpoint["long_range"]
    model = EnergyModel(
        network, checkpoint["reference_energies"], None if stored is None else LongRangeParameters(**stored)
    )
    frames = read_frames(shared / "data" / "water_rpbe_d3.xyz", (1, 8))
    card = (MODELS / "water_rpbe_d3.md").read_text(encoding="utf-8")
    columns = (3, 5) if stored is None else (2, 4)
    for part in ("validation", "test"):
        measured = errors(model, [frames[i] for i in checkpoint["training"]["split"][part]])
        assert measured.forces == pytest.approx(checkpoint["training"]["errors"][part]["forces"], abs=0.01)
        row = next(line for line in card.splitlines() if line.startswith(f"| {part}")).split("|")
        assert row[columns[0]].strip() == f"{measured.forces:.1f}"
        assert row[columns[1]].strip() == f"{measured.energy:.2f}"
        if name == "water_rpbe_d3":
            assert measured.forces <= 45.0
