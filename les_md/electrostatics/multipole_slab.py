r"""The correction for slabs (``slab.py``) with dipoles and quadrupoles.

With L = q + u·∇ + ½ Q:∇∇ in place of q, M = Σ (q z + u_n), S = Σ (q z² + 2 u_n z + Q_nn) where u_n = u·n and
Q_nn = n·Q·n, in the same E = (C/V) [M² − Q S − Q² H²/12].
"""

from __future__ import annotations

import torch
from torch import Tensor

from les_md.electrostatics.multipole_sources import multipole_order, quadrupole_axes, quadrupole_tensors
from les_md.electrostatics.slab import slab_moments, slab_normal


def multipole_slab_moments(positions: Tensor, sources: Tensor, num_charges: int, cell: Tensor) -> Tensor:
    """Q, M, S of every channel, [n_q, 3]; moments of disjoint sets of atoms add up."""
    normal = slab_normal(cell)
    z = torch.matmul(positions, normal)
    moments = slab_moments(positions, sources[:, :num_charges], cell)
    order = multipole_order(sources.size(1), num_charges)
    nothing = torch.zeros(num_charges, dtype=z.dtype, device=z.device)
    if order > 0:
        along = torch.matmul(sources[:, num_charges : 4 * num_charges].reshape(-1, num_charges, 3), normal)
        moments = moments + torch.stack([nothing, along.sum(0), 2.0 * torch.matmul(z, along)], dim=1)
    if order > 1:
        tensors = quadrupole_tensors(sources[:, 4 * num_charges :].reshape(-1, num_charges, 6))
        second = torch.matmul(torch.matmul(tensors, normal), normal)
        moments = moments + torch.stack([nothing, nothing, second.sum(0)], dim=1)
    return moments


def multipole_slab_values(
    moments: Tensor, positions: Tensor, order: int, cell: Tensor, norm_factor: float
) -> tuple[Tensor, Tensor]:
    """Values (``multipole_sources.py``) [N, M] of the correction for sources of this order, and gradients [N, M, 3]."""
    normal = slab_normal(cell)
    volume = torch.abs(torch.linalg.det(cell))
    height = volume / torch.linalg.norm(torch.linalg.cross(cell[0], cell[1]))
    z = torch.matmul(positions, normal)[:, None]
    charge, dipole, second = moments[:, 0], moments[:, 1], moments[:, 2]
    factor = norm_factor / volume
    potential = factor * (2.0 * dipole * z - second - charge * z**2 - charge * height**2 / 6.0)
    slope = factor * (2.0 * dipole - 2.0 * charge * z)
    curvature = (-2.0 * factor * charge).expand_as(slope)
    values = [potential]
    gradients = [slope[:, :, None] * normal]
    if order > 0:
        values.append((slope[:, :, None] * normal).flatten(1))
        gradients.append((curvature[:, :, None, None] * normal[:, None] * normal).flatten(1, 2))
    if order > 1:
        first_axes, second_axes = quadrupole_axes()
        weights: list[Tensor] = []
        for component in range(6):
            product = normal[first_axes[component]] * normal[second_axes[component]]
            weights.append(0.5 * product if component < 3 else product)
        of_quadrupoles = (curvature[:, :, None] * torch.stack(weights)).flatten(1)
        values.append(of_quadrupoles)
        gradients.append(torch.zeros([z.size(0), of_quadrupoles.size(1), 3], dtype=z.dtype, device=z.device))
    return torch.cat(values, dim=1), torch.cat(gradients, dim=1)
