"""A step of bulk water by les_md in LAMMPS against upstream's way of running the same checkpoint, on one machine.

    python benchmarks/compare_upstream.py --model MACE-LES_water.model --output benchmark_results      (or: make bench)

Upstream is mace-torch's own ``MACECalculator`` in ASE, in float32, with its neighbour list, energy, forces and stress,
as a user of ASE gets them. The published class MACELES calls the package ``les`` for the long-range energy; here that
one part of the upstream side is les_md's direct sum, so that nothing has to be installed beyond mace-torch. This
favours upstream: the sum is the cheaper one of the two, and below a hundredth of the step. Before anything is timed,
both sides must give the same forces.

Both sides run in processes of their own, in turn, ``--rounds`` times, so that other work on the machine hits both;
medians. Also, from the exported network: the operations and the memory traffic of a step, counted operation by
operation, and how long this machine's core needs for them at the rates that it reaches in a large matrix product and
in copying a large array: a floor of the step, as it is arranged now, if nothing else cost time. The first is the time
of arithmetic alone; the second that of all arrays read and written once for each operation, as if no cache helped.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import datetime, timezone
from pathlib import Path

import ase.io
import numpy as np
import torch
from timed_run import ATOMS, DATA, measure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from les_md import LESCalculator, export
from les_md.architectures import LoadOptions, mace
from les_md.architectures.mace import _LatentEwaldOfMACE
from les_md.checkpoint import read_checkpoint
from les_md.layered_evaluation import LayeredEvaluation
from les_md.neighbors import NeighborList


def water(size: int) -> ase.Atoms:
    """The equilibrated box of the example, ``size`` times along each axis."""
    return ase.io.read(DATA, format="lammps-data", atom_style="atomic", sort_by_id=True).repeat(size)


class _InDouble(_LatentEwaldOfMACE):
    """The direct sum in float64 within a model in float32."""

    def forward(self, latent_charges: Tensor, positions: Tensor, cell: Tensor, *rest, **more):
        return super().forward(latent_charges.double(), positions.double(), cell.double().view(1, 3, 3), *rest, **more)


def upstream(checkpoint: str):
    """MACECalculator with the checkpoint, in float32."""
    from mace.calculators import MACECalculator

    trained = mace.load(read_checkpoint(checkpoint), options=LoadOptions())
    model = trained.original.model
    model.les = _InDouble(trained.long_range)
    return MACECalculator(models=[model.float()], device="cpu", default_dtype="float32")


def peak_memory() -> float:
    """Largest resident memory of this process in MB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3


def run_upstream(checkpoint: str, size: int, steps: int, warm_up: int) -> dict:
    """Time steps of upstream in this process."""
    from ase import units
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    atoms = water(size)
    atoms.calc = upstream(checkpoint)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300.0, rng=np.random.default_rng(1))
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.run(warm_up)
    start = time.perf_counter()
    dynamics.run(steps)
    return {"total": 1000.0 * (time.perf_counter() - start) / steps, "memory": peak_memory()}


def in_new_process(arguments: dict, threads: int) -> dict:
    """``run_upstream`` in a process of its own; raises RuntimeError with its last words if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--case", json.dumps(arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"upstream failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def check_forces(checkpoint: str, exported: Path) -> float:
    """Largest difference of the forces on 192 atoms, relative to the largest force; raises if they are not the same."""
    atoms = water(1)
    atoms.calc = upstream(checkpoint)
    want = atoms.get_forces()
    atoms.calc = LESCalculator(exported)
    difference = float(np.abs(atoms.get_forces() - want).max() / np.abs(want).max())
    if not difference < 1e-4:
        raise RuntimeError(f"the two sides do not compute the same: their forces differ by {difference:.1e}")
    return difference


class _Traffic(TorchDispatchMode):
    """Counts operations of matrix products, and the bytes of all tensors that are read and written; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.flops = 0

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        result = function(*arguments, **(more or {}))
        if function._overloadpacket in flop_registry:
            self.flops += flop_registry[function._overloadpacket](*arguments, **(more or {}), out_val=result)
        outputs = [value for value in torch.utils._pytree.tree_leaves(result) if isinstance(value, Tensor)]
        inputs = [value for value in torch.utils._pytree.tree_leaves((arguments, more)) if isinstance(value, Tensor)]
        if not function.is_view and not all(any(out is given for given in inputs) for out in outputs):
            self.bytes += sum(value.numel() * value.element_size() for value in (*inputs, *outputs))
        return result


def count(checkpoint: str, size: int) -> dict[str, float]:
    """Operations (of matrix products) and bytes of a step of the network with values and derivative, per atom."""
    trained = mace.load(read_checkpoint(checkpoint), options=LoadOptions())
    evaluation = LayeredEvaluation(trained.network.float().eval())
    atoms = water(size)
    index, vectors = NeighborList(trained.cutoff, skin=0.0).compute(atoms.positions, atoms.cell.array, atoms.pbc)
    kinds = torch.tensor([trained.atomic_numbers.index(z) for z in atoms.numbers])
    graph = torch.tensor(vectors), torch.tensor(index), kinds
    with _Traffic() as traffic:
        energy, charge, state = evaluation(*graph)
        evaluation.pull_back(*graph, state, torch.ones_like(energy), torch.ones_like(charge))
    return {"flops": traffic.flops / len(atoms), "bytes": traffic.bytes / len(atoms)}


