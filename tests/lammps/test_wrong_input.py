"""Every wrong input stops with a message that says what is wrong and what to do."""

import re
import time
from pathlib import Path

import ase
import ase.data
import numpy as np
import pytest
import torch
from conftest import lmp, water, write_data, write_model

from les_md import model_file


@pytest.fixture
def refused(lammps_of):
    """Commands that must fail with a message; options are those of ``Lammps``."""

    def check(commands: str, message: str, atoms: ase.Atoms | None = None, **options):
        session = lammps_of(water() if atoms is None else atoms, **options)
        with pytest.raises(Exception, match=message) as caught:
            session.run(commands)
        assert "backtrace" not in str(caught.value)
        assert "frame #" not in str(caught.value)

    return check


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            "speed 2",
            r"Unknown pair_style mliap/les keyword 'speed': known are kspace, accuracy, kset, slab, charges, current, "
            "efield, asr, operators, compiled, threads, device",
        ),
        ("6.0", r"takes no cutoff: it is that of the model"),
        ("cutoff 6.0", r"takes no cutoff: it is that of the model"),
        ("charges", r"keyword 'charges' needs a value"),
        ("threads 0", r"threads must be at least 1, not 0"),
        ("threads two", r"[Ee]xpected integer.*two"),
        ("kspace pppm", r"Unknown pair_style mliap/les kspace 'pppm': give auto, ewald or mesh"),
        ("operators none", r"Unknown pair_style mliap/les operators 'none': give compiled or file"),
        ("kset free", r"Unknown pair_style mliap/les kset 'free': give follow or fixed"),
        ("accuracy high", r"[Ee]xpected floating.*high"),
        ("accuracy nan", r"[Ee]xpected floating.*nan"),
        ("slab maybe", r"[Ee]xpected boolean.*maybe"),
        ("charges maybe", r"[Ee]xpected boolean.*maybe"),
    ],
)
def test_pair_style_keywords(keywords, message, refused):
    refused(f"pair_style mliap/les {keywords}", message)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", r"unknown device 'gpu': give cpu, cuda, cuda:N or auto"),
        ("mps", r"unknown device 'mps'"),
        pytest.param(
            "cuda",
            r"device 'cuda' is not available",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here"),
        ),
    ],
)
def test_device(device, message, refused, models):
    refused(f"pair_style mliap/les device {device}\npair_coeff * * {models['water']} H O", message)


def test_automatic_device(models, lammps_of):
    lammps_of(water()).potential(models["water"], "device auto").evaluate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("* *", r"needs: \* \* FILE and one element"),
        ("1 1 MODEL H O", r"must start with \* \*"),
        ("* * MODEL H", r"names 1 elements for 2 atom types"),
        ("* * MODEL H O O", r"names 3 elements for 2 atom types"),
        ("* * MODEL H Xe", r"does not know element 'Xe'; it knows H O"),
        ("* * MODEL NULL NULL", r"maps no atom type to an element"),
        ("* * missing.pt H O", r"model file 'missing.pt' not found"),
    ],
)
def test_pair_coeff(arguments, message, refused, models):
    refused(f"pair_style mliap/les\npair_coeff {arguments.replace('MODEL', str(models['water']))}", message)


def test_pair_coeff_is_missing(refused):
    refused("pair_style mliap/les\nrun 0", r"pair_coeff|[Pp]air coeff")


def test_null_without_another_style(refused, models):
    refused(f"pair_style mliap/les\npair_coeff * * {models['water']} H NULL\nrun 0", r"All pair coeffs are not set")


