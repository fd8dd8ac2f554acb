"""Dynamics and minimisation: energy conservation, several Contexts at once, continuation bit for bit, memory."""

from __future__ import annotations

import io
import sys
import threading

import numpy as np
import openmm
import openmm.app
import pytest
from openmm import unit

from les_md import export
from les_md.check_structures import water_box
from tests.openmm.conftest import (
    KJ_PER_MOL,
    NANOMETER,
    PREPARATION,
    assert_same,
    cluster,
    configuration_of,
    cubic_water,
    evaluate,
    langevin,
    make_context,
    make_system,
    positions_of,
    reference,
    resident_memory,
    run_python,
    topology_of,
)


def energies_of(context):
    """Potential and total energy, kJ/mol."""
    state = context.getState(energy=True)
    potential = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    return potential, potential + state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole)


def state_of(context):
    """Positions and velocities as one array, to compare bit for bit."""
    state = context.getState(positions=True, velocities=True)
    return np.stack([state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)._value])


def test_minimiser(les_force, tmp_path):
    """Lower energy and smaller forces, by which the minimiser knows that energy and forces fit each other.

    In double precision: at a minimum the forces are small differences of large ones, and of a network in single
    precision they hold the rounding, 1e-6 eV/Å, of an order of edges that is not LESCalculator's.
    """
    atoms = water_box()
    model = export("water_rpbe_d3", tmp_path / "water.pt", dtype="float64").path
    context = make_context(make_system(atoms, les_force(model, atoms)), atoms)
    before = evaluate(context)
    openmm.LocalEnergyMinimizer.minimize(context, tolerance=20.0)
    after = evaluate(context)
    assert after[0] < before[0] - 50.0
    assert np.sqrt((after[1] ** 2).mean()) < 20.0 < 0.1 * np.sqrt((before[1] ** 2).mean())
    assert_same(after, reference(model, configuration_of(context, atoms)))


@pytest.mark.parametrize("make", [cubic_water, cluster])
def test_long_way_from_the_first_neighbour_list(make, models, les_force):
    """After many rebuilds the Context's energy and forces are those of its positions."""
    atoms = make()
    force = les_force(models["liquid water"], atoms)
    context = make_context(make_system(atoms, force), atoms, langevin(friction=50.0))
    context.setVelocitiesToTemperature(600.0, 1)
    for _ in range(4):
        context.getIntegrator().step(50)
        # (Single precision: positions in Å here and there differ in their last bit.)
        result, expected = evaluate(context), reference(models["liquid water"], configuration_of(context, atoms))
        assert abs(result[0] - expected[0]) < 1e-4 * KJ_PER_MOL
        np.testing.assert_allclose(result[1], expected[1], rtol=0, atol=1e-5 * np.abs(expected[1]).max())


def test_energy_is_conserved(models, les_force):
    """Below 1e-5 eV an atom and ps: the bundled model in single precision, eight molecules at 300 K.

    At 0.25 fs the integrator's own error, 3e-5 eV an atom that comes and goes with the energy in the bonds, hides it.
    """
    atoms = cubic_water()
    system = make_system(atoms, les_force(models["liquid water"], atoms))
    context = make_context(system, atoms, langevin(friction=50.0), platform="CPU")
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=50)
    context.setVelocitiesToTemperature(300.0, 1)
    context.getIntegrator().step(400)
    equilibrated = context.getState(positions=True, velocities=True)
    integrator = openmm.VerletIntegrator(0.000125)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(equilibrated.getPositions())
    context.setVelocities(equilibrated.getVelocities())
    times, totals, potentials = [], [], []
    for _ in range(320):
        integrator.step(10)
        potential, total = energies_of(context)
        times.append(context.getTime().value_in_unit(unit.picosecond))
        totals.append(total / KJ_PER_MOL / len(atoms))
        potentials.append(potential / KJ_PER_MOL / len(atoms))
    drift = np.polyfit(times, totals, 1)[0]
    assert np.std(potentials) > 1e-3  # it did move
    assert abs(drift) < 1e-5


