"""An architecture of another package, installed by pip: exported by les-export, run in LAMMPS."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from les_md import LESCalculator
from les_md.architectures import architectures
from tests.lammps.conftest import lmp, water, write_data

PACKAGE = Path(__file__).resolve().parents[1] / "architectures" / "outside_package"
KJ_PER_MOL = 1.602176634e-19 * 6.02214076e23 / 1000.0  # per eV
INPUT = """
units metal
atom_style atomic
read_data system.data
pair_style mliap/les
pair_coeff * * behler.pt H O
compute each all pe/atom
thermo_style custom step pe
thermo_modify format float %.15g
dump forces all custom 1 forces.txt id fx fy fz
dump_modify forces sort id format float %.15g
run 0
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Where the package is installed: a folder of its own, on the path of those who shall see it."""
    folder = tmp_path_factory.mktemp("outside")
    # setuptools writes beside the sources.
    for file in ("pyproject.toml", "les_behler.py"):
        (folder / "source").mkdir(exist_ok=True)
        (folder / "source" / file).write_text((PACKAGE / file).read_text())
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(folder / "source")], check=True, timeout=300)
    return folder / "site"


def write_checkpoint(site: Path, path: Path) -> None:
    """Random weights."""
    specification = importlib.util.spec_from_file_location("les_behler", site / "les_behler.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    torch.manual_seed(4)
    network = module.Behler(2, 4.5, 1.5, torch.linspace(0.8, 4.0, 8)).double()
    checkpoint = {
        "behler": {"cutoff": 4.5, "width": 1.5},
        "atomic_numbers": torch.tensor([1, 8]),
        "reference_energies": torch.tensor([-13.6, -2041.8]),
        "weights": network.state_dict(),
    }
    torch.save(checkpoint, path)


def test_package_installed_by_pip(site, plugin, tmp_path):
    write_checkpoint(site, tmp_path / "behler.pth")
    export = [str(Path(sys.executable).parent / "les-export"), "behler.pth", "-o", "behler.pt", "--dtype", "float64"]
    # Without the package nobody knows what the checkpoint is; with it, nothing in les_md has to change.
    alone = subprocess.run(export, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert alone.returncode != 0
    assert not (tmp_path / "behler.pt").exists()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(export, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # The exported file stands alone: it runs after the package is gone, in an architecture that nobody here knows.
    shutil.rmtree(site)
    assert "les_behler" not in sys.modules
    assert "behler" not in architectures()
    atoms = water((2, 2, 2))
    atoms.calc = LESCalculator(tmp_path / "behler.pt")
    want = atoms.get_forces()
    assert np.abs(atoms.get_charges()).max() > 0.01
    write_data(tmp_path / "system.data", atoms, ("H", "O"), "atomic")
    for ranks in (1, 2):
        result = lmp(INPUT, tmp_path, ranks=ranks)
        assert result.returncode == 0, result.stdout[-2000:]
        lines = result.stdout.splitlines()
        row = next(i for i, line in enumerate(lines) if line.split() == ["Step", "PotEng"])
        assert float(lines[row + 1].split()[1]) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        forces = np.loadtxt(tmp_path / "forces.txt", skiprows=9)[:, 1:]
        np.testing.assert_allclose(forces, want, atol=1e-10 * np.abs(want).max())
    openmm = pytest.importorskip("openmm", reason="needs OpenMM (pip install 'les_md[openmm]')")
    from les_md.openmm import LESForce

    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / 10.0))
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(LESForce(tmp_path / "behler.pt", atoms.numbers, periodic=True))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / 10.0)
    in_openmm = context.getState(forces=True).getForces(asNumpy=True)._value / 10.0 / KJ_PER_MOL
    np.testing.assert_allclose(in_openmm, want, atol=1e-9 * np.abs(want).max())
