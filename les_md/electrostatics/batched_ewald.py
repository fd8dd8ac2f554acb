r"""The truncated reciprocal sum of ``ewald.py`` for many configurations at once, in real arithmetic, for training.

    E_b = (C/V_b) Σ_k w(k) |S_b(k)|²,   S_b(k) = Σ_i q_i exp(i k·r_i)

With angles θ_a = 2π n_a s_a, exp(i k·r) is a product of three factors cos θ_a ± i sin θ_a. The sums

    T_xyz(n) = Σ_i q_i x(θ_1) y(θ_2) z(θ_3),   x, y, z ∈ {cos, sin},   n_1, n_2, n_3 ≥ 0

hold everything: the structure factor of (n_1, ±n_2, ±n_3) is a signed sum of the eight T, and −k is the complex
conjugate of k. All T are one matrix product over the atoms of a configuration, half the arithmetic of a complex one;
configurations of similar size are padded with charges of zero and done by one batched product.

Everything is differentiable twice in positions, charges and cell. Which wave vectors belong to the sum is decided in
float64 and carries no derivative.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def truncation_tolerance(dtype: torch.dtype) -> float:
    """Relative rounding of a cell of this type that must not decide whether a wave vector belongs to the sum."""
    return 1e-10 if dtype == torch.float64 else 1e-6


def batched_wave_vector_limits(cells: Tensor, dl: float) -> Tensor:
    """Largest |n_a| along each reciprocal direction, max(1, ⌊|h_a|/dl⌋), of cells [B, 3, 3] in Å: [B, 3] int64."""
    edges = torch.linalg.vector_norm(cells.detach().double(), dim=2) / dl
    return torch.clamp(torch.floor(edges * (1.0 + truncation_tolerance(cells.dtype))), min=1.0).to(torch.int64)


def wave_vectors(cells: Tensor, largest: list[int]) -> Tensor:
    """k of (n_1, ±n_2, ±n_3), signs in the order ++, +−, −+, −−: [B, 4, K_1+1, K_2+1, K_3+1, 3] in 1/Å."""
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cells).transpose(1, 2)
    n1 = torch.arange(largest[0] + 1, device=cells.device, dtype=cells.dtype)
    n2 = torch.arange(largest[1] + 1, device=cells.device, dtype=cells.dtype)
    n3 = torch.arange(largest[2] + 1, device=cells.device, dtype=cells.dtype)
    k1 = n1[:, None] * reciprocal[:, None, 0]
    k2 = n2[:, None] * reciprocal[:, None, 1]
    k3 = n3[:, None] * reciprocal[:, None, 2]
    k2 = torch.stack([k2, k2, -k2, -k2], dim=1)
    k3 = torch.stack([k3, -k3, k3, -k3], dim=1)
    return k1[:, None, :, None, None] + k2[:, :, None, :, None] + k3[:, :, None, None, :]


def batched_reciprocal_weights(
    cells: Tensor, limits: Tensor, largest: list[int], sigma: float, dl: float, norm_factor: float
) -> Tensor:
    """(C/V) w(k) times the multiplicity, 0 outside the sum.

    Parameters: ``cells`` [B, 3, 3] Å; ``limits`` [B, 3] of ``batched_wave_vector_limits``; ``largest`` their maximum
    over the batch.

    Returns: [B, 4, K_1+1, K_2+1, K_3+1] in eV/e², the signs of (n_2, n_3) in the order ++, +−, −+, −−.
    """
    k_squared = wave_vectors(cells, largest).square().sum(-1)
    decisive = k_squared if cells.dtype == torch.float64 else wave_vectors(cells.double(), largest).square().sum(-1)
    inside = decisive.detach() <= (2.0 * math.pi / dl) ** 2 * (1.0 + truncation_tolerance(cells.dtype))
    # k and −k count 2. Signs of a zero index stand for the same wave vector: each of the two counts one half.
    halves: list[Tensor] = []
    for axis in range(3):
        n = torch.arange(largest[axis] + 1, device=cells.device)
        within = n[None, :] <= limits[:, axis, None]
        halves.append(torch.where(n == 0, 0.5, 1.0).to(cells.dtype) * within)
    multiplicity = 2.0 * halves[0][:, :, None, None] * halves[1][:, None, :, None] * halves[2][:, None, None, :]
    inside = inside & (multiplicity > 0.0)[:, None]
    inside[:, :, 0, 0, 0] = False
    k_squared = torch.where(inside, k_squared, torch.ones_like(k_squared))
    volume = torch.abs(torch.linalg.det(cells))[:, None, None, None, None]
    weight = torch.exp(-0.5 * sigma**2 * k_squared) / k_squared * (norm_factor / volume)
    return torch.where(inside, weight * multiplicity[:, None], torch.zeros_like(weight))


def batched_phases(positions: Tensor, cells: Tensor, largest: list[int]) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the first two directions multiplied, and those of the third.

    Parameters: ``positions`` [B, n, 3] Å, ``cells`` [B, 3, 3] Å, ``largest`` K_1, K_2, K_3.

    Returns: [B, n, 2 (K_1+1) 2 (K_2+1)] and [B, n, 2 (K_3+1)], cosines before sines.
    """
    fractional = torch.matmul(positions, torch.linalg.inv(cells))
    # Phases are those of the nearest image of the origin: atoms far away lose no digits in float32.
    fractional = fractional - torch.round(fractional.detach())
    parts: list[Tensor] = []
    for axis in range(3):
        n = torch.arange(largest[axis] + 1, device=cells.device, dtype=cells.dtype)
        angle = (2.0 * math.pi) * fractional[:, :, axis, None] * n
        parts.append(torch.cat([torch.cos(angle), torch.sin(angle)], dim=2))
    return (parts[0][:, :, :, None] * parts[1][:, :, None, :]).flatten(2), parts[2]


