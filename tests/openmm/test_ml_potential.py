"""The potential ``les`` of OpenMM-ML: whole systems, mixed systems, link atoms, interpolation."""

from __future__ import annotations

import copy
import io
import warnings

import ase
import numpy as np
import openmm
import openmm.app
import pytest
from openmm import unit

pytest.importorskip("openmmml", reason="needs OpenMM-ML (pip install 'les_md[openmm-ml]')")

from openmmml import MLPotential

from les_md.check_structures import water_box
from les_md.openmm import LESForce
from tests.openmm.conftest import (
    NANOMETER,
    assert_same,
    cluster,
    cubic_water,
    evaluate,
    langevin,
    make_context,
    make_system,
    positions_of,
    reference,
    topology_of,
)

ML_ATOMS = [0, 1, 2, 9, 10, 11]  # two of eight molecules


@pytest.fixture
def potential(models, backend):
    """MLPotential("les") of a model; further arguments go to it."""

    def make(model, **arguments):
        return MLPotential("les", modelPath=models[model], backend=backend, **arguments)

    return make


def mm_water(atoms, method=openmm.app.PME, rigid=False, tolerance=1e-6):
    """The water of TIP3P, flexible unless told otherwise."""
    return openmm.app.ForceField("amber14/tip3p.xml").createSystem(
        topology_of(atoms),
        nonbondedMethod=method,
        nonbondedCutoff=0.3 * unit.nanometer,
        rigidWater=rigid,
        removeCMMotion=False,
        ewaldErrorTolerance=tolerance,
    )


def without_ml_terms(system, chosen):
    """By hand: no bonded or van der Waals terms within the ML atoms, and their Coulomb interaction as an exception."""
    system = copy.deepcopy(system)
    chosen_set = set(chosen)
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                first, second, length, _ = force.getBondParameters(index)
                if {first, second} <= chosen_set:
                    force.setBondParameters(index, first, second, length, 0.0)
        elif isinstance(force, openmm.HarmonicAngleForce):
            for index in range(force.getNumAngles()):
                *particles, angle, _ = force.getAngleParameters(index)
                if set(particles) <= chosen_set:
                    force.setAngleParameters(index, *particles, angle, 0.0)
        elif isinstance(force, openmm.NonbondedForce):
            charges = [force.getParticleParameters(index)[0] for index in chosen]
            for i, first in enumerate(chosen):
                for j, second in enumerate(chosen[:i]):
                    force.addException(first, second, charges[i] * charges[j], 1.0, 0.0, True)
            force.setExceptionsUsePeriodicBoundaryConditions(True)
    return system


