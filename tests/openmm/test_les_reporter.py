"""LESReporter: what it writes against LESCalculator, how often it evaluates the model, and what it refuses."""

from __future__ import annotations

import csv
import io

import numpy as np
import openmm
import openmm.app
import pytest
from openmm import unit

from les_md import LESCalculator
from les_md.check_structures import water_box
from les_md.openmm import LESReporter
from tests.openmm.conftest import (
    KJ_PER_MOL,
    NANOMETER,
    cluster,
    configuration_of,
    evaluate,
    loaded,
    make_system,
    positions_of,
    topology_of,
)


@pytest.fixture
def simulation_of(les_force):
    """A Simulation of a configuration; options are those of LESForce. Its force is in the attribute ``force``."""

    def make(model, configuration, platform="Reference", **options):
        force = les_force(model, configuration, **options)
        simulation = openmm.app.Simulation(
            topology_of(configuration),
            make_system(configuration, force),
            openmm.VerletIntegrator(0.0002),
            openmm.Platform.getPlatformByName(platform),
        )
        simulation.context.setPositions(configuration.positions / NANOMETER)
        simulation.force = force
        return simulation

    return make


def rows_of(text):
    return list(csv.reader(io.StringIO(text)))


def results_of(model, configuration):
    """Results of LESCalculator; charges as [N, n_q]."""
    calculator = LESCalculator(loaded(model))
    calculator.calculate(configuration)
    return {**calculator.results, "charges": calculator.results["charges"].reshape(len(configuration), -1)}


@pytest.mark.parametrize("make", [water_box, cluster])
@pytest.mark.parametrize("model", ["one channel", "two channels"])
def test_columns(model, make, models, simulation_of):
    """Step, time, both energies and the dipole moment of each report, as the calculator gives them."""
    atoms = make()
    simulation = simulation_of(models[model], atoms)
    table, charges = io.StringIO(), io.StringIO()
    simulation.reporters.append(LESReporter(table, 5, simulation.force, charges=charges))
    expected, positions, totals = [], [], []
    for _ in range(2):
        simulation.step(5)
        expected.append(results_of(models[model], configuration_of(simulation.context, atoms)))
        positions.append(positions_of(simulation.context))
        totals.append(evaluate(simulation.context)[0])
    heading, *rows = rows_of(table.getvalue())
    assert heading == [
        "Step",
        "Time (ps)",
        "Short-range energy (kJ/mol)",
        "Long-range energy (kJ/mol)",
        "Dipole x (e nm)",
        "Dipole y (e nm)",
        "Dipole z (e nm)",
    ]
    values = np.array(rows, dtype=float)
    np.testing.assert_array_equal(values[:, 0], [5, 10])
    np.testing.assert_allclose(values[:, 1], [0.001, 0.002], rtol=1e-9)
    np.testing.assert_allclose(values[:, 2:4].sum(1), totals, rtol=1e-9)
    factor = np.sqrt(loaded(models[model]).metadata["long_range"]["epsilon_factor"])
    for row, result, place in zip(values, expected, positions, strict=True):
        assert row[2] == pytest.approx(KJ_PER_MOL * result["short_range_energy"], rel=1e-9)
        assert row[3] == pytest.approx(KJ_PER_MOL * result["long_range_energy"], rel=1e-8)
        total = result["charges"].sum(1)
        mean = total.mean() if loaded(models[model]).metadata["long_range"]["remove_mean"] else 0.0
        np.testing.assert_allclose(row[4:], factor * (total - mean) @ place, rtol=1e-6, atol=1e-7)
        if not atoms.pbc.any():
            np.testing.assert_allclose(row[4:], result["dipole"] / NANOMETER, rtol=1e-6, atol=1e-7)
    heading, *rows = rows_of(charges.getvalue())
    assert heading == ["Step", *(str(index) for index in range(len(atoms)))]
    values = np.array(rows, dtype=float)
    np.testing.assert_array_equal(values[:, 0], [5, 10])
    np.testing.assert_allclose(values[:, 1:], [result["charges"].sum(1) for result in expected], atol=1e-6)
    assert np.ptp(values[0, 1:]) > 1e-3


