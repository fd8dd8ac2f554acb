"""What Born effective charges and the current cost in LAMMPS: time of a step of bulk water with and without.

    python benchmarks/response_cost.py --model water_rpbe_d3 --model maceles.model [--threads 1]

Every model is exported in float32 and runs 192 atoms (the example's box) and, with ``--large``, 1,536 at constant
energy: alone, with Born charges at every step, and with the current at every fourth. The lines of one size are timed in
turn, ``--repeats`` times; printed are medians and their ratios to the run alone, of the time by the clock and of the
processor's time, which is the fairer one on a machine that does other work too.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from timed_run import ATOMS, measure

from les_md import export

RUNS = {
    "alone": {},
    "Born charges every step": {"commands": "fix born all pair 1 mliap/les born 1"},
    "current every 4th step": {"keywords": "current 4"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of Born effective charges and the current in LAMMPS.")
    parser.add_argument("--model", action="append", help="checkpoint or bundled model; may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of each timed run, a multiple of 4")
    parser.add_argument("--large", action="store_true", help="1,536 atoms too, a quarter of the steps")
    options = parser.parse_args()
    print(f"ms per step, median of {options.repeats} runs, float32, {options.threads} threads")
    print(f"{'model':24s} {'atoms':>6s}  {'':28s} {'ms/step':>8s} {'ratio':>6s} {'cpu ms':>8s} {'ratio':>6s}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for checkpoint in options.model or ["water_rpbe_d3"]:
            model = export(checkpoint, folder / "model.pt").path
            for size in (1, 2) if options.large else (1,):
                steps = max(4, 4 * (options.steps // (4 if size == 1 else 16)))
                times = {name: [] for name in RUNS}
                for _ in range(options.repeats):
                    for name, settings in RUNS.items():
                        run = measure(
                            model, (size,) * 3, folder, steps=steps, repeats=1, threads=options.threads, warm_up=4,
                            **settings,
                        )  # fmt: skip
                        times[name].append((run["total"], run["cpu"]))
                medians = {
                    name: [statistics.median(kind) for kind in zip(*two, strict=True)] for name, two in times.items()
                }
                for name, values in medians.items():
                    label = f"{Path(checkpoint).stem:24s} {ATOMS * size**3:6d}"
                    pairs = zip(values, medians["alone"], strict=True)
                    columns = "".join(f" {time:8.1f} {time / alone:6.2f}" for time, alone in pairs)
                    print(f"{label}  {name:28s}{columns}", flush=True)


if __name__ == "__main__":
    main()