def electrostatics_of(system, chosen):
    """The PME energy of the charges of the ML atoms alone, as a System."""
    alone = openmm.System()
    alone.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
    of_system = next(force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(openmm.NonbondedForce.PME)
    force.setCutoffDistance(of_system.getCutoffDistance())
    force.setEwaldErrorTolerance(of_system.getEwaldErrorTolerance())
    for index in range(system.getNumParticles()):
        alone.addParticle(1.0)
        charge = of_system.getParticleParameters(index)[0]
        force.addParticle(charge if index in chosen else 0.0, 1.0, 0.0)
    alone.addForce(force)
    return alone


def scattered(result, chosen, count):
    """Energy and forces of the chosen particles among all."""
    forces = np.zeros((count, 3))
    forces[chosen] = result[1]
    return result[0], forces


@pytest.mark.parametrize("make", [water_box, cluster])
def test_whole_system(make, models, potential):
    """Particles, box and energies of createSystem are those of a System with a LESForce."""
    atoms = make()
    system = potential("one channel").createSystem(topology_of(atoms))
    assert [type(force).__name__ for force in system.getForces()][1:] == ["CMMotionRemover"]
    assert system.getForce(0).getName() == "LESForce"
    masses = [system.getParticleMass(index)._value for index in range(len(atoms))]
    np.testing.assert_allclose(masses, atoms.get_masses(), atol=0.01)
    assert system.usesPeriodicBoundaryConditions() == bool(atoms.pbc.all())
    assert_same(evaluate(make_context(system, atoms)), reference(models["one channel"], atoms))


@pytest.mark.parametrize("where", ["potential", "system"])
def test_arguments_arrive(where, models, potential):
    """Arguments of LESForce, given to MLPotential as defaults or to createSystem."""
    atoms = water_box()
    options = {"kspace": "mesh", "accuracy": 1e-2}
    if where == "potential":
        system = potential("one channel", **options).createSystem(topology_of(atoms))
    else:
        system = potential("one channel", kspace="ewald").createSystem(topology_of(atoms), **options)
    assert_same(evaluate(make_context(system, atoms)), reference(models["one channel"], atoms, **options))


def test_isolated_although_the_topology_has_a_box(models, potential):
    atoms = water_box()
    system = potential("one channel").createSystem(topology_of(atoms), periodic=False)
    assert_same(evaluate(make_context(system, atoms)), reference(models["one channel"], cluster()))


def test_long_range_is_told(potential):
    """By which OpenMM-ML decides about the electrostatics of the images."""
    assert potential("one channel")._impl.getMLLongRange() is True
    assert potential("short range")._impl.getMLLongRange() is False


class TestMixed:
    """Some molecules by the model, the others and everything between by TIP3P."""

    @pytest.mark.parametrize("make", [cubic_water, water_box])
    @pytest.mark.parametrize("chosen", [ML_ATOMS, [10, 1, 0, 11, 2, 9], [0, 1, 2]], ids=["two", "unordered", "one"])
    def test_sum_by_hand(self, chosen, make, models, potential):
        """The conventional System without the terms of the ML atoms, less their electrostatics, and the model."""
        atoms = make()
        conventional = mm_water(atoms)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # nothing is counted twice, so nothing is to be warned of
            mixed = potential("one channel").createMixedSystem(topology_of(atoms), conventional, chosen)
        parts = [
            evaluate(make_context(without_ml_terms(conventional, chosen), atoms)),
            scattered(reference(models["one channel"], atoms[chosen]), chosen, len(atoms)),
        ]
        subtracted = evaluate(make_context(electrostatics_of(conventional, chosen), atoms))
        expected = (
            sum(energy for energy, _ in parts) - subtracted[0],
            sum(forces for _, forces in parts) - subtracted[1],
        )
        assert_same(evaluate(make_context(mixed, atoms)), expected)

    def test_rest_does_not_depend_on_the_model(self, models, potential):
        """Mixed energy and forces less the model's own are the same for two models."""
        atoms = cubic_water()
        rest = []
        for model in ("one channel", "another seed"):
            mixed = potential(model).createMixedSystem(topology_of(atoms), mm_water(atoms), ML_ATOMS)
            energy, forces = evaluate(make_context(mixed, atoms))
            own = scattered(reference(models[model], atoms[ML_ATOMS]), ML_ATOMS, len(atoms))
            rest.append((energy - own[0], forces - own[1]))
        assert_same(rest[0], rest[1])
        assert (
            reference(models["one channel"], atoms[ML_ATOMS])[0]
            != reference(models["another seed"], atoms[ML_ATOMS])[0]
        )

    def test_everything_by_the_model(self, models, potential):
        """With all atoms in the subset nothing of the conventional System is left, to the accuracy of its PME."""
        atoms = cubic_water()
        conventional = mm_water(atoms)
        for force in conventional.getForces():
            if isinstance(force, openmm.NonbondedForce):
                force.setUseDispersionCorrection(False)
        mixed = potential("one channel").createMixedSystem(topology_of(atoms), conventional, range(len(atoms)))
        assert_same(evaluate(make_context(mixed, atoms)), reference(models["one channel"], atoms), tolerance=1e-5)

    def test_force_group(self, models, potential):
        """The model's energy alone, in the group that was asked for."""
        atoms = cubic_water()
        mixed = potential("one channel").createMixedSystem(topology_of(atoms), mm_water(atoms), ML_ATOMS, forceGroup=7)
        expected = scattered(reference(models["one channel"], atoms[ML_ATOMS]), ML_ATOMS, len(atoms))
        assert_same(evaluate(make_context(mixed, atoms), groups={7}), expected)

    def test_short_range_model(self, models, potential):
        """It goes with a cutoff instead of PME too."""
        atoms = cubic_water()
        conventional = mm_water(atoms, method=openmm.app.CutoffPeriodic)
        mixed = potential("short range").createMixedSystem(topology_of(atoms), conventional, ML_ATOMS, forceGroup=7)
        expected = scattered(reference(models["short range"], atoms[ML_ATOMS]), ML_ATOMS, len(atoms))
        assert_same(evaluate(make_context(mixed, atoms), groups={7}), expected)

    def test_long_range_model_needs_ewald(self, potential):
        atoms = cubic_water()
        conventional = mm_water(atoms, method=openmm.app.CutoffPeriodic)
        with pytest.raises(ValueError, match="ML model uses long-range interactions while the MM force field does not"):
            potential("one channel").createMixedSystem(topology_of(atoms), conventional, ML_ATOMS)

    def test_isolated(self, models, potential):
        atoms = cluster()
        conventional = mm_water(atoms, method=openmm.app.NoCutoff)
        mixed = potential("one channel").createMixedSystem(topology_of(atoms), conventional, ML_ATOMS, forceGroup=7)
        expected = scattered(reference(models["one channel"], atoms[ML_ATOMS]), ML_ATOMS, len(atoms))
        assert_same(evaluate(make_context(mixed, atoms), groups={7}), expected)

    def test_rigid_water(self, potential):
        """Constraints of the ML molecules go, those of the others stay; dynamics runs."""
        atoms = cubic_water()
        mixed = potential("one channel").createMixedSystem(topology_of(atoms), mm_water(atoms, rigid=True), ML_ATOMS)
        constrained = {
            particle
            for index in range(mixed.getNumConstraints())
            for particle in mixed.getConstraintParameters(index)[:2]
        }
        assert constrained == set(range(len(atoms))) - set(ML_ATOMS)
        context = make_context(mixed, atoms, langevin(0.0002))
        context.applyConstraints(1e-6)
        context.getIntegrator().step(5)
        assert np.isfinite(evaluate(context)[1]).all()

    def test_periodic_system_of_a_topology_without_box(self, models, potential):
        """As from Amber or Gromacs files: the System tells."""
        atoms = cubic_water()
        mixed = potential("one channel").createMixedSystem(
            topology_of(atoms, box=False), mm_water(atoms), ML_ATOMS, forceGroup=7
        )
        expected = scattered(reference(models["one channel"], atoms[ML_ATOMS]), ML_ATOMS, len(atoms))
        assert_same(evaluate(make_context(mixed, atoms), groups={7}), expected)

    def test_boundaries_that_cannot_be_told(self, potential):
        """To interpolate, OpenMM-ML does not show the System to the potential: the user is warned, and can tell."""
        atoms = cubic_water()
        make = potential("one channel").createMixedSystem
        with pytest.warns(UserWarning, match="taken to be isolated. If the System is periodic, pass periodic=True"):
            make(topology_of(atoms, box=False), mm_water(atoms), ML_ATOMS, interpolate=True)
        told = make(topology_of(atoms, box=False), mm_water(atoms), ML_ATOMS, interpolate=True, periodic=True)
        mixed = make(topology_of(atoms), mm_water(atoms), ML_ATOMS)
        assert_same(evaluate(make_context(told, atoms)), evaluate(make_context(mixed, atoms)))

    def test_barostat(self, potential):
        """The mixed System under a barostat has the energy of a fresh Context at the same positions and box."""
        atoms = cubic_water()
        mixed = potential("one channel").createMixedSystem(topology_of(atoms), mm_water(atoms), ML_ATOMS)
        barostat = openmm.MonteCarloBarostat(1.0, 600.0, 1)
        barostat.setRandomNumberSeed(1)
        under_pressure = copy.deepcopy(mixed)
        under_pressure.addForce(barostat)
        context = make_context(under_pressure, atoms, langevin(0.0002))
        context.getIntegrator().step(10)
        state = context.getState(positions=True, energy=True)
        assert not np.allclose(state.getPeriodicBoxVolume()._value, atoms.get_volume() / NANOMETER**3, rtol=1e-9)
        fresh = make_context(mixed, atoms)
        fresh.setPeriodicBoxVectors(*state.getPeriodicBoxVectors())
        fresh.setPositions(state.getPositions())
        assert evaluate(fresh)[0] == pytest.approx(state.getPotentialEnergy()._value, rel=1e-9)

    @pytest.mark.parametrize("interpolate", [False, True])
    def test_in_xml(self, interpolate, potential):
        atoms = cubic_water()
        mixed = potential("one channel").createMixedSystem(
            topology_of(atoms), mm_water(atoms), ML_ATOMS, interpolate=interpolate
        )
        other = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(mixed))
        result, expected = evaluate(make_context(other, atoms)), evaluate(make_context(mixed, atoms))
        assert_same(result, expected, tolerance=1e-13)


