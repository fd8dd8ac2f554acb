r"""Polarisation and Born effective charges of latent charges.

Periodic, for each lattice direction a with fractional coordinate s_a (Zhong et al., arXiv:2504.05169):

    P_a = √ε Σ_i (q_i − q̄) exp(2πi s_ia)/(2πi)
    Z*_iαβ = Σ_a h_aα Re[ conj(exp(2πi s_ia)) dP_a/dr_iβ ]

with the total derivative: charges depend on positions. Isolated: P = √ε Σ (q_i − q̄) r_i, Z* = dP/dr.
Of several charge channels, the sum is the charge of the atom.

The derivative through the charges is a vector–Jacobian product with ``∂P/∂q_j``. The phase factor of
atom i multiplies it afterwards, so a periodic system needs the real and the imaginary part of each of the three
directions: six products; an isolated one needs three. The current dP/dt = Σ_i Z*_i v_i needs the same six: its
kernel sin(θ_j − θ_i) between charge j and velocity i is of rank two for each direction, from either side.

Where the charge of an atom depends on the edges from that atom alone (no message passing), the derivatives of all
charges are those of their sum, sorted by edges: one product, which the weights multiply afterwards.

A uniform electric field E acts with the forces F_i = Z*_iᵀ E. An isolated system has the energy −P·E that they derive
from, and one product with −∂(P·E)/∂q, which joins that of the forces, replaces three. P of a periodic system has many
values, so there is no energy; only lattice directions along which the field has a component take their two products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dipole_moment(charges: Tensor, positions: Tensor, remove_mean: bool, epsilon_factor: float) -> Tensor:
    """Dipole moment √ε Σ (q_i − q̄) r_i [3] in e Å, of ``charges`` [N, n_q] e at ``positions`` [N, 3] Å.

    For an isolated system its dipole. In a periodic one it depends on which image of a molecule ``positions`` holds,
    and even along a continuous trajectory its changes are not those of the polarisation, since charge that goes from
    one molecule to another counts with the distance in ``positions``: the current Σ Z* v is what has a meaning.
    """
    total_charge = charges.sum(1)
    if remove_mean:
        total_charge = total_charge - total_charge.mean()
    return math.sqrt(epsilon_factor) * (total_charge @ positions)


def polarisation_weights(positions: Tensor, cell: Tensor, isolated: bool) -> Tensor:
    """∂P/∂q_j (without √ε) at fixed mean charge.

    Parameters: ``positions`` [N, 3] Å, ``cell`` [3, 3] Å.

    Returns: [3, N] for the Cartesian components (isolated, Å); [6, N] for (Re P_a, Im P_a), a = 1, 2, 3 (periodic).
    """
    if isolated:
        return positions.transpose(0, 1)
    angle = (2.0 * math.pi) * torch.matmul(positions, torch.linalg.inv(cell))
    # exp(iθ)/(2πi) = (sin θ − i cos θ)/(2π)
    real = torch.sin(angle).transpose(0, 1) / (2.0 * math.pi)
    imaginary = -torch.cos(angle).transpose(0, 1) / (2.0 * math.pi)
    return torch.stack([real, imaginary], dim=1).reshape(6, -1)


def polarisation_sums(weights: Tensor, charges: Tensor, remove_mean: bool) -> Tensor:
    """What is divided by the number of atoms and subtracted: from each of ``weights`` [K, N], and from the atoms'
    charges (the last one), ``charges`` [N, n_q]. Of disjoint sets of atoms the sums add up.

    Returns: [K + 1]; zeros where the mean charge is kept.
    """
    sums = torch.cat([weights.sum(1), charges.sum().unsqueeze(0)])
    return sums if remove_mean else torch.zeros_like(sums)


def born_effective_charges(
    charges: Tensor,
    mean_charge: Tensor,
    pulled_back: Tensor,
    positions: Tensor,
    cell: Tensor,
    isolated: bool,
    epsilon_factor: float,
) -> Tensor:
    """Born effective charges from the charges and the pulled-back weights.

    Parameters
    ----------
    charges : [n, n_q], e, of the first n ≤ N atoms; of the others only what goes through the charges is returned, to
        be added to what another process has of the same atoms.
    mean_charge : scalar, e; zero where it is kept.
    pulled_back : [3, N, 3] (isolated) or [6, N, 3] (periodic): Σ_j (weights_j − their mean) dq_j/dr_i for
        ``polarisation_weights``, in the same order.
    positions : [N, 3], Å.  cell : [3, 3], Å.

    Returns: Z* [N, 3, 3] in e, polarisation index first, displacement index second.
    """
    if isolated:
        tensors = pulled_back.permute(1, 0, 2).clone()
    else:
        angle = (2.0 * math.pi) * torch.matmul(positions, torch.linalg.inv(cell))
        pairs = pulled_back.reshape(3, 2, -1, 3)
        # Re[exp(−iθ) (R + iI)] = cos θ R + sin θ I, for each lattice direction: [a, N, 3]
        projected = (
            torch.cos(angle).transpose(0, 1)[:, :, None] * pairs[:, 0]
            + torch.sin(angle).transpose(0, 1)[:, :, None] * pairs[:, 1]
        )
        tensors = torch.einsum("ax,aib->ixb", cell, projected)
    # The explicit dependence on r_i: Σ_a h_aα (h⁻¹)_βa = δ_αβ times the charge, periodic or not.
    bare = (charges.sum(1) - mean_charge)[:, None, None] * torch.eye(3, dtype=positions.dtype, device=positions.device)
    tensors[: charges.size(0)] += bare
    return math.sqrt(epsilon_factor) * tensors


def field_terms(
    charges: Tensor, mean_charge: Tensor, weights: Tensor, positions: Tensor, field: Tensor, epsilon_factor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The energy −P·E of an isolated system in a uniform field, and its derivatives.

    Parameters
    ----------
    charges : [N, n_q], e.  mean_charge : scalar, e; zero where it is kept.
    weights : [3, N], Å, ``polarisation_weights`` less their means.
    positions : [N, 3], Å.  field : [3], V/Å.

    Returns: energies [N] in eV; derivatives [N] with respect to the atoms' charges, in V, the mean's change included;
    forces [N, 3] in eV/Å and strain derivative [3, 3] in eV at fixed charges.
    """
    factor = math.sqrt(epsilon_factor)
    forces = factor * (charges.sum(1) - mean_charge).unsqueeze(1) * field
    strain = -torch.matmul(positions.transpose(0, 1), forces)
    return (
        -(positions * forces).sum(1),
        -factor * torch.matmul(field, weights),
        forces,
        0.5 * (strain + strain.transpose(0, 1)),
    )


def field_rows(cell: Tensor, field: Tensor) -> Tensor:
    """Which of the six ``polarisation_weights`` of a periodic system a field needs, [6] bool: those of the lattice
    directions along which ``field`` [3] has a component; ``cell`` [3, 3]."""
    along = torch.matmul(cell, field).abs()
    return (along > 1e-14 * torch.linalg.norm(cell, dim=1) * torch.linalg.norm(field)).repeat_interleave(2)


def field_forces(tensors: Tensor, field: Tensor) -> Tensor:
    """Forces [N, 3] in eV/Å of a uniform ``field`` [3] in V/Å on Born effective charges ``tensors`` [N, 3, 3] in e."""
    return torch.einsum("a,iab->ib", field, tensors)
