"""Speed of LAMMPS on more ranks than there are cores, with MPICH as it is and with ranks that sleep while they wait.

    python benchmarks/more_ranks_than_cores.py

Ranks of MPICH wait in a loop that asks whether something has come. Where another rank needs the core to send that, the
loop keeps it from running until the kernel ends its time slice. Three variables make the loop sleep instead:
``MPIR_CVAR_CH4_PROGRESS_THROTTLE`` lets it give the core away after ``..._NO_PROGRESS_COUNT`` questions in vain, and
``MPIR_CVAR_ENABLE_HEAVY_YIELD`` does so by sleeping. Medians of rounds in which the cases take turns.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from timed_run import ATOMS, WAITING_RANKS_SLEEP, measure

from les_md import export

COUNT = "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT"


def main() -> None:
    parser = argparse.ArgumentParser(description="LAMMPS on more ranks than cores.")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model of water")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40, help="of a timed run (default: 40)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    several = f"{options.ranks} ranks"
    cases = {
        "1 rank": (1, {}),
        several: (options.ranks, {}),
        **{
            f"{several}, sleeping after {count}": (options.ranks, {**WAITING_RANKS_SLEEP, COUNT: str(count)})
            for count in (1, 10, 100, 1000)
        },
        f"{several}, heavy yield alone": (options.ranks, {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}),
    }
    found = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = export(options.model, folder / "model.pt").path
        for _ in range(options.rounds):
            for name, (ranks, environment) in cases.items():
                run = measure(
                    model, (1, 1, 1), folder, steps=options.steps, repeats=1, ranks=ranks, environment=environment
                )
                found[name].append(1000.0 / run["total"])
    print(f"{options.model}, {ATOMS} atoms, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}; steps a second")
    for name, values in found.items():
        print(f"{name:32s} {statistics.median(values):6.1f}  ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main()
