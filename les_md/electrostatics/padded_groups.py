"""Which periodic configurations of a batch are padded to one size and summed by one batched matrix product.

Padding a small configuration to the size of a large one wastes arithmetic and memory; a product for each wastes the
fixed cost of the operations. A configuration joins the next larger ones where that is estimated to be cheaper.
"""

from __future__ import annotations

from typing import List, NamedTuple, Tuple  # noqa: UP035  (TorchScript knows only these in a named tuple)

import torch
from torch import Tensor

from les_md.electrostatics.batched_isolated import pairs_within


class Arrangement(NamedTuple):
    """How the configurations of a batch are summed.

    Attributes: ``order`` [N], atoms sorted by configuration; ``limits`` [B, 3], largest |n_a| of each; ``cells``
    [B, 3, 3] Å with their lattice vectors in the order of the limits; ``groups`` of ``padded_groups``, of periodic
    configurations; ``num_pairs`` of the isolated ones.
    """

    order: Tensor
    limits: Tensor
    cells: Tensor
    groups: List[Tuple[List[int], List[int]]]  # noqa: UP006
    num_pairs: int


def padded_work(num_configurations: int, size: list[int]) -> float:
    """Estimated cost of a padded sum and its derivatives, in ns of one CPU core (only ratios matter).

    Parameters: ``size`` [atoms, K_1, K_2, K_3] that all configurations are padded to.
    """
    plane = 4.0 * float((size[1] + 1) * (size[2] + 1))
    column = 2.0 * float(size[3] + 1)
    per_atom = (1.2 * plane + 500.0) * column
    return float(num_configurations) * (float(size[0]) * per_atom + 50.0 * plane * column)


def padded_groups(members: list[int], sizes: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Groups of configurations that are summed together.

    Parameters
    ----------
    members : indices of the configurations, from the most expensive to the cheapest.
    sizes : [atoms, K_1, K_2, K_3] of each of these.

    Returns: for each group its members, and the size that they are padded to.
    """
    overhead = 2.5e6  # ns; some hundred operations in forward and both backward passes, measured
    groups: list[tuple[list[int], list[int]]] = []
    for member, size in zip(members, sizes):  # noqa: B905  (scripts know no strict)
        if len(groups) > 0:
            group, padded = groups[-1]
            joint: list[int] = []
            for axis in range(4):
                joint.append(max(padded[axis], size[axis]))
            separate = padded_work(len(group), padded) + padded_work(1, size) + overhead
            if padded_work(len(group) + 1, joint) <= separate:
                group.append(member)
                groups[-1] = (group, joint)
                continue
        groups.append(([member], size))
    return groups


def padded_atoms(group: list[int], size: int, counts: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Atoms of a group of configurations, each padded to ``size`` atoms.

    Parameters: ``counts`` [B] atoms of each configuration; ``order`` [N], atoms sorted by configuration.

    Returns: the group's configurations [G]; atoms [G size], of which padding repeats one; [G, size], not padding.
    """
    first_atoms = torch.cumsum(counts, dim=0) - counts
    chosen = torch.tensor(group, dtype=torch.int64, device=counts.device)
    place = torch.arange(size, device=counts.device)
    inside = place < counts.index_select(0, chosen)[:, None]
    rows = first_atoms.index_select(0, chosen)[:, None] + place
    return chosen, order.index_select(0, torch.where(inside, rows, 0).flatten()), inside


def pairs_of_isolated(
    batch: Tensor, isolated: Tensor, counts: Tensor, order: Tensor, num_pairs: int
) -> tuple[Tensor, Tensor]:
    """All pairs of atoms of the isolated configurations, each once: [P] and [P] atoms.

    Parameters: ``batch`` [N] and ``isolated``, ``counts`` [B]; ``order`` [N], atoms sorted by configuration.
    """
    sorted_batch = batch.index_select(0, order)
    first_atoms = torch.cumsum(counts, dim=0) - counts
    rank = torch.arange(batch.size(0), device=batch.device) - first_atoms.index_select(0, sorted_batch)
    rank = torch.where(isolated.index_select(0, sorted_batch), rank, torch.zeros_like(rank))
    later, earlier = pairs_within(rank, num_pairs)
    return order.index_select(0, later), order.index_select(0, earlier)


def self_interaction_sign(isolated: Tensor, removed: bool, dtype: torch.dtype) -> Tensor:
    """What the interaction of a source with itself is multiplied by, [B]: 1 added, −1 removed, 0 neither.

    The sum over wave vectors has it, the sum over pairs has not.
    """
    take = 1.0 if removed else 0.0
    return torch.where(isolated, 1.0 - take, -take).to(dtype)
