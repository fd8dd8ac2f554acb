"""Energy and forces of LESForce against LESCalculator and against finite differences, in all kinds of Systems."""

from __future__ import annotations

import logging
from pathlib import Path

import ase
import numpy as np
import openmm
import pytest

from les_md import LESCalculator, load
from les_md.check_structures import water_box
from les_md.evaluator import PotentialEvaluator
from les_md.openmm import LESForce
from tests.openmm.conftest import (
    KJ_PER_MOL,
    NANOMETER,
    assert_same,
    cluster,
    cubic_water,
    evaluate,
    loaded,
    make_context,
    make_system,
    reference,
    small_cell,
    tilted_water,
    topology_of,
)

CONFIGURATIONS = {
    "cubic": cubic_water,
    "triclinic": water_box,
    "strongly triclinic": tilted_water,
    "box below the cutoff": small_cell,
    "one atom and its images": lambda: ase.Atoms("O", [[0.3, 0.2, 0.1]], cell=[2.2, 2.3, 2.4], pbc=True),
    "cluster": cluster,
    "isolated atom": lambda: ase.Atoms("O", [[2.0, 1.0, -3.0]]),
    "far apart": lambda: ase.Atoms("OH", [[0.0, 0.0, 0.0], [0.0, 40.0, 0.0]]),
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
@pytest.mark.parametrize("model", ["one channel", "two channels", "two layers", "short range"])
def test_equals_the_calculator(model, kind, models, les_force):
    """1e-9 relative in double precision."""
    atoms = CONFIGURATIONS[kind]()
    context = make_context(make_system(atoms, les_force(models[model], atoms)), atoms)
    assert_same(evaluate(context), reference(models[model], atoms))


@pytest.mark.parametrize("make", [water_box, cluster])
def test_cpu_platform(make, models, les_force):
    """The CPU platform hands over positions in double precision as well."""
    atoms = make()
    context = make_context(make_system(atoms, les_force(models["one channel"], atoms)), atoms, platform="CPU")
    assert_same(evaluate(context), reference(models["one channel"], atoms))


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_single_precision_model(platform, models, les_force):
    """1e-5 of the forces and of the energy of interaction, beside reference energies of −2041.8 eV an oxygen."""
    atoms = water_box()
    context = make_context(make_system(atoms, les_force(models["float32"], atoms)), atoms, platform=platform)
    energy, forces = evaluate(context)
    expected, expected_forces = reference(models["float32"], atoms)
    of_elements = KJ_PER_MOL * (16 * -13.6 + 8 * -2041.8)
    assert_same((energy - of_elements, forces), (expected - of_elements, expected_forces), tolerance=1e-5)


@pytest.mark.parametrize("make", [water_box, small_cell, cluster])
def test_forces_are_derivatives(make, models, les_force):
    """Central differences of the Context's own energy."""
    atoms = make()
    context = make_context(make_system(atoms, les_force(models["two layers"], atoms)), atoms)
    forces = evaluate(context)[1]
    step = 1e-5  # nm
    for atom, axis in ((0, 0), (1, 2), (len(atoms) - 1, 1)):
        energies = []
        for sign in (1, -1):
            positions = atoms.positions / NANOMETER
            positions[atom, axis] += sign * step
            context.setPositions(positions)
            energies.append(evaluate(context)[0])
        assert forces[atom, axis] == pytest.approx((energies[1] - energies[0]) / (2 * step), rel=1e-5, abs=1e-2)


@pytest.mark.parametrize("make", [cubic_water, water_box, tilted_water, small_cell])
def test_energy_follows_the_box(make, models, les_force):
    """Strain of box and positions changes the energy by LESCalculator's stress times the volume."""
    atoms = make()
    atoms.calc = LESCalculator(models["one channel"])
    stress = KJ_PER_MOL * atoms.get_stress(voigt=False) * atoms.get_volume()
    context = make_context(make_system(atoms, les_force(models["one channel"], atoms)), atoms)
    step = 1e-6
    # In OpenMM's reduced form the first vector is along x, the second in the xy plane.
    for row, column in ((0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1)):
        energies = []
        for sign in (1, -1):
            deformation = np.eye(3)
            deformation[row, column] += sign * step
            context.setPeriodicBoxVectors(*(atoms.cell.array @ deformation / NANOMETER))
            context.setPositions(atoms.positions @ deformation / NANOMETER)
            energies.append(evaluate(context)[0])
        derivative = (energies[0] - energies[1]) / (2 * step)
        assert derivative == pytest.approx(stress[row, column], rel=1e-5, abs=1e-6 * np.abs(stress).max())


def test_truncated_octahedron(models, backend):
    """Lengths and angles through a Topology, as files of crystals and solvated proteins give them."""
    atoms = cubic_water()
    angle = np.arccos(-1 / 3)
    box = openmm.app.internal.unitcell.computePeriodicBoxVectors(0.75, 0.75, 0.75, np.pi - angle, angle, np.pi - angle)
    topology = topology_of(atoms)
    topology.setPeriodicBoxVectors(box)
    atoms.set_cell(NANOMETER * np.array([vector.value_in_unit(openmm.unit.nanometer) for vector in box]))
    force = LESForce(models["one channel"], topology, backend=backend)
    assert_same(evaluate(make_context(make_system(atoms, force), atoms)), reference(models["one channel"], atoms))


@pytest.mark.parametrize("make", [water_box, tilted_water, small_cell])
def test_wrapping_does_not_matter(make, models, les_force):
    """Whole molecules, and single atoms, moved by box vectors."""
    atoms = make()
    context = make_context(make_system(atoms, les_force(models["two layers"], atoms)), atoms)
    expected = evaluate(context)
    generator = np.random.default_rng(1)
    of_molecules = generator.integers(-3, 4, (len(atoms) // 3, 3)).repeat(3, axis=0)
    of_atoms = generator.integers(-3, 4, (len(atoms), 3))
    for shifts in (of_molecules, of_atoms):
        context.setPositions((atoms.positions + shifts @ atoms.cell.array) / NANOMETER)
        assert_same(evaluate(context), expected, tolerance=1e-11)


@pytest.mark.parametrize("make", [water_box, cluster])
@pytest.mark.parametrize(
    "options",
    [{"kspace": "ewald"}, {"kspace": "mesh"}, {"kspace": "mesh", "accuracy": 1e-2}, {"kspace": "auto"}],
    ids=["ewald", "mesh", "coarse mesh", "auto"],
)
def test_solvers(options, make, models, les_force):
    """Each is the calculator's, whatever its own accuracy."""
    atoms = make()
    context = make_context(make_system(atoms, les_force(models["one channel"], atoms, **options)), atoms)
    assert_same(evaluate(context), reference(models["one channel"], atoms, **options))


def test_options_of_the_solver_arrive(models, les_force):
    """A mesh differs from the direct sum by less than the accuracy asked for, and not by nothing."""
    atoms = water_box()

    def forces_of(**options):
        return evaluate(make_context(make_system(atoms, les_force(models["one channel"], atoms, **options)), atoms))[1]

    direct = forces_of(kspace="ewald")
    errors = [
        np.sqrt(((forces_of(kspace="mesh", accuracy=accuracy) - direct) ** 2).mean()) / np.sqrt((direct**2).mean())
        for accuracy in (1e-2, 1e-5)
    ]
    assert 0.0 < errors[1] < 0.1 * errors[0] < 1e-3


def test_fixed_wave_vectors(models, les_force):
    """``kset="fixed"`` keeps those of the box at the beginning; by default they follow the box."""
    atoms = cubic_water()
    atoms.set_cell(6.01 * np.eye(3), scale_atoms=True)  # three times dl = 2 Å: one plane less below 6 Å
    smaller = atoms.copy()
    smaller.set_cell([5.99, 6.01, 6.01], scale_atoms=True)
    expected = {
        name: PotentialEvaluator(loaded(models["one channel"]), kset_cell=cell)
        for name, cell in (("follow", None), ("fixed", atoms.cell.array))
    }
    energies = {}
    for name, evaluator in expected.items():
        force = les_force(models["one channel"], atoms, kset=name, system=make_system(atoms))
        context = make_context(make_system(atoms, force), smaller)
        context.setPeriodicBoxVectors(*(smaller.cell.array / NANOMETER))
        output = evaluator.compute(
            evaluator.types_of(smaller.numbers), smaller.positions, smaller.cell.array, smaller.pbc
        )
        energies[name] = KJ_PER_MOL * output["energy"]
        assert_same(evaluate(context), (energies[name], KJ_PER_MOL * NANOMETER * output["forces"]))
    assert abs(energies["fixed"] - energies["follow"]) > 1e-3


class TestSubsets:
    @pytest.mark.parametrize("make", [water_box, cluster])
    @pytest.mark.parametrize("chosen", [range(6, 12), (14, 3, 12, 4, 13, 5)], ids=["in order", "unordered"])
    @pytest.mark.parametrize("checked", [False, True], ids=["", "with the System"])
    def test_equals_the_subset_alone(self, checked, chosen, make, models, les_force):
        """The model sees these atoms alone in the same box, and the others feel nothing."""
        atoms = make()
        chosen = list(chosen)
        system = make_system(atoms) if checked else None  # (OpenMM then hands over these positions alone)
        force = les_force(models["two layers"], atoms, atoms=chosen, system=system)
        energy, forces = evaluate(make_context(make_system(atoms, force), atoms))
        assert_same((energy, forces[chosen]), reference(models["two layers"], atoms[chosen]))
        others = np.setdiff1d(np.arange(len(atoms)), chosen)
        assert not forces[others].any()

    @pytest.mark.parametrize("chosen", [lambda: iter([4, 3]), lambda: np.array([4, 3]), lambda: {3, 4}])
    def test_any_iterable(self, chosen, models, les_force):
        atoms = water_box()
        force = les_force(models["one channel"], atoms, atoms=chosen())
        energy, _ = evaluate(make_context(make_system(atoms, force), atoms))
        assert energy == pytest.approx(reference(models["one channel"], atoms[[3, 4]])[0], rel=1e-11)

    def test_all_atoms_named(self, models, les_force):
        atoms = water_box()
        force = les_force(models["one channel"], atoms, atoms=range(len(atoms)))
        assert_same(evaluate(make_context(make_system(atoms, force), atoms)), reference(models["one channel"], atoms))

    def test_others_need_not_be_known_to_the_model(self, models, les_force):
        """Elements beyond the model's, and particles without an element."""
        atoms = water_box()
        mixed = atoms + ase.Atoms("NaCl", [[1.0, 1.0, 1.0], [4.0, 4.0, 4.0]])
        force = les_force(models["one channel"], mixed, atoms=range(24))
        energy, forces = evaluate(make_context(make_system(mixed, force), mixed))
        assert_same((energy, forces[:24]), reference(models["one channel"], atoms))
        assert not forces[24:].any()

    def test_several_forces_add_up(self, models, les_force):
        """Two models on two overlapping subsets of one System."""
        atoms = water_box()
        parts = {"one channel": [*range(12), 20], "two layers": list(range(9, 24))}
        system = make_system(atoms, *(les_force(models[name], atoms, atoms=part) for name, part in parts.items()))
        energy, forces = 0.0, np.zeros((len(atoms), 3))
        for name, part in parts.items():
            of_part = reference(models[name], atoms[part])
            energy += of_part[0]
            forces[part] += of_part[1]
        assert_same(evaluate(make_context(system, atoms)), (energy, forces))

    def test_the_same_model_twice(self, models, les_force):
        """Two forces from one loaded model do not disturb each other."""
        atoms = water_box()
        parts = [list(range(12)), list(range(12, 24))]
        system = make_system(atoms, *(les_force(models["one channel"], atoms, atoms=part) for part in parts))
        expected = [reference(models["one channel"], atoms[part]) for part in parts]
        forces = np.concatenate([forces for _, forces in expected])
        assert_same(evaluate(make_context(system, atoms)), (sum(energy for energy, _ in expected), forces))


class TestForceGroups:
    def test_energy_of_a_group(self, models, les_force):
        atoms = water_box()
        bonds = openmm.HarmonicBondForce()
        bonds.addBond(0, 1, 0.09, 1e5)
        bonds.setForceGroup(1)
        context = make_context(make_system(atoms, bonds, les_force(models["one channel"], atoms, force_group=5)), atoms)
        alone, of_bonds, both = (evaluate(context, groups=groups) for groups in ({5}, {1}, {1, 5}))
        assert_same(alone, reference(models["one channel"], atoms))
        assert of_bonds[0] > 1.0
        assert_same(both, (alone[0] + of_bonds[0], alone[1] + of_bonds[1]), tolerance=1e-12)
        assert evaluate(context, groups={0})[0] == 0.0
        assert_same(evaluate(context), both, tolerance=1e-12)

    def test_is_kept(self, models, les_force):
        assert les_force(models["one channel"], water_box()).getForceGroup() == 0
        assert les_force(models["one channel"], water_box(), force_group=31).getForceGroup() == 31


class TestConstruction:
    """Ways to say the same, and what the force says of itself."""

    @pytest.mark.parametrize("give", [str, Path, load], ids=["name", "Path", "loaded"])
    def test_model(self, give, models, backend):
        atoms = water_box()
        force = LESForce(give(models["one channel"]), atoms.numbers, periodic=True, backend=backend)
        assert_same(evaluate(make_context(make_system(atoms, force), atoms)), reference(models["one channel"], atoms))

    @pytest.mark.parametrize("make", [water_box, cluster])
    def test_topology_tells_the_boundaries(self, make, models, backend):
        atoms = make()
        force = LESForce(models["one channel"], topology_of(atoms), backend=backend)
        assert force.usesPeriodicBoundaryConditions() == bool(atoms.pbc.all())
        assert_same(evaluate(make_context(make_system(atoms, force), atoms)), reference(models["one channel"], atoms))

    def test_box_of_the_topology_can_be_ignored(self, models, backend):
        atoms = water_box()
        force = LESForce(models["one channel"], topology_of(atoms), periodic=False, backend=backend)
        assert not force.usesPeriodicBoundaryConditions()
        assert_same(
            evaluate(make_context(make_system(atoms, force), atoms)), reference(models["one channel"], cluster())
        )

    def test_the_context_has_the_box(self, models, backend):
        """Not the topology."""
        atoms = water_box()
        larger = atoms.copy()
        larger.set_cell(atoms.cell.array * 1.2)
        force = LESForce(models["one channel"], topology_of(atoms), backend=backend)
        context = make_context(make_system(larger, force), atoms)
        assert_same(evaluate(context), reference(models["one channel"], larger))

    def test_system_is_checked_and_left_as_it_is(self, models, les_force):
        atoms = water_box()
        system = make_system(atoms)
        force = les_force(models["one channel"], atoms, system=system)
        assert system.getNumForces() == 0
        system.addForce(force)
        assert_same(evaluate(make_context(system, atoms)), reference(models["one channel"], atoms))

    def test_it_is_a_force(self, models, les_force):
        force = les_force(models["one channel"], water_box())
        assert isinstance(force, LESForce)
        assert isinstance(force, openmm.Force)
        assert force.getName() == "LESForce"
        assert force.usesPeriodicBoundaryConditions()

    def test_backend_and_reason(self, backend, models, les_force, caplog):
        """By ``describe_backend`` and one line of the log."""
        with caplog.at_level(logging.INFO, logger="les_md.openmm"):
            force = les_force(models["one channel"], water_box())
        lines = [record for record in caplog.records if record.name == "les_md.openmm"]
        assert [line.levelno for line in lines] == [logging.INFO]
        assert lines[0].getMessage() == force.describe_backend()
        name = {"python": "PythonForce", "torchforce": "TorchForce"}[backend]
        assert name in force.describe_backend()
        assert "one_channel.pt" in force.describe_backend()
        assert "asked for" in force.describe_backend()

    def test_automatic_backend_says_why(self, models, caplog):
        with caplog.at_level(logging.INFO, logger="les_md.openmm"):
            force = LESForce(models["one channel"], water_box().numbers, periodic=True)
        assert any(name in force.describe_backend() for name in ("PythonForce", "TorchForce"))
        assert "asked for" not in force.describe_backend()
        assert [record.getMessage() for record in caplog.records] == [force.describe_backend()]
        atoms = water_box()
        assert_same(evaluate(make_context(make_system(atoms, force), atoms)), reference(models["one channel"], atoms))

    def test_nothing_is_printed(self, models, les_force, capfd):
        atoms = water_box()
        evaluate(make_context(make_system(atoms, les_force(models["one channel"], atoms)), atoms))
        assert capfd.readouterr() == ("", "")