class TestContexts:
    """Several Contexts go on as each would alone, whatever is kept between evaluations."""

    def made(self, system, atoms):
        """Two Contexts of one System at different places, and one in another box."""
        contexts = []
        for seed, scale in ((1, 1.0), (2, 1.0), (3, 1.05)):
            start = atoms.copy()
            start.positions += np.random.default_rng(seed).normal(scale=0.02, size=start.positions.shape)
            start.set_cell(atoms.cell.array * scale, scale_atoms=True)
            contexts.append(make_context(system, start, openmm.VerletIntegrator(0.0005)))
            contexts[-1].setPeriodicBoxVectors(*(start.cell.array / NANOMETER))
            contexts[-1].setVelocitiesToTemperature(300.0 * seed, seed)
        return contexts

    def test_in_turn(self, models, les_force):
        atoms = cubic_water()
        system = make_system(atoms, les_force(models["liquid water"], atoms))
        alone = self.made(system, atoms)
        for context in alone:
            context.getIntegrator().step(20)
        together = self.made(system, atoms)
        for _ in range(20):
            for context in together:
                context.getIntegrator().step(1)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(state_of(one), state_of(other))
            assert evaluate(one)[0] == evaluate(other)[0]

    def test_in_threads(self, models, les_force):
        """OpenMM gives Python's lock away while it integrates."""
        atoms = cubic_water()
        system = make_system(atoms, les_force(models["liquid water"], atoms))
        alone = self.made(system, atoms)
        for context in alone:
            context.getIntegrator().step(30)
        together = self.made(system, atoms)
        failures = []

        def run(context):
            try:
                for _ in range(30):
                    context.getIntegrator().step(1)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(context,)) for context in together]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(state_of(one), state_of(other))

    def test_of_different_systems_with_one_model(self, models, les_force):
        """A subset and the whole, from one loaded model."""
        atoms = cubic_water()
        whole = make_context(make_system(atoms, les_force(models["one channel"], atoms)), atoms)
        part = make_context(make_system(atoms, les_force(models["one channel"], atoms, atoms=range(6))), atoms)
        for _ in range(2):
            assert_same(evaluate(whole), reference(models["one channel"], atoms))
            energy, forces = evaluate(part)
            assert_same((energy, forces[:6]), reference(models["one channel"], atoms[:6]))

    def test_outlives_system_and_force(self, models, les_force):
        atoms = cubic_water()
        context = make_context(make_system(atoms, les_force(models["one channel"], atoms)), atoms)
        assert_same(evaluate(context), reference(models["one channel"], atoms))

    def test_reinitialised(self, models, les_force):
        atoms = cubic_water()
        context = make_context(make_system(atoms, les_force(models["one channel"], atoms)), atoms)
        before = evaluate(context)
        context.reinitialize(preserveState=True)
        assert_same(evaluate(context), before, tolerance=1e-15)

    def test_goes_on_after_an_error(self, models, les_force):
        """One evaluation fails; the next, of sound positions, is right."""
        atoms = cubic_water()
        context = make_context(make_system(atoms, les_force(models["one channel"], atoms)), atoms)
        before = evaluate(context)
        positions = positions_of(context)
        positions[4] = np.nan
        context.setPositions(positions)
        with pytest.raises(openmm.OpenMMException, match="finite"):
            evaluate(context)
        context.setPositions(atoms.positions / NANOMETER)
        assert_same(evaluate(context), before, tolerance=1e-15)


#: Reads a System from XML, goes on from a checkpoint for 20 steps, and writes positions and velocities.
CONTINUE = """
import sys
import numpy as np
import openmm
{preparation}
xml, checkpoint, platform, timestep, result = sys.argv[1:]
system = openmm.XmlSerializer.deserialize(open(xml).read())
integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, float(timestep))
integrator.setRandomNumberSeed(11)
context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
context.loadCheckpoint(open(checkpoint, "rb").read())
integrator.step(20)
state = context.getState(positions=True, velocities=True)
np.save(result, np.stack([state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)._value]))
"""