class TestInterpolation:
    def test_ends_and_middle(self, potential):
        """0 is the conventional System, 1 the mixed one, and between them energies and forces are linear.

        (One molecule: OpenMM-ML counts van der Waals interactions of two beyond the cutoff.)
        """
        atoms = cubic_water()
        conventional = mm_water(atoms)
        make = potential("one channel").createMixedSystem
        context = make_context(make(topology_of(atoms), conventional, [3, 4, 5], interpolate=True), atoms)
        results = {}
        for value in (0.0, 0.5, 1.0):
            context.setParameter("lambda_interpolate", value)
            results[value] = evaluate(context)
        assert_same(results[0.0], evaluate(make_context(conventional, atoms)), tolerance=1e-5)
        mixed = evaluate(make_context(make(topology_of(atoms), conventional, [3, 4, 5]), atoms))
        assert_same(results[1.0], mixed)
        mean = tuple((first + second) / 2 for first, second in zip(results[0.0], results[1.0], strict=True))
        assert_same(results[0.5], mean)
        assert abs(results[1.0][0] - results[0.0][0]) > 1.0


#: Alanine dipeptide, extended, from the residue templates of Amber.
ALANINE_DIPEPTIDE = """\
ATOM      1 HH31 ACE A   1       2.000   1.000  -0.000  1.00  0.00           H
ATOM      2  CH3 ACE A   1       2.000   2.090   0.000  1.00  0.00           C
ATOM      3 HH32 ACE A   1       1.486   2.454   0.890  1.00  0.00           H
ATOM      4 HH33 ACE A   1       1.486   2.454  -0.890  1.00  0.00           H
ATOM      5  C   ACE A   1       3.427   2.641  -0.000  1.00  0.00           C
ATOM      6  O   ACE A   1       4.391   1.877  -0.000  1.00  0.00           O
ATOM      7  N   ALA A   2       3.555   3.970  -0.000  1.00  0.00           N
ATOM      8  H   ALA A   2       2.733   4.556  -0.000  1.00  0.00           H
ATOM      9  CA  ALA A   2       4.853   4.614  -0.000  1.00  0.00           C
ATOM     10  HA  ALA A   2       5.408   4.316   0.890  1.00  0.00           H
ATOM     11  CB  ALA A   2       5.661   4.221  -1.232  1.00  0.00           C
ATOM     12  HB1 ALA A   2       5.123   4.521  -2.131  1.00  0.00           H
ATOM     13  HB2 ALA A   2       6.630   4.719  -1.206  1.00  0.00           H
ATOM     14  HB3 ALA A   2       5.809   3.141  -1.241  1.00  0.00           H
ATOM     15  C   ALA A   2       4.713   6.129   0.000  1.00  0.00           C
ATOM     16  O   ALA A   2       3.601   6.653   0.000  1.00  0.00           O
ATOM     17  N   NME A   3       5.846   6.835   0.000  1.00  0.00           N
ATOM     18  H   NME A   3       6.737   6.359  -0.000  1.00  0.00           H
ATOM     19  CH3 NME A   3       5.846   8.284   0.000  1.00  0.00           C
ATOM     20 HH31 NME A   3       4.819   8.648   0.000  1.00  0.00           H
ATOM     21 HH32 NME A   3       6.360   8.648   0.890  1.00  0.00           H
ATOM     22 HH33 NME A   3       6.360   8.648  -0.890  1.00  0.00           H
END
"""
METHYL = [10, 11, 12, 13]  # CB and its hydrogens; the bond CA-CB is cut
CA = 8


