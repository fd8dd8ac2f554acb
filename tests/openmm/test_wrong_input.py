"""Every wrong input stops with a message that says what is wrong and what to do."""

from __future__ import annotations

import warnings
import zipfile

import ase
import numpy as np
import openmm
import openmm.app
import pytest
import torch

from les_md import LESCalculator, export
from les_md.check_structures import water_box
from les_md.model_file import ModelFileError
from les_md.openmm import LESForce, check_system
from tests.openmm.conftest import (
    NANOMETER,
    assert_same,
    cluster,
    evaluate,
    make_context,
    make_system,
    reference,
    small_cell,
    topology_of,
)
from tests.test_exporting import write_checkpoint


def four_site_water(box=True):
    """A topology whose fourth particle of each molecule has no element."""
    topology = openmm.app.Topology()
    chain = topology.addChain()
    for _ in range(2):
        residue = topology.addResidue("HOH", chain)
        for name, symbol in (("O", "O"), ("H1", "H"), ("H2", "H"), ("M", None)):
            element = None if symbol is None else openmm.app.Element.getBySymbol(symbol)
            topology.addAtom(name, element, residue)
    if box:
        topology.setPeriodicBoxVectors(np.diag([1.9, 1.9, 1.9]) * openmm.unit.nanometer)
    return topology


class TestAtoms:
    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            ([3, 24], r"atoms holds the index 24, but there are 24 particles \(0 to 23\)"),
            ([-1], r"atoms holds the index -1, but there are 24 particles"),
            ([5, 2, 5], "atoms holds the index 5 more than once"),
            ([], "there are no atoms for the model to act on"),
        ],
        ids=["too large", "negative", "repeated", "none"],
    )
    def test_selection(self, chosen, message, models, les_force):
        with pytest.raises(ValueError, match=message):
            les_force(models["one channel"], water_box(), atoms=chosen)

    @pytest.mark.parametrize(
        "chosen", [[0.6, 1.7], [True, False], np.arange(24) < 12, "012"], ids=["fractions", "bools", "mask", "text"]
    )
    def test_no_indices(self, chosen, models, les_force):
        """A mask is not read as the indices 0 and 1, and nothing is rounded."""
        with pytest.raises((TypeError, ValueError), match=r"atoms .*ind"):
            les_force(models["one channel"], water_box(), atoms=chosen)

    def test_unknown_element(self, models, backend):
        with pytest.raises(ValueError, match=r"one_channel\.pt knows the elements H O, not Na, Cl"):
            LESForce(models["one channel"], [8, 1, 1, 11, 17], periodic=True, backend=backend)

    @pytest.mark.parametrize(
        ("numbers", "error", "message"),
        [
            ([8, 1, 0], ValueError, r"^0 is not .*atomic number"),
            ([8, 1, 119], ValueError, r"^119 is not .*atomic number"),
            ([8, 1, None], ValueError, "particle 2 has no element"),
            ([True, True], TypeError, "whole atomic numbers"),
            (["O", "H"], TypeError, "an openmm.app.Topology or a sequence of whole atomic numbers"),
            ([8.0, 1.0], TypeError, "whole atomic numbers"),
            ([[8, 1]], TypeError, "whole atomic numbers"),
            (openmm.System(), TypeError, "openmm.app.Topology"),
            ([], ValueError, "there are no atoms"),
        ],
    )
    def test_no_atomic_numbers(self, numbers, error, message, models, backend):
        with pytest.raises(error, match=message):
            LESForce(models["one channel"], numbers, periodic=True, backend=backend)

    def test_particle_without_element(self, models, backend):
        with pytest.raises(ValueError, match=r"particle 3 has no element .*leave them out with atoms="):
            LESForce(models["one channel"], four_site_water(), backend=backend)

    @pytest.mark.parametrize("particles", [four_site_water(), 2 * [8, 1, 1, None]], ids=["topology", "numbers"])
    def test_particle_without_element_left_out(self, particles, models, backend):
        chosen = [0, 1, 2, 4, 5, 6]
        force = LESForce(models["one channel"], particles, atoms=chosen, periodic=True, backend=backend)
        system = openmm.System()
        for _ in range(8):
            system.addParticle(1.0)
        system.setDefaultPeriodicBoxVectors(*np.diag([1.9, 1.9, 1.9]))
        system.addForce(force)
        atoms = water_box()[:6]
        atoms.set_cell(19.0 * np.eye(3))
        positions = np.insert(atoms.positions, [3, 6], 0.0, axis=0)
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(positions / NANOMETER)
        energy, forces = evaluate(context)
        assert_same((energy, forces[chosen]), reference(models["one channel"], atoms))


