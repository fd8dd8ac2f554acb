r"""Latent charges, dipoles and quadrupoles of many configurations at once, for training; twice differentiable.

    E = (C/V) Σ_k w(k) |S(k)|²,   S(k) = Σ_i (q_i + i u_i·k − ½ k·Q_i·k) exp(i k·r_i)

for periodic configurations, and for isolated ones the same smeared multipoles in real space,

    E = C/(2π) Σ_{i<j} (q_i + u_i·∇_i + ½ Q_i:∇_i∇_i)(q_j + u_j·∇_j + ½ Q_j:∇_j∇_j) erf(r_ij/(√2 σ))/r_ij

(Kim et al., arXiv:2605.05746). Potential φ and field E of these sources at the atoms are ∂E/∂q and −∂E/∂u. The
truncation of the periodic sum is that of ``batched_ewald.py``, whose sums do all the work: S is a combination of the
structure factors of ten scalar sources, q, the u_a and the Q_ab.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from les_md.electrostatics.batched_ewald import batched_structure_factor, wave_vectors
from les_md.electrostatics.smeared_multipoles import smeared_derivatives


def packed_sources(charges: Tensor, dipoles: Tensor, quadrupoles: Tensor) -> Tensor:
    """One table [N, m, n_q] of all sources: q, u_x, u_y, u_z, Q_xx, Q_yy, Q_zz, Q_xy, Q_xz, Q_yz.

    Parameters: ``charges`` [N, n_q]; ``dipoles`` [N, n_q, 3] or [0, n_q, 3] for none; ``quadrupoles`` [N, n_q, 3, 3],
    traceless, or [0, n_q, 3, 3] for none. With quadrupoles alone, dipoles are zeros.
    """
    parts = [charges[:, None, :]]
    has_quadrupoles = quadrupoles.size(0) > 0
    if dipoles.size(0) > 0:
        parts.append(dipoles.transpose(1, 2))
    elif has_quadrupoles:
        parts.append(charges.new_zeros([charges.size(0), 3, charges.size(1)]))
    if has_quadrupoles:
        flat = quadrupoles.flatten(2).transpose(1, 2)
        parts.append(flat.index_select(1, torch.tensor([0, 4, 8, 1, 2, 5], device=flat.device)))
    return torch.cat(parts, dim=1)


def batched_multipole_structure_factor(
    sources: Tensor, plane: Tensor, column: Tensor, cells: Tensor, largest: list[int]
) -> Tensor:
    """Real and imaginary part of S(k), [B, 2, 4, n_q, K_1+1, K_2+1, K_3+1], as of ``batched_structure_factor``.

    Parameters: ``sources`` [B, n, m, n_q] of ``packed_sources``, 0 for padding; others as there.
    """
    num_components, num_channels = sources.size(2), sources.size(3)
    sums = batched_structure_factor(sources.flatten(2), plane, column, largest)
    sums = sums.unflatten(3, [num_components, num_channels])
    real, imaginary = sums[:, 0], sums[:, 1]  # [B, 4, m, n_q, K_1+1, K_2+1, K_3+1]
    k = wave_vectors(cells, largest)  # [B, 4, K_1+1, K_2+1, K_3+1, 3]
    total_real, total_imaginary = real[:, :, 0], imaginary[:, :, 0]
    if num_components > 1:
        vector = k.permute(0, 1, 5, 2, 3, 4)[:, :, :, None]
        total_real = total_real - (vector * imaginary[:, :, 1:4]).sum(2)
        total_imaginary = total_imaginary + (vector * real[:, :, 1:4]).sum(2)
    if num_components > 4:
        x, y, z = k[..., 0], k[..., 1], k[..., 2]
        # ½ k·Q·k: off-diagonal components occur twice.
        pairs = torch.stack([0.5 * x * x, 0.5 * y * y, 0.5 * z * z, x * y, x * z, y * z], dim=2)[:, :, :, None]
        total_real = total_real - (pairs * real[:, :, 4:]).sum(2)
        total_imaginary = total_imaginary - (pairs * imaginary[:, :, 4:]).sum(2)
    return torch.stack([total_real, total_imaginary], dim=1)


def potential_and_field_factors(structure: Tensor, cells: Tensor, largest: list[int]) -> Tensor:
    """What ``batched_reciprocal_potential`` makes potential and field of: [B, 2, 4, 4 n_q, K_1+1, K_2+1, K_3+1].

    The field of channel c is that of the factor i k S. Order of the 4 n_q: potential, field along x, y, z.
    """
    real, imaginary = structure[:, 0], structure[:, 1]  # [B, 4, n_q, K_1+1, K_2+1, K_3+1]
    k = wave_vectors(cells, largest)
    reals, imaginaries = [real], [imaginary]
    for axis in range(3):
        component = k[..., axis][:, :, None]
        reals.append(-component * imaginary)
        imaginaries.append(component * real)
    return torch.stack([torch.cat(reals, dim=2), torch.cat(imaginaries, dim=2)], dim=1)


def batched_multipole_pairs(
    positions: Tensor,
    charges: Tensor,
    dipoles: Tensor,
    quadrupoles: Tensor,
    first: Tensor,
    second: Tensor,
    sigma: float,
    norm_factor: float,
    with_potential: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Energy of pairs, and potential and field of each at the other, without interactions with themselves.

    Parameters
    ----------
    positions, charges : [N, 3] Å, [N, n_q] e.
    dipoles, quadrupoles : [N, n_q, 3] e Å and [N, n_q, 3, 3] e Å² (traceless); or none, [0, n_q, ...].
    first, second : [P] atoms of each pair.
    with_potential : whether potential and field are wanted; else they are empty.

    Returns: energies [P] eV, potential [N, n_q] eV/e, field [N, n_q, 3] eV/(e Å).
    """
    has_dipoles, has_quadrupoles = dipoles.size(0) > 0, quadrupoles.size(0) > 0
    displacement = positions.index_select(0, first) - positions.index_select(0, second)
    highest = 4 if has_quadrupoles else 2 if has_dipoles else 1 if with_potential else 0
    kernels = smeared_derivatives(displacement.square().sum(1), sigma, highest)
    constant = norm_factor / (2.0 * math.pi)
    b = [(constant * kernel)[:, None] for kernel in kernels]
    d = displacement[:, None, :]

    # Potential and field at the first atom, whose sources are those of the second.
    q_first, q_second = charges.index_select(0, first), charges.index_select(0, second)
    u_first, u_second = charges.new_zeros([0, 0, 3]), charges.new_zeros([0, 0, 3])
    quad_first, quad_second = charges.new_zeros([0, 0, 3, 3]), charges.new_zeros([0, 0, 3, 3])
    if has_dipoles:
        u_first, u_second = dipoles.index_select(0, first), dipoles.index_select(0, second)
    if has_quadrupoles:
        quad_first, quad_second = quadrupoles.index_select(0, first), quadrupoles.index_select(0, second)
    potential, field = _at_distance(d, b, q_second, u_second, quad_second, with_potential or has_dipoles)
    energies = q_first * potential
    if has_dipoles:
        energies = energies - (u_first * field).sum(-1)
    if has_quadrupoles:
        energies = energies + _quadrupole_energy(d, b, quad_first, q_second, u_second, quad_second)
    all_potential, all_field = charges.new_zeros([0, 0]), charges.new_zeros([0, 0, 3])
    if with_potential:
        back, back_field = _at_distance(-d, b, q_first, u_first, quad_first, True)
        all_potential = torch.zeros_like(charges).index_add(0, first, potential).index_add(0, second, back)
        all_field = charges.new_zeros([charges.size(0), charges.size(1), 3])
        all_field = all_field.index_add(0, first, field).index_add(0, second, back_field)
    return energies.sum(1), all_potential, all_field


