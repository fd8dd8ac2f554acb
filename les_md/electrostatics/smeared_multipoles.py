r"""Derivatives of the smeared Coulomb kernel v(r) = erf(a r)/r, a = 1/(√2 σ), and what multipoles make of them.

    B_0 = v,   B_{n+1} = −(1/r) dB_n/dr,   B_n(r) = (2a/√π) (2a²)ⁿ F_n(a² r²)

F_n is the Boys function ∫₀¹ t²ⁿ exp(−x t²) dt, smooth at r = 0. All tensors of derivatives of v are products of the
distance vector and B_n (as in damped multipole sums, e.g. Smith, CCP5 Newsletter 46, 18 (1998)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def smeared_derivatives(distance_squared: Tensor, sigma: float, highest: int) -> list[Tensor]:
    """B_0 to B_highest of distances, twice differentiable everywhere, r = 0 included.

    Parameters: ``distance_squared`` Å², any shape; ``highest`` ≥ 0.

    Returns: B_n in Å^−(2n+1), each of the same shape.
    """
    a_squared = 0.5 / (sigma * sigma)
    x = distance_squared * a_squared
    # The recursion upwards from erf loses digits for small x, the one downwards from the highest none. Below x = 1 the
    # series of the highest one has converged to 1e-17 after twenty terms.
    near = x < 1.0
    small = torch.where(near, x, torch.zeros_like(x))
    series = torch.zeros_like(x)
    coefficients: list[float] = []
    factorial = 1.0
    for k in range(20):
        coefficients.append(1.0 / (factorial * float(2 * highest + 2 * k + 1)))
        factorial = -factorial * float(k + 1)
    for k in range(20):
        series = series * small + coefficients[19 - k]
    gauss = torch.exp(-small)
    down = [series]
    for step in range(highest):
        n = highest - 1 - step
        down.append((2.0 * small * down[-1] + gauss) / float(2 * n + 1))

    large = torch.where(near, torch.ones_like(x), x)
    root = torch.sqrt(large)
    gauss = torch.exp(-large)
    value = 0.5 * math.sqrt(math.pi) * torch.erf(root) / root
    results: list[Tensor] = []
    scale = 2.0 * math.sqrt(a_squared / math.pi)
    for n in range(highest + 1):
        results.append(scale * torch.where(near, down[highest - n], value))
        value = (float(2 * n + 1) * value - gauss) / (2.0 * large)
        scale = scale * 2.0 * a_squared
    return results


def traceless_symmetric(quadrupoles: Tensor) -> Tensor:
    """The symmetric traceless part of tensors [..., 3, 3]."""
    symmetric = 0.5 * (quadrupoles + quadrupoles.transpose(-1, -2))
    trace = torch.diagonal(symmetric, dim1=-2, dim2=-1).sum(-1)
    identity = torch.eye(3, dtype=quadrupoles.dtype, device=quadrupoles.device)
    return symmetric - (trace / 3.0)[..., None, None] * identity


def multipole_self_factors(sigma: float, norm_factor: float) -> tuple[float, float, float]:
    """Interaction of smeared multipoles with themselves: factors of q², u² and Q:Q, in eV/e², eV/(e Å)², eV/(e Å²)²."""
    charge = norm_factor / (sigma * (2.0 * math.pi) ** 1.5)
    return charge, charge / (3.0 * sigma**2), charge / (10.0 * sigma**4)
