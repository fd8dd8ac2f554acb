r"""Invariant products of the A-basis and their derivative, written out, for the evaluation of trained CACE models.

The invariants are those of ``cace_network.Symmetriser``. All of third and fourth order are made of few contractions

    W^(l,δ)_g = Σ_a μ(a) A_a A_{a+g} ,      a of degree l, g of degree δ
    ν=3, (ℓ1, ℓ2):    Σ_a μ(a) A_a W^(ℓ2,ℓ1)_a
    ν=4, (ℓ1, ℓ2, δ): Σ_g μ(g) W^(ℓ1,δ)_g W^(ℓ2,δ)_g

so that no product of three or four factors is formed term by term. Arrays are [monomials, channels and atoms]: an
operation works on long contiguous rows.
"""

from __future__ import annotations

import itertools
from typing import List  # noqa: UP035  (TorchScript knows only this)

import torch
from torch import Tensor

from les_md.architectures.cace_network import monomial_exponents, multinomial


def first_row(degree: int) -> int:
    """Number of monomials of all lower degrees, which is the first row of this degree."""
    return degree * (degree + 1) * (degree + 2) // 6


class Contraction(torch.nn.Module):
    """W^(l,δ); ``is_square`` where it serves the ν=3 product of l = δ alone."""

    def __init__(self, degree: int, delta: int, is_square: bool) -> None:
        super().__init__()
        self.first: int = first_row(degree)
        self.last: int = first_row(degree + 1)
        self.size: int = self.last - self.first
        self.num_results: int = first_row(delta + 1) - first_row(delta)
        self.is_square: bool = is_square
        position = {e: first_row(degree + delta) + i for i, e in enumerate(monomial_exponents(degree + delta))}
        rows = [
            position[(a[0] + g[0], a[1] + g[1], a[2] + g[2])]
            for g, a in itertools.product(monomial_exponents(delta), monomial_exponents(degree))
        ]
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self, a: Tensor, weighted: Tensor) -> Tensor:
        """A and μ A, [M, X] each → [monomials of degree δ, X]"""
        third = a.index_select(0, self.rows).reshape(self.num_results, self.size, a.size(1))
        return (third * weighted[self.first : self.last].unsqueeze(0)).sum(1)

    @torch.jit.export
    def pull_back(self, a: Tensor, weighted: Tensor, cotangent: Tensor, of_a: Tensor, of_weighted: Tensor) -> None:
        """Add to ``of_a`` and ``of_weighted`` the derivatives of Σ W · ``cotangent``, which has the shape of W.

        Of a square the derivative by μ A_a, a of degree l, is left out: by symmetry it is what the other factor of
        the product gives.
        """
        if not self.is_square:
            third = a.index_select(0, self.rows).reshape(self.num_results, self.size, a.size(1))
            of_weighted[self.first : self.last] += (third * cotangent.unsqueeze(1)).sum(0)
        of_third = cotangent.unsqueeze(1) * weighted[self.first : self.last].unsqueeze(0)
        of_a.index_add_(0, self.rows, of_third.flatten(0, 1))


class ProductOfThree(torch.nn.Module):
    """Σ_a μ(a) A_a W_a over the monomials a of one degree; ``contraction`` is the number of W."""

    def __init__(self, degree: int, contraction: int, is_square: bool) -> None:
        super().__init__()
        self.first: int = first_row(degree)
        self.last: int = first_row(degree + 1)
        self.contraction: int = contraction
        self.factor: float = 2.0 if is_square else 1.0

    def forward(self, weighted: Tensor, contractions: List[Tensor]) -> Tensor:  # noqa: UP006
        return (weighted[self.first : self.last] * contractions[self.contraction]).sum(0)

    @torch.jit.export
    def pull_back(
        self,
        weighted: Tensor,
        contractions: List[Tensor],  # noqa: UP006
        cotangent: Tensor,
        of_weighted: Tensor,
        of_contractions: List[Tensor],  # noqa: UP006
    ) -> None:
        """Add the derivatives of the product times ``cotangent`` [X]."""
        of_weighted[self.first : self.last].addcmul_(contractions[self.contraction], cotangent, value=self.factor)
        of_contractions[self.contraction] = (
            of_contractions[self.contraction] + weighted[self.first : self.last] * cotangent
        )


class ProductOfFour(torch.nn.Module):
    """Σ_g μ(g) W_g W'_g over the monomials g of degree δ; ``first`` and ``second`` are the numbers of W and W'."""

    def __init__(self, delta: int, first: int, second: int) -> None:
        super().__init__()
        self.first: int = first
        self.second: int = second
        multiplicity = [multinomial(e) for e in monomial_exponents(delta)]
        self.register_buffer("multiplicity", torch.tensor(multiplicity, dtype=torch.float64)[:, None], persistent=False)

    def forward(self, weighted: Tensor, contractions: List[Tensor]) -> Tensor:  # noqa: UP006
        return (contractions[self.first] * contractions[self.second] * self.multiplicity).sum(0)

    @torch.jit.export
    def pull_back(
        self,
        weighted: Tensor,
        contractions: List[Tensor],  # noqa: UP006
        cotangent: Tensor,
        of_weighted: Tensor,
        of_contractions: List[Tensor],  # noqa: UP006
    ) -> None:
        """Add the derivatives of the product times ``cotangent`` [X]."""
        factor = self.multiplicity * cotangent
        of_contractions[self.first] = of_contractions[self.first] + factor * contractions[self.second]
        of_contractions[self.second] = of_contractions[self.second] + factor * contractions[self.first]


