r"""Real-space sum over all pairs for systems without a periodic axis.

    E = C/(2π) Σ_{i<j} q_i q_j erf(r_ij/(√2 σ))/r_ij

(Cheng, npj Comput. Mater. 11, 80 (2025)). Rows of the pair matrix are worked through in blocks, so memory is linear in
the number of atoms. The limit of atoms on top of each other is finite and smooth and is evaluated by its series.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def smeared_coulomb_kernel(distance_squared: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """v(r) = erf(r/(√2σ))/r and v'(r)/r, finite and differentiable at r = 0.

    Parameters: ``distance_squared`` Å², any shape.  Returns: 1/Å and 1/Å³, same shape.
    """
    a = 1.0 / (math.sqrt(2.0) * sigma)
    x_squared = distance_squared * (a * a)
    # Below x = r/(√2 σ) = 0.02 the closed form of the derivative loses digits; the series is exact there to 1e-16.
    near = x_squared < 4e-4
    x_squared_far = torch.where(near, torch.ones_like(x_squared), x_squared)
    x_far = torch.sqrt(x_squared_far)
    gauss = torch.exp(-x_squared_far) * (2.0 / math.sqrt(math.pi))
    value_far = torch.erf(x_far) / x_far
    slope_far = (gauss - value_far) / x_squared_far
    x2 = torch.where(near, x_squared, torch.zeros_like(x_squared))
    prefactor = 2.0 / math.sqrt(math.pi)
    value_near = prefactor * (1.0 + x2 * (-1.0 / 3.0 + x2 * (1.0 / 10.0 + x2 * (-1.0 / 42.0 + x2 / 216.0))))
    slope_near = prefactor * (-2.0 / 3.0 + x2 * (2.0 / 5.0 + x2 * (-1.0 / 7.0 + x2 / 27.0)))
    value = torch.where(near, value_near, value_far) * a
    slope = torch.where(near, slope_near, slope_far) * (a * a * a)
    return value, slope


def gaussian_self_potential(sigma: float, norm_factor: float) -> float:
    """∂/∂q of C q²/(σ (2π)^{3/2}), per unit charge, eV/e²: the interaction of a Gaussian charge with itself."""
    return 2.0 * norm_factor / (sigma * (2.0 * math.pi) ** 1.5)


def _rows_per_block(num_sources: int, pairs: int = 1 << 22) -> int:
    """Rows at a time, so that a block holds at most ``pairs`` pairs (32 MB for each intermediate)."""
    return max(1, pairs // max(1, num_sources))


def pair_potential(
    positions: Tensor, sources: Tensor, source_charges: Tensor, sigma: float, norm_factor: float
) -> tuple[Tensor, Tensor]:
    """Potential of all sources at the positions, and minus its gradient, the term of each atom with itself included.

    Parameters: ``positions`` [N, 3] Å, ``sources`` [M, 3] Å, ``source_charges`` [M, n_q] e.

    Returns: potential [N, n_q] eV/e and field [N, n_q, 3] eV/(e Å). An atom's own term adds
    C/(2π) √(2/π)/σ q_i to its potential and nothing to its field.
    """
    constant = norm_factor / (2.0 * math.pi)
    block = _rows_per_block(sources.size(0))
    potentials: list[Tensor] = []
    fields: list[Tensor] = []
    for first in range(0, max(1, positions.size(0)), block):
        rows = positions[first : first + block]
        displacement = rows[:, None, :] - sources[None, :, :]
        value, slope = smeared_coulomb_kernel((displacement**2).sum(-1), sigma)
        potentials.append(constant * torch.matmul(value, source_charges))
        fields.append(-constant * torch.einsum("ijx,ij,jc->icx", displacement, slope, source_charges))
    return torch.cat(potentials), torch.cat(fields)