class TestLinkAtoms:
    """A subset that ends at a C-C bond gets a hydrogen as virtual site."""

    @staticmethod
    def dipeptide(periodic):
        """Topology, conventional System and positions [N, 3] nm."""
        pdb = openmm.app.PDBFile(io.StringIO(ALANINE_DIPEPTIDE))
        if periodic:
            pdb.topology.setUnitCellDimensions(openmm.Vec3(1.4, 1.5, 1.3) * unit.nanometer)
        conventional = openmm.app.ForceField("amber14-all.xml").createSystem(
            pdb.topology,
            nonbondedMethod=openmm.app.PME if periodic else openmm.app.NoCutoff,
            nonbondedCutoff=0.6 * unit.nanometer,
        )
        return pdb.topology, conventional, np.array(pdb.positions.value_in_unit(unit.nanometer))

    @pytest.fixture(params=["isolated", "periodic"])
    def mixed(self, request, potential):
        """Make the mixed System; returns it with the positions and whether it is periodic."""

        def make(**options):
            periodic = request.param == "periodic"
            topology, conventional, positions = self.dipeptide(periodic)
            # (See test_interpolation_of_a_long_range_model_in_a_periodic_system.)
            model = "organic, short range" if periodic and options.get("interpolate") else "organic"
            system = potential(model, periodic=periodic).createMixedSystem(topology, conventional, METHYL, **options)
            assert system.getNumParticles() == len(positions) + 1
            assert system.isVirtualSite(len(positions))
            return system, positions, periodic

        return make

    @staticmethod
    def context_of(system, positions, integrator=None):
        context = openmm.Context(
            system, integrator or openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference")
        )
        context.setPositions(np.vstack([positions, np.zeros((1, 3))]))
        context.computeVirtualSites()
        return context

    @pytest.mark.parametrize("interpolate", [False, True])
    def test_forces_are_derivatives(self, interpolate, mixed):
        """Of the atoms at both ends of the cut bond too, to which the force on the link atom passes."""
        system, positions, _ = mixed(interpolate=interpolate)
        context = self.context_of(system, positions)
        if interpolate:
            context.setParameter("lambda_interpolate", 0.7)
        forces = evaluate(context)[1]
        step = 1e-5
        for atom, axis in ((CA, 0), (CA, 2), (METHYL[0], 0), (METHYL[0], 2), (METHYL[1], 1)):
            energies = []
            for sign in (1, -1):
                moved = np.vstack([positions, np.zeros((1, 3))])
                moved[atom, axis] += sign * step
                context.setPositions(moved)
                context.computeVirtualSites()
                energies.append(evaluate(context)[0])
            derivative = (energies[1] - energies[0]) / (2 * step)
            assert forces[atom, axis] == pytest.approx(derivative, rel=1e-4, abs=0.5)

    def test_energy_of_the_capped_group(self, mixed, models):
        """In a group of its own: methane, of the four atoms and the link atom."""
        system, positions, periodic = mixed(forceGroup=3)
        context = self.context_of(system, positions)
        atoms = ase.Atoms("CH4", NANOMETER * positions_of(context)[[*METHYL, len(positions)]])
        if periodic:
            atoms.set_cell([14.0, 15.0, 13.0])
            atoms.set_pbc(True)
        energy, _ = evaluate(context, groups={3})
        assert energy == pytest.approx(reference(models["organic"], atoms)[0], rel=1e-9)
        assert 1.0 < atoms.get_distance(0, 4) < 1.2

    def test_dynamics(self, mixed):
        system, positions, _ = mixed()
        context = self.context_of(system, positions, langevin(0.0002))
        context.getIntegrator().step(10)
        assert np.isfinite(evaluate(context)[1]).all()

    @pytest.mark.xfail(
        strict=True,
        raises=openmm.OpenMMException,
        reason="OpenMM-ML 1.8 forgets the link atoms in the electrostatics that it takes away for long-range models",
    )
    def test_interpolation_of_a_long_range_model_in_a_periodic_system(self, potential):
        topology, conventional, positions = self.dipeptide(periodic=True)
        system = potential("organic").createMixedSystem(topology, conventional, METHYL, interpolate=True)
        assert np.isfinite(evaluate(self.context_of(system, positions))[1]).all()


