"""What a step of the network must cost: its operations and memory traffic, and the rates that this machine reaches.

From the exported network, operation by operation: the operations in matrix products, and the bytes of all arrays read
and written once for each operation, as if no cache helped. With the rates of one core in a large matrix product and in
copying a large array, either gives a time: a floor of the step, as it is arranged now, if nothing else cost time.
"""

import time

import torch
from ase.io import read
from timed_run import DATA
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from les_md.architectures import LoadOptions, find_architecture
from les_md.checkpoint import read_checkpoint
from les_md.layered_evaluation import LayeredEvaluation, WholeEvaluation
from les_md.models import resolve_checkpoint
from les_md.neighbors import NeighborList


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
    """Operations (of matrix products) and bytes of a step of the network with values and derivative, per atom.

    Parameters: ``checkpoint`` or bundled model that knows H and O; ``size``, how often the example's box of water is
    repeated along each axis.
    """
    contents = read_checkpoint(resolve_checkpoint(checkpoint))
    trained = find_architecture(contents).load(contents, options=LoadOptions(torch.float32, allow_short_range=True))
    network = trained.network.float().eval()
    if trained.evaluation is not None:
        evaluation = trained.evaluation(network)
    else:
        evaluation = LayeredEvaluation(network) if hasattr(network, "layer") else WholeEvaluation(network)
    atoms = read(DATA, format="lammps-data", atom_style="atomic", sort_by_id=True).repeat(size)
    index, vectors = NeighborList(trained.cutoff, skin=0.0).compute(atoms.positions, atoms.cell.array, atoms.pbc)
    heaviest = atoms.numbers.max()
    types = torch.tensor([trained.atomic_numbers.index(8 if z == heaviest else 1) for z in atoms.numbers])
    graph = torch.tensor(vectors), torch.tensor(index), types
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


def floor_table(rows: list[tuple[str, int, float]]) -> tuple[list[str], list[float]]:
    """Lines of a table of floors beside measured times, and the times of arithmetic alone in ms.

    Parameters: ``rows`` of a checkpoint, the box's repetitions along each axis, and the measured ms of a whole step.
    """
    speed = rates()
    lines = [
        f"one core reaches {speed['flops'] / 1e9:.0f} GFLOP/s in a matrix product, "
        f"{speed['bytes'] / 1e9:.1f} GB/s in a copy",
        f"{'model':24s} {'atoms':>6s} {'MFLOP/atom':>11s} {'MB/atom':>8s} {'arithmetic ms':>14s} {'traffic ms':>11s} "
        f"{'a step, ms':>11s}",
    ]
    atoms_of_box = len(read(DATA, format="lammps-data", atom_style="atomic"))
    arithmetic = []
    for checkpoint, size, measured in rows:
        counted = count(checkpoint, size)
        atoms = atoms_of_box * size**3
        arithmetic.append(1e3 * atoms * counted["flops"] / speed["flops"])
        traffic = 1e3 * atoms * counted["bytes"] / speed["bytes"]
        lines.append(
            f"{resolve_checkpoint(checkpoint).stem:24s} {atoms:6d} {counted['flops'] / 1e6:11.2f} "
            f"{counted['bytes'] / 1e6:8.3f} {arithmetic[-1]:14.2f} {traffic:11.2f} {measured:11.1f}"
        )
    return lines, arithmetic