def rates() -> dict[str, float]:
    """What one core reaches: operations per second in a matrix product, bytes per second read and written in a copy."""
    first, second = torch.randn(1024, 1024), torch.randn(1024, 1024)
    large = torch.randn(2**25)
    target = torch.empty_like(large)
    product, copy = [], []
    for _ in range(7):
        start = time.perf_counter()
        first @ second
        product.append(time.perf_counter() - start)
        start = time.perf_counter()
        target.copy_(large)
        copy.append(time.perf_counter() - start)
    return {"flops": 2 * 1024**3 / min(product), "bytes": 2 * 4 * large.numel() / min(copy)}


def draw(rows: list[dict], path: Path) -> None:
    """Bars of ms per step of both sides and the floor of arithmetic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(1.5 + 2.2 * len(rows), 3.4))
    places = np.arange(len(rows))
    bars = (("upstream", "mace-torch in ASE"), ("ours", "les_md in LAMMPS"), ("floor", "les_md, arithmetic alone"))
    for i, (key, label) in enumerate(bars):
        axes.bar(places + 0.27 * (i - 1), [row[key] for row in rows], 0.25, label=label)
    axes.set_yscale("log")
    axes.set_xticks(places, [f"{row['atoms']} atoms" for row in rows])
    axes.set_ylabel("ms per step")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description="les_md in LAMMPS against mace-torch in ASE, the same checkpoint.")
    parser.add_argument("--model", help="MACE-LES checkpoint")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2], help="boxes of 192 atoms along each axis")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps at 192 atoms; fewer for more atoms")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder for the table and the figure")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    if options.case:
        print(json.dumps(run_upstream(**json.loads(options.case))))
        return 0
    if options.model is None:
        parser.error("--model is needed")
    if options.threads != 1:
        print("note: the floor is that of one core")
    lines, rows = [], []

    def show(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    show(f"{Path(options.model).stem}, float32, {options.threads} threads, medians of {options.rounds} rounds in turn; "
         f"{datetime.now(timezone.utc):%d %B %Y}, {os.cpu_count()} cores ({platform.machine()}), "
         f"load {os.getloadavg()[0]:.0f}")  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        exported = export(options.model, folder / "model.pt").path
        show(f"forces differ by {check_forces(options.model, exported):.1e} of the largest")
        show(f"{'atoms':>7s} {'upstream ms':>12s} {'les_md ms':>10s} {'ratio':>6s} {'of rounds':>13s} "
             f"{'upstream MB':>12s} {'les_md MB':>10s} {'not network':>12s}")  # fmt: skip
        for size in options.sizes:
            steps = max(2, round(options.steps / size**3))
            ours, theirs = [], []
            for _ in range(options.rounds):
                case = {"checkpoint": options.model, "size": size, "steps": steps, "warm_up": 2}
                theirs.append(in_new_process(case, options.threads))
                ours.append(
                    measure(exported, (size,) * 3, folder, steps=steps, repeats=1, threads=options.threads)
                )  # fmt: skip
            median = {key: statistics.median(run[key] for run in ours) for key in ours[0]}
            upstream_ms = statistics.median(run["total"] for run in theirs)
            upstream_memory = statistics.median(run["memory"] for run in theirs)
            network = median["network-forward"] + median["network-backward"]
            ratios = [one["total"] / other["total"] for one, other in zip(theirs, ours, strict=True)]
            atoms = ATOMS * size**3
            rows.append({"atoms": atoms, "upstream": upstream_ms, "ours": median["total"]})
            show(f"{atoms:7d} {upstream_ms:12.1f} {median['total']:10.1f} {upstream_ms / median['total']:6.2f} "
                 f"{min(ratios):5.2f} … {max(ratios):5.2f} {upstream_memory:12.0f} {median['memory']:10.0f} "
                 f"{100 * (1 - network / median['total']):11.1f}%")  # fmt: skip
    speed = rates()
    show(
        f"one core reaches {speed['flops'] / 1e9:.0f} GFLOP/s in a matrix product, "
        f"{speed['bytes'] / 1e9:.1f} GB/s in a copy"
    )
    show(
        f"{'atoms':>7s} {'MFLOP/atom':>11s} {'MB/atom':>8s} {'arithmetic ms':>14s} {'traffic ms':>11s} "
        f"{'les_md ms':>10s}"
    )
    for size, row in zip(options.sizes, rows, strict=True):
        counted = count(options.model, size)
        row["floor"] = 1e3 * row["atoms"] * counted["flops"] / speed["flops"]
        traffic = 1e3 * row["atoms"] * counted["bytes"] / speed["bytes"]
        show(f"{row['atoms']:7d} {counted['flops'] / 1e6:11.2f} {counted['bytes'] / 1e6:8.2f} {row['floor']:14.1f} "
             f"{traffic:11.1f} {row['ours']:10.1f}")  # fmt: skip
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "compare_upstream.txt").write_text("\n".join(lines) + "\n")
        draw(rows, options.output / "compare_upstream.png")
        print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
