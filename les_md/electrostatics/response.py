r"""Polarisation and Born effective charges of latent charges.

Periodic, for each lattice direction a with fractional coordinate s_a (Zhong et al., arXiv:2504.05169):

    P_a = √ε Σ_i (q_i − q̄) exp(2πi s_ia)/(2πi)
    Z*_iαβ = Σ_a h_aα Re[ conj(exp(2πi s_ia)) dP_a/dr_iβ ]

with the total derivative: charges depend on positions. Isolated: P = √ε Σ (q_i − q̄) r_i, Z* = dP/dr.
Of several charge channels, the sum is the charge of the atom.

The derivative through the charges is a vector–Jacobian product with ``∂P/∂q_j``. The phase factor of
atom i multiplies it afterwards, so a periodic system needs the real and the imaginary part of each of the three
directions: six products; an isolated one needs three.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dipole_moment(charges: Tensor, positions: Tensor, remove_mean: bool, epsilon_factor: float) -> Tensor:
    """Dipole moment √ε Σ (q_i − q̄) r_i [3] in e Å, of ``charges`` [N, n_q] e at ``positions`` [N, 3] Å.

    For an isolated system its dipole. For a periodic one it depends on which image of a molecule ``positions`` holds:
    with continuous (unwrapped) trajectories its changes are those of the polarisation times the volume.
    """
    total_charge = charges.sum(1)
    if remove_mean:
        total_charge = total_charge - total_charge.mean()
    return math.sqrt(epsilon_factor) * (total_charge @ positions)


def polarisation_cotangents(positions: Tensor, cell: Tensor, isolated: bool, remove_mean: bool) -> Tensor:
    """∂P/∂q_j (without √ε), to be pulled back through the charges.

    Parameters: ``positions`` [N, 3] Å, ``cell`` [3, 3] Å.

    Returns: [3, N] for the Cartesian components (isolated, Å); [6, N] for (Re P_a, Im P_a), a = 1, 2, 3 (periodic).
    """
    if isolated:
        weights = positions.transpose(0, 1)
    else:
        angle = (2.0 * math.pi) * torch.matmul(positions, torch.linalg.inv(cell))
        # exp(iθ)/(2πi) = (sin θ − i cos θ)/(2π)
        real = torch.sin(angle).transpose(0, 1) / (2.0 * math.pi)
        imaginary = -torch.cos(angle).transpose(0, 1) / (2.0 * math.pi)
        weights = torch.stack([real, imaginary], dim=1).reshape(6, -1)
    if remove_mean:
        weights = weights - weights.mean(dim=1, keepdim=True)
    return weights


def born_effective_charges(
    charges: Tensor,
    pulled_back: Tensor,
    positions: Tensor,
    cell: Tensor,
    isolated: bool,
    remove_mean: bool,
    epsilon_factor: float,
) -> Tensor:
    """Born effective charges from the charges and the pulled-back cotangents.

    Parameters
    ----------
    charges : [N, n_q], e.
    pulled_back : [3, N, 3] (isolated) or [6, N, 3] (periodic): Σ_j weights_j dq_j/dr_i for the weights of
        ``polarisation_cotangents``, in the same order.
    positions : [N, 3], Å.  cell : [3, 3], Å.

    Returns: Z* [N, 3, 3] in e, polarisation index first, displacement index second.
    """
    total_charge = charges.sum(1)
    if remove_mean:
        total_charge = total_charge - total_charge.mean()
    # The explicit dependence on r_i: Σ_a h_aα (h⁻¹)_βa = δ_αβ times the charge, periodic or not.
    explicit = total_charge[:, None, None] * torch.eye(3, dtype=positions.dtype, device=positions.device)
    if isolated:
        through_charges = pulled_back.permute(1, 0, 2)
    else:
        angle = (2.0 * math.pi) * torch.matmul(positions, torch.linalg.inv(cell))
        pairs = pulled_back.reshape(3, 2, -1, 3)
        # Re[exp(−iθ) (R + iI)] = cos θ R + sin θ I, for each lattice direction: [a, N, 3]
        projected = (
            torch.cos(angle).transpose(0, 1)[:, :, None] * pairs[:, 0]
            + torch.sin(angle).transpose(0, 1)[:, :, None] * pairs[:, 1]
        )
        through_charges = torch.einsum("ax,aib->ixb", cell, projected)
    return math.sqrt(epsilon_factor) * (explicit + through_charges)