def batched_structure_factor(charges: Tensor, plane: Tensor, column: Tensor, largest: list[int]) -> Tensor:
    """Real and imaginary part of S(k), [B, 2, 4, n_q, K_1+1, K_2+1, K_3+1], signs as in the weights.

    Parameters: ``charges`` [B, n, n_q] e (0 for padding); ``plane`` and ``column`` of ``batched_phases``.
    """
    weighted = (charges[:, :, :, None] * column[:, :, None, :]).flatten(2)
    sums = torch.matmul(plane.transpose(1, 2), weighted).reshape(
        -1, 2, largest[0] + 1, 2, largest[1] + 1, charges.size(2), 2, largest[2] + 1
    )
    t = sums.permute(0, 1, 3, 6, 5, 2, 4, 7)  # [B, x, y, z, n_q, K_1+1, K_2+1, K_3+1]
    even, odd = t[:, 0, 0, 0] - t[:, 0, 1, 1], t[:, 1, 0, 1] + t[:, 1, 1, 0]
    even_other, odd_other = t[:, 0, 0, 0] + t[:, 0, 1, 1], t[:, 1, 0, 1] - t[:, 1, 1, 0]
    real = torch.stack([even - odd, even_other + odd_other, even_other - odd_other, even + odd], dim=1)
    even, odd = t[:, 1, 0, 0] - t[:, 1, 1, 1], t[:, 0, 1, 0] + t[:, 0, 0, 1]
    even_other, odd_other = t[:, 1, 0, 0] + t[:, 1, 1, 1], t[:, 0, 1, 0] - t[:, 0, 0, 1]
    imaginary = torch.stack([even + odd, even_other + odd_other, even_other - odd_other, even - odd], dim=1)
    return torch.stack([real, imaginary], dim=1)


def batched_reciprocal_energy(structure: Tensor, weight: Tensor) -> Tensor:
    """Energies [B] in eV of structure factors, without the self-interaction."""
    return (weight * structure.square().sum(3).sum(1)).flatten(1).sum(1)


def batched_reciprocal_potential(structure: Tensor, weight: Tensor, plane: Tensor, column: Tensor) -> Tensor:
    """∂E/∂q [B, n, n_q] in eV/e: the transpose of ``batched_structure_factor`` on 2 w(k) S(k)."""
    field = 2.0 * weight[:, None, :, None] * structure
    real, imaginary = field[:, 0], field[:, 1]
    sum_of, of_second, of_third, of_both = _over_signs(real)
    sum_of_im, of_second_im, of_third_im, of_both_im = _over_signs(imaginary)
    # [B, n_q, K_1+1, K_2+1, K_3+1] for each x, y, z
    first = torch.stack(
        [torch.stack([sum_of, of_third_im], dim=1), torch.stack([of_second_im, -of_both], dim=1)], dim=1
    )
    second = torch.stack(
        [torch.stack([sum_of_im, -of_third], dim=1), torch.stack([-of_second, -of_both_im], dim=1)], dim=1
    )
    cotangent = torch.stack([first, second], dim=1)  # [B, x, y, z, n_q, K_1+1, K_2+1, K_3+1]
    num_charges = cotangent.size(4)
    matrix = cotangent.permute(0, 1, 5, 2, 6, 4, 3, 7).flatten(5).flatten(1, 4)
    columns = torch.matmul(plane, matrix)
    return (columns.reshape(columns.size(0), columns.size(1), num_charges, -1) * column[:, :, None, :]).sum(3)


def _over_signs(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ over the signs s_2, s_3 of dimension 1, and the same weighted with s_2, s_3 and s_2 s_3."""
    pp, pm, mp, mm = values[:, 0], values[:, 1], values[:, 2], values[:, 3]
    return pp + pm + mp + mm, pp + pm - mp - mm, pp - pm + mp - mm, pp - pm - mp + mm
