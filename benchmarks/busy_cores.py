"""Time of an MD step of bulk water in LAMMPS where other programs run: one thread, two that spin, two that sleep.

    python benchmarks/busy_cores.py [--others 2] [--rounds 3]

192 atoms of the bundled model of water. ``--others`` processes compute beside it, without end. The ways take turns in
``--rounds`` rounds, of which the medians are printed: ms per step.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timed_run import measure

from les_md import export

WAYS = (
    ("1 thread", 1, None),
    ("2 threads", 2, None),
    ("2 threads, OMP_WAIT_POLICY=passive", 2, "passive"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of an MD step where other programs run.")
    parser.add_argument("--others", type=int, default=2, help="processes that compute besides (default: 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name, _, _ in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = export("water_rpbe_d3", folder / "model.pt").path
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.others)]
        try:
            for _ in range(options.rounds):
                for name, threads, policy in WAYS:
                    os.environ.pop("OMP_WAIT_POLICY", None)
                    if policy:
                        os.environ["OMP_WAIT_POLICY"] = policy
                    result = measure(model, (1, 1, 1), folder, steps=options.steps, repeats=1, threads=threads)
                    times[name].append(result["total"])
        finally:
            for process in others:
                process.kill()
                process.wait()
    load = os.getloadavg()[0]
    print(f"192 atoms, float32, {os.cpu_count()} cores, {options.others} other processes (load {load:.0f})")
    print(f"{'':38s} ms/step, median of {options.rounds} (least)")
    for name, values in times.items():
        print(f"{name:38s} {statistics.median(values):7.1f} ({min(values):.1f})")


if __name__ == "__main__":
    main()
