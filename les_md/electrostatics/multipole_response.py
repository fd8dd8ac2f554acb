r"""Polarisation of charges and dipoles, permanent and induced, and its coupling to an electric field.

    P = √ε [Σ (q_i + Δq_i − mean) r_i + Σ (u_i + Δu_i)]

(Kim et al., arXiv:2605.05746). For the charges' part of a periodic system see ``response.py``; dipoles need no phase
there. A uniform field E adds to the local field, Δu = α (E_local + √ε E), so that the energy of an isolated system is
−P·E − ½ ε α E² with the P of no field.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from les_md.electrostatics.response import polarisation_weights


def multipole_polarisation_weights(
    positions: Tensor, cell: Tensor, isolated: bool, num_charges: int, with_dipoles: bool
) -> Tensor:
    """∂P/∂(sources) at fixed mean charge, without √ε: [3, N, C] (isolated) or [9, N, C] (periodic).

    Parameters: ``positions`` [N, 3] Å, ``cell`` [3, 3] Å. C = n_q, or 4 n_q with dipoles. Rows of a periodic system:
    the six of ``response.polarisation_weights`` for the charges, then three Cartesian ones for the dipoles.
    """
    of_charges = polarisation_weights(positions, cell, isolated).unsqueeze(2).repeat(1, 1, num_charges)
    unit = torch.eye(3, dtype=positions.dtype, device=positions.device).repeat(1, num_charges)
    of_dipoles = unit.unsqueeze(1).repeat(1, positions.size(0), 1)
    if isolated:
        return torch.cat([of_charges, of_dipoles], dim=2) if with_dipoles else of_charges
    none = torch.zeros([3, positions.size(0), num_charges], dtype=positions.dtype, device=positions.device)
    of_charges = torch.cat([of_charges, none])
    if not with_dipoles:
        return of_charges
    nothing = torch.zeros([6, positions.size(0), 3 * num_charges], dtype=positions.dtype, device=positions.device)
    return torch.cat([of_charges, torch.cat([nothing, of_dipoles])], dim=2)


def multipole_field_weights(weights: Tensor, field: Tensor, epsilon_factor: float) -> Tensor:
    """Derivatives [1, N, C] of −P·E with respect to the sources; ``weights`` [3, N, C], ``field`` [3] V/Å."""
    return -math.sqrt(epsilon_factor) * torch.einsum("a,anc->nc", field, weights).unsqueeze(0)


def multipole_field_terms(
    charges: Tensor, dipoles: Tensor, mean_charge: Tensor, explicit: Tensor, positions: Tensor, field: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The energy of an isolated system in a uniform field, and its derivatives at fixed latent variables.

    Parameters
    ----------
    charges : [N, n_q], e, permanent and induced.  mean_charge : scalar, e; zero where it is kept.
    dipoles : [N, 3], e Å, permanent and induced, with half of those that the field itself induces.
    explicit : [N, 3], eV/Å, derivative of the energy through the induced sources, see ``gather_response``.
    positions : [N, 3], Å.  field : [3], V/Å, with the factor √ε.

    Returns: energies [N] in eV, forces [N, 3] in eV/Å, strain derivative [3, 3] in eV.
    """
    on_charges = (charges.sum(1) - mean_charge).unsqueeze(1) * field
    forces = on_charges - explicit
    energies = -(positions * on_charges).sum(1) - torch.matmul(dipoles, field)
    strain = -torch.matmul(positions.transpose(0, 1), forces)
    return energies, forces, 0.5 * (strain + strain.transpose(0, 1))
