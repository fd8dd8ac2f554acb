"""Other MPIs than that of the packages, as the cluster tutorial has them: MPICH in its place, a LAMMPS of one's own.

The second is run where `LES_MD_TEST_LAMMPS_BUILD` names the folder in which a LAMMPS was built by CMake, with its
package PLUGIN, as a shared library, and with any MPI.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from les_md.doctor_evaluations import TOLERANCE, deviation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "cluster.md"

#: MPICH's library by Debian's name of it; others call it libmpi.so.12 themselves.
MPICH = Path("/usr/lib/x86_64-linux-gnu/libmpich.so.12")


def block(word: str) -> str:
    """The only block of commands of the tutorial that has ``word`` in it."""
    (found,) = [code for code in re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.M | re.S) if word in code]
    return found


def run(script: str, folder: Path, **environment: str) -> str:
    """Run commands in ``folder`` as on the login node, with the programs of this environment first; their output."""
    kept = {key: value for key, value in os.environ.items() if key not in ("LAMMPS_PLUGIN_PATH", "LD_LIBRARY_PATH")}
    programs = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    # Open MPI starts nothing as root, as which continuous integration runs, unless told that this is meant.
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={**kept, "OMP_NUM_THREADS": "1", "PATH": programs, **root, **environment},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path) -> Path:
    """A box of water with its energy and forces by ASE."""
    (tmp_path / "bin").mkdir()
    run(f"{sys.executable} -m les_md.doctor_evaluations reference .", tmp_path)
    return tmp_path


def program(folder: Path, name: str, target: str) -> None:
    """A command ``name`` that calls ``target``: some compiler wrappers would not work by a link of another name."""
    script = folder / "bin" / name
    script.write_text(f'#!/bin/sh\nexec {target} "$@"\n')
    script.chmod(0o755)


def check(folder: Path, commands: str, lmp: str) -> str:
    """Run the box on one rank and on two, with the ``commands`` of the tutorial before it; the output of all."""
    printed, results = "", []
    for ranks in (1, 2):
        printed += run(f"{commands}\nmpiexec -n {ranks} {lmp} -in in.water -log log.{ranks}", folder)
        grid = re.search(r"(\d+) by (\d+) by (\d+) MPI processor grid", (folder / f"log.{ranks}").read_text())
        assert math.prod(map(int, grid.groups())) == ranks
        energy = float((folder / "lammps.energy").read_text())
        results.append((energy, np.loadtxt(folder / "lammps.atoms", skiprows=9)[:, 1:4]))
    with np.load(folder / "reference.npz") as reference:
        for energy, forces in results:
            assert deviation(energy, forces, dict(reference)) < TOLERANCE
    one = {"energy": np.array(results[0][0]), "forces": results[0][1]}
    assert deviation(*results[1], one) < 1e-10
    return printed


def test_mpich_of_the_system(folder):
    """Its library in the place of the package's: nothing is compiled for it."""
    launcher = shutil.which("mpiexec.mpich")
    if launcher is None or not MPICH.exists():
        pytest.skip("needs Debian's MPICH (apt-get install mpich)")
    program(folder, "mpiexec", launcher)
    commands = block("libmpich.so.12").replace("srun lmp -in in.production\n", "")
    assert "libmpich.so.12" in commands
    check(folder, commands, "lmp")
    # The version that LAMMPS reports is that of the library it runs with.
    version = re.search(r"Version:\s+(\S+)", run("mpiexec -info", folder))[1]
    assert re.search(rf"MPICH Version:\s+{re.escape(version)}\s", run(f"{commands}\nlmp -h", folder))


def test_own_lammps(folder):
    """The plugin built by CMake against sources and MPI of a LAMMPS that the user built."""
    build = os.environ.get("LES_MD_TEST_LAMMPS_BUILD")
    if build is None:
        pytest.skip("needs a LAMMPS of one's own (LES_MD_TEST_LAMMPS_BUILD names its build folder)")
    cache = (Path(build) / "CMakeCache.txt").read_text()
    known = dict(re.findall(r"^(\w+):\w+=(.*)$", cache, re.M))
    program(folder, "mpicxx", known["MPI_CXX_COMPILER"])
    # Where several MPIs are installed, CMake finds the launcher of the first, whatever compiler it is told.
    launcher = Path(known["MPI_CXX_COMPILER"].replace("mpicxx", "mpiexec"))
    program(folder, "mpiexec", str(launcher) if launcher.is_file() else known["MPIEXEC_EXECUTABLE"])
    (folder / "lammps").mkdir()
    (folder / "lammps" / "src").symlink_to(Path(known["CMAKE_HOME_DIRECTORY"]).parent / "src")
    (folder / "lammps" / "build").symlink_to(build)
    commands = block("LAMMPS_PLUGIN_PATH").replace("srun $LAMMPS/build/lmp -in in.production\n", "")
    assert "$LAMMPS/src" in commands
    printed = run(commands, folder, LAMMPS=str(folder / "lammps"))
    assert f"sizes {known.get('LAMMPS_SIZES', 'SMALLBIG').upper()}" in printed
    check(folder, f"export LAMMPS_PLUGIN_PATH={folder}/build LAMMPS={folder}/lammps", "$LAMMPS/build/lmp")
