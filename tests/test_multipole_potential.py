"""The exported module with latent dipoles, quadrupoles, κ and α: forces, Born charges and an electric field in ASE."""

import ase
import numpy as np
import pytest
import torch

from les_md import LESCalculator, export, load
from les_md.architectures.direct_evaluation import DirectEvaluation
from les_md.check_structures import water_box
from les_md.cli import main
from les_md.electrostatics.latent_layout import LatentLayout
from les_md.multipole_potential import MultipolePotential
from tests.architectures import multipole_architecture
from tests.architectures.small_models import export_small_model
from tests.test_exporting import write_checkpoint

NAMES = ("multipoles", "responding")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: export_small_model(name, folder / f"{name}.pt") for name in NAMES}


def water(periodic: bool) -> ase.Atoms:
    """Four molecules, or the same as a cluster."""
    atoms = water_box()[:12]
    atoms.set_cell([6.4, 6.3, 6.5])
    atoms.rattle(0.05, seed=3)
    if not periodic:
        atoms.set_pbc(False)
    return atoms


def displaced(atoms: ase.Atoms, atom: int, axis: int, step: float):
    for sign in (-1.0, 1.0):
        moved = atoms.copy()
        moved.positions[atom, axis] += sign * step
        yield sign, moved


def polarisation(calculator: LESCalculator, atoms: ase.Atoms) -> np.ndarray:
    """Dipole moment, e Å, without a wrap of positions: of a periodic system, changes at fixed charges only."""
    calculator.calculate(atoms)
    configuration = (calculator.evaluator.types_of(atoms.numbers), atoms.positions, atoms.cell.array, atoms.pbc)
    output = calculator.evaluator.compute(*configuration)
    return calculator.evaluator.dipole_moment_of(output, atoms.positions)