@pytest.mark.parametrize("checked", [False, True], ids=["", "with the System"])
def test_subset(checked, models, simulation_of):
    """Charges are named by the particles of the System, in the order that ``atoms`` gave."""
    atoms = water_box()
    chosen = [14, 3, 12, 4, 13, 5]
    system = make_system(atoms) if checked else None
    simulation = simulation_of(models["one channel"], atoms, atoms=chosen, system=system)
    table, charges = io.StringIO(), io.StringIO()
    simulation.reporters.append(LESReporter(table, 1, simulation.force, charges=charges))
    simulation.step(1)
    expected = results_of(models["one channel"], configuration_of(simulation.context, atoms)[chosen])
    heading, values = rows_of(charges.getvalue())
    assert heading == ["Step", *map(str, chosen)]
    np.testing.assert_allclose(np.array(values[1:], dtype=float), expected["charges"][:, 0], atol=1e-6)
    energies = np.array(rows_of(table.getvalue())[1][2:4], dtype=float)
    assert energies.sum() == pytest.approx(KJ_PER_MOL * expected["energy"], rel=1e-9)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_evaluates_once(platform, backend, models, simulation_of):
    """Beside StateDataReporter the model is not evaluated once more; alone, once per report."""

    def evaluations(*reporters):
        simulation = simulation_of(models["one channel"], water_box(), platform=platform)
        evaluator = simulation.force.computation.evaluator
        count, compute = [0], evaluator.compute

        def counted(*arguments):
            count[0] += 1
            return compute(*arguments)

        evaluator.compute = counted
        simulation.reporters.extend(reporter(simulation) for reporter in reporters)
        simulation.step(10)
        return count[0]

    def of_openmm(simulation):
        return openmm.app.StateDataReporter(io.StringIO(), 5, potentialEnergy=True)

    def ours(simulation):
        return LESReporter(io.StringIO(), 5, simulation.force)

    if backend == "torchforce":  # the Context does not go through the computation of the reporter
        assert evaluations(ours) == evaluations(ours, of_openmm) == 2
        return
    assert evaluations() <= 11
    assert evaluations(of_openmm, ours) == evaluations(ours, of_openmm) == evaluations(of_openmm)
    assert evaluations(ours) <= evaluations() + 2


def test_does_not_change_the_simulation(models, simulation_of):
    """The trajectory is the same to the last bit."""
    atoms = water_box()
    plain, reported = (simulation_of(models["one channel"], atoms) for _ in range(2))
    reported.reporters.append(LESReporter(io.StringIO(), 3, reported.force))
    for simulation in (plain, reported):
        simulation.step(10)
    np.testing.assert_array_equal(positions_of(reported.context), positions_of(plain.context))


def test_files_and_append(models, simulation_of, tmp_path):
    """Every line is on the disk at once; ``append`` goes on without a second heading; otherwise files begin anew."""
    simulation = simulation_of(models["one channel"], water_box())
    table, charges = tmp_path / "les.csv", tmp_path / "charges.csv"
    simulation.reporters.append(LESReporter(table, 2, simulation.force, charges=str(charges)))
    simulation.step(4)
    assert [row[0] for row in rows_of(table.read_text())] == ["Step", "2", "4"]
    simulation.reporters[:] = [LESReporter(str(table), 2, simulation.force, charges=charges, append=True)]
    simulation.step(2)
    for file in (table, charges):
        assert [row[0] for row in rows_of(file.read_text())] == ["Step", "2", "4", "6"]
    simulation.reporters[:] = [LESReporter(table, 2, simulation.force)]
    simulation.step(2)
    assert [row[0] for row in rows_of(table.read_text())] == ["Step", "8"]


def test_append_to_nothing_writes_the_heading(models, simulation_of, tmp_path):
    simulation = simulation_of(models["one channel"], water_box())
    simulation.reporters.append(LESReporter(tmp_path / "les.csv", 1, simulation.force, append=True))
    simulation.step(1)
    assert [row[0] for row in rows_of((tmp_path / "les.csv").read_text())] == ["Step", "1"]


