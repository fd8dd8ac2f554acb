"""Time and memory of a whole MD step against the number of atoms and ranks, with the bundled water model.

    python benchmarks/scaling.py                            # 1,536 to 98,304 atoms on one rank, one thread
    python benchmarks/scaling.py --ranks 1 2 --sizes 4      # 12,288 atoms on one and two ranks

A size n replicates the example's box of 192 atoms n × n × n times (8 × 8 × 8 is 98,304 atoms). The last line of a
size with several rank counts is the speed-up. ``memory`` is the peak of all ranks together, of which about 170 MB per
rank are the libraries.
"""

import argparse
import tempfile
from pathlib import Path

from timed_run import ATOMS, measure

from les_md import export


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of an MD step against atoms and ranks.")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8], help="replicas along each axis")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=1, help="per rank")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=12_000, help="atoms × steps of one run, at least 2 steps")
    options = parser.parse_args()
    print(f"median of {options.repeats} runs, float32, {options.threads} threads per rank")
    print(
        f"{'atoms':>7s} {'ranks':>5s} {'ms/step':>9s} {'µs/atom':>8s} {'electrostatics':>15s} {'reduction':>10s} "
        f"{'MB':>7s} {'kB/atom':>8s} {'nodes':>6s} {'edges':>6s}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = export(options.model, folder / "model.pt").path
        for size in options.sizes:
            atoms = ATOMS * size**3
            totals = {}
            for ranks in options.ranks:
                steps = max(2, options.evaluations // atoms)
                result = measure(
                    model,
                    (size,) * 3,
                    folder,
                    steps=steps,
                    repeats=options.repeats,
                    threads=options.threads,
                    ranks=ranks,
                    warm_up=1,
                )
                totals[ranks] = result["total"]
                share = 100 * result["electrostatics"] / result["total"]
                print(
                    f"{atoms:7d} {ranks:5d} {result['total']:9.1f} {1000 * result['total'] / atoms:8.1f} "
                    f"{result['electrostatics']:9.1f} ({share:2.0f}%) {result['reduction']:10.2f} "
                    f"{result['memory']:7.0f} {1000 * result['memory'] / atoms:8.1f} {result['nodes']:6.2f} "
                    f"{result['edges']:6.2f}",
                    flush=True,
                )
            if len(totals) > 1:
                fewest = min(totals)
                speed_ups = ", ".join(f"{ranks} ranks {totals[fewest] / t:.2f}" for ranks, t in totals.items())
                print(f"        speed-up over {fewest} rank: {speed_ups}", flush=True)


if __name__ == "__main__":
    main()
