"""Every wrong input stops with a message that says what is wrong and what to do."""

import re

import ase
import numpy as np
import pytest
import torch
from conftest import lmp, water, write_data

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
        ("speed 2", r"Unknown pair_style mliap/les keyword 'speed': known are device, threads, kspace, charges"),
        ("charges", r"keyword 'charges' needs a value"),
        ("threads 0", r"threads must be at least 1, not 0"),
        ("threads two", r"[Ee]xpected integer.*two"),
        ("kspace mesh", r"kspace mesh is not available in this version: use ewald"),
        ("kspace pppm", r"Unknown pair_style mliap/les kspace 'pppm': give auto or ewald"),
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
        self.check(refused, path, r"weights.pt' cannot be read: .* is no TorchScript file")

    def test_foreign_torchscript(self, refused, tmp_path):
        path = tmp_path / "foreign.pt"
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
        self.check(refused, path, r"foreign.pt' is a TorchScript file but not one of les_md .*les-export")

    def rewrite(self, models, path, **changes):
        model = model_file.load(models["water"])
        model_file.write(path, model.module, {k: v for k, v in {**model.metadata, **changes}.items() if v != "remove"})
        return path

    def test_newer_format(self, refused, models, tmp_path):
        path = self.rewrite(models, tmp_path / "new.pt", format_version=2)
        self.check(refused, path, r"new.pt' has format version 2, this les_md reads up to 1: update les_md")

    def test_incomplete_metadata(self, refused, models, tmp_path):
        path = self.rewrite(models, tmp_path / "bad.pt", cutoff="remove")
        self.check(refused, path, r"bad.pt' holds damaged metadata .*cutoff")

    def test_metadata_without_methods(self, refused, models, tmp_path):
        path = tmp_path / "hollow.pt"
        model_file.write(path, torch.jit.script(torch.nn.Linear(2, 2)), model_file.load(models["water"]).metadata)
        self.check(refused, path, r"hollow.pt' is damaged: the model has no method short_range")


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


def test_two_ranks(models, plugin, tmp_path):
    write_data(tmp_path / "w.data", water(), ("H", "O"), "atomic")
    script = f"units metal\nread_data w.data\npair_style mliap/les\npair_coeff * * {models['water']} H O\nrun 0\n"
    done = lmp(script, tmp_path, ranks=2)
    assert done.returncode != 0
    assert "runs on one MPI rank in this version, not on 2" in done.stdout + done.stderr


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
    message = r"non-finite energy at step 0; the closest atoms, [48] and [48], are 0 angstrom apart"
    with pytest.raises(Exception, match=message):
        session.run("run 0")


def test_atoms_almost_on_top_of_each_other(models, lammps_of):
    atoms = water()
    atoms.positions[7] = atoms.positions[3] + [1e-7, 0, 0]
    assert np.isfinite(lammps_of(atoms).potential(models["water"]).evaluate().forces).all()
