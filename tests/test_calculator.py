"""LESCalculator on real configurations: derivatives, boundaries, extensivity, errors."""

import ase
import ase.build
import numpy as np
import pytest
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

from les_md import LESCalculator, export
from les_md.check_structures import water_box
from tests.test_exporting import write_checkpoint

KINDS = ("water", "slab", "cluster", "one molecule in a small cell")


def configuration(kind):
    if kind == "water":
        return water_box()
    if kind == "slab":
        atoms = water_box()
        atoms.set_pbc([True, True, False])
        atoms.center(vacuum=4.0, axis=2)
        return atoms
    if kind == "cluster":
        atoms = water_box()
        atoms.set_pbc(False)
        return atoms
    atoms = ase.build.molecule("H2O")
    atoms.set_cell([[2.61, 0.0, 0.0], [0.3, 2.53, 0.0], [-0.2, 0.1, 2.77]])
    atoms.set_pbc(True)
    return atoms


@pytest.fixture(scope="module", params=[(1, 0), (2, 0), (1, 1)], ids=["1 channel", "2 channels", "2 layers"])
def model(request, tmp_path_factory):
    charges, layers = request.param
    folder = tmp_path_factory.mktemp("model")
    checkpoint = write_checkpoint(folder / "small.pth", charges=charges, num_message_passing=layers)
    return export(checkpoint, folder / "small.pt", dtype="float64").path


@pytest.mark.parametrize("kind", KINDS)
def test_forces_are_derivatives(model, kind):
    atoms = configuration(kind)
    atoms.calc = LESCalculator(model)
    chosen = [0, 1, len(atoms) - 1]
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=chosen)
    np.testing.assert_allclose(atoms.get_forces()[chosen], numerical, rtol=1e-6, atol=1e-5)
    assert np.abs(atoms.get_forces().sum(0)).max() < 1e-9


