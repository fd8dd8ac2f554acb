"""The long-range sum alone: time and memory against the number of atoms, and against a plain direct sum.

    python benchmarks/electrostatics.py [--sizes 1000 6000 100000] [--accuracy 1e-5] [--threads 2]

Random charges at the density of liquid water in a cubic box. ``mesh`` and ``ewald`` are the module that exported
files hold (potential, forces and strain derivative). ``plain`` is the textbook direct sum in PyTorch, energy from the
N × M matrix of phases and forces by automatic differentiation, as reference implementations have it. Each case runs
in a process of its own, whose growth in memory is the ``MB`` printed; force errors are relative to ``ewald`` (where
it is run).
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from les_md.electrostatics import LatentEwald, LongRangeParameters

DENSITY = 0.1003  # atoms per Å³ in liquid water
LARGEST_DIRECT = 13_000  # atoms; the N × M matrix of more does not fit into 16 GB


def system(num_atoms: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    edge = (num_atoms / DENSITY) ** (1.0 / 3.0)
    positions = torch.tensor(generator.uniform(0.0, edge, (num_atoms, 3)))
    # LAMMPS keeps atoms sorted in space; random order would measure the memory's latency.
    bins = torch.floor(positions / 4.0).to(torch.int64)
    positions = positions[torch.argsort((bins[:, 0] * 1000 + bins[:, 1]) * 1000 + bins[:, 2])]
    charges = torch.tensor(generator.normal(size=(num_atoms, 1)))
    return positions, charges, torch.eye(3, dtype=torch.float64) * edge


def plain_direct_sum(positions, charges, cell, parameters) -> torch.Tensor:
    """Forces by the textbook sum over all wave vectors of the half space, N × M phases at once."""
    positions = positions.clone().requires_grad_(True)
    edge = float(cell[0, 0])
    largest = math.floor(edge / parameters.dl)
    n = torch.arange(-largest, largest + 1, dtype=torch.float64)
    k = torch.cartesian_prod(n[largest:], n, n) * (2.0 * math.pi / edge)
    k_squared = (k**2).sum(1)
    keep = (k_squared > 0.0) & (k_squared <= (2.0 * math.pi / parameters.dl) ** 2)
    multiplicity = torch.where(k[:, 0] > 0.0, 2.0, 1.0)[keep]
    k, k_squared = k[keep], k_squared[keep]
    phase = positions @ k.T
    real = (charges * torch.cos(phase)).sum(0)
    imaginary = (charges * torch.sin(phase)).sum(0)
    weight = multiplicity * torch.exp(-0.5 * parameters.sigma**2 * k_squared) / k_squared
    energy = parameters.norm_factor / edge**3 * (weight * (real**2 + imaginary**2)).sum()
    return -torch.autograd.grad(energy, positions)[0]


def run_case(solver: str, num_atoms: int, accuracy: float, threads: int, repeats: int, output: str) -> None:
    """Time one solver in this process and print a line of JSON; forces go to the file ``output``."""
    torch.set_num_threads(threads)
    parameters = LongRangeParameters()
    positions, charges, cell = system(num_atoms)
    module = torch.jit.script(LatentEwald(parameters))
    small = system(30)  # compiles and loads everything
    module(small[0], small[1], module.plan(small[2], small[2], torch.zeros(2, 3).double(), 30, "mesh", 1e-5, False))
    module(*small[:2], module.direct_plan(small[2]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    description = "N × M"
    for _ in range(repeats):
        start = time.perf_counter()
        if solver == "plain":
            forces = plain_direct_sum(positions, charges, cell, parameters)
        else:
            bounds = torch.zeros(2, 3, dtype=torch.float64)
            plan = module.plan(cell, cell, bounds, num_atoms, solver, accuracy, False)
            forces = module(positions, charges, plan)[2]
            description = module.describe(plan)
        times.append(time.perf_counter() - start)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024.0
    np.save(output, forces.numpy())
    print(json.dumps({"seconds": statistics.median(times), "memory": memory, "description": description}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the long-range sum alone.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000, 6000, 30_000, 100_000])
    parser.add_argument("--accuracy", type=float, default=1e-5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        solver, num_atoms = options.case[0], int(options.case[1])
        run_case(solver, num_atoms, options.accuracy, options.threads, options.repeats, options.output)
        return
    import tempfile
    from pathlib import Path

    print(f"accuracy {options.accuracy:g}, {options.threads} threads, medians of {options.repeats}")
    print(f"{'atoms':>7s} {'solver':>7s} {'ms':>10s} {'µs/atom':>9s} {'MB':>8s} {'force error':>12s}")
    with tempfile.TemporaryDirectory() as temporary:
        for size in options.sizes:
            results = {}
            for solver in ("mesh", "ewald", "plain"):
                if solver != "mesh" and size > LARGEST_DIRECT:
                    continue
                repeats = options.repeats if solver == "mesh" or size <= 1000 else min(3, options.repeats)
                output = Path(temporary) / f"{solver}.npy"
                command = [sys.executable, "-W", "ignore", __file__, "--case", solver, str(size)]
                command += ["--output", str(output), "--accuracy", str(options.accuracy)]
                command += ["--threads", str(options.threads), "--repeats", str(repeats)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode != 0:
                    print(f"{size:7d} {solver:>7s} failed: {done.stderr.strip().splitlines()[-1:]}")
                    continue
                results[solver] = json.loads(done.stdout.splitlines()[-1]) | {"forces": np.load(output)}
            for solver, result in results.items():
                error = ""
                if "ewald" in results:
                    reference = results["ewald"]["forces"]
                    error = f"{np.linalg.norm(result['forces'] - reference) / np.linalg.norm(reference):.1e}"
                print(
                    f"{size:7d} {solver:>7s} {1000 * result['seconds']:10.1f} {1e6 * result['seconds'] / size:9.1f} "
                    f"{result['memory']:8.0f} {error:>12s}  {result['description']}",
                    flush=True,
                )
            if "plain" in results:
                faster = results["plain"]["seconds"] / results["mesh"]["seconds"]
                leaner = results["plain"]["memory"] / max(1.0, results["mesh"]["memory"])
                print(f"        mesh against plain: {faster:.0f} times faster, {leaner:.0f} times less memory")


if __name__ == "__main__":
    main()
