"""What training is made of: labels, gradients, guards of bonds."""

from __future__ import annotations

import copy
from dataclasses import replace
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
from les_md.training.bond_guard import BondGuard, edges_within, strain_bonds
from les_md.training.configuration import LossWeights
from les_md.training.dataset import Frame, read_frames, reference_energies
from les_md.training.deviations import batch_loss
from les_md.training.energy_model import EnergyModel
from les_md.training.networks import standardise_inputs

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


def test_standardised_inputs_have_unit_variance(frames):
    model = untrained(frames)
    seen = []
    model.network.energy_readout.hidden[0].register_forward_hook(lambda _m, _i, output: seen.append(output))
    model(frames[0], differentiable=False)
    # Weights of a linear layer of n inputs are below 1/√n: unit inputs give outputs of order one.
    assert 0.05 < float(seen[0].detach().std()) < 5.0


def test_gradient_of_the_loss_is_its_finite_difference(frames):
    model = untrained(frames).double()

    def loss(model: EnergyModel) -> torch.Tensor:
        return batch_loss(frames[:2], model.evaluate(frames[:2], differentiable=True), LossWeights(100.0, 1.0, 0.0))

    loss(model).backward()
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
            values.append(float(loss(shifted).detach()))
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
    stretched = strain_bonds(frames[0], guard, torch.Generator().manual_seed(0))
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


def test_guard_compresses_every_second_bond(frames):
    """Lengths of compressed and of stretched bonds, which forces count as missing, and none compressed by default."""
    guard = BondGuard(centre=1, ligand=0, fraction=1.0, compressed=(0.4, 0.85), least_push=6.0)
    shares = []
    for seed in range(10):
        strained = strain_bonds(frames[0], guard, torch.Generator().manual_seed(seed))
        shares.append(float(strained.compressed.double().mean()))
        edge_index, vectors = edges_within(strained.frame, guard.stretched[1] + 1e-6)
        ends = strained.ligand.tolist()
        for ligand, direction, compressed in zip(ends, strained.direction, strained.compressed, strict=True):
            bonds = vectors[(edge_index[1] == ligand) & (strained.frame.types[edge_index[0]] == guard.centre)]
            along = torch.linalg.cross(bonds, direction.expand_as(bonds)).norm(dim=1) < 1e-8
            (length,) = torch.linalg.norm(bonds[along], dim=1).tolist()
            low, high = guard.compressed if compressed else guard.stretched
            assert low <= length <= high
        force = torch.where(strained.compressed, guard.least_push, -guard.least_force).double()
        right = torch.zeros_like(frames[0].positions)
        right = right.index_add(0, strained.ligand, force[:, None] * strained.direction)
        mean = float((force**2).mean())
        assert float(strained.shortfall(right, guard.least_force)) == pytest.approx(0.0, abs=1e-20)
        assert float(strained.shortfall(-right, guard.least_force)) == pytest.approx(4.0 * mean)
        assert float(strained.shortfall(0.5 * right, guard.least_force)) == pytest.approx(0.25 * mean)
    assert 0.25 < np.mean(shares) < 0.75
    plain, generator = replace(guard, compressed=None), torch.Generator().manual_seed(0)
    assert not strain_bonds(frames[0], plain, generator).compressed.any()


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
