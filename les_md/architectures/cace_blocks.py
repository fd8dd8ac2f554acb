r"""A block of atoms of a CACE network and its derivative, as a compiler likes them.

The formulas are those of ``CACEEvaluation`` for a network without message passing, and so are the results, to rounding.
There every operation runs over whole arrays, and products share what is written to memory once; here components are
tensors of their own, and a compiler makes one loop of everything between two matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from les_md.architectures.cace_edges import power
from les_md.architectures.cace_evaluation import CACEEvaluation
from les_md.architectures.cace_network import monomial_exponents, multinomial
from les_md.architectures.cace_products import ProductOfThree


class BlockValues(torch.nn.Module):
    """Energies and charges of the atoms of a block, and what ``BlockDerivative`` needs.

    Parameters: ``evaluation`` of a network without message passing, in its final dtype.
    """

    def __init__(self, evaluation: CACEEvaluation) -> None:
        super().__init__()
        if len(evaluation.messages) > 0:
            raise ValueError("blocks are for networks without message passing")
        self.evaluation = evaluation
        self.monomials = Monomials(evaluation.edges.max_l)
        self.products = ComponentProducts(evaluation)

    def forward(self, table: Tensor, scales: Tensor) -> tuple[Tensor, ...]:
        """Values [1 + n_q, N], A [M, d, d, k, N], R and dR/dr [N, n, w], the readouts' hidden values.

        Parameters: ``table`` [N, 3 + d, w], vector and embedding of every neighbour as in ``CACEEvaluation``;
        ``scales`` [Q, d, N], powers of the centres' embedding.
        """
        of = self.evaluation
        num_atoms, d = table.size(0), of.num_embedding
        distance, unit = _unit_vectors(table)
        radial, slopes = self._radial(distance)
        weights = [table[:, 3 + a] * r for a in range(d) for r in radial]
        angular = torch.stack(self.monomials(unit), 1)
        sums = torch.bmm(angular, torch.stack(weights, 1).transpose(1, 2))
        mixed = torch.bmm(of.mixing, sums.reshape(num_atoms, -1, of.num_bessel).permute(1, 2, 0))
        a = mixed.reshape(of.num_monomials, d, d, of.num_radial, num_atoms)
        features = torch.stack(self.products(a)) * scales[:, None, :, None, :]
        values, hidden = of.readouts(features.reshape(-1, num_atoms))
        return values, a, torch.stack(radial, 1), torch.stack(slopes, 1), *hidden

    def _radial(self, r: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """R_n [N, w] of distances r, and their derivatives."""
        edges = self.evaluation.edges
        p, scaled, inverse = edges.exponent, r * (1.0 / edges.cutoff), r.reciprocal()
        envelope = 1.0 + power(scaled, p) * (
            -0.5 * (p + 1) * (p + 2) + scaled * (float(p * (p + 2)) - 0.5 * p * (p + 1) * scaled)
        )
        slope = (-0.5 * p * (p + 1) * (p + 2) / edges.cutoff) * power(scaled, p - 1) * (scaled - 1.0) * (scaled - 1.0)
        inside, zero = r < edges.cutoff, torch.zeros_like(r)
        factor = torch.where(inside, edges.prefactor * envelope * inverse, zero)
        of_factor = (torch.where(inside, edges.prefactor * slope, zero) - factor) * inverse
        values, derivatives = [], []
        for n in range(self.evaluation.num_bessel):
            frequency = edges.frequencies[0, n]
            sine = torch.sin(r * frequency)
            values.append(factor * sine)
            derivatives.append(torch.cos(r * frequency) * frequency * factor + of_factor * sine)
        return values, derivatives


class BlockDerivative(torch.nn.Module):
    """Vector–Jacobian product of ``BlockValues``; parameters as there."""

    def __init__(self, evaluation: CACEEvaluation) -> None:
        super().__init__()
        self.evaluation = evaluation
        self.monomials = Monomials(evaluation.edges.max_l)
        self.products = ComponentProducts(evaluation)
        edges = evaluation.edges
        self.rows: list[int] = edges.derivative_rows.tolist()
        self.factors: list[float] = edges.derivative_factors[:, 0].tolist()

    def forward(
        self,
        table: Tensor,
        scales: Tensor,
        cotangent: Tensor,
        a: Tensor,
        radial: Tensor,
        slopes: Tensor,
        *hidden: Tensor,
    ) -> tuple[Tensor]:
        """Derivative [N, 3, w], alone, by the vectors of ``table`` of Σ values · ``cotangent`` [1 + n_q, N].

        The first two parameters are those of ``BlockValues``, the last ones what it returned.
        """
        of = self.evaluation
        num_atoms, d, num_bessel, width = table.size(0), of.num_embedding, of.num_bessel, table.size(2)
        of_features = of.readouts.pull_back(list(hidden), cotangent)
        of_features = of_features.reshape(-1, d, d, of.num_radial, num_atoms) * scales[:, None, :, None, :]
        of_a = torch.stack(self.products.pull_back(a, of_features))
        of_sums = torch.bmm(of.mixing.transpose(1, 2), of_a.reshape(of.mixing.size(0), -1, num_atoms))
        of_sums = of_sums.reshape(of.num_monomials, -1, num_atoms)
        # Gradients of monomials are monomials of one degree less: see ``EdgeFunctions``.
        rearranged = [factor * of_sums[row] for row, factor in zip(self.rows, self.factors, strict=True)]
        of_sums = torch.cat([of_sums, torch.stack(rearranged)]).permute(2, 0, 1).contiguous()
        distance, unit = _unit_vectors(table)
        monomials = self.monomials(unit)
        weights = [table[:, 3 + i] * radial[:, n] for i in range(d) for n in range(num_bessel)]
        of_gradients = torch.bmm(of_sums[:, of.num_monomials :], torch.stack(weights, 1))
        of_weights = torch.bmm(of_sums[:, : of.num_monomials].transpose(1, 2), torch.stack(monomials, 1))
        of_weights = of_weights.reshape(num_atoms, d, num_bessel, width)
        along = torch.zeros_like(distance)
        for n in range(num_bessel):
            of_radial = of_weights[:, 0, n] * table[:, 3]
            for i in range(1, d):
                of_radial = of_radial + of_weights[:, i, n] * table[:, 3 + i]
            along = along + of_radial * slopes[:, n]
        lower = len(self.rows) // 3
        of_unit = []
        for axis in range(3):
            total = of_gradients[:, axis * lower]  # times the monomial 1
            for row in range(1, lower):
                total = total + of_gradients[:, axis * lower + row] * monomials[row]
            of_unit.append(total)
        # u = r/(|r| + 1e-9): the part of its derivative along r
        inverse, inverse_shifted = distance.reciprocal(), (distance + 1e-9).reciprocal()
        projection = of_unit[0] * unit[0] + of_unit[1] * unit[1] + of_unit[2] * unit[2]
        along = (along - inverse_shifted * projection) * inverse
        return (torch.stack([of_unit[i] * inverse_shifted + table[:, i] * along for i in range(3)], 1),)


def _unit_vectors(table: Tensor) -> tuple[Tensor, list[Tensor]]:
    """|r| [N, w] and the components of u of every neighbour."""
    x, y, z = table[:, 0], table[:, 1], table[:, 2]
    distance = torch.sqrt(x * x + y * y + z * z)
    inverse = (distance + 1e-9).reciprocal()
    return distance, [x * inverse, y * inverse, z * inverse]


class Monomials:
    """Y_m of all degrees up to ``max_l``, a list in the order of their exponents."""

    def __init__(self, max_l: int) -> None:
        exponents = [e for degree in range(max_l + 1) for e in monomial_exponents(degree)]
        number = {e: i for i, e in enumerate(exponents)}
        #: Of every monomial but the first: the axis of one factor, and the number of the product of the others.
        self.steps: list[tuple[int, int]] = []
        for exponent in exponents[1:]:
            axis = next(i for i in range(3) if exponent[i] > 0)
            rest = tuple(e - (i == axis) for i, e in enumerate(exponent))
            self.steps.append((axis, number[rest]))

    def __call__(self, unit: list[Tensor]) -> list[Tensor]:
        monomials = [torch.ones_like(unit[0])]
        for axis, rest in self.steps:
            monomials.append(unit[axis] if rest == 0 else unit[axis] * monomials[rest])
        return monomials


class ComponentProducts:
    """``InvariantProducts`` of ``evaluation``, component by component."""

    def __init__(self, evaluation: CACEEvaluation) -> None:
        products = evaluation.products
        max_l = evaluation.edges.max_l
        exponents = [e for degree in range(max_l + 1) for e in monomial_exponents(degree)]
        self.multiplicity = [float(multinomial(e)) for e in exponents]
        self.num_squares: int = products.num_squares
        self.first_rows: list[int] = products.first_rows
        #: Of every contraction: its first factor A_a, the rows of A_{a+g} by g, and whether it is a square.
        self.contractions = [
            (each.first, each.rows.reshape(each.num_results, each.size).tolist(), each.is_square)
            for each in products.contractions
        ]
        self.threes = [each for each in products.products if isinstance(each, ProductOfThree)]
        self.fours = [
            (each.first, each.second, each.multiplicity[:, 0].tolist())
            for each in products.products
            if not isinstance(each, ProductOfThree)
        ]

    def _contracted(self, a: list[Tensor], weighted: list[Tensor]) -> list[list[Tensor]]:
        return [
            [_sum([weighted[first + i] * a[row] for i, row in enumerate(rows)]) for rows in by_result]
            for first, by_result, _is_square in self.contractions
        ]

    def _weighted(self, a: list[Tensor]) -> list[Tensor]:
        return [m * component for m, component in zip(self.multiplicity, a, strict=True)]

    def __call__(self, a: Tensor) -> list[Tensor]:
        """Invariants of A [M, ...]."""
        components = list(a.unbind(0))
        weighted = self._weighted(components)
        contractions = self._contracted(components, weighted)
        invariants = [components[0]]
        for degree in range(1, self.num_squares + 1):
            rows = range(self.first_rows[degree], self.first_rows[degree + 1])
            invariants.append(_sum([components[row] * weighted[row] for row in rows]))
        for three in self.threes:
            factors = contractions[three.contraction]
            invariants.append(_sum([weighted[three.first + i] * factor for i, factor in enumerate(factors)]))
        for first, second, multiplicity in self.fours:
            pairs = zip(multiplicity, contractions[first], contractions[second], strict=True)
            invariants.append(_sum([m * (one * other) for m, one, other in pairs]))
        return invariants

    def pull_back(self, a: Tensor, cotangent: Tensor) -> list[Tensor]:
        """Derivatives by the components of A [M, ...] of Σ invariants · ``cotangent`` [Q, ...]."""
        components = list(a.unbind(0))
        weighted = self._weighted(components)
        contractions = self._contracted(components, weighted)
        of_a: list[list[Tensor]] = [[] for _ in components]
        of_weighted: list[list[Tensor]] = [[] for _ in components]
        of_contractions: list[list[list[Tensor]]] = [[[] for _ in each] for each in contractions]
        of_a[0].append(cotangent[0])
        for degree in range(1, self.num_squares + 1):
            for row in range(self.first_rows[degree], self.first_rows[degree + 1]):
                of_a[row].append(2.0 * cotangent[degree] * weighted[row])
        number = self.num_squares + 1
        for three in self.threes:
            for i, factor in enumerate(contractions[three.contraction]):
                of_weighted[three.first + i].append(three.factor * (factor * cotangent[number]))
                of_contractions[three.contraction][i].append(weighted[three.first + i] * cotangent[number])
            number += 1
        for first, second, multiplicity in self.fours:
            for i, m in enumerate(multiplicity):
                of_contractions[first][i].append(m * (cotangent[number] * contractions[second][i]))
                of_contractions[second][i].append(m * (cotangent[number] * contractions[first][i]))
            number += 1
        for (first, by_result, is_square), of_results in zip(self.contractions, of_contractions, strict=True):
            for rows, of_result in zip(by_result, map(_sum, of_results), strict=True):
                for i, row in enumerate(rows):
                    of_a[row].append(of_result * weighted[first + i])
                    if not is_square:  # see ``Contraction.pull_back``
                        of_weighted[first + i].append(of_result * components[row])
        for m, terms, of_component in zip(self.multiplicity, of_weighted, of_a, strict=True):
            if terms:
                of_component.append(m * _sum(terms))
        return [_sum(terms) if terms else torch.zeros_like(components[0]) for terms in of_a]


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