class TestNumberOfParticles:
    """Topology and System describe different particles."""

    @pytest.mark.parametrize("count", [21, 27])
    def test_told_the_system(self, count, models, les_force):
        atoms = water_box()
        system = make_system(atoms.repeat((2, 1, 1))[:count])
        with pytest.raises(ValueError, match=f"the System has {count} particles, topology or atomic numbers have 24"):
            les_force(models["one channel"], atoms, system=system)

    @pytest.mark.parametrize("count", [21, 27])
    @pytest.mark.parametrize("chosen", [None, range(6), [22, 23]], ids=["all", "first", "last"])
    def test_at_run_time(self, chosen, count, models, les_force):
        """Of a subset as well: an index beyond the System must not read other memory."""
        atoms = water_box()
        other = atoms.repeat((2, 1, 1))[:count]
        context = make_context(make_system(other, les_force(models["one channel"], atoms, atoms=chosen)), other)
        with pytest.raises(openmm.OpenMMException, match=rf"for 24 particles.* {count}"):
            evaluate(context)


class TestBoundaries:
    def test_atomic_numbers_do_not_tell(self, models, backend):
        with pytest.raises(ValueError, match="do not tell the boundaries: pass periodic=True or periodic=False"):
            LESForce(models["one channel"], [8, 1, 1], backend=backend)

    def test_topology_without_box(self, models, backend):
        with pytest.raises(ValueError, match=r"the topology has no box: call topology\.setPeriodicBoxVectors"):
            LESForce(models["one channel"], topology_of(cluster()), periodic=True, backend=backend)

    def test_box_of_the_system_is_enough(self, models, backend):
        atoms = water_box()
        system = make_system(atoms)
        force = LESForce(models["one channel"], topology_of(cluster()), periodic=True, system=system, backend=backend)
        system.addForce(force)
        assert_same(evaluate(make_context(system, atoms)), reference(models["one channel"], atoms))

    MESSAGE = (
        r"still has OpenMM's default box \(2 nm cube\), the topology (says 0\.\d+ x 0\.\d+ x 0\.\d+ nm|another): call "
    )

    def test_system_with_the_default_box(self, models, backend):
        atoms = water_box()
        system = make_system(cluster())
        with pytest.raises(ValueError, match=self.MESSAGE):
            LESForce(models["one channel"], topology_of(atoms), system=system, backend=backend)

    def test_default_box_at_run_time(self, models, backend):
        """Noticed at the first evaluation; setting the box helps."""
        atoms = water_box()
        system = make_system(cluster(), LESForce(models["one channel"], topology_of(atoms), backend=backend))
        context = make_context(system, atoms)
        with pytest.raises(openmm.OpenMMException, match=self.MESSAGE):
            evaluate(context)
        context.setPeriodicBoxVectors(*(atoms.cell.array / NANOMETER))
        assert_same(evaluate(context), reference(models["one channel"], atoms))

    def test_box_of_two_nanometres(self, models, backend):
        """A System that is meant to be as large as the default box runs."""
        atoms = water_box()
        atoms.set_cell(20.0 * np.eye(3))
        system = make_system(cluster(), LESForce(models["one channel"], topology_of(atoms), backend=backend))
        assert_same(evaluate(make_context(system, atoms)), reference(models["one channel"], atoms))

    def test_box_below_the_cutoff_is_no_error(self, models, backend):
        atoms = small_cell()
        assert max(atoms.cell.lengths()) < 3.0
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            system = make_system(atoms)
            system.addForce(LESForce(models["one channel"], topology_of(atoms), system=system, backend=backend))
        assert_same(evaluate(make_context(system, atoms)), reference(models["one channel"], atoms))

    def test_isolated_force_in_a_periodic_system(self, models, les_force):
        atoms = water_box()
        nonbonded = openmm.NonbondedForce()
        nonbonded.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
        with pytest.raises(ValueError, match="the System uses periodic boundaries, but LESForce would be isolated"):
            les_force(models["one channel"], atoms, periodic=False, system=make_system(atoms, nonbonded))

    @pytest.mark.parametrize(
        "barostat",
        [
            lambda: openmm.MonteCarloBarostat(1.0, 300.0),
            lambda: openmm.MonteCarloAnisotropicBarostat([1.0] * 3, 300.0),
            lambda: openmm.MonteCarloFlexibleBarostat(1.0, 300.0),
            lambda: openmm.MonteCarloMembraneBarostat(1.0, 0.0, 300.0, 0, 0),
        ],
        ids=["isotropic", "anisotropic", "flexible", "membrane"],
    )
    def test_isolated_force_under_a_barostat(self, barostat, models, les_force):
        """Its energy would not know the box, which would then grow or shrink for ever."""
        atoms = water_box()
        with pytest.raises(ValueError, match="isolated"):
            les_force(models["one channel"], atoms, periodic=False, system=make_system(atoms, barostat()))


