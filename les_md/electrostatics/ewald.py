r"""The truncated reciprocal sum of Latent Ewald Summation for periodic cells.

    E = (C/V) Σ_k w(k) |S(k)|²,   w(k) = exp(−σ²k²/2)/k²,   S(k) = Σ_i q_i exp(i k·r_i)

over all k = n·G, n integer and not zero, with |k| ≤ 2π/dl and |n_a| ≤ max(1, ⌊|h_a|/dl⌋)
(Cheng, npj Comput. Mater. 11, 80 (2025)). The truncation is sharp and part of the trained
model, so this sum is neither converged nor tapered. The self-interaction is local to each atom and is
added in ``latent_ewald.py``.

The phases factorise over the lattice directions, exp(i k·r) = Π_a exp(2πi n_a s_a) with the
fractional coordinates s, so both directions of the transform are complex matrix products and the
trigonometric functions are evaluated only N·(K_1+K_2+K_3) times. S(−k) is the complex conjugate of S(k):
only n_1 ≥ 0 is stored.
The planes of constant n_1 are worked through in blocks, so that the workspace is bounded by
a fixed number of complex numbers (``_planes_per_block``) however many wave vectors there are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _boundary_tolerance() -> float:
    # A wave vector on the surface of the sphere, or an edge that is a multiple of dl, belongs to the sum; rounding of
    # the cell (a rotation, a unit conversion) must not decide. (A function: scripts cannot read module constants.)
    return 1e-10


def wave_vector_limits(cell: Tensor, dl: float) -> tuple[int, int, int]:
    """Largest |n_a| along each reciprocal direction: max(1, ⌊|h_a|/dl⌋).

    Parameters: ``cell`` [3, 3], rows are lattice vectors in Å; ``dl`` in Å.
    """
    edges = torch.linalg.norm(cell.detach(), dim=1) / dl
    limits = torch.clamp(torch.floor(edges * (1.0 + _boundary_tolerance())), min=1.0).to(torch.int64)
    return int(limits[0].item()), int(limits[1].item()), int(limits[2].item())


def half_space_limits(half_space: Tensor) -> list[int]:
    """K_1, K_2, K_3 of an array [K_1+1, 2K_2+1, 2K_3+1] over the half space of wave vectors."""
    return [half_space.size(0) - 1, (half_space.size(1) - 1) // 2, (half_space.size(2) - 1) // 2]


def _k_squared(cell: Tensor, limits: tuple[int, int, int]) -> Tensor:
    """|n·G|² of the half space, [K_1+1, 2K_2+1, 2K_3+1]."""
    n1 = torch.arange(0, limits[0] + 1, device=cell.device, dtype=cell.dtype)[:, None, None, None]
    n2 = torch.arange(-limits[1], limits[1] + 1, device=cell.device, dtype=cell.dtype)[None, :, None, None]
    n3 = torch.arange(-limits[2], limits[2] + 1, device=cell.device, dtype=cell.dtype)[None, None, :, None]
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).transpose(0, 1)
    return ((n1 * reciprocal[0] + n2 * reciprocal[1] + n3 * reciprocal[2]) ** 2).sum(-1)


def wave_vector_multiplicity(cell: Tensor, dl: float) -> Tensor:
    """How often each wave vector of the half space n_1 ≥ 0 enters the sum, [K_1+1, 2K_2+1, 2K_3+1].

    0 outside the truncation and at k = 0, 1 in the plane n_1 = 0 (which holds both k and −k), 2 elsewhere.
    """
    limits = wave_vector_limits(cell, dl)
    k_squared = _k_squared(cell.detach(), limits)
    inside = k_squared <= (2.0 * math.pi / dl) ** 2 * (1.0 + _boundary_tolerance())
    inside[0, limits[1], limits[2]] = False
    multiplicity = torch.full_like(k_squared, 2.0)
    multiplicity[0] = 1.0
    return multiplicity * inside.to(cell.dtype)


def reciprocal_weights(
    cell: Tensor, kset_cell: Tensor, sigma: float, dl: float, norm_factor: float
) -> tuple[Tensor, Tensor]:
    """Weights of the half space n_1 ≥ 0.

    Parameters: ``cell`` [3, 3] Å; ``kset_cell`` [3, 3] Å, the cell whose truncation decides which n belong to the sum,
    usually ``cell`` itself.

    Returns
    -------
    weight : [K_1+1, 2K_2+1, 2K_3+1], eV/e²; (C/V) w(k) times the multiplicity.
    anisotropy : same shape, Å²; σ² + 2/k², the factor of the strain derivative.
    """
    multiplicity = wave_vector_multiplicity(kset_cell, dl)
    k_squared = _k_squared(cell, wave_vector_limits(kset_cell, dl))
    # Outside the sum the weight is 0; any other number than 0 keeps the division finite there.
    k_squared = torch.where(multiplicity > 0.0, k_squared, torch.ones_like(k_squared))
    volume = torch.abs(torch.linalg.det(cell))
    weight = multiplicity * torch.exp(-0.5 * sigma**2 * k_squared) / k_squared * (norm_factor / volume)
    return weight, sigma**2 + 2.0 / k_squared


def _phases(fractional: Tensor, first: int, last: int) -> Tensor:
    """exp(2πi n s) for n = first..last: [N] → complex [N, last − first + 1]."""
    n = torch.arange(first, last + 1, device=fractional.device, dtype=fractional.dtype)
    angle = (2.0 * math.pi) * fractional[:, None] * n[None, :]
    return torch.complex(torch.cos(angle), torch.sin(angle))


def _planes_per_block(num_atoms: int, plane: int, workspace: int = 1 << 22) -> int:
    """Planes of constant n_1 at a time, so that a block holds at most ``workspace`` complex numbers (64 MB)."""
    return max(1, workspace // max(1, num_atoms * plane))


def structure_factor(positions: Tensor, charges: Tensor, cell: Tensor, limits: list[int]) -> Tensor:
    """S(k) of every charge channel, as real numbers so that MPI can sum them.

    Parameters: ``positions`` [N, 3] Å, ``charges`` [N, n_q] e, ``cell`` [3, 3] Å, ``limits`` K_1, K_2, K_3.

    Returns: [n_q, K_1+1, 2K_2+1, 2K_3+1, 2], real and imaginary part last. The structure factors of
    disjoint sets of atoms add up to that of their union.
    """
    k1, k2, k3 = limits[0], limits[1], limits[2]
    fractional = torch.matmul(positions, torch.linalg.inv(cell))
    phase1 = _phases(fractional[:, 0], 0, k1)
    phase2 = _phases(fractional[:, 1], -k2, k2)
    phase3 = _phases(fractional[:, 2], -k3, k3)
    num_atoms = positions.size(0)
    block = _planes_per_block(num_atoms, phase2.size(1))
    channels: list[Tensor] = []
    for channel in range(charges.size(1)):
        weighted = charges[:, channel, None] * phase3
        planes: list[Tensor] = []
        for first in range(0, k1 + 1, block):
            last = min(first + block, k1 + 1)
            product = (phase1[:, first:last, None] * phase2[:, None, :]).flatten(1)
            planes.append(torch.matmul(product.transpose(0, 1), weighted).reshape(last - first, 2 * k2 + 1, 2 * k3 + 1))
        channels.append(torch.cat(planes))
    return torch.view_as_real(torch.stack(channels))


def reciprocal_energy(density: Tensor, weight: Tensor) -> Tensor:
    """Energy [K_1+1, 2K_2+1, 2K_3+1] in eV of each wave vector, without self-interaction.

    Parameters: ``density`` as ``structure_factor`` returns it, ``weight`` of ``reciprocal_weights``.
    """
    return weight * (density**2).sum(-1).sum(0)


def reciprocal_field(density: Tensor, weight: Tensor) -> Tensor:
    """The field, like ``density``: ∂E/∂q_i is Σ Re[exp(−i k·r_i) field(k)] over the stored half space."""
    return 2.0 * weight[None, :, :, :, None] * density


def reciprocal_strain_derivative(energy_of_k: Tensor, anisotropy: Tensor, cell: Tensor) -> Tensor:
    """dE/dε [3, 3] in eV under r → r(1+ε), h → h(1+ε) at fixed charges and fixed set of n.

    Σ_k E(k) [(σ² + 2/k²) k ⊗ k − 1]; the products of k are summed as products of the integers n.
    """
    count = energy_of_k.shape
    k2, k3 = (count[1] - 1) // 2, (count[2] - 1) // 2
    n1 = torch.arange(0, count[0], device=cell.device, dtype=cell.dtype)
    n2 = torch.arange(-k2, k2 + 1, device=cell.device, dtype=cell.dtype)
    n3 = torch.arange(-k3, k3 + 1, device=cell.device, dtype=cell.dtype)
    scaled = energy_of_k * anisotropy
    over1, over2, over3 = scaled.sum(0), scaled.sum(1), scaled.sum(2)
    m11 = (n1**2 * over3.sum(1)).sum()
    m22 = (n2**2 * over3.sum(0)).sum()
    m33 = (n3**2 * over2.sum(0)).sum()
    m12 = (n1[:, None] * over3 * n2).sum()
    m13 = (n1[:, None] * over2 * n3).sum()
    m23 = (n2[:, None] * over1 * n3).sum()
    moments = torch.stack([m11, m12, m13, m12, m22, m23, m13, m23, m33]).reshape(3, 3)
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).transpose(0, 1)
    derivative = torch.matmul(reciprocal.transpose(0, 1), torch.matmul(moments, reciprocal))
    return derivative - energy_of_k.sum() * torch.eye(3, dtype=cell.dtype, device=cell.device)


def reciprocal_potential(field: Tensor, positions: Tensor, charges: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Potential ∂E/∂q and forces at fixed charges, from the field of ``reciprocal_field``.

    Parameters: ``field`` [n_q, K_1+1, 2K_2+1, 2K_3+1, 2], ``positions`` [N, 3] Å, ``charges`` [N, n_q] e,
    ``cell`` [3, 3] Å.

    Returns: potential [N, n_q] in V·(eV/e), forces [N, 3] in eV/Å.
    """
    potential, gradients = reciprocal_values(field, positions, cell)
    gradient = torch.zeros_like(positions)
    for channel in range(charges.size(1)):
        gradient = gradient + charges[:, channel, None] * gradients[:, channel]
    return potential, -gradient