class InvariantProducts(torch.nn.Module):
    """The invariants of ``Symmetriser(max_l, max_nu)`` in the same order, and their derivative.

    ``orders`` is the number of factors of each, [Q].
    """

    def __init__(self, max_l: int, max_nu: int) -> None:
        super().__init__()
        degrees = range(1, max_l + 1)
        exponents = [e for degree in range(max_l + 1) for e in monomial_exponents(degree)]
        multiplicity = torch.tensor([multinomial(e) for e in exponents], dtype=torch.float64)[:, None]
        self.register_buffer("multiplicity", multiplicity, persistent=False)
        #: Rows of degrees below max_l, the only ones that enter a contraction with their multiplicity.
        self.num_lower: int = first_row(max_l)
        self.first_rows: list[int] = [first_row(degree) for degree in range(max_l + 2)]
        self.num_squares: int = max_l if max_nu >= 2 else 0
        threes = [
            (l1, l2) for l1, l2 in itertools.combinations_with_replacement(degrees, 2)
            if max_nu >= 3 and l1 + l2 <= max_l
        ]  # fmt: skip
        fours = [
            (l1, l2, delta)
            for l1, l2 in itertools.combinations(degrees, 2)
            for delta in range(1, max_l - l2 + 1)
            if max_nu >= 4
        ]
        in_fours = {(degree, delta) for l1, l2, delta in fours for degree in (l1, l2)}
        needed = sorted({(l2, l1) for l1, l2 in threes} | in_fours)
        number = {key: i for i, key in enumerate(needed)}

        def is_square(degree: int, delta: int) -> bool:
            return degree == delta and (degree, delta) not in in_fours

        self.contractions = torch.nn.ModuleList(Contraction(*key, is_square(*key)) for key in needed)
        self.products = torch.nn.ModuleList(
            [ProductOfThree(l1, number[l2, l1], is_square(l2, l1)) for l1, l2 in threes]
            + [ProductOfFour(delta, number[l1, delta], number[l2, delta]) for l1, l2, delta in fours]
        )
        self.orders: list[int] = [1] + [2] * self.num_squares + [3] * len(threes) + [4] * len(fours)

    def forward(self, a: Tensor) -> tuple[Tensor, List[Tensor]]:  # noqa: UP006
        """A [M, X] → invariants [Q, X], and the contractions, which ``pull_back`` needs."""
        features = torch.empty([len(self.orders), a.size(1)], dtype=a.dtype, device=a.device)
        features[0].copy_(a[0])
        contractions: List[Tensor] = []  # noqa: UP006
        if self.num_squares > 0:
            weighted = a * self.multiplicity
            squares = a * weighted
            for degree in range(1, self.num_squares + 1):
                first, last = self.first_rows[degree], self.first_rows[degree + 1]
                torch.sum(squares[first:last], 0, out=features[degree])
            for contraction in self.contractions:
                contractions.append(contraction(a, weighted))
            row = self.num_squares + 1
            for product in self.products:
                features[row].copy_(product(weighted, contractions))
                row += 1
        return features, contractions

    @torch.jit.export
    def pull_back(self, a: Tensor, contractions: List[Tensor], cotangent: Tensor) -> Tensor:  # noqa: UP006
        """Derivative [M, X] of Σ invariants · ``cotangent`` [Q, X]."""
        of_a = torch.zeros_like(a)
        of_a[0].copy_(cotangent[0])
        if self.num_squares > 0:
            weighted = a * self.multiplicity
            doubled = 2.0 * cotangent[1 : self.num_squares + 1]
            for degree in range(1, self.num_squares + 1):
                first, last = self.first_rows[degree], self.first_rows[degree + 1]
                torch.mul(weighted[first:last], doubled[degree - 1], out=of_a[first:last])
            if len(contractions) > 0:
                of_weighted = torch.zeros_like(a[: self.num_lower])
                of_contractions: List[Tensor] = []  # noqa: UP006
                for contraction in contractions:
                    of_contractions.append(torch.zeros_like(contraction))
                row = self.num_squares + 1
                for product in self.products:
                    product.pull_back(weighted, contractions, cotangent[row], of_weighted, of_contractions)
                    row += 1
                for number, contraction in enumerate(self.contractions):
                    contraction.pull_back(a, weighted, of_contractions[number], of_a, of_weighted)
                of_a[: self.num_lower].addcmul_(of_weighted, self.multiplicity[: self.num_lower])
        return of_a