class TestConstraints:
    MESSAGE = (
        r"the System constrains 3 distances between atoms of the model \(first: particles 0 and 1\), as rigid water "
        r".*rigidWater=False.*allow_constraints=True"
    )

    def rigid(self):
        system = make_system(water_box())
        for first, second in ((0, 1), (0, 2), (1, 2)):
            system.addConstraint(first, second, 0.0957 if first == 0 else 0.1514)
        return system

    def test_refused(self, models, les_force):
        with pytest.raises(ValueError, match=self.MESSAGE):
            les_force(models["one channel"], water_box(), system=self.rigid())
        with pytest.raises(ValueError, match=self.MESSAGE):
            check_system(self.rigid(), 24, range(24), True)

    def test_between_other_atoms(self, models, les_force):
        assert les_force(models["one channel"], water_box(), system=self.rigid(), atoms=range(3, 24))

    def test_accepted_on_request(self, models, les_force):
        """The distances stay, and the energy is the model's."""
        atoms = water_box()
        system = self.rigid()
        system.addForce(les_force(models["one channel"], atoms, system=system, allow_constraints=True))
        context = make_context(system, atoms)
        context.applyConstraints(1e-9)
        context.getIntegrator().step(10)
        positions = context.getState(positions=True).getPositions(asNumpy=True)._value
        assert np.linalg.norm(positions[0] - positions[1]) == pytest.approx(0.0957, rel=1e-4)
        atoms.positions = NANOMETER * positions
        assert_same(evaluate(context), reference(models["one channel"], atoms))


class TestOtherForces:
    """What acts between the model's atoms already is counted twice; the user is told, at the line that did it."""

    @staticmethod
    def bonds():
        force = openmm.HarmonicBondForce()
        force.addBond(3, 4, 0.1, 1e5)
        return force

    @staticmethod
    def angles():
        force = openmm.HarmonicAngleForce()
        force.addAngle(4, 3, 5, 1.8, 100.0)
        return force

    @staticmethod
    def torsions():
        force = openmm.PeriodicTorsionForce()
        force.addTorsion(3, 4, 5, 0, 1, 0.0, 1.0)
        return force

    @staticmethod
    def nonbonded():
        force = openmm.NonbondedForce()
        for _ in range(24):
            force.addParticle(0.1, 0.3, 0.5)
        return force

    KINDS = ("bonds", "angles", "torsions", "nonbonded")

    @pytest.mark.parametrize("kind", KINDS)
    def test_warned_of(self, kind, models, les_force):
        force = getattr(self, kind)()
        system = make_system(water_box(), force)
        with pytest.warns(UserWarning, match=rf"{type(force).__name__}.*counted twice"):
            les_force(models["one channel"], water_box(), system=system)

    def test_warning_names_the_line_of_the_user(self, models, backend):
        system = make_system(water_box(), self.bonds())
        with pytest.warns(UserWarning, match="counted twice") as record:
            LESForce(models["one channel"], water_box().numbers, periodic=True, system=system, backend=backend)
        assert record[0].filename == __file__
        with pytest.warns(UserWarning, match="counted twice") as record:
            check_system(system, 24, range(24), True)
        assert record[0].filename == __file__

    @pytest.mark.parametrize("kind", KINDS)
    def test_between_other_atoms(self, kind, models, les_force):
        """Nothing to warn of: one atom of the model, which nothing else acts on together with another."""
        system = make_system(water_box(), getattr(self, kind)())
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            les_force(models["one channel"], water_box(), system=system, atoms=[4])


