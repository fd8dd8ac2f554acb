"""A step of bulk water by les_md in LAMMPS against upstream's way of running the same checkpoint, on one machine.

    python benchmarks/compare_upstream.py --model MACE-LES_water.model --output benchmark_results      (or: make bench)
    python benchmarks/compare_upstream.py --model water_rpbe_d3

With a checkpoint of CACE, upstream stands for ``plain_cace.py``, which says why. With one of MACE, it is mace-torch's
own ``MACECalculator`` in ASE, in float32, with its neighbour list, energy, forces and stress, as a user of ASE gets
them. The published class MACELES calls the package ``les`` for the long-range energy; here that one part of the
upstream side is les_md's direct sum, so that nothing has to be installed beyond mace-torch. This favours upstream: the
sum is the cheaper one of the two, and below a hundredth of the step. Before anything is timed, both sides must give the
same forces.

Both sides run in processes of their own, in turn, ``--rounds`` times, so that other work on the machine hits both;
medians. Also a floor of the step, from operations and memory traffic (``step_floor.py``).
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
from plain_cace import PlainCACE
from step_floor import floor_table
from timed_run import ATOMS, DATA, measure
from torch import Tensor

from les_md import LESCalculator, export
from les_md.architectures import LoadOptions, find_architecture, mace
from les_md.architectures.mace import _LatentEwaldOfMACE
from les_md.checkpoint import read_checkpoint
from les_md.models import resolve_checkpoint


def water(size: int) -> ase.Atoms:
    """The equilibrated box of the example, ``size`` times along each axis."""
    return ase.io.read(DATA, format="lammps-data", atom_style="atomic", sort_by_id=True).repeat(size)


class _InDouble(_LatentEwaldOfMACE):
    """The direct sum in float64 within a model in float32."""

    def forward(self, latent_charges: Tensor, positions: Tensor, cell: Tensor, *rest, **more):
        return super().forward(latent_charges.double(), positions.double(), cell.double().view(1, 3, 3), *rest, **more)


def upstream_model(checkpoint: str) -> torch.nn.Module:
    """The checkpoint's module of mace-torch, in float32."""
    trained = mace.load(read_checkpoint(checkpoint), options=LoadOptions())
    model = trained.original.model
    model.les = _InDouble(trained.long_range)
    return model.float()


def is_cace(checkpoint: str) -> bool:
    """Whether it holds a CACE model; all others must be MACE."""
    return find_architecture(read_checkpoint(resolve_checkpoint(checkpoint))).__name__.endswith(".cace")


def upstream(checkpoint: str):
    """MACECalculator with the checkpoint, in float32; ``PlainCACE`` with one of CACE."""
    if is_cace(checkpoint):
        return PlainCACE(checkpoint)
    from mace.calculators import MACECalculator

    return MACECalculator(models=[upstream_model(checkpoint)], device="cpu", default_dtype="float32")


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


def draw(rows: list[dict], other: str, path: Path) -> None:
    """Bars of ms per step of both sides and the floor of arithmetic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(1.5 + 2.2 * len(rows), 3.4))
    places = np.arange(len(rows))
    bars = (("upstream", other), ("ours", "les_md in LAMMPS"), ("floor", "les_md, arithmetic alone"))
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

    other = "plain PyTorch in ASE" if is_cace(options.model) else "mace-torch in ASE"
    show(f"{Path(options.model).stem}, upstream: {other}")
    show(f"float32, {options.threads} threads, medians of {options.rounds} rounds in turn; "
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
    measured = [(options.model, size, row["ours"]) for size, row in zip(options.sizes, rows, strict=True)]
    table, floors = floor_table(measured)
    for line in table:
        show(line)
    for row, floor in zip(rows, floors, strict=True):
        row["floor"] = floor
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        name = f"compare_upstream_{Path(options.model).stem}"
        (options.output / f"{name}.txt").write_text("\n".join(lines) + "\n")
        draw(rows, other, options.output / f"{name}.png")
        print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