class TestModelFile:
    def check(self, refused, path, message):
        refused(f"pair_style mliap/les\npair_coeff * * {path} H O", message)

    def test_not_torchscript(self, refused, tmp_path):
        path = tmp_path / "text.pt"
        path.write_text("hello " * 100)
        self.check(refused, path, r"text.pt' is not a TorchScript file: give a file written by les-export")

    def test_empty(self, refused, tmp_path):
        path = tmp_path / "empty.pt"
        path.touch()
        self.check(refused, path, r"empty.pt' is not a TorchScript file")

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
    def test_truncated(self, part, refused, models, tmp_path):
        content = models["water"].read_bytes()
        path = tmp_path / "cut.pt"
        path.write_bytes(content[: int(part * len(content))])
        self.check(refused, path, r"cut.pt' cannot be read: it is damaged or truncated")

    def test_checkpoint(self, refused, tmp_path):
        path = tmp_path / "weights.pt"
        torch.save({"weight": torch.zeros(3)}, path)
        self.check(refused, path, r"weights.pt' is not an exported model, .* the file that les-export \S*weights.pt")

    def test_foreign_torchscript(self, refused, tmp_path):
        path = tmp_path / "foreign.pt"
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
        self.check(refused, path, r"foreign.pt' is a TorchScript file but not one of les_md .*les-export")

    def rewrite(self, models, path, **changes):
        model = model_file.load(models["water"])
        model_file.write(path, model.module, {k: v for k, v in {**model.metadata, **changes}.items() if v != "remove"})
        return path

    def test_other_format(self, refused, models, tmp_path):
        path = self.rewrite(models, tmp_path / "new.pt", format_version=6)
        message = r"new.pt' has format version 6, this les_md reads versions 3 to 5: update les_md or export the model"
        self.check(refused, path, message)
        path = self.rewrite(models, tmp_path / "old.pt", format_version=1)
        message = r"old.pt' has format version 1, this les_md reads versions 3 to 5: export the model with this version"
        self.check(refused, path, message)

    def test_incomplete_metadata(self, refused, models, tmp_path):
        path = self.rewrite(models, tmp_path / "bad.pt", cutoff="remove")
        self.check(refused, path, r"bad.pt' holds damaged metadata .*cutoff")

    def test_metadata_without_methods(self, refused, models, tmp_path):
        path = tmp_path / "hollow.pt"
        model_file.write(path, torch.jit.script(torch.nn.Linear(2, 2)), model_file.load(models["water"]).metadata)
        self.check(refused, path, r"hollow.pt' is damaged: the model has no method evaluate")


class TestSettings:
    def check(self, refused, models, message, keywords="", commands="run 0", **options):
        style = f"pair_style mliap/les {keywords}\npair_coeff * * {models['water']} H O\n"
        refused(style + commands, message, **options)

    def test_newton_off(self, refused, models):
        self.check(refused, models, r"needs newton on", before="newton off")

    @pytest.mark.parametrize("units", ["lj", "si", "electron"])
    def test_units(self, units, refused, models):
        self.check(refused, models, rf"works in units metal or real, not {units}", units=units)

    def test_charges_without_an_array_for_them(self, refused, models):
        self.check(refused, models, r"charges yes needs an atom_style with charges", keywords="charges yes")

    def test_charges_of_a_model_with_two(self, refused, models):
        commands = f"pair_style mliap/les charges yes\npair_coeff * * {models['two charges']} H O\nrun 0"
        refused(commands, r"one charge per atom, this one has 2", atom_style="charge")

    @pytest.mark.parametrize("accuracy", ["1e-13", "2", "-1"])
    @pytest.mark.parametrize("boundary", ["p p p", "f f f"])
    def test_accuracy(self, accuracy, boundary, refused, models):
        message = (
            r"mliap/les: this accuracy is out of reach of the mesh: give a relative force error from \S+ \(more in "
            r"long thin cells\) to 0.1, or use kspace ewald"
        )
        self.check(refused, models, message, keywords=f"kspace mesh accuracy {accuracy}", boundary=boundary)

    @pytest.mark.parametrize("boundary", ["p p p", "p f p", "f f f"])
    def test_slab_of_other_boundaries(self, boundary, refused, models):
        self.check(refused, models, r"slab yes needs boundary p p f", keywords="slab yes", boundary=boundary)

    def test_slab_of_a_short_range_model(self, refused, models):
        commands = f"pair_style mliap/les slab yes\npair_coeff * * {models['short range']} H O\nrun 0"
        refused(commands, r"slab yes needs a model with long-range energy", boundary="p p f")

    @pytest.mark.parametrize(("boundary", "letter"), [("p p s", "s"), ("m p p", "m"), ("p fs p", "s")])
    def test_shrink_wrapping_beside_periodic(self, boundary, letter, refused, models):
        self.check(refused, models, rf"shrink-wrapped one \({letter}\).*use a fixed boundary", boundary=boundary)

    def test_exclusions(self, refused, models):
        for pairs in ("type 1 2", "group all all", "molecule/intra all"):
            style = "full" if "molecule" in pairs else "atomic"
            commands = f"neigh_modify exclude {pairs}\nrun 0"
            self.check(refused, models, r"remove neigh_modify exclude", commands=commands, atom_style=style)

    def test_include(self, refused, models):
        commands = "group part id 1:3\natom_modify first part\nneigh_modify include part\nrun 0"
        self.check(refused, models, r"remove neigh_modify include", commands=commands)

    def test_per_atom_virial(self, refused, models):
        for compute in ("stress/atom NULL", "centroid/stress/atom NULL"):
            commands = f"compute s all {compute}\ncompute r all reduce sum c_s[1]\nthermo_style custom step c_r\nrun 0"
            self.check(refused, models, r"no per-atom virial|centroid/stress/atom", commands=commands)