class TestContinuation:
    """30 + 20 steps are 50 steps, bit for bit."""

    #: Within 50 steps of the one no atom moves by half the skin of the neighbour list, of the other some do.
    TIMESTEPS = pytest.mark.parametrize("timestep", [0.00005, 0.0005], ids=["no rebuild", "rebuilds"])

    def started(self, models, les_force, timestep, platform="Reference"):
        atoms = cubic_water()
        self.force = les_force(models["liquid water"], atoms)
        self.system = make_system(atoms, self.force)
        context = make_context(self.system, atoms, langevin(timestep), platform)
        context.setVelocitiesToTemperature(300.0, 5)
        return context

    def halves(self, context, backend, timestep):
        """Checkpoint after 30 steps, and the state after 50."""
        context.getIntegrator().step(30)
        checkpoint = context.createCheckpoint()
        context.getIntegrator().step(20)
        if backend == "python":  # (torchforce searches neighbours at every step)
            builds = self.force.computation.evaluator.neighbor_list.num_builds
            assert (builds > 1) == (timestep == 0.0005)
        return checkpoint, state_of(context)

    @TIMESTEPS
    @pytest.mark.parametrize("platform", ["Reference", "CPU"])
    def test_in_the_same_context(self, platform, timestep, backend, models, les_force):
        context = self.started(models, les_force, timestep, platform)
        checkpoint, expected = self.halves(context, backend, timestep)
        context.loadCheckpoint(checkpoint)
        context.getIntegrator().step(20)
        np.testing.assert_array_equal(state_of(context), expected)

    @TIMESTEPS
    def test_in_a_new_context(self, timestep, backend, models, les_force):
        """Of the same System, and of one with a LESForce made anew."""
        checkpoint, expected = self.halves(self.started(models, les_force, timestep), backend, timestep)
        atoms = cubic_water()
        for system in (self.system, make_system(atoms, les_force(models["liquid water"], atoms))):
            context = make_context(system, atoms, langevin(timestep))
            context.loadCheckpoint(checkpoint)
            context.getIntegrator().step(20)
            np.testing.assert_array_equal(state_of(context), expected)

    @pytest.mark.parametrize(("platform", "timestep"), [("Reference", 0.00005), ("CPU", 0.0005)])
    def test_in_a_new_process(self, platform, timestep, backend, models, les_force, tmp_path):
        """From a System in XML and a checkpoint, the model's file out of sight."""
        context = self.started(models, les_force, timestep, platform)
        checkpoint, expected = self.halves(context, backend, timestep)
        (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(self.system))
        (tmp_path / "half.chk").write_bytes(checkpoint)
        script = CONTINUE.format(preparation=PREPARATION[backend])
        paths = (tmp_path / "system.xml", tmp_path / "half.chk", platform, timestep, tmp_path / "end.npy")
        done = run_python(script, *paths)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(tmp_path / "end.npy"), expected)

    @TIMESTEPS
    def test_of_a_simulation(self, timestep, models, les_force, tmp_path):
        """saveState and loadState, with an integrator without random numbers (a State holds none)."""
        atoms = cubic_water()

        def made():
            system = make_system(atoms, les_force(models["liquid water"], atoms))
            platform = openmm.Platform.getPlatformByName("Reference")
            return openmm.app.Simulation(topology_of(atoms), system, openmm.VerletIntegrator(timestep), platform)

        first, second = made(), made()
        first.context.setPositions(atoms.positions / NANOMETER)
        first.context.setVelocitiesToTemperature(300.0, 5)
        first.step(30)
        first.saveState(str(tmp_path / "half.xml"))
        first.step(20)
        second.loadState(str(tmp_path / "half.xml"))
        second.step(20)
        np.testing.assert_array_equal(state_of(second.context), state_of(first.context))
        assert second.currentStep == 50


def test_reporters_of_openmm(models, les_force, tmp_path):
    """The energies that StateDataReporter writes are those of the positions that PDBReporter gets."""
    atoms = cubic_water()
    system = make_system(atoms, les_force(models["one channel"], atoms))
    simulation = openmm.app.Simulation(
        topology_of(atoms), system, openmm.VerletIntegrator(0.0002), openmm.Platform.getPlatformByName("Reference")
    )
    simulation.context.setPositions(atoms.positions / NANOMETER)
    table, frames = io.StringIO(), tmp_path / "frames.pdb"
    simulation.reporters.append(openmm.app.StateDataReporter(table, 5, potentialEnergy=True))
    simulation.reporters.append(openmm.app.PDBReporter(str(frames), 10))
    simulation.step(10)
    first, last = (float(line) for line in table.getvalue().split()[-2:])
    assert last == pytest.approx(evaluate(simulation.context)[0], rel=1e-12)
    assert first != last
    saved = openmm.app.PDBFile(str(frames)).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    moved = (saved - positions_of(simulation.context)) @ np.linalg.inv(atoms.cell.array / NANOMETER)
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-3)


@pytest.mark.parametrize(
    "integrator",
    [
        lambda: openmm.VerletIntegrator(0.0001),
        lambda: openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.0001),
        lambda: openmm.NoseHooverIntegrator(300.0, 1.0, 0.0001),
        lambda: openmm.BrownianIntegrator(300.0, 1000.0, 0.0001),
        lambda: openmm.VariableVerletIntegrator(1e-4),
        lambda: openmm.MTSIntegrator(0.0002, [(0, 1), (1, 2)]),
    ],
    ids=["Verlet", "Langevin", "Nosé-Hoover", "Brownian", "variable Verlet", "multiple time steps"],
)
def test_integrators(integrator, models, les_force):
    """Positions move, and the Context's energy stays that of its positions."""
    atoms = cubic_water()
    bonds = openmm.HarmonicBondForce()
    bonds.setForceGroup(1)
    context = make_context(make_system(atoms, bonds, les_force(models["one channel"], atoms)), atoms, integrator())
    context.setVelocitiesToTemperature(300.0, 1)
    context.getIntegrator().step(10)
    moved = configuration_of(context, atoms)
    assert np.abs(moved.positions - atoms.positions).max() > 1e-4
    assert_same(evaluate(context), reference(models["one channel"], moved))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of the process from /proc")
def test_memory_does_not_grow(models, les_force):
    """16,000 steps with many rebuilds of the neighbour list keep less than 3 MB."""
    atoms = cluster()[:3]
    force = les_force(models["smallest"], atoms)
    context = make_context(make_system(atoms, force), atoms, langevin(0.0002, friction=50.0))
    context.getIntegrator().step(4000)
    before = resident_memory()
    context.getIntegrator().step(16000)
    assert np.isfinite(evaluate(context)[0])
    assert resident_memory() - before < 3.0
