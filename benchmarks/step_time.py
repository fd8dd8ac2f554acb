"""Time of an MD step of bulk water in LAMMPS, and where it goes.

    python benchmarks/step_time.py --model water_rpbe_d3 --model maceles.model [--threads 2]

Every model is exported in float32 and runs 192 and 1,536 atoms (the example's box, replicated) at constant energy. A
run warms up first; then ``--repeats`` runs are timed, of which the medians are printed. The parts are those the pair
style reports (graph, network forward and backward, electrostatics) and LAMMPS's own neighbour search.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from les_md import export

DATA = Path(__file__).resolve().parents[1] / "examples" / "bulk_water" / "water.data"
INPUT = """
units metal
atom_style atomic
read_data {data}
replicate {n} {n} {n}
pair_style mliap/les
pair_coeff * * {model} O H
neighbor 0.5 bin
timestep 0.0005
velocity all create 300.0 1
fix integrate all nve
thermo {steps}
run {warm_up} post no
{runs}
"""
PARTS = ("neighbours", "graph", "network forward", "network backward", "electrostatics", "other")


def measure(model: Path, replicas: int, steps: int, repeats: int, threads: int, folder: Path) -> dict[str, float]:
    """Median milliseconds per step, in all and by part."""
    script = folder / "in.bench"
    runs = "\n".join([f"run {steps}"] * repeats)
    script.write_text(INPUT.format(data=DATA, n=replicas, model=model, steps=steps, warm_up=5, runs=runs))
    command = [str(Path(sys.executable).parent / "lmp"), "-in", str(script), "-log", "none"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(command, env=environment, capture_output=True, text=True)
    if output.returncode != 0:
        raise RuntimeError(f"LAMMPS failed:\n{output.stdout[-2000:]}")
    totals = [1000 * float(seconds) / steps for seconds in re.findall(r"^Loop time of (\S+) on", output.stdout, re.M)]
    neighbours = [1000 * float(s) / steps for s in re.findall(r"^Neigh +\| +(\S+)", output.stdout, re.M)]
    reports = re.findall(
        r"^mliap/les: \d+ evaluations, ms each: graph (\S+) network-forward (\S+) network-backward (\S+) "
        r"electrostatics (\S+)",
        output.stdout,
        re.M,
    )
    totals, reports = totals[1:], reports[1:]  # the warm-up prints no table of LAMMPS's timings
    if not len(totals) == len(neighbours) == len(reports) == repeats:
        raise RuntimeError(f"{repeats} runs, but {len(reports)} reports of the pair style in LAMMPS's output")
    samples = []
    for total, search, report in zip(totals, neighbours, reports, strict=True):
        parts = [search, *map(float, report)]
        samples.append(dict(zip(("total", *PARTS), (total, *parts, total - sum(parts)), strict=True)))
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of an MD step of bulk water in LAMMPS.")
    parser.add_argument("--model", action="append", help="checkpoint or bundled model; may be repeated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=20, help="of each timed run at 192 atoms; 1,536 atoms take a quarter"
    )
    options = parser.parse_args()
    print(f"ms per step, median of {options.repeats} runs, float32, {options.threads} threads")
    header = f"{'model':28s} {'atoms':>6s} {'ms/step':>9s}" + "".join(f"{part:>18s}" for part in PARTS)
    print(header)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for checkpoint in options.model or ["water_rpbe_d3"]:
            model = export(checkpoint, folder / "model.pt").path
            for replicas in (1, 2):
                steps = max(2, options.steps // (1 if replicas == 1 else 4))
                result = measure(model, replicas, steps, options.repeats, options.threads, folder)
                shares = "".join(
                    f"{result[part]:10.2f} ({100 * result[part] / result['total']:3.0f}%)" for part in PARTS
                )
                print(f"{Path(checkpoint).stem:28s} {192 * replicas**3:6d} {result['total']:9.1f}{shares}", flush=True)


if __name__ == "__main__":
    main()
