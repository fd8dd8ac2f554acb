r"""Born effective charges of many configurations at once, for training and evaluation of training codes.

The formulas are those of ``response.py``; the mean charge is that of each configuration. Cotangents of isolated
configurations are three, those of periodic ones six: all get six, of which isolated ones leave three at zero.
"""

from __future__ import annotations

import math
from typing import List, Optional  # noqa: UP035  (TorchScript knows only these)

import torch
from torch import Tensor


def _less_mean(values: Tensor, batch: Tensor, counts: Tensor) -> Tensor:
    """Values [N, m] minus their mean over each configuration of ``counts`` [B] atoms."""
    sums = torch.zeros([counts.size(0), values.size(1)], dtype=values.dtype, device=values.device)
    means = sums.index_add(0, batch, values) / counts.clamp(min=1)[:, None]
    return values - means.index_select(0, batch)


def _angles(positions: Tensor, cells: Tensor, isolated: Tensor) -> Tensor:
    """2π s [N, 3]; that of isolated configurations is not used, but finite with a finite derivative."""
    identity = torch.eye(3, dtype=cells.dtype, device=cells.device)
    inverse = torch.linalg.inv(torch.where(isolated[:, None, None], identity, cells))
    return (2.0 * math.pi) * torch.matmul(positions[:, None, :], inverse)[:, 0]


def _pulled_back(values: Tensor, cotangent: Tensor, positions: Tensor, differentiable: bool) -> Tensor:
    """Derivative [N, 3] of Σ cotangent · values over the positions; zero where they do not depend on them."""
    gradient = torch.zeros_like(positions)
    if values.requires_grad:
        cotangents: List[Optional[Tensor]] = [cotangent]  # noqa: UP006, UP045
        found = torch.autograd.grad(
            [values], [positions], cotangents, retain_graph=True, create_graph=differentiable, allow_unused=True
        )[0]
        if found is not None:
            gradient = found
    return gradient


def batched_born_effective_charges(
    charges: Tensor,
    dipoles: Tensor,
    positions: Tensor,
    cells: Tensor,
    isolated: Tensor,
    batch: Tensor,
    counts: Tensor,
    remove_mean: bool,
    epsilon_factor: float,
    differentiable: bool,
) -> Tensor:
    """Z* [N, 3, 3] in e, polarisation index first, displacement index second.

    Parameters
    ----------
    charges : [N] e, the sum over channels, a function of ``positions`` on the tape of automatic differentiation.
    dipoles : [N, 3] e Å, the same; or none, [0, 3].
    positions : [N, 3] Å, require a gradient.
    cells, isolated, counts : [B, 3, 3] Å, [B] bool, [B] atoms, of each configuration.
    batch : [N], the configuration of each atom.
    differentiable : keep the tape, to train on the result.
    """
    cells_of_atoms = cells.index_select(0, batch)
    isolated_atoms = isolated.index_select(0, batch)
    angle = _angles(positions, cells_of_atoms, isolated_atoms)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # ∂P/∂q: r for an isolated configuration, exp(iθ)/(2πi) = (sin θ − i cos θ)/(2π) for a periodic one
    mask = isolated_atoms[:, None]
    real = torch.where(mask, positions, sine / (2.0 * math.pi))
    imaginary = torch.where(mask, torch.zeros_like(positions), -cosine / (2.0 * math.pi))
    weights = torch.cat([real, imaginary], dim=1)
    if remove_mean:
        weights = _less_mean(weights, batch, counts)
        charges_used = _less_mean(charges[:, None], batch, counts)[:, 0]
    else:
        charges_used = charges
    pulled_back: list[Tensor] = []
    for column in range(6):
        pulled_back.append(_pulled_back(charges, weights[:, column], positions, differentiable))
    real_part = torch.stack(pulled_back[:3], dim=1)  # [N, direction a, displacement β]
    imaginary_part = torch.stack(pulled_back[3:], dim=1)
    projected = cosine[:, :, None] * real_part + sine[:, :, None] * imaginary_part
    through_charges = torch.where(
        isolated_atoms[:, None, None], real_part, torch.matmul(cells_of_atoms.transpose(1, 2), projected)
    )
    identity = torch.eye(3, dtype=positions.dtype, device=positions.device)
    total = charges_used[:, None, None] * identity + through_charges
    if dipoles.size(0) > 0:  # P has their plain sum, under all boundaries
        ones = torch.ones_like(charges)
        rows: list[Tensor] = []
        for axis in range(3):
            rows.append(_pulled_back(dipoles[:, axis], ones, positions, differentiable))
        total = total + torch.stack(rows, dim=1)
    return math.sqrt(epsilon_factor) * total