def test_positions_of_other_reporters_may_be_wrapped(models, simulation_of):
    """The dipole follows the molecules as they are, also beside a reporter that wraps them."""
    atoms = water_box()
    atoms.positions += 2.0 * atoms.cell.array[0]
    simulation = simulation_of(models["one channel"], atoms)
    table = io.StringIO()
    simulation.reporters.append(LESReporter(table, 1, simulation.force))
    wrapping = openmm.app.StateDataReporter(io.StringIO(), 1, potentialEnergy=True)
    wrapping.describeNextReport = lambda simulation: {"steps": 1, "periodic": True, "include": ["positions", "energy"]}
    simulation.reporters.append(wrapping)
    simulation.step(1)
    result = results_of(models["one channel"], configuration_of(simulation.context, atoms))
    metadata = loaded(models["one channel"]).metadata["long_range"]
    total = result["charges"].sum(1) - (result["charges"].sum(1).mean() if metadata["remove_mean"] else 0.0)
    expected = np.sqrt(metadata["epsilon_factor"]) * total @ positions_of(simulation.context)
    np.testing.assert_allclose(np.array(rows_of(table.getvalue())[1][4:], dtype=float), expected, rtol=1e-6, atol=1e-7)


def test_force_that_is_not_in_the_system(models, les_force, simulation_of):
    """For a System from XML: a LESForce of the same model, made for the report."""
    atoms = water_box()
    simulation = simulation_of(models["one channel"], atoms)
    copy = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(simulation.system))
    simulation = openmm.app.Simulation(
        topology_of(atoms), copy, openmm.VerletIntegrator(0.0002), openmm.Platform.getPlatformByName("Reference")
    )
    simulation.context.setPositions(atoms.positions / NANOMETER)
    table = io.StringIO()
    simulation.reporters.append(LESReporter(table, 1, les_force(models["one channel"], atoms)))
    simulation.step(1)
    energies = np.array(rows_of(table.getvalue())[1][2:4], dtype=float)
    assert energies.sum() == pytest.approx(evaluate(simulation.context)[0], rel=1e-9)


def test_box_of_the_present_step(models, simulation_of):
    """The report belongs to the box that a barostat left behind."""
    atoms = water_box()
    simulation = simulation_of(models["one channel"], atoms)
    simulation.context.setPeriodicBoxVectors(*(1.1 * atoms.cell.array / NANOMETER))
    table = io.StringIO()
    simulation.reporters.append(LESReporter(table, 1, simulation.force))
    simulation.step(1)
    energies = np.array(rows_of(table.getvalue())[1][2:4], dtype=float)
    assert energies.sum() == pytest.approx(evaluate(simulation.context)[0], rel=1e-9)
    state = simulation.context.getState(energy=True)
    assert state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) == evaluate(simulation.context)[0]


class TestWrongInput:
    def test_current_without_velocities(self, models, simulation_of):
        """Of a State that was asked for by other code: no current of velocities that are not there."""
        simulation = simulation_of(models["one channel"], water_box())
        table = io.StringIO()
        reporter = LESReporter(table, 1, simulation.force, current=True)
        assert "velocities" in reporter.describeNextReport(simulation)["include"]
        state = simulation.context.getState(positions=True, energy=True, parameters=True)
        with pytest.raises(Exception, match="does not contain velocities"):
            reporter.report(simulation, state)
        assert len(rows_of(table.getvalue())) == 1  # the heading

    def test_short_range_model(self, models, les_force):
        force = les_force(models["short range"], water_box())
        with pytest.raises(ValueError, match=r"short_range\.pt is a short-range model: it has no charges to report"):
            LESReporter(io.StringIO(), 1, force)

    @pytest.mark.parametrize("interval", [0, -3])
    def test_interval(self, interval, models, les_force):
        with pytest.raises(ValueError, match=f"reportInterval must be at least 1, got {interval}"):
            LESReporter(io.StringIO(), interval, les_force(models["one channel"], water_box()))

    def test_force_of_a_copied_system(self, models, les_force):
        atoms = water_box()
        system = make_system(atoms, les_force(models["one channel"], atoms))
        force = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system)).getForce(0)
        with pytest.raises(TypeError, match="force must be a LESForce, not"):
            LESReporter(io.StringIO(), 1, force)

    def test_folder_that_does_not_exist(self, models, les_force, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            LESReporter(tmp_path / "nowhere" / "les.csv", 1, les_force(models["one channel"], water_box()))