def _at_distance(
    d: Tensor, b: list[Tensor], charge: Tensor, dipole: Tensor, quadrupole: Tensor, with_field: bool
) -> tuple[Tensor, Tensor]:
    """Potential [P, n_q] and field [P, n_q, 3] at ``d`` [P, 1, 3] from sources; dipoles or quadrupoles may be empty."""
    potential = charge * b[0]
    field = charge.new_zeros([0, 0, 3])
    if with_field:
        field = (charge * b[1])[:, :, None] * d
    if dipole.size(1) > 0:
        along = (dipole * d).sum(-1)
        potential = potential + along * b[1]
        if with_field:
            field = field + (along * b[2])[:, :, None] * d - dipole * b[1][:, :, None]
    if quadrupole.size(1) > 0:
        vector = (quadrupole * d[:, :, None, :]).sum(-1)
        along = (vector * d).sum(-1)
        potential = potential + 0.5 * along * b[2]
        if with_field:
            field = field + (0.5 * along * b[3])[:, :, None] * d - vector * b[2][:, :, None]
    return potential, field


def _quadrupole_energy(
    d: Tensor, b: list[Tensor], quadrupole: Tensor, charge: Tensor, dipole: Tensor, other: Tensor
) -> Tensor:
    """½ Q:∇∇φ [P, n_q] at ``d`` from the sources; dipoles may be empty, quadrupoles of both are not."""
    vector = (quadrupole * d[:, :, None, :]).sum(-1)
    along = (vector * d).sum(-1)
    other_vector = (other * d[:, :, None, :]).sum(-1)
    other_along = (other_vector * d).sum(-1)
    sum_along = charge * b[2] + 0.5 * other_along * b[4]
    energy = 0.5 * (quadrupole * other).sum(-1).sum(-1) * b[2] - (vector * other_vector).sum(-1) * b[3]
    if dipole.size(1) > 0:
        sum_along = sum_along + (dipole * d).sum(-1) * b[3]
        energy = energy - (vector * dipole).sum(-1) * b[2]
    return energy + 0.5 * along * sum_along
