r"""The real-space sum of ``isolated.py`` for many isolated configurations at once, over a list of their pairs.

    E_b = C/(2π) Σ_{i<j} q_i q_j erf(r_ij/(√2 σ))/r_ij

The list holds each pair once and no padding, whatever the sizes. Differentiable twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from les_md.electrostatics.isolated import smeared_coulomb_kernel


def pairs_within(rank: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
    """Pairs of each atom with all earlier ones of its configuration.

    Parameters: ``rank`` [N], how many earlier atoms of its configuration, which lie right before it, each is paired
    with; ``num_pairs`` their sum.

    Returns: the later and the earlier atom of each pair, [P] each.
    """
    later = torch.repeat_interleave(torch.arange(rank.size(0), device=rank.device), rank, output_size=num_pairs)
    first_pair = torch.cumsum(rank, dim=0) - rank
    place = torch.arange(num_pairs, device=rank.device) - first_pair.index_select(0, later)
    return later, later - rank.index_select(0, later) + place


def batched_pair_potential(
    positions: Tensor, charges: Tensor, first: Tensor, second: Tensor, sigma: float, norm_factor: float
) -> Tensor:
    """Potential [N, n_q] in eV/e of the pairs; ½ Σ q φ is their energy, self-interaction excluded.

    Parameters: ``positions`` [N, 3] Å, ``charges`` [N, n_q] e, ``first`` and ``second`` [P] atoms of each pair.
    """
    displacement = positions.index_select(0, first) - positions.index_select(0, second)
    value = smeared_coulomb_kernel(displacement.square().sum(1), sigma)[0] * (norm_factor / (2.0 * math.pi))
    potential = torch.zeros_like(charges)
    potential = potential.index_add(0, first, value[:, None] * charges.index_select(0, second))
    return potential.index_add(0, second, value[:, None] * charges.index_select(0, first))