class TestWrongInput:
    def test_no_model(self):
        with pytest.raises(ValueError, match=r"needs the exported model: MLPotential\('les', modelPath="):
            MLPotential("les")

    def test_missing_model(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no model file .*nothing\.pt"):
            MLPotential("les", modelPath=tmp_path / "nothing.pt")

    @pytest.mark.parametrize("where", ["potential", "system"])
    def test_unknown_argument(self, where, potential):
        with pytest.raises(TypeError, match="nonsense"):
            if where == "potential":
                potential("one channel", nonsense=1).createSystem(topology_of(water_box()))
            else:
                potential("one channel").createSystem(topology_of(water_box()), nonsense=1)

    def test_unknown_element(self, potential):
        topology = openmm.app.PDBFile(io.StringIO(ALANINE_DIPEPTIDE)).topology
        with pytest.raises(ValueError, match="knows the elements H O, not C, N"):
            potential("one channel").createSystem(topology)

    def test_option_of_another_kind_of_model(self, potential):
        """OpenMM-ML asks the potential instead."""
        atoms = cubic_water()
        with pytest.raises(ValueError, match="does not support the mlLongRange option"):
            potential("one channel").createMixedSystem(topology_of(atoms), mm_water(atoms), ML_ATOMS, mlLongRange=False)

    def test_isolated_model_in_a_periodic_system(self, potential):
        atoms = cubic_water()
        with pytest.raises(ValueError, match="the System uses periodic boundaries, but LESForce would be isolated"):
            potential("one channel").createMixedSystem(topology_of(atoms), mm_water(atoms), ML_ATOMS, periodic=False)


def test_registered_under_its_name(models):
    """A plain LESForce, by the entry point alone."""
    atoms = water_box()
    system = MLPotential("les", modelPath=str(models["one channel"])).createSystem(topology_of(atoms))
    alone = make_system(atoms, LESForce(models["one channel"], topology_of(atoms)))
    assert_same(evaluate(make_context(system, atoms)), evaluate(make_context(alone, atoms)), tolerance=1e-13)
