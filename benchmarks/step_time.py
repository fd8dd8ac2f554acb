"""Time of an MD step of bulk water in LAMMPS, and where it goes.

    python benchmarks/step_time.py --model water_rpbe_d3 --model maceles.model [--threads 2]

Every model is exported in float32 and runs 192 and 1,536 atoms (the example's box, replicated) at constant energy. A
run warms up first; then ``--repeats`` runs are timed, of which the medians are printed. The parts are those the pair
style reports. Beside the measured times stand floors of the network from operations and traffic (``step_floor.py``).
With ``--compiled`` the networks run as ``les-export --compile`` compiled them (CACE without message passing).
"""

import argparse
import tempfile
from pathlib import Path

from step_floor import floor_table
from timed_run import ATOMS, measure

from les_md import export

COLUMNS = ("neighbours", "graph", "network-forward", "network-backward", "electrostatics", "other")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of an MD step of bulk water in LAMMPS.")
    parser.add_argument("--model", action="append", help="checkpoint or bundled model; may be repeated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=20, help="of each timed run at 192 atoms; 1,536 atoms take a quarter"
    )
    parser.add_argument("--compiled", action="store_true", help="networks compiled ahead of time")
    options = parser.parse_args()
    print(f"ms per step, median of {options.repeats} runs, float32, {options.threads} threads")
    print(f"{'model':28s} {'atoms':>6s} {'ms/step':>9s}" + "".join(f"{part:>18s}" for part in COLUMNS))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for checkpoint in options.model or ["water_rpbe_d3"]:
            model = export(checkpoint, folder / "model.pt", compile=options.compiled).path
            for size in (1, 2):
                steps = max(2, options.steps // (1 if size == 1 else 4))
                result = measure(
                    model, (size,) * 3, folder, steps=steps, repeats=options.repeats, threads=options.threads,
                    keywords="compiled yes" if options.compiled else "",
                )  # fmt: skip
                shares = "".join(
                    f"{result[part]:10.2f} ({100 * result[part] / result['total']:3.0f}%)" for part in COLUMNS
                )
                atoms = ATOMS * size**3
                print(f"{Path(checkpoint).stem:28s} {atoms:6d} {result['total']:9.1f}{shares}", flush=True)
                rows.append((checkpoint, size, result["total"]))
    table, _arithmetic = floor_table(rows)
    print("\n".join(["", *table]))


if __name__ == "__main__":
    main()
