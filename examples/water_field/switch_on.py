"""Fields switched on in liquid water, end to end: export, LAMMPS, response against fluctuations, and its figure.

python switch_on.py [--fields 0.01 0.02] [--starts 16] [--response 4] [--output switching]
python switch_on.py --go-on                 # after a stop: what has finished is kept

One run without a field gives the fluctuations, and starts; from each start there are short runs in every field, up and
down. Hydrogens weigh 4 g/mol here, and oxygens 10, for a time step of 1.5 fs: the two sides of ``switching.py`` are
equal for any masses, as long as all runs have the same.
"""

import argparse
import os
from pathlib import Path

from run import HERE, run_lammps
from switching import response_folder, summarise

from les_md import export

TIMESTEP = 0.0015
#: Steps between two values of the current.
EVERY = 2
#: Variables of ``in.water_field``.
HEAVY = {"dt": TIMESTEP, "every": EVERY, "oxygen": 10.015, "hydrogen": 4.0}


def main() -> int:
    parser = argparse.ArgumentParser(description="Fields switched on in liquid water, end to end.")
    parser.add_argument("--fields", type=float, nargs="+", default=[0.01, 0.02], help="V/Å (default: 0.01 0.02)")
    parser.add_argument("--starts", type=int, default=16, help="runs in every field, up and down (default: 16)")
    parser.add_argument("--response", type=float, default=4.0, help="length of each, ps (default: 4)")
    parser.add_argument("--spacing", type=float, default=6.0, help="ps between two starts (default: 6)")
    parser.add_argument("--equilibration", type=float, default=6.0, help="ps before the first (default: 6)")
    parser.add_argument("--go-on", action="store_true", help="keep the runs that have finished, with the same options")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model (default: water_rpbe_d3)")
    parser.add_argument("--data", type=Path, default=HERE.parent / "bulk_water" / "water.data", help="LAMMPS data file")
    parser.add_argument(
        "--output", type=Path, default=HERE / "switching", help="folder for results (default: switching)"
    )
    parser.add_argument("--electronic", type=float, default=1.78, help="ε_∞ (default: 1.78, of water)")
    options = parser.parse_args()
    if any(field <= 0.0 for field in options.fields):
        parser.error("--fields takes strengths above zero: each is used up and down")
    if options.starts < 2:
        parser.error("--starts must be 2 or more: the error of the response is the spread of its starts")
    lengths = {name: steps_of(getattr(options, name)) for name in ("response", "spacing", "equilibration")}
    for name, steps in lengths.items():
        if steps < EVERY:
            parser.error(f"--{name} is shorter than {EVERY} steps of {TIMESTEP} ps")
    if options.starts * lengths["spacing"] < 2 * lengths["response"]:
        parser.error("--starts times --spacing must be twice --response or more: it is the run without a field")
    output = options.output
    output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    model = output / "water.pt"
    if not options.go_on or not model.is_file():
        print("exporting", options.model)
        export(options.model, model)
    start, still = output / "equilibration", output / "field_0"
    runs = [
        (start, options.data, 0.0, lengths["equilibration"], {"seed": 1}),
        (still, start / "end.data", 0.0, options.starts * lengths["spacing"], {"spacing": lengths["spacing"]}),
    ]
    for k in range(1, options.starts + 1):
        data = still / f"start_{k * lengths['spacing']}.data"
        for field in (sign * field for field in options.fields for sign in (1, -1)):
            runs.append((output / response_folder(k, field), data, field, lengths["response"], {}))
    for folder, data, field, steps, others in runs:
        finished = folder / "end.data"
        if options.go_on and finished.is_file():
            continue
        finished.unlink(missing_ok=True)
        if not run_lammps(model, data, field, 0, steps, folder, **HEAVY, **others):
            return 1
    print(summarise(output, options.electronic))
    return 0


def steps_of(time: float) -> int:
    """Steps of a time in ps, a multiple of those between two values of the current."""
    return EVERY * round(time / TIMESTEP / EVERY)


if __name__ == "__main__":
    raise SystemExit(main())