@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
@pytest.mark.parametrize("name", NAMES)
def test_forces_and_stress_are_derivatives_of_the_energy(name, kspace, files):
    atoms = water(True)
    atoms.calc = LESCalculator(files[name], kspace=kspace)
    forces = atoms.get_forces()
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        energies = []
        for _sign, moved in displaced(atoms, atom, axis, 1e-4):
            moved.calc = atoms.calc
            energies.append(moved.get_potential_energy())
        assert -(energies[1] - energies[0]) / 2e-4 == pytest.approx(forces[atom, axis], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_multipoles_matter(name, files):
    """What the tests here and in all engines are about: dipoles, quadrupoles, κ and α each change the forces."""
    atoms, module = water(True), load(files[name]).module
    calculator = LESCalculator(files[name])
    calculator.calculate(atoms)
    whole = calculator.results["forces"]
    layout = load(files[name]).latent
    signs, at = module.column_signs, layout.num_charges
    for size, there in ((3, layout.dipoles), (6, layout.quadrupoles), (1, layout.kappas), (1, layout.alphas)):
        if there:
            without = LESCalculator(files[name])
            without.model.module.column_signs[at : at + size * layout.num_charges] = 0.0
            without.calculate(atoms)
            assert np.abs(without.results["forces"] - whole).max() > 1e-3
            at += size * layout.num_charges
    assert at == len(signs)


@pytest.mark.parametrize("name", NAMES)
def test_charge_sign(name, files):
    """Charges, dipoles and quadrupoles change their sign, κ and α do not: the energy stays."""
    layout = load(files[name]).latent
    model = multipole_architecture.load(
        multipole_architecture.checkpoint(layout), options=type("Options", (), {"dtype": torch.float64})
    )
    plus, minus = (
        MultipolePotential(model.network, model.reference_energies, model.long_range, layout, sign)
        for sign in (1.0, -1.0)
    )
    atoms = water(False)
    evaluator = LESCalculator(files[name]).evaluator
    inputs = evaluator._inputs(evaluator.types_of(atoms.numbers), atoms.positions, atoms.cell.array, atoms.pbc)
    one, other = (module(*inputs[:4], module.direct_plan(inputs[4])) for module in (plus, minus))
    torch.testing.assert_close(one["energies"], other["energies"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one["forces"], other["forces"], rtol=1e-12, atol=1e-12)
    for key in ("charges", "total_charges", "total_dipoles"):
        torch.testing.assert_close(one[key], -other[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_born_charges_of_an_isolated_system_are_derivatives_of_its_dipole(name, files):
    """Of the dipole in the results, with latent dipoles and all that is induced."""
    atoms, calculator = water(False), LESCalculator(files[name])
    tensors = calculator.get_born_effective_charges(atoms)
    for atom, axis in ((0, 0), (4, 1), (8, 2), (11, 0)):
        change = np.zeros(3)
        for sign, moved in displaced(atoms, atom, axis, 1e-4):
            calculator.calculate(moved)
            change += sign * calculator.results["dipole"] / 2e-4
        np.testing.assert_allclose(tensors[atom, :, axis], change, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_born_charges_of_a_periodic_system(name, files):
    """By automatic differentiation of the polarisation of charges with its phases, and of the sum of dipoles."""
    atoms, calculator = water(True), LESCalculator(files[name], kspace="ewald")
    tensors = calculator.get_born_effective_charges(atoms)
    cell, factor = atoms.cell.array, np.sqrt(1.7)

    def parts(moved):
        output = calculator.evaluator.compute(
            calculator.evaluator.types_of(moved.numbers), moved.positions, moved.cell.array, moved.pbc
        )
        charges = output["total_charges"].sum(1)
        charges = charges - charges.mean()
        phases = np.exp(2j * np.pi * moved.positions @ np.linalg.inv(cell))
        return (charges[:, None] * phases).sum(0) / (2j * np.pi), output["total_dipoles"].sum(0)

    phases = np.exp(2j * np.pi * atoms.positions @ np.linalg.inv(cell))
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        of_charges, of_dipoles = np.zeros(3, dtype=complex), np.zeros(3)
        for sign, moved in displaced(atoms, atom, axis, 1e-4):
            charges, dipoles = parts(moved)
            of_charges += sign * charges / 2e-4
            of_dipoles += sign * dipoles / 2e-4
        want = factor * ((of_charges * phases[atom].conj()).real @ cell + of_dipoles)
        np.testing.assert_allclose(tensors[atom, :, axis], want, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_field_of_an_isolated_system_has_an_energy(name, files):
    field = np.array([0.3, -0.5, 0.4])
    atoms, calculator = water(False), LESCalculator(files[name], electric_field=field)
    calculator.calculate(atoms)
    forces, strongly = calculator.results["forces"], calculator.results["field_energy"]
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        energies = []
        for _sign, moved in displaced(atoms, atom, axis, 1e-4):
            calculator.calculate(moved)
            energies.append(calculator.results["energy"])
        assert -(energies[1] - energies[0]) / 2e-4 == pytest.approx(forces[atom, axis], abs=1e-6)
    free = LESCalculator(files[name])
    free.calculate(atoms)
    linear = -free.results["dipole"] @ field
    calculator.calculate(atoms)
    quadratic = 0.5 * (calculator.results["dipole"] - free.results["dipole"]) @ field
    assert strongly == pytest.approx(linear - quadratic, rel=1e-10)
    assert (abs(quadratic) > 1e-4) == (name == "responding")


@pytest.mark.parametrize("name", NAMES)
def test_dipole_is_minus_the_derivative_of_the_energy_by_the_field(name, files):
    atoms, field = water(False), np.array([0.3, -0.5, 0.4])
    change = np.zeros(3)
    for axis in range(3):
        for sign in (-1.0, 1.0):
            calculator = LESCalculator(files[name], electric_field=field + sign * 1e-3 * np.eye(3)[axis])
            calculator.calculate(atoms)
            change[axis] -= sign * calculator.results["energy"] / 2e-3
    calculator = LESCalculator(files[name], electric_field=field)
    calculator.calculate(atoms)
    np.testing.assert_allclose(calculator.results["dipole"], change, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_field_of_a_periodic_system(name, files):
    """Z*ᵀ E, and for polarisabilities what is quadratic in the field; energy and stress do not contain it."""
    atoms, field = water(True), np.array([0.02, 0.0, -0.03])
    free, tensors = LESCalculator(files[name]), LESCalculator(files[name]).get_born_effective_charges(atoms)
    free.calculate(atoms)
    forces = []
    for sign in (1.0, -1.0):
        calculator = LESCalculator(files[name], electric_field=sign * field)
        calculator.calculate(atoms)
        assert calculator.results["energy"] == pytest.approx(free.results["energy"], rel=1e-13)
        np.testing.assert_allclose(calculator.results["stress"], free.results["stress"], rtol=0, atol=1e-13)
        forces.append(calculator.results["forces"] - free.results["forces"])
    linear, quadratic = 0.5 * (forces[0] - forces[1]), 0.5 * (forces[0] + forces[1])
    np.testing.assert_allclose(linear, np.einsum("a,iab->ib", field, tensors), rtol=0.0, atol=1e-11)
    # ½ ε E² ∂(Σ α)/∂r
    layout = load(files[name]).latent
    if not layout.alphas:
        assert np.abs(quadratic).max() < 1e-12
        return
    evaluator = free.evaluator
    for atom, axis in ((0, 0), (4, 1)):
        change = 0.0
        for sign, moved in displaced(atoms, atom, axis, 1e-4):
            inputs = evaluator._inputs(evaluator.types_of(moved.numbers), moved.positions, moved.cell.array, moved.pbc)
            change += sign * float(evaluator.model.module.evaluate(*inputs[:3])[1][:, -1].sum()) / 2e-4
        assert quadratic[atom, axis] == pytest.approx(0.5 * 1.7 * field @ field * change, abs=1e-9)


def test_sum_rule(files):
    atoms = water(True)
    calculator = LESCalculator(files["responding"], electric_field=[0.1, 0.2, 0.0], sum_rule=True)
    calculator.calculate(atoms)
    assert np.abs(calculator.results["forces"].sum(0)).max() < 1e-10


def test_wrong_number_of_columns():
    class Charges(torch.nn.Module):
        def forward(self, edge_vectors: torch.Tensor, edge_index: torch.Tensor, types: torch.Tensor):
            return torch.zeros(types.size(0)), torch.zeros(types.size(0), 1)

    model = multipole_architecture.load(
        multipole_architecture.checkpoint(LatentLayout(1, dipoles=True)),
        options=type("Options", (), {"dtype": torch.float64}),
    )
    potential = MultipolePotential(Charges(), model.reference_energies, model.long_range, model.latent)
    nothing = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(2, 0, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="returns 1 columns of latent variables, its layout has 4"):
        potential.evaluate(*nothing, torch.zeros(3, dtype=torch.int64))


def test_direct_evaluation_returns_charges_alone():
    layout = LatentLayout(2, dipoles=True, kappas=True)
    model = multipole_architecture.load(
        multipole_architecture.checkpoint(layout), options=type("Options", (), {"dtype": torch.float64})
    )
    assert isinstance(model.original, DirectEvaluation)
    assert model.original(water(True)).charges.shape == (12, 2)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """An exported CACE model with random weights and every kind of latent variable."""
    folder = tmp_path_factory.mktemp("native")
    kinds = {"dipoles": True, "quadrupoles": True, "kappas": True, "alphas": True}
    checkpoint = write_checkpoint(folder / "all.pth", charges=2, num_message_passing=1, **kinds)
    return export(checkpoint, folder / "all.pt", dtype="float64").path


def test_native_model(native, capsys):
    """From a checkpoint to forces; what the file says of itself."""
    atoms = water(True)
    atoms.calc = LESCalculator(native)
    forces = atoms.get_forces()
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        energies = []
        for _sign, moved in displaced(atoms, atom, axis, 1e-4):
            moved.calc = atoms.calc
            energies.append(moved.get_potential_energy())
        assert -(energies[1] - energies[0]) / 2e-4 == pytest.approx(forces[atom, axis], abs=1e-5)
    assert atoms.calc.results["charges"].shape == (12, 2)
    assert main(["info", str(native)]) == 0
    shown = capsys.readouterr().out
    assert "latent variables  charges, dipoles, quadrupoles, kappas and alphas" in shown
    assert "file format       5" in shown