class TestPositions:
    @pytest.mark.parametrize("make", [water_box, cluster])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, value, make, models, les_force):
        atoms = make()
        system = make_system(atoms, les_force(models["one channel"], atoms))
        atoms.positions[3, 1] = value
        with pytest.raises(openmm.OpenMMException, match=r"positions .*not finite"):
            evaluate(make_context(system, atoms))

    def test_on_top_of_each_other(self, models, les_force):
        atoms = water_box()
        system = make_system(atoms, les_force(models["one channel"], atoms))
        atoms.positions[3] = atoms.positions[0]
        with pytest.raises(openmm.OpenMMException, match="not finite: check the positions for atoms on top"):
            evaluate(make_context(system, atoms))

    def test_never_set(self, models, les_force):
        """OpenMM's own message comes first."""
        atoms = water_box()
        system = make_system(atoms, les_force(models["one channel"], atoms))
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
        with pytest.raises(openmm.OpenMMException, match="positions have not been set"):
            evaluate(context)

    def test_message_of_a_simulation(self, backend, models, les_force):
        """An error in the middle of a run carries no trace of Python (TorchScript always adds its own)."""
        atoms = water_box()
        context = make_context(make_system(atoms, les_force(models["one channel"], atoms)), atoms)
        context.getIntegrator().step(1)
        context.setVelocities(np.where(np.arange(24)[:, None] == 3, np.inf, np.zeros((24, 3))))
        with pytest.raises(openmm.OpenMMException, match=r"positions .*not finite") as error:
            context.getIntegrator().step(2)
        assert "Traceback" not in str(error.value) or backend == "torchforce"