def test_electric_field(model):
    """A cluster has the energy −P·E, whose derivatives the forces are; anything periodic has the forces Z*ᵀ E alone."""
    field = np.array([0.2, -0.4, 0.3])
    atoms = configuration("cluster")
    plain, in_field = LESCalculator(model), LESCalculator(model, electric_field=field)
    dipole = plain.get_property("dipole", atoms)
    energy = in_field.get_potential_energy(atoms)
    assert energy - plain.get_potential_energy(atoms) == pytest.approx(-dipole @ field, rel=1e-7)
    results = in_field.results
    assert results["field_energy"] == pytest.approx(-dipole @ field, rel=1e-10)
    assert results["energies"].sum() == pytest.approx(energy, rel=1e-12)
    assert results["short_range_energy"] == pytest.approx(plain.results["short_range_energy"], rel=1e-12)
    atoms.calc = in_field
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 7])
    np.testing.assert_allclose(atoms.get_forces()[[0, 7]], numerical, rtol=1e-6, atol=1e-5)
    for kind in KINDS:
        atoms = configuration(kind)
        expected = plain.get_forces(atoms).copy()
        of_field = np.einsum("a,iab->ib", field, plain.get_born_effective_charges(atoms))
        np.testing.assert_allclose(in_field.get_forces(atoms), expected + of_field, rtol=0, atol=1e-9)
        if atoms.pbc.any():
            assert in_field.get_potential_energy(atoms) == pytest.approx(plain.get_potential_energy(atoms), rel=1e-13)
            balanced = LESCalculator(model, electric_field=field, sum_rule=True).get_forces(atoms)
            np.testing.assert_allclose(balanced, expected + of_field - of_field.mean(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["water", "one molecule in a small cell"])
def test_stress_is_the_derivative(model, kind):
    atoms = configuration(kind)
    atoms.calc = LESCalculator(model)
    numerical = calculate_numerical_stress(atoms, eps=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), numerical, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_energies_add_up(model, kind):
    atoms = configuration(kind)
    atoms.calc = LESCalculator(model)
    energy = atoms.get_potential_energy()
    results = atoms.calc.results
    assert results["free_energy"] == energy
    assert results["energies"].sum() == pytest.approx(energy, rel=1e-12)
    assert results["short_range_energy"] + results["long_range_energy"] == pytest.approx(energy, rel=1e-12)
    assert abs(results["long_range_energy"]) > 1e-6
    assert ("stress" in results) == bool(atoms.pbc.any())


def test_supercell(model):
    """A supercell has the same energy per atom where the truncation of the sum scales with it (dl = 2 Å)."""
    atoms = water_box()
    atoms.set_cell(atoms.cell.array * (6.0 / 6.17), scale_atoms=True)
    single, double = atoms.copy(), atoms.repeat((2, 1, 1))
    single.calc, double.calc = LESCalculator(model), LESCalculator(model)
    # The set of wave vectors of the doubled cell holds that of the single one, and nothing else has a structure factor.
    single.get_potential_energy(), double.get_potential_energy()
    long_range = single.calc.results["long_range_energy"]
    assert double.calc.results["long_range_energy"] == pytest.approx(2 * long_range, rel=1e-10)
    assert double.calc.results["short_range_energy"] == pytest.approx(
        2 * single.calc.results["short_range_energy"], rel=1e-12
    )
    np.testing.assert_allclose(
        double.calc.results["charges"][:24], single.calc.results["charges"], rtol=1e-9, atol=1e-12
    )


def test_wrapping_images_and_order_do_not_matter(model):
    atoms = water_box()
    generator = np.random.default_rng(0)
    moved = atoms.copy()
    moved.positions += generator.integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
    order = generator.permutation(len(atoms))
    moved = moved[order]
    calculator = LESCalculator(model)
    forces = LESCalculator(model).get_forces(atoms)
    assert calculator.get_potential_energy(moved) == pytest.approx(
        LESCalculator(model).get_potential_energy(atoms), rel=1e-12
    )
    np.testing.assert_allclose(calculator.get_forces(moved), forces[order], atol=1e-9)


def test_skin_does_not_matter(model):
    atoms = water_box()
    with_skin, without = LESCalculator(model, skin=1.0), LESCalculator(model, skin=0.0)
    generator = np.random.default_rng(0)
    for _ in range(5):
        atoms.positions += 0.02 * generator.normal(size=atoms.positions.shape)
        np.testing.assert_allclose(with_skin.get_forces(atoms), without.get_forces(atoms), atol=1e-10)
    assert with_skin.evaluator.neighbor_list.num_builds == 1
    assert without.evaluator.neighbor_list.num_builds == 5


def test_born_effective_charges_are_derivatives(model):
    """For a cluster, Z* is the derivative of Σ (q − q̄) r, by finite differences of the charges."""
    atoms = configuration("cluster")
    calculator = LESCalculator(model)
    z = calculator.get_born_effective_charges(atoms)
    assert z.shape == (len(atoms), 3, 3)
    for atom, axis in ((0, 0), (7, 1), (20, 2)):
        polarisation = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * 1e-4
            calculator.calculate(moved)
            charges = calculator.results["charges"].reshape(len(atoms), -1).sum(1)
            polarisation.append((charges - charges.mean()) @ moved.positions)
        np.testing.assert_allclose(z[atom, :, axis], (polarisation[1] - polarisation[0]) / 2e-4, rtol=1e-5, atol=1e-6)


def test_nothing_of_an_earlier_structure_stays(model):
    """Also where ``calculate`` is called directly, which does not go through ASE's reset."""
    calculator = LESCalculator(model)
    first, second = configuration("water"), configuration("cluster")
    first.set_cell(first.cell * 1.01)
    calculator.calculate(first, ["energy", "born_effective_charges"])
    calculator.calculate(second, ["energy"])
    assert "stress" not in calculator.results
    born = calculator.get_born_effective_charges(second)
    np.testing.assert_array_equal(born, LESCalculator(model).get_born_effective_charges(second))


def test_isolated_atom_and_empty_neighbourhood(model):
    calculator = LESCalculator(model)
    atoms = ase.Atoms("OH", [[0, 0, 0], [0, 0, 30.0]])
    assert np.isfinite(calculator.get_potential_energy(atoms))
    # 30 Å apart the network sees nothing, the charges still act on each other.
    assert np.abs(calculator.results["forces"][0, 2]) > 0.0
    single = ase.Atoms("O", [[0, 0, 0]])
    assert np.abs(LESCalculator(model).get_forces(single)).max() == 0.0


class TestWrongInput:
    def test_unknown_element(self, model):
        with pytest.raises(ValueError, match="knows the elements H O, not Na, Cl"):
            LESCalculator(model).get_potential_energy(ase.build.bulk("NaCl", "rocksalt", 5.6))

    def test_nan(self, model):
        atoms = water_box()
        atoms.positions[3, 1] = np.nan
        with pytest.raises(ValueError, match=r"positions of atoms \[3\] are not finite"):
            LESCalculator(model).get_potential_energy(atoms)

    def test_atoms_on_top_of_each_other(self, model):
        atoms = water_box()
        atoms.positions[3] = atoms.positions[0]
        with pytest.raises(ValueError, match="not finite: check the positions"):
            LESCalculator(model).get_potential_energy(atoms)

    def test_slab_without_a_third_cell_vector(self, model):
        atoms = ase.Atoms("OH", [[0, 0, 0], [0, 0, 1]], cell=[5, 5, 0], pbc=[True, True, False])
        with pytest.raises(ValueError, match="needs three cell vectors"):
            LESCalculator(model).get_potential_energy(atoms)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kspace": "pppm"}, "^unknown kspace 'pppm': give auto, ewald or mesh"),
            (
                {"kspace": "mesh", "accuracy": 1e-15},
                "^this accuracy is out of reach of the mesh: give a relative force",
            ),
            ({"accuracy": 3.0}, r"to 0\.1, or use kspace ewald"),
        ],
    )
    def test_solver_options(self, model, options, message):
        with pytest.raises(ValueError, match=message):
            LESCalculator(model, **options)

    def test_slab_of_a_short_range_model(self, tmp_path):
        checkpoint = write_checkpoint(tmp_path / "short.pth", charges=0)
        path = export(checkpoint, tmp_path / "short.pt", short_range=True).path
        with pytest.raises(ValueError, match=r"short\.pt is a short-range model: a slab correction does not apply"):
            LESCalculator(path, slab=True)

    def test_slab_of_other_boundaries(self, model):
        atoms = ase.Atoms("O", cell=[8, 8, 8], pbc=True, calculator=LESCalculator(model, slab=True))
        with pytest.raises(ValueError, match=r"slab=True needs pbc=\(True, True, False\), these atoms have"):
            atoms.get_potential_energy()


def test_plan_follows_an_isolated_system(model):
    """The mesh of an isolated system is made anew when an atom leaves it, and energies stay those of all pairs."""
    atoms = ase.Atoms("OHHO", [[0, 0, 0], [0.9, 0, 0], [0, 0.95, 0], [3.0, 0, 0]])
    by_mesh = LESCalculator(model, kspace="mesh")
    directly = LESCalculator(model, kspace="ewald")
    energies = []
    for distance in (3.0, 4.0, 30.0, 3.0):
        atoms.positions[3, 0] = distance
        energies.append([calculator.get_potential_energy(atoms) for calculator in (by_mesh, directly)])
    energies = np.array(energies)
    np.testing.assert_allclose(energies[:, 0], energies[:, 1], rtol=0, atol=1e-5)
    assert np.ptp(energies[:, 1]) > 1e-3
