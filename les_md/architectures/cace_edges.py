r"""Functions of the edges of a CACE network, tabulated by centre and neighbour, and their derivative, written out.

    u = r / (|r| + 1e-9 Å),   Y_m(u) = u_x^{l_x} u_y^{l_y} u_z^{l_z},   R_n = P f(|r|) sin(w_n |r|) / |r|

with the polynomial cutoff f. Tables are [atoms, functions, width], with the edges of an atom as the last axis, and
edges at the cutoff, where all R_n are zero, for what an atom has less than ``width``. Sums over neighbours then are
batched matrix products, and elementwise operations work on whole tables without any gather or scatter between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from les_md.architectures.cace_network import CACENetwork, monomial_exponents
from les_md.architectures.cace_products import first_row


def power(x: Tensor, exponent: int) -> Tensor:
    """x to a positive whole power by multiplications."""
    result = x
    first = True
    square = x
    while exponent > 0:
        if exponent % 2 == 1:
            result = square if first else result * square
            first = False
        exponent = exponent // 2
        if exponent > 0:
            square = square * square
    return result if not first else torch.ones_like(x)


class EdgeFunctions(torch.nn.Module):
    """Y and R of ``network`` on tables of edges."""

    def __init__(self, network: CACENetwork) -> None:
        super().__init__()
        self.cutoff: float = network.cutoff
        self.exponent: int = network.cutoff_exponent
        self.max_l: int = network.max_l
        self.register_buffer("frequencies", network.bessel_frequencies.detach().clone()[None, :, None])
        self.register_buffer("prefactor", network.bessel_prefactor.detach().clone())
        self.first_rows: list[int] = [first_row(degree) for degree in range(network.max_l + 2)]
        self.num_lower: int = first_row(network.max_l)
        # ∂Σ_m G_m Y_m/∂u_α = Σ_m' (m'_α + 1) G_{m'+e_α} Y_m' with m' of the lower degrees
        exponents = [e for degree in range(network.max_l + 1) for e in monomial_exponents(degree)]
        rows, factors = [], []
        for axis in range(3):
            for lower in exponents[: self.num_lower]:
                higher = tuple(e + (i == axis) for i, e in enumerate(lower))
                rows.append(exponents.index(higher))
                factors.append(float(higher[axis]))
        self.register_buffer("derivative_rows", torch.tensor(rows), persistent=False)
        factors = torch.tensor(factors, dtype=self.prefactor.dtype)[:, None]
        self.register_buffer("derivative_factors", factors, persistent=False)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[N, 3, w] Å → |r| [N, w], Y [N, M, w], sin(w_n |r|) [N, n, w], P f/|r| [N, w]"""
        distance = torch.sqrt((vectors * vectors).sum(1))
        shape = [vectors.size(0), self.first_rows[-1], vectors.size(2)]
        angular = torch.empty(shape, dtype=vectors.dtype, device=vectors.device)
        angular[:, 0].fill_(1.0)
        # The published models were trained with this 1e-9 (Å); it is visible at the ninth digit.
        torch.mul(vectors, (distance + 1e-9).reciprocal().unsqueeze(1), out=angular[:, 1:4])
        x, y, z = angular[:, 1:2], angular[:, 2:3], angular[:, 3:4]
        for degree in range(2, self.max_l + 1):
            # x times all of the degree below, y times its members free of x, z times its last
            before, first = self.first_rows[degree - 1], self.first_rows[degree]
            after_x = first + first - before
            after_y = after_x + degree
            torch.mul(x, angular[:, before:first], out=angular[:, first:after_x])
            torch.mul(y, angular[:, first - degree : first], out=angular[:, after_x:after_y])
            torch.mul(z, angular[:, first - 1 : first], out=angular[:, after_y : after_y + 1])
        sines = torch.sin(distance.unsqueeze(1) * self.frequencies)
        scaled = distance * (1.0 / self.cutoff)
        p = self.exponent
        envelope = 1.0 + power(scaled, p) * (
            -0.5 * (p + 1) * (p + 2) + scaled * (float(p * (p + 2)) - 0.5 * p * (p + 1) * scaled)
        )
        factor = self.prefactor * envelope / distance
        return distance, angular, sines, torch.where(distance < self.cutoff, factor, torch.zeros_like(factor))

    @torch.jit.export
    def derivative_of_sums(self, of_sums: Tensor) -> Tensor:
        """Cotangents [N, M, …] of sums of Y as those of the derivatives of Y along x, y, z: [N, 3 M', …]"""
        return of_sums.index_select(1, self.derivative_rows) * self.derivative_factors

    @torch.jit.export
    def pull_back(
        self,
        vectors: Tensor,
        distance: Tensor,
        angular: Tensor,
        sines: Tensor,
        factor: Tensor,
        of_derivatives: Tensor,
        of_radial: Tensor,
        of_distance: Tensor,
    ) -> Tensor:
        """Derivative [N, 3, w] by ``vectors``; the first five are those of ``forward``.

        Parameters: ``of_derivatives`` [N, 3 M', w], the cotangents of Y as ``derivative_of_sums`` arranges them;
        ``of_radial`` [N, n, w] of R; ``of_distance`` [N, w], what depends on the distance otherwise.
        """
        lower = angular[:, : self.num_lower].unsqueeze(1)
        shape = [vectors.size(0), 3, self.num_lower, vectors.size(2)]
        of_unit = (of_derivatives.reshape(shape) * lower).sum(2)
        inverse = distance.reciprocal()
        scaled = distance * (1.0 / self.cutoff)
        p = self.exponent
        slope = scaled - 1.0
        slope = (-0.5 * p * (p + 1) * (p + 2) / self.cutoff) * power(scaled, p - 1) * slope * slope
        slope = torch.where(distance < self.cutoff, self.prefactor * slope, torch.zeros_like(slope))
        of_factor = (slope - factor) * inverse
        waves = torch.cos(distance.unsqueeze(1) * self.frequencies).mul_(self.frequencies).mul_(factor.unsqueeze(1))
        waves.addcmul_(sines, of_factor.unsqueeze(1))
        along = of_distance + (of_radial * waves).sum(1)
        # u = r/(|r| + 1e-9): the part of its derivative along r
        inverse_shifted = (distance + 1e-9).reciprocal()
        unit = angular[:, 1:4]
        along = (along - inverse_shifted * (of_unit * unit).sum(1)) * inverse
        return of_unit.mul_(inverse_shifted.unsqueeze(1)).addcmul_(vectors, along.unsqueeze(1))
