"""Networks compiled ahead of time in LAMMPS: the same as TorchScript's, and a warning where they do not fit."""

from __future__ import annotations

import re

import numpy as np
import pytest

from les_md import load
from tests.lammps.conftest import lmp, water, write_data
from tests.lammps.test_response import born_charges
from tests.test_ahead_of_time import rewrite

RUN = """
units metal
atom_style atomic
boundary {boundary}
read_data system.data
pair_style mliap/les compiled {compiled} {keywords}
pair_coeff * * {model} H O
velocity all create 300.0 1
timestep 0.0002
fix 1 all nve
thermo 1
thermo_style custom step pe pxx pyy pzz pxy
thermo_modify format float %22.16g
run 3
"""


def same(ours, theirs, model):
    tolerance = {"float64": 1e-10, "float32": 1e-5}[load(model).metadata["dtype"]]
    np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=tolerance * max(np.abs(theirs).max(), 1.0))


@pytest.mark.parametrize("boundary", ["p p p", "p p f", "f f f"])
def test_same_as_torchscript(compiled_model, lammps_of, boundary):
    atoms = water((5, 5, 4))  # more than one block of the network
    results = []
    for compiled in ("no", "yes"):
        session = lammps_of(atoms, boundary=boundary).potential(compiled_model, f"compiled {compiled}")
        results.append(session.evaluate())
    for name in ("energy", "energies", "forces", "virial"):
        same(getattr(results[1], name), getattr(results[0], name), compiled_model)


@pytest.mark.parametrize("keywords", ["", "efield 0.01 -0.02 0.03"])
def test_born_charges_and_fields(compiled_model, lammps_of, keywords):
    results = []
    for compiled in ("no", "yes"):
        session = lammps_of(water()).potential(compiled_model, f"compiled {compiled} {keywords}")
        session.run("fix born all pair 1 mliap/les born 1")
        results.append((session.evaluate().forces, born_charges(session)))
    for ours, theirs in zip(results[1], results[0], strict=True):
        same(ours, theirs, compiled_model)


def rows(process):
    """Of the thermodynamic output, [steps, 6]."""
    lines = re.findall(r"^ +[0-3](?: +[-\d.e+]+){5} *$", process.stdout, re.M)
    return np.array([line.split() for line in lines], dtype=float)


@pytest.mark.parametrize("ranks", [1, 2])
def test_runs(compiled_model, tmp_path, ranks):
    write_data(tmp_path / "system.data", water((3, 2, 2)), ("H", "O"), "atomic")
    results = []
    for compiled in ("no", "yes"):
        script = RUN.format(boundary="p p p", compiled=compiled, keywords="", model=compiled_model)
        process = lmp(script, tmp_path, ranks=ranks)
        assert process.returncode == 0, process.stdout + process.stderr
        assert (", compiled)" in process.stdout) == (compiled == "yes")
        results.append(rows(process))
    assert results[0].shape == (4, 6)
    same(results[1][:, 1], results[0][:, 1], compiled_model)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1.0)  # bar


def test_named_again(compiled_model, lammps_of):
    """The choice is that of the last pair_style."""
    session = lammps_of(water()).potential(compiled_model, "compiled yes")
    compiled = session.evaluate().forces
    session.run("pair_style mliap/les")
    plain = session.evaluate().forces
    session.run("pair_style mliap/les compiled yes")
    np.testing.assert_array_equal(session.evaluate().forces, compiled)
    same(compiled, plain, compiled_model)
    assert np.abs(compiled - plain).max() > 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interface": 7}, "it was compiled for interface 7, this is 1"),
        ({"torch": "1.0"}, 'it was compiled for torch "1.0", this is "'),
        ({"processor": "Z80"}, 'it was compiled for processor "Z80", this is "x86-64-v3"'),
        (None, "no network was compiled into the file"),
    ],
)
def test_torchscript_elsewhere(compiled_model, tmp_path, changes, message):
    model = tmp_path / "model.pt"

    def change(metadata):
        target = metadata.pop("compiled")
        return metadata if changes is None else {**metadata, "compiled": {**target, **changes}}

    rewrite(compiled_model, model, change)
    write_data(tmp_path / "system.data", water(), ("H", "O"), "atomic")
    process = lmp(RUN.format(boundary="p p p", compiled="yes", keywords="", model=model), tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"WARNING: Pair style mliap/les runs the network in TorchScript: {message}" in process.stdout
    assert ", compiled)" not in process.stdout


def test_errors(compiled_model, tmp_path):
    model = tmp_path / "model.pt"
    rewrite(compiled_model, model, lambda metadata: metadata, without="les_md_values.pt2")
    write_data(tmp_path / "system.data", water(), ("H", "O"), "atomic")
    script = RUN.format(boundary="p p p", compiled="yes", keywords="", model=model)
    process = lmp(script, tmp_path)
    assert process.returncode != 0
    message = "the model file is damaged: its metadata speak of a compiled network that it lacks"
    assert message in process.stdout
    process = lmp(script.replace(str(model), str(compiled_model)), tmp_path, {"TMPDIR": "/proc"})
    assert process.returncode != 0
    assert "cannot make a temporary folder for the compiled network" in process.stdout
