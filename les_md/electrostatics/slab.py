r"""Correction that takes the interaction of a slab with its images across the vacuum away.

A slab, periodic along the first two lattice vectors, is summed as a three-dimensional crystal of slabs. For zero wave
vector along the surface these interact through the dipole moment of the cell. The correction (Yeh and Berkowitz, J.
Chem. Phys. 111, 3155 (1999); for cells with a net charge Ballenegger, Arnold, Cerdà, J. Chem. Phys. 131, 094107
(2009)) is, with z = r·n along the normal n of the surface, M = Σ q z, Q = Σ q, S = Σ q z² and the height H of the
cell,

    E = (C/V) [M² − Q S − Q² H²/12].

Models are trained with the plain three-dimensional sum; the correction is the user's choice.
"""

from __future__ import annotations

import torch
from torch import Tensor


def slab_normal(cell: Tensor) -> Tensor:
    """Unit vector [3] along which a slab is not periodic."""
    normal = torch.linalg.cross(cell[0], cell[1])
    return normal / torch.linalg.norm(normal)


def slab_moments(positions: Tensor, charges: Tensor, cell: Tensor) -> Tensor:
    """Q, M, S of every charge channel, [n_q, 3]; moments of disjoint sets of atoms add up."""
    z = torch.matmul(positions, slab_normal(cell))
    return torch.matmul(torch.stack([torch.ones_like(z), z, z**2]), charges).transpose(0, 1)


def slab_strain_derivative(moments: Tensor, cell: Tensor, norm_factor: float) -> Tensor:
    """dE/dε [3, 3] in eV at fixed charges: all lengths along the normal grow with it, the volume with the trace."""
    normal = slab_normal(cell)
    volume = torch.abs(torch.linalg.det(cell))
    height = volume / torch.linalg.norm(torch.linalg.cross(cell[0], cell[1]))
    charge, dipole, second = moments[:, 0], moments[:, 1], moments[:, 2]
    energy = (norm_factor / volume) * (dipole**2 - charge * second - charge**2 * height**2 / 12.0).sum()
    return energy * (2.0 * normal[:, None] * normal - torch.eye(3, dtype=cell.dtype, device=cell.device))


def slab_potential(
    moments: Tensor, positions: Tensor, charges: Tensor, cell: Tensor, norm_factor: float
) -> tuple[Tensor, Tensor]:
    """Potential [N, n_q] in eV/e and forces [N, 3] in eV/Å of the correction."""
    normal = slab_normal(cell)
    volume = torch.abs(torch.linalg.det(cell))
    height = volume / torch.linalg.norm(torch.linalg.cross(cell[0], cell[1]))
    z = torch.matmul(positions, normal)[:, None]
    charge, dipole, second = moments[:, 0], moments[:, 1], moments[:, 2]
    factor = norm_factor / volume
    potential = factor * (2.0 * dipole * z - second - charge * z**2 - charge * height**2 / 6.0)
    slope = factor * charges * (2.0 * dipole - 2.0 * charge * z)
    return potential, -slope.sum(1, keepdim=True) * normal
