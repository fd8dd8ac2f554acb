r"""Charges, dipoles and quadrupoles of isolated systems: the sum over all pairs.

With v(d) = erf(a d)/d, a = 1/(√2 σ), and its radial derivatives B_0 = v, B_{n+1} = −(1/d) dB_n/dd, the potential of a
source (q, u, Q) at distance vector d from it is

    ψ(d) = (q − u·∇ + ½ Q:∇∇) v = c_0 B_0 + c_1 B_1 + c_2 B_2,   c_0 = q, c_1 = u·d − ½ tr Q, c_2 = ½ d·Q·d,

and further gradients follow from ∇B_n = −d B_{n+1} (Smith, CCP5 Newsletter 46, 18 (1998)). Since v is an integral of
Gaussians, B_n = (2a/√π) (2a²)ⁿ F_n(a²d²) with the Boys function F_n(x) = ∫₀¹ t²ⁿ exp(−x t²) dt: finite and smooth for
atoms on top of each other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from les_md.electrostatics.multipole_sources import multipole_order, quadrupole_axes, quadrupole_tensors


def boys_functions(x: Tensor, highest: int) -> list[Tensor]:
    """F_0 … F_highest of ``x`` ≥ 0, any shape, to rounding error; highest ≤ 6.

    For x ≥ 3 by upward recursion from the error function; below by the series of the highest and downward recursion.
    """
    near = x < 3.0
    x_far = torch.where(near, torch.full_like(x, 3.0), x)
    root = torch.sqrt(x_far)
    decay_far = torch.exp(-x_far)
    values = [0.5 * math.sqrt(math.pi) * torch.erf(root) / root]
    for n in range(highest):
        values.append(((2.0 * n + 1.0) * values[-1] - decay_far) / (2.0 * x_far))
    # Few pairs of a large system are near.
    where = near.reshape(-1).nonzero().squeeze(1)
    if where.numel() == 0:
        return values
    x_near = x.reshape(-1).index_select(0, where)
    decay = torch.exp(-x_near)
    # F_n(x) = exp(−x) Σ_k (2x)^k / ((2n+1)(2n+3)…(2n+2k+1)); 30 terms leave less than 1e-17 for x < 3
    series = torch.ones_like(x_near)
    for k in range(30, 0, -1):
        series = 1.0 + series * (2.0 * x_near) / (2.0 * highest + 2.0 * k + 1.0)
    value = decay * series / (2.0 * highest + 1.0)
    for step in range(highest + 1):
        n = highest - step
        values[n] = values[n].reshape(-1).index_copy(0, where, value).reshape(x.shape)
        if n > 0:
            value = (2.0 * x_near * value + decay) / (2.0 * n - 1.0)
    return values


def kernel_derivatives(distance_squared: Tensor, sigma: float, highest: int) -> list[Tensor]:
    """B_0 … B_highest in 1/Å, 1/Å³, …, at ``distance_squared`` Å²."""
    a_squared = 0.5 / sigma**2
    values = boys_functions(a_squared * distance_squared, highest)
    factor = 2.0 * math.sqrt(a_squared / math.pi)
    result: list[Tensor] = []
    for value in values:
        result.append(factor * value)
        factor = factor * 2.0 * a_squared
    return result


def multipole_pair_values(
    positions: Tensor,
    centres: Tensor,
    sources: Tensor,
    num_charges: int,
    order: int,
    sigma: float,
    norm_factor: float,
    pairs: int = 1 << 18,
) -> tuple[Tensor, Tensor]:
    """Values (``multipole_sources.py``) of all sources at the positions, an atom's own ones included, with gradients.

    Parameters
    ----------
    positions : [N, 3] Å.  centres : [K, 3] Å, of the sources.  sources : [K, M'], M' columns of charges, dipoles, …
    order : of the values that are wanted: 0 potential, 1 and its gradient, 2 and its second derivatives.
    pairs : worked through at a time.

    Returns: values [N, M] for the M columns of this order and their gradients [N, M, 3].
    """
    constant = norm_factor / (2.0 * math.pi)
    source_order = multipole_order(sources.size(1), num_charges)
    block = max(1, pairs // max(1, centres.size(0)))
    all_values: list[Tensor] = []
    all_gradients: list[Tensor] = []
    for first in range(0, max(1, positions.size(0)), block):
        d = positions[first : first + block, None, :] - centres[None, :, :]
        kernels = kernel_derivatives((d * d).sum(-1), sigma, source_order + order + 1)
        by_order: list[list[Tensor]] = [[], [], []]
        gradients_by_order: list[list[Tensor]] = [[], [], []]
        for channel in range(num_charges):
            dipoles = torch.zeros_like(centres)
            quadrupoles = torch.zeros([centres.size(0), 3, 3], dtype=centres.dtype, device=centres.device)
            if source_order > 0:
                at = num_charges + 3 * channel
                dipoles = sources[:, at : at + 3]
            if source_order > 1:
                at = 4 * num_charges + 6 * channel
                quadrupoles = quadrupole_tensors(sources[:, at : at + 6])
            derivatives = _derivatives(d, kernels, sources[:, channel], dipoles, quadrupoles, source_order, order + 1)
            potential, gradient = constant * derivatives[0], constant * derivatives[1]
            by_order[0].append(potential[:, None])
            gradients_by_order[0].append(gradient[:, None, :])
            if order > 0:
                by_order[1].append(gradient)
                gradients_by_order[1].append(constant * derivatives[2])
            if order > 1:
                axes1, axes2 = quadrupole_axes()
                of_columns: list[Tensor] = []
                gradients_of_columns: list[Tensor] = []
                for component in range(6):
                    a, b = axes1[component], axes2[component]
                    factor = constant * (0.5 if a == b else 1.0)
                    of_columns.append(factor * derivatives[2][:, a, b])
                    gradients_of_columns.append(factor * derivatives[3][:, a, b])
                by_order[2].append(torch.stack(of_columns, dim=1))
                gradients_by_order[2].append(torch.stack(gradients_of_columns, dim=1))
        all_values.append(torch.cat(by_order[0] + by_order[1] + by_order[2], dim=1))
        all_gradients.append(torch.cat(gradients_by_order[0] + gradients_by_order[1] + gradients_by_order[2], dim=1))
    return torch.cat(all_values), torch.cat(all_gradients)


def _derivatives(
    d: Tensor,
    kernels: list[Tensor],
    charges: Tensor,
    dipoles: Tensor,
    quadrupoles: Tensor,
    source_order: int,
    highest: int,
) -> list[Tensor]:
    """Σ over the sources of ψ and its derivatives up to the ``highest`` ≤ 3: [n], [n, 3], [n, 3, 3], [n, 3, 3, 3].

    Parameters: ``d`` [n, K, 3], ``kernels`` B_0 … of [n, K], sources [K], [K, 3], [K, 3, 3], of which those above
    ``source_order`` are zero.
    """
    c0 = charges
    c1 = torch.zeros_like(kernels[0])
    c2 = torch.zeros_like(kernels[0])
    contracted = torch.zeros_like(d)  # Q·d
    if source_order > 0:
        c1 = torch.einsum("nkx,kx->nk", d, dipoles)
    if source_order > 1:
        c1 = c1 - 0.5 * quadrupoles.diagonal(dim1=1, dim2=2).sum(1)
        contracted = torch.einsum("nkx,kxy->nky", d, quadrupoles)
        c2 = 0.5 * (contracted * d).sum(-1)
    # K_m = Σ_n c_n B_{n+m}, V_m = u B_{1+m} + Q·d B_{2+m}: ∇K_m = V_m − d K_{m+1}, ∇V_m = Q B_{2+m} − V_{m+1} ⊗ d
    scalars: list[Tensor] = []
    vectors: list[Tensor] = []
    for m in range(highest + 1):
        scalar = c0 * kernels[m]
        if source_order > 0:
            scalar = scalar + c1 * kernels[m + 1]
        if source_order > 1:
            scalar = scalar + c2 * kernels[m + 2]
        scalars.append(scalar)
        if m < highest:
            vector = torch.zeros_like(d)
            if source_order > 0:
                vector = kernels[m + 1][..., None] * dipoles
            if source_order > 1:
                vector = vector + kernels[m + 2][..., None] * contracted
            vectors.append(vector)
    result = [scalars[0].sum(1), (vectors[0] - d * scalars[1][..., None]).sum(1)]
    unit = torch.eye(3, dtype=d.dtype, device=d.device)
    if highest > 1:
        outer = torch.einsum("nka,nkb->nab", vectors[1], d)
        second = torch.einsum("nka,nkb->nab", scalars[2][..., None] * d, d) - outer - outer.transpose(1, 2)
        second = second - scalars[1].sum(1)[:, None, None] * unit
        if source_order > 1:
            second = second + torch.einsum("nk,kab->nab", kernels[2], quadrupoles)
        result.append(second)
    if highest > 2:
        squares = d[..., :, None] * d[..., None, :]
        # Sums of a vector times δ and of a vector times a symmetric tensor, each to be added in its three placements
        vector = (scalars[2][..., None] * d - vectors[1]).sum(1)
        placed = vector[:, :, None, None] * unit + torch.einsum("nka,nkbc->nabc", vectors[2], squares)
        if source_order > 1:
            placed = placed - torch.einsum("nka,kbc->nabc", kernels[3][..., None] * d, quadrupoles)
        third = placed + placed.permute(0, 2, 1, 3) + placed.permute(0, 2, 3, 1)
        result.append(third - torch.einsum("nka,nkbc->nabc", scalars[3][..., None] * d, squares))
    return result