class TestModelFile:
    def check(self, path, error, message, backend):
        for model in (path, str(path)):
            with pytest.raises(error, match=message):
                LESForce(model, [8, 1, 1], periodic=True, backend=backend)

    def test_missing(self, tmp_path, backend):
        self.check(tmp_path / "nothing.pt", FileNotFoundError, r"there is no model file .*nothing\.pt", backend)
        self.check(tmp_path, FileNotFoundError, "there is no model file", backend)

    def test_text(self, tmp_path, backend):
        path = tmp_path / "text.pt"
        path.write_text("O 8\nH 1\n")
        self.check(path, ModelFileError, r"text\.pt is truncated or no model file", backend)

    def test_checkpoint(self, tmp_path, backend):
        path = write_checkpoint(tmp_path / "small.pth")
        self.check(path, ModelFileError, r"small\.pth is a checkpoint, not an exported model.*les-export", backend)

    def test_foreign_torchscript(self, tmp_path, backend):
        path = tmp_path / "foreign.pt"
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
        self.check(path, ModelFileError, r"foreign\.pt is a TorchScript file that les-export did not write", backend)

    @pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
    def test_truncated(self, part, models, tmp_path, backend):
        path = tmp_path / "cut.pt"
        content = models["one channel"].read_bytes()
        path.write_bytes(content[: int(part * len(content))])
        self.check(path, ModelFileError, r"cut\.pt is truncated or no model file", backend)

    @pytest.mark.parametrize(
        ("version", "message"),
        [(6, "update les_md, or export the checkpoint again"), (1, "export the checkpoint again")],
    )
    def test_other_format(self, version, message, models, tmp_path, backend):
        path = tmp_path / "other.pt"
        with zipfile.ZipFile(models["one channel"]) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                content = old.read(entry)
                if entry.filename.endswith("les_md.json"):
                    content = content.replace(b'"format_version": 4', f'"format_version": {version}'.encode())
                new.writestr(entry.filename, content)
        message = rf"other\.pt is in format {version}, this les_md reads formats 3, 4 and 5: {message}"
        self.check(path, ModelFileError, message, backend)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kspace": "pppm"}, "unknown kspace 'pppm': give auto, ewald or mesh"),
            ({"kspace": "mesh", "accuracy": 1e-15}, "this accuracy is out of reach of the mesh: give a relative force"),
            ({"accuracy": 3.0}, r"to 0\.1, or use kspace ewald"),
            ({"accuracy": -1.0}, r"accuracy must be a positive number \(a relative force error\), not -1\.0"),
            ({"accuracy": float("nan")}, "accuracy must be a positive number"),
            ({"kset": "never"}, "kset must be follow or fixed, not 'never'"),
        ],
    )
    def test_solver(self, options, message, models, les_force):
        """Refused before a run."""
        with pytest.raises(ValueError, match=message):
            les_force(models["one channel"], water_box(), **options)

    @pytest.mark.parametrize(
        ("options", "message"), [({"kspace": "pppm"}, "unknown kspace"), ({"accuracy": 0.0}, "positive")]
    )
    def test_solver_of_a_short_range_model(self, options, message, models, les_force):
        """Also where it would have no effect."""
        with pytest.raises(ValueError, match=message):
            les_force(models["short range"], water_box(), **options)

    @pytest.mark.parametrize("accuracy", ["1e-5", None])
    def test_accuracy_that_is_no_number(self, accuracy, models, les_force):
        with pytest.raises((TypeError, ValueError), match="accuracy"):
            les_force(models["one channel"], water_box(), accuracy=accuracy)

    def test_fixed_wave_vectors_of_no_box(self, models, les_force):
        with pytest.raises(ValueError, match="kset='fixed' needs a periodic topology with box vectors, or system="):
            les_force(models["one channel"], water_box(), kset="fixed")

    @pytest.mark.parametrize("group", [-1, 32])
    def test_force_group(self, group, models, les_force):
        with pytest.raises(openmm.OpenMMException, match="Force group must be between 0 and 31"):
            les_force(models["one channel"], water_box(), force_group=group)

    def test_backend(self, models):
        with pytest.raises(ValueError, match="backend must be one of auto, python, torchforce, not 'cuda'"):
            LESForce(models["one channel"], [8, 1, 1], periodic=True, backend="cuda")

    def test_unknown_option(self, models, les_force):
        with pytest.raises(TypeError, match="nonsense"):
            les_force(models["one channel"], water_box(), nonsense=1)

    @pytest.mark.parametrize(
        "device",
        [
            "banana",
            pytest.param(
                "cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is missing")
            ),
        ],
    )
    def test_device(self, device, models):
        """The device is what is wrong, not the file."""
        with pytest.raises((ValueError, RuntimeError), match=device) as error:
            LESForce(models["one channel"], [8, 1, 1], periodic=True, backend="python", device=device)
        assert "damaged" not in str(error.value)

    def test_device_of_torchforce(self, backend, models):
        if backend != "torchforce":
            pytest.skip("the python backend has a device")
        with pytest.raises(ValueError, match="device"):
            LESForce(models["one channel"], [8, 1, 1], periodic=True, backend=backend, device="cpu")


def test_one_message_for_every_engine(models, les_force, tmp_path):
    """What LESCalculator refuses, LESForce refuses with the same words."""
    path = export(write_checkpoint(tmp_path / "small.pth"), tmp_path / "small.pt").path
    atoms = ase.Atoms("ONa", [[0, 0, 0], [0, 0, 2]])
    messages = []
    for attempt in (lambda: LESCalculator(path).get_potential_energy(atoms), lambda: les_force(path, atoms)):
        with pytest.raises(ValueError) as error:
            attempt()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
