r"""Sources of the potential beyond charges: bookkeeping shared by all sums.

An atom's sources act on the kernel v as L = q + u·∇ + ½ Q:∇∇, so that E = ½ Σ_ij L_i L_j v(r_i − r_j) (Kim et al.,
arXiv:2605.05746); in reciprocal space L is q + i u·k − ½ k·Q·k. All sums work on **sources** [N, M] in the columns of
``LatentLayout``: n_q charges; then, where there is any dipole or quadrupole or polarisability, 3 n_q components of
dipoles; then, where there are quadrupoles, 6 n_q of these. M tells which there are.

**Values** [N, M] are the derivatives of the energy with respect to the sources: the potential, its gradient, and of its
second derivatives ½ ∇_a∇_a and ∇_a∇_b (a ≠ b), since Q_ab and Q_ba are one column.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def quadrupole_axes() -> tuple[list[int], list[int]]:
    """First and second axis of the six components (``latent_layout.QUADRUPOLE_COMPONENTS``)."""
    return [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]


def multipole_order(num_columns: int, num_charges: int) -> int:
    """0 for charges alone, 1 with dipoles, 2 with quadrupoles, from the number of columns of the sources."""
    return 0 if num_columns == num_charges else 1 if num_columns == 4 * num_charges else 2


def quadrupole_tensors(components: Tensor) -> Tensor:
    """[..., 6] → symmetric [..., 3, 3]."""
    c = components
    rows = [c[..., 0], c[..., 3], c[..., 4], c[..., 3], c[..., 1], c[..., 5], c[..., 4], c[..., 5], c[..., 2]]
    return torch.stack(rows, dim=-1).unflatten(-1, [3, 3])


def self_values(sources: Tensor, num_charges: int, sigma: float, norm_factor: float) -> Tensor:
    """What a Gaussian source adds to its own values, [N, M].

    The derivatives of C q²/(σ(2π)^{3/2}), C u²/(3σ³(2π)^{3/2}) and C Q:Q/(10σ⁵(2π)^{3/2}), Q without trace.
    """
    of_charge = 2.0 * norm_factor / (sigma * (2.0 * math.pi) ** 1.5)
    parts = [of_charge * sources[:, :num_charges]]
    order = multipole_order(sources.size(1), num_charges)
    if order > 0:
        parts.append(of_charge / (3.0 * sigma**2) * sources[:, num_charges : 4 * num_charges])
    if order > 1:
        quadrupoles = sources[:, 4 * num_charges :].reshape(sources.size(0), num_charges, 6)
        of_quadrupole = of_charge / (10.0 * sigma**4)
        diagonal, rest = of_quadrupole * quadrupoles[:, :, :3], 2.0 * of_quadrupole * quadrupoles[:, :, 3:]
        parts.append(torch.cat([diagonal, rest], dim=2).flatten(1))
    return torch.cat(parts, dim=1)


def fixed_multipoles_strain(sources: Tensor, values: Tensor, num_charges: int) -> Tensor:
    """What the strain derivative lacks where everything, multipoles too, was taken to deform with the cell, [3, 3] eV.

    Under r → r(1+ε) dipoles u and quadrupoles Q stay as they are: −Σ u ⊗ ∂E/∂u − 2 Σ Q·∂E/∂Q, symmetrised (the network
    turns them with the structure, and the energy does not change when all is turned).

    Parameters: ``sources`` [N, M], ``values`` [N, M] of the sources that act on them, own ones included.
    """
    order = multipole_order(sources.size(1), num_charges)
    strain = torch.zeros([3, 3], dtype=values.dtype, device=values.device)
    if order > 0:
        dipoles = sources[:, num_charges : 4 * num_charges].reshape(-1, 3)
        gradients = values[:, num_charges : 4 * num_charges].reshape(-1, 3)
        strain = strain - torch.matmul(dipoles.transpose(0, 1), gradients)
    if order > 1:
        # values are ∂E/∂Q_aa on the diagonal and twice the tensor's components off it
        doubled = torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0, 1.0], dtype=values.dtype, device=values.device)
        tensors = quadrupole_tensors(values[:, 4 * num_charges :].reshape(-1, 6) * doubled)
        quadrupoles = quadrupole_tensors(sources[:, 4 * num_charges :].reshape(-1, 6))
        strain = strain - torch.einsum("nac,nbc->ab", quadrupoles, tensors)
    return 0.5 * (strain + strain.transpose(0, 1))


def padded(sources: Tensor, num_columns: int) -> Tensor:
    """Sources [N, M'] continued with zeros to [N, num_columns]."""
    missing = torch.zeros([sources.size(0), num_columns - sources.size(1)], dtype=sources.dtype, device=sources.device)
    return torch.cat([sources, missing], dim=1)
