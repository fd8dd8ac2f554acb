"""Les, the module for training: one call for a batch against a call for each configuration.

    python benchmarks/les_batch.py [--threads 1] [--repeats 7] [--batches 1 8 32] [--device cpu] [--dtype float64]

A training step: energies, forces as their derivative, and the derivative of a loss of both over charges and positions
(forward and double backward). Random charges in three kinds of configurations: boxes of 64 water molecules, boxes of
20 to 400 atoms of all shapes, and molecules of 10 to 60 atoms. ``loop`` calls ``LatentEwald.energy``, the sum of
exported files, for each configuration. ``one size`` pads all configurations to the largest one, ``list`` has a list
of all pairs of an atom and a wave vector inside the truncation instead of padding. ``MB`` are the tensors kept for the
backward passes. All results are compared with those of ``loop`` first.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import les_md.les
from les_md import Les
from les_md.electrostatics import LatentEwald, LongRangeParameters
from les_md.electrostatics.padded_groups import padded_groups

DENSITY = 0.1003  # atoms per Å³ in liquid water


def box(num_atoms: int, generator: torch.Generator, spread: float) -> tuple[Tensor, Tensor]:
    """Positions and cell; ``spread`` of the edges (0 is a cube) at a constant density."""
    ratios = torch.exp(spread * (2.0 * torch.rand(3, generator=generator, dtype=torch.float64) - 1.0))
    edges = (num_atoms / DENSITY) ** (1.0 / 3.0) * ratios / ratios.prod() ** (1.0 / 3.0)
    cell = torch.diag(edges)
    cell = cell + 0.3 * spread * torch.tril(torch.randn(3, 3, generator=generator, dtype=torch.float64), -1)
    return torch.rand(num_atoms, 3, generator=generator, dtype=torch.float64) @ cell, cell


def batch_of(kind: str, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions [N, 3], cells [B, 3, 3], charges [N, 1], batch [N]."""
    generator = torch.Generator().manual_seed(0)
    positions, cells = [], []
    for _ in range(size):
        if kind == "water boxes":
            r, cell = box(192, generator, 0.0)
            cell = cell * (1.0 + 0.01 * torch.randn(1, generator=generator, dtype=torch.float64))
        elif kind == "boxes of all sizes":
            r, cell = box(int(torch.randint(20, 401, (1,), generator=generator)), generator, 0.5)
        else:
            r, cell = box(int(torch.randint(10, 61, (1,), generator=generator)), generator, 0.0)
            cell = torch.zeros_like(cell)
        positions.append(r)
        cells.append(cell)
    counts = torch.tensor([len(r) for r in positions])
    charges = torch.randn(int(counts.sum()), 1, generator=generator, dtype=torch.float64)
    return torch.cat(positions), torch.stack(cells), charges, torch.repeat_interleave(torch.arange(size), counts)


def by_loop(long_range: LatentEwald) -> Callable:
    def energies(positions: Tensor, cells: Tensor, charges: Tensor, batch: Tensor) -> Tensor:
        counts = torch.bincount(batch, minlength=len(cells)).tolist()
        parts = zip(positions.split(counts), charges.split(counts), cells, strict=True)
        return torch.stack([long_range.energy(r, q, cell) for r, q, cell in parts])

    return energies


def by_module(les: Les, groups: Callable) -> Callable:
    def energies(positions: Tensor, cells: Tensor, charges: Tensor, batch: Tensor) -> Tensor:
        les_md.les.padded_groups = groups
        return les(positions, cells, latent_charges=charges, batch=batch)["E_lr"]

    return energies