def reciprocal_values(field: Tensor, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Potential [N, n_q] in eV/e and its gradients [N, n_q, 3]; parameters of ``reciprocal_potential``."""
    k1, k2, k3 = field.size(1) - 1, (field.size(2) - 1) // 2, (field.size(3) - 1) // 2
    inverse_cell = torch.linalg.inv(cell)
    fractional = torch.matmul(positions, inverse_cell)
    phase1 = _phases(fractional[:, 0], 0, k1).conj()
    phase2 = _phases(fractional[:, 1], -k2, k2).conj()
    phase3 = _phases(fractional[:, 2], -k3, k3).conj()
    n1 = torch.arange(0, k1 + 1, device=cell.device, dtype=cell.dtype)
    n2 = torch.arange(-k2, k2 + 1, device=cell.device, dtype=cell.dtype)
    n3 = torch.arange(-k3, k3 + 1, device=cell.device, dtype=cell.dtype)
    num_atoms = positions.size(0)
    width = 2 * k2 + 1
    block = max(1, _planes_per_block(num_atoms, width) // 2)
    # Columns of the last axis: exp(−2πi n_3 s_3), and the same times n_3 for the derivative along s_3.
    phase3_pair = torch.stack([phase3, n3 * phase3]).transpose(1, 2)
    phase2_pair = torch.stack([phase2, n2 * phase2])
    potentials: list[Tensor] = []
    gradients: list[Tensor] = []
    for channel in range(field.size(0)):
        complex_field = torch.view_as_complex(field[channel].contiguous())
        sum0 = torch.zeros(num_atoms, dtype=complex_field.dtype, device=cell.device)
        sum1 = torch.zeros_like(sum0)
        sum2 = torch.zeros_like(sum0)
        sum3 = torch.zeros_like(sum0)
        for first in range(0, k1 + 1, block):
            last = min(first + block, k1 + 1)
            planes = complex_field[first:last].reshape((last - first) * width, -1)
            over_n3 = torch.matmul(planes, phase3_pair).reshape(2, last - first, width, num_atoms)
            # Sum over n_2, plain and weighted with n_2: [block, N].
            plain = torch.einsum("awi,iw->ia", over_n3[0], phase2_pair[0])
            along2 = torch.einsum("awi,iw->ia", over_n3[0], phase2_pair[1])
            along3 = torch.einsum("awi,iw->ia", over_n3[1], phase2_pair[0])
            phase1_block = phase1[:, first:last]
            sum0 = sum0 + (plain * phase1_block).sum(1)
            sum1 = sum1 + (plain * (n1[first:last] * phase1_block)).sum(1)
            sum2 = sum2 + (along2 * phase1_block).sum(1)
            sum3 = sum3 + (along3 * phase1_block).sum(1)
        potentials.append(torch.real(sum0))
        # ∂/∂s_a of Re[exp(−2πi n·s) F] is 2π n_a Im[exp(−2πi n·s) F].
        gradient_fractional = (2.0 * math.pi) * torch.stack(
            [torch.imag(sum1), torch.imag(sum2), torch.imag(sum3)], dim=1
        )
        gradients.append(torch.matmul(gradient_fractional, inverse_cell.transpose(0, 1)))
    return torch.stack(potentials, dim=1), torch.stack(gradients, dim=1)
