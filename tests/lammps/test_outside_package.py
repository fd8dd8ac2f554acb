"""The tutorial of an architecture of another package, installed by pip: trained, exported, run in all engines."""

import re
import shutil
import sys

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from les_md import LESCalculator
from les_md.architectures import architectures
from tests.lammps.conftest import lmp, water, write_data, write_model
from tests.pages import DOCS, run_page, thermo

TUTORIAL = DOCS / "tutorials" / "own_architecture.md"
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


def test_tutorial(plugin, tmp_path):
    folder, site = tmp_path / "page", tmp_path / "site"
    folder.mkdir()
    frames = [water((2, 2, 2)) for _ in range(2)]
    teacher = LESCalculator(write_model(tmp_path / "teacher.pt", softness=10.0))
    for seed, frame in enumerate(frames):
        frame.rattle(0.05, seed=seed)
        frame.calc = teacher
        frame.calc = SinglePointCalculator(frame, energy=frame.get_potential_energy(), forces=frame.get_forces())
    ase.io.write(folder / "train.xyz", frames)
    # pip installs into a folder of its own, on the path of those who shall see it, and asks nobody for packages.
    pip = {"PIP_TARGET": str(site), "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": str(site)}
    printed = run_page(TUTORIAL, folder, {"range(100)": "range(3)"}, **pip)
    losses = [float(line.split()[1]) for line in re.findall(r"^\d \S+$", printed, re.M)]
    assert len(losses) == 3
    assert losses[2] < losses[0]
    one, two = thermo(folder / "log.lammps"), thermo(folder / "log.two")
    assert len(one) == 5
    np.testing.assert_allclose(two, one, rtol=1e-6)
    shutil.move(folder / "behler.pt", tmp_path)
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