def one_group(members: list[int], sizes: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    return [(members, [max(column) for column in zip(*sizes, strict=True)])] if members else []


def by_list(p: LongRangeParameters) -> Callable:
    """A list of wave vectors of all configurations, and one of the pairs of an atom and a wave vector."""

    def energies(positions: Tensor, cells: Tensor, charges: Tensor, batch: Tensor) -> Tensor:
        k_max = 2.0 * math.pi / p.dl
        limits = torch.clamp(torch.floor(torch.linalg.vector_norm(cells, dim=2) / p.dl), min=1.0)
        n = torch.cartesian_prod(*[torch.arange(-float(m), float(m) + 1.0) for m in limits.amax(0)]).to(positions)
        n = n[len(n) // 2 + 1 :]  # half of the wave vectors, without 0
        reciprocal = 2.0 * math.pi * torch.linalg.inv(cells).transpose(1, 2)
        k = n @ reciprocal
        within = (n.abs()[None] <= limits[:, None]).all(2)
        owner, index = torch.nonzero(within & (k.detach().square().sum(2) <= k_max**2 * (1.0 + 1e-10))).unbind(1)
        k = k[owner, index]
        counts = torch.bincount(batch, minlength=len(cells))
        first = torch.cumsum(counts, 0) - counts
        repeats = counts[owner]
        wave = torch.repeat_interleave(torch.arange(len(k), device=k.device), repeats)
        place = torch.arange(len(wave), device=k.device) - (torch.cumsum(repeats, 0) - repeats)[wave]
        atom = first[owner[wave]] + place
        phase = (positions[atom] * k[wave]).sum(1)
        parts = charges[atom] * torch.stack([torch.cos(phase), torch.sin(phase)], dim=1)
        structure = torch.zeros(len(k), 2).to(parts).index_add(0, wave, parts)
        k_squared = k.square().sum(1)
        weight = 2.0 * torch.exp(-0.5 * p.sigma**2 * k_squared) / k_squared * p.norm_factor
        weight = weight / torch.abs(torch.linalg.det(cells))[owner]
        energy = torch.zeros(len(cells)).to(parts).index_add(0, owner, weight * structure.square().sum(1))
        itself = p.norm_factor / (p.sigma * (2.0 * math.pi) ** 1.5) * charges.square().sum(1)
        return energy.index_add(0, batch, -itself)

    return energies


def step(energies: Callable, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Energies, forces, and derivatives of a loss of both over charges and positions."""
    positions, charges = inputs[0].clone().requires_grad_(True), inputs[2].clone().requires_grad_(True)
    energy = energies(positions, inputs[1], charges, inputs[3])
    (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    loss = gradient.square().sum() + 0.1 * energy.square().sum()
    return energy.detach(), gradient.detach(), *torch.autograd.grad(loss, [charges, positions])


def kept_megabytes(energies: Callable, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    storages: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step(energies, inputs)
    return sum(storages.values()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="A batch by one call of Les against one call for each configuration.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)

    parameters = LongRangeParameters()
    les = Les()
    methods = {
        "loop": by_loop(LatentEwald(parameters).to(device)),
        "Les": by_module(les, padded_groups),
        "one size": by_module(les, one_group),
        "list": by_list(parameters),
    }
    # One thread's CPU time, which other jobs on the machine disturb less than they do the clock on the wall.
    alone = device.type == "cpu" and options.threads == 1
    clock, of_what = (time.process_time, "CPU time") if alone else (time.perf_counter, "time")
    where = f"{options.dtype}, {device}, {options.threads} threads"
    print(f"forward and double backward, {where}; {of_what} in ms, medians of")
    print(f"{options.repeats} runs in turn; MB kept for the backward passes")
    print(
        f"{'':18s} {'batch':>5s} {'atoms':>6s}" + "".join(f" {name:>9s} {'MB':>6s}" for name in methods) + "   loop/Les"
    )
    for kind in ("water boxes", "boxes of all sizes", "molecules"):
        for size in options.batches:
            inputs = tuple(t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in batch_of(kind, size))
            usable = [name for name in methods if not (kind == "molecules" and name in ("one size", "list"))]
            results = {name: step(methods[name], inputs) for name in usable}
            for name in usable:
                for got, want in zip(results[name], results["loop"], strict=True):
                    # Two derivatives of float32 sums lose another digit.
                    limit = 1e-9 if dtype == torch.float64 else 1e-3
                    assert float((got - want).abs().max() / want.abs().max()) < limit, (kind, size, name)
            times = {name: [] for name in usable}
            for _ in range(options.repeats):
                for name in usable:
                    start = clock()
                    step(methods[name], inputs)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    times[name].append(clock() - start)
            line = f"{kind:18s} {size:5d} {len(inputs[0]):6d}"
            for name in methods:
                if name in usable:
                    megabytes = kept_megabytes(methods[name], inputs)
                    line += f" {1e3 * statistics.median(times[name]):9.1f} {megabytes:6.0f}"
                else:
                    line += f" {'':9s} {'':6s}"
            print(f"{line} {statistics.median(times['loop']) / statistics.median(times['Les']):10.1f}", flush=True)


if __name__ == "__main__":
    main()