def test_special_bonds(models, plugin, tmp_path):
    atoms = water((1, 1, 1), 8.0)
    write_data(tmp_path / "w.data", atoms, ("H", "O"), "full")
    data = (tmp_path / "w.data").read_text()
    data = data.replace("2 atom types", "2 atom types\n2 bonds\n1 bond types").rstrip()
    (tmp_path / "w.data").write_text(data + "\n\nBonds\n\n1 1 1 2\n2 1 1 3\n")
    script = (
        "units metal\natom_style full\nbond_style zero\n{special}\nread_data w.data extra/special/per/atom 4\n"
        f"bond_coeff * 1.0\npair_style mliap/les\npair_coeff * * {models['water']} H O\nrun 0\n"
    )
    done = lmp(script.format(special=""), tmp_path)
    assert done.returncode != 0
    assert re.search(r"needs bonded atoms.*special_bonds lj/coul 1.0 1.0 1.0", done.stdout + done.stderr)
    done = lmp(script.format(special="special_bonds lj/coul 1.0 1.0 1.0"), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    energy = float(re.search(r"^\s+0\s+\S+\s+(\S+)", done.stdout, re.MULTILINE).group(1))
    # Factors that are neither 0 nor 1 mark the pairs in the list but must not change the model's energy.
    done = lmp(script.format(special="special_bonds lj/coul 0.5 0.5 0.5"), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(re.search(r"^\s+0\s+\S+\s+(\S+)", done.stdout, re.MULTILINE).group(1)) == energy


def test_no_atom_ids(models, plugin, tmp_path):
    script = (
        "units metal\natom_modify id no\nregion r block 0 6 0 6 0 6\ncreate_box 2 r\n"
        "create_atoms 2 single 1 1 1\nmass * 1.0\n"
        f"pair_style mliap/les\npair_coeff * * {models['water']} H O\nrun 0\n"
    )
    done = lmp(script, tmp_path)
    assert done.returncode != 0
    assert "needs atom IDs: remove atom_modify id no" in done.stdout + done.stderr


def test_errors_stop_the_program(models, plugin, tmp_path):
    write_data(tmp_path / "w.data", water(), ("H", "O"), "atomic")
    done = lmp("units lj\nread_data w.data\npair_style mliap/les\npair_coeff * * nothing.pt H O\n", tmp_path)
    assert done.returncode != 0
    assert "model file 'nothing.pt' not found" in done.stdout + done.stderr


def test_position_that_is_not_a_number(models, lammps_of):
    session = lammps_of(water()).potential(models["water"]).run("fix 1 all nve\nrun 0")
    session.lmp.numpy.extract_atom("x")[4, 1] = np.nan
    with pytest.raises(Exception, match=r"position of atom \d+ is not a number at step"):
        session.run("run 1 pre no")


def test_atoms_on_top_of_each_other(models, lammps_of):
    atoms = water()
    atoms.positions[7] = atoms.positions[3]
    session = lammps_of(atoms).potential(models["water"])
    message = r"the model gives a non-finite energy at step 0; the closest atoms, [48] and [48], are 0 angstrom apart"
    with pytest.raises(Exception, match=message):
        session.run("run 0")


def test_atoms_almost_on_top_of_each_other(models, lammps_of):
    atoms = water()
    atoms.positions[7] = atoms.positions[3] + [1e-7, 0, 0]
    assert np.isfinite(lammps_of(atoms).potential(models["water"]).evaluate().forces).all()


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model of two layers."""
    return write_model(tmp_path_factory.mktemp("deep") / "deep.pt", num_message_passing=1)


class TestRanks:
    """On two ranks: one message, within seconds, and no rank that waits for the other."""

    SECONDS = 180  # of which most are for starting two programs on a busy machine

    @pytest.fixture
    def run(self, plugin, tmp_path):
        def run(model, before="", after="run 0", atoms=None):
            write_data(tmp_path / "w.data", water() if atoms is None else atoms, ("H", "O"), "atomic")
            script = f"units metal\nprocessors 2 1 1\n{before}\nread_data w.data\n"
            script += f"pair_style mliap/les\npair_coeff * * {model} H O\nthermo_style custom step pe\n"
            start = time.monotonic()
            done = lmp(script + "thermo_modify format float %.17g\n" + after, tmp_path, ranks=2)
            assert time.monotonic() - start < self.SECONDS
            return done

        return run

    def check(self, done, message):
        output = done.stdout + done.stderr
        assert done.returncode != 0, output
        assert re.search(message, output), output
        assert output.count("ERROR") == 1
        assert "backtrace" not in output

    def test_ghost_cutoff(self, run, deep, lammps_of):
        """A ghost cutoff that is too short is refused; the line that the message names works; one rank needs none."""
        done = run(deep, before="neighbor 0.73 bin\ncomm_modify cutoff 4.0")
        message = (
            r"the ghost cutoff 4 of comm_modify is below the 8.73 angstrom that 2 layers of cutoff 4 and the neighbor "
            r"skin 0.73 need on several MPI ranks: remove it, or use: (comm_modify cutoff 8.8) "
        )
        self.check(done, message)
        line = re.search(message, done.stdout + done.stderr).group(1)
        done = run(deep, before=f"neighbor 0.73 bin\n{line}")
        assert done.returncode == 0, done.stdout + done.stderr
        energy = float(re.search(r"\n +0 +(-\S+)", done.stdout).group(1))
        plain = lammps_of(water()).potential(deep).evaluate().energy
        assert energy == pytest.approx(plain, rel=1e-12)
        alone = lammps_of(water()).run("comm_modify cutoff 4.0").potential(deep).evaluate().energy
        assert alone == pytest.approx(plain, rel=1e-12)

    def test_ghost_cutoff_by_type(self, run, deep):
        done = run(deep, before="neighbor 1.0 multi\ncomm_modify mode multi")
        self.check(done, r"model of 2 layers on several MPI ranks needs one ghost cutoff: use comm_modify mode single")

    def test_ghost_cutoff_is_given_back(self, run, deep, models):
        """What a model asked for is no setting of the user's: another model may need more, another style less."""
        after = (
            f"run 0\npair_coeff * * {models['water']} H O\nrun 0\npair_coeff * * {deep} H O\nrun 0\n"
            "pair_style zero 4.0\npair_coeff * *\nneighbor 3.0 bin\nrun 0\n"
            f"pair_style mliap/les\npair_coeff * * {deep} H O\nrun 0\n"
        )
        done = run(deep, after=after)
        assert done.returncode == 0, done.stdout + done.stderr
        cutoffs = [float(c) for c in re.findall(r"ghost atom cutoff = (\S+)", done.stdout)]
        assert cutoffs == [10.0, 6.0, 10.0, 7.0, 11.0]
        energies = re.findall(r"\n +0 +(-\S+)", done.stdout)
        assert float(energies[-1]) == pytest.approx(float(energies[0]), rel=1e-12)

    def test_missing_model(self, run):
        self.check(run("nothing.pt"), r"model file 'nothing.pt' not found")

    @staticmethod
    def of_second_rank():
        """Two atoms of ``water()`` well inside the upper half along x."""
        return [i for i, x in enumerate(water().positions[:, 0] % 6.2) if 4.0 < x < 5.5][:2]

    @pytest.mark.parametrize("kspace", ["ewald", "mesh"])
    def test_atoms_on_top_of_each_other(self, kspace, run, models):
        """The message names the pair, though the spoiled charges spoil the results of both ranks."""
        atoms = water()
        first, second = self.of_second_rank()
        atoms.positions[second] = atoms.positions[first]
        done = run(models["water"], atoms=atoms, after=f"pair_style mliap/les kspace {kspace}\nrun 0")
        pair = rf"({first + 1} and {second + 1}|{second + 1} and {first + 1})"
        self.check(done, rf"non-finite energy at step 0; the closest atoms, {pair}, are 0 angstrom apart")

    def test_position_that_is_not_a_number(self, run, models):
        atom = self.of_second_rank()[0] + 1
        fast = (
            f"set atom {atom} vx 1e308\nfix 1 all nve\ntimestep 100\nneigh_modify delay 100 every 100 check no\nrun 5"
        )
        self.check(run(models["water"], after=fast), rf"position of atom {atom} is not a number at step 1")

    def test_lost_atom(self, run, models):
        """An atom that leaves through a fixed boundary stops the run; it does not silently leave the sum."""
        flight = "set atom 1 vx 20000\nfix 1 all nve\ntimestep 0.00025\nneigh_modify every 1 delay 0\nthermo 1\nrun 20"
        self.check(run(models["gentle"], before="boundary f f f", after=flight), r"Lost atoms: original 24 current 23")


def run_with_masses(models, tmp_path, elements, *masses, runs=1):
    """Output of ``runs`` of no step for each of the ``masses`` of the two atom types."""
    write_data(tmp_path / "w.data", water(), ("H", "O"), "atomic")
    commands = "".join(
        f"mass 1 {first}\nmass 2 {second}\npair_coeff * * {models['water']} {elements}\n" + runs * "run 0\n"
        for first, second in masses
    )
    done = lmp(f"units metal\nread_data w.data\npair_style mliap/les\n{commands}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_elements_in_another_order(models, plugin, tmp_path):
    """Said once for a pair_coeff, not at every run; of rounded masses, too."""
    printed = run_with_masses(models, tmp_path, "O H", (1.008, 15.999), (1.0, 16.0), runs=2)
    message = (
        r"WARNING: Pair style mliap/les: type 1 is O with the mass of H \((.*?)\), type 2 is H with the mass of O "
        r"\((.*?)\)\. The elements of pair_coeff stand in the order of the atom types"
    )
    assert re.findall(message, printed) == [("1.008", "15.999"), ("1", "16")]


def test_masses_that_are_no_mistake(models, plugin, tmp_path):
    """Neither isotopes nor hydrogens made heavier for the sake of the time step are."""
    masses = ((1.008, 15.999), (1.0, 16.0), (2.014, 15.999), (3.024, 11.967), (1.008, 17.999))
    assert "with the mass of" not in run_with_masses(models, tmp_path, "H O", *masses)


def test_masses_of_ase(tmp_path):
    """Those of the plugin are the standard ones."""
    table = (Path(__file__).resolve().parents[2] / "lammps_plugin" / "atomic_masses.h").read_text()
    masses = {symbol: float(mass) for symbol, mass in re.findall(r'\{"(\w+)", ([\d.]+)\}', table)}
    assert masses == {
        symbol: pytest.approx(mass, rel=1e-4)
        for symbol, mass in zip(ase.data.chemical_symbols[1:], ase.data.atomic_masses[1:], strict=True)
    }


def test_mpiexec_of_another_library(models, plugin, tmp_path):
    """Open MPI's starts runs of one process where LAMMPS was built with MPICH."""
    write_data(tmp_path / "w.data", water(), ("H", "O"), "atomic")
    script = f"units metal\nread_data w.data\npair_style mliap/les\npair_coeff * * {models['water']} H O\nrun 0\n"
    message = "WARNING: Pair style mliap/les: 2 processes were started, but each is a run of its own"
    for ranks, size, times in ((1, "2", 1), (1, "1", 0), (2, "2", 0)):
        done = lmp(script, tmp_path, {"OMPI_COMM_WORLD_SIZE": size}, ranks)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(message) == times
