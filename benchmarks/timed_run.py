"""One timed LAMMPS run of bulk water and what its log says about the parts of a step; used by the benchmarks here."""

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "examples" / "bulk_water" / "water.data"
ATOMS = 192  # in DATA
INPUT = """
units metal
atom_style atomic
read_data {data}
replicate {replicas[0]} {replicas[1]} {replicas[2]}
pair_style mliap/les {keywords}
pair_coeff * * {model} O H
neighbor 0.5 bin
timestep 0.0005
velocity all create 300.0 1
fix integrate all nve
thermo {steps}
run {warm_up} post no
{runs}
"""
#: Ranks that wait let others have the core: for more ranks than cores, with MPICH 5 (``more_ranks_than_cores.py``).
WAITING_RANKS_SLEEP = {
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "10",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
}
PARTS = (
    "neighbours",
    "graph",
    "network-forward",
    "density",
    "reduction",
    "solve",
    "gather",
    "network-backward",
)


def measure(
    model: Path,
    replicas: tuple[int, int, int],
    folder: Path,
    *,
    steps: int,
    repeats: int,
    threads: int = 1,
    ranks: int = 1,
    warm_up: int = 3,
    keywords: str = "",
    data: Path = DATA,
    environment: dict[str, str] | None = None,
) -> dict[str, float]:
    """Medians over ``repeats`` runs of ``steps`` steps: ms per step in all (``total``) and by part (mean of the ranks).

    ``environment`` is in addition to that of this process.

    ``electrostatics`` is the sum of density, reduction, solve and gather, ``other`` what LAMMPS itself needs;
    ``memory`` the peak of all ranks together in MB; ``nodes`` and ``edges`` are ratios to those of own atoms.
    """
    script = folder / "in.bench"
    script.write_text(
        INPUT.format(
            data=data,
            replicas=replicas,
            model=model,
            steps=steps,
            warm_up=warm_up,
            runs="\n".join([f"run {steps}"] * repeats),
            keywords=keywords,
        )
    )
    programs = Path(sys.executable).parent
    command = [str(programs / "lmp"), "-in", str(script), "-log", "none"]
    if ranks > 1:
        command = [str(programs / "mpiexec"), "-n", str(ranks), *command]
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
    output = subprocess.run(command, env=variables, capture_output=True, text=True)
    if output.returncode != 0:
        raise RuntimeError(f"LAMMPS failed:\n{output.stdout[-2000:]}\n{output.stderr[-2000:]}")
    text = output.stdout
    totals = [1000 * float(seconds) / steps for seconds in re.findall(r"^Loop time of (\S+) on", text, re.M)][1:]
    reports = re.findall(r"^mliap/les: \d+ evaluations, ms each[^:]*:(.*)$", text, re.M)[1:]  # without the warm-up
    memory = re.findall(r"^mliap/les: peak memory per rank (\S+) MB", text, re.M)
    if not len(totals) == len(reports) == repeats:
        raise RuntimeError(f"{repeats} runs, but {len(reports)} reports of the pair style in LAMMPS's output")
    samples = []
    for total, report in zip(totals, reports, strict=True):
        parts = {name: float(re.search(rf" {name} (\S+)", report)[1]) for name in PARTS}
        parts["electrostatics"] = sum(parts[name] for name in ("density", "reduction", "solve", "gather"))
        samples.append({"total": total, **parts, "other": total - sum(parts[name] for name in PARTS)})
    result = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
    nodes, edges = re.search(r"nodes \((\S+) times the own atoms\).*edges \((\S+) times", text).groups()
    return {**result, "memory": ranks * float(memory[-1]), "nodes": float(nodes), "edges": float(edges)}
