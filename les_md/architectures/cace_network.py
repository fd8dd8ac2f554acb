r"""Cartesian atomic cluster expansion with a latent-charge readout, written over edge vectors.

Source: Cheng, npj Comput. Mater. 10, 157 (2024) (CACE); Cheng, npj Comput. Mater. 11, 80 (2025) (latent charges).

    A_i,m,c,k = Σ_n W^{|m|}_{n,k,c} Σ_j R_n(r_ij) f(r_ij) Y_m(r̂_ij) σ[Z_j]_a ρ[Z_i]_b ,      c = (a, b)
    B         = invariant products of A up to ``max_nu`` factors
    E_i, q_i  = readouts of B (of all layers)

Y_m are Cartesian monomials of degree up to ``max_l``. Since ρ belongs to the centre, it is left out of the sum over
neighbours, which then runs over ``num_embedding`` channels instead of its square. The radial functions are Bessel
functions with trained frequencies under a polynomial cutoff.

Node arrays keep the order [a, N, m, b, k]: the radial mixing is then a batched matrix product over a.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from les_md.architectures.zbl import ZBLRepulsion


@dataclass(frozen=True)
class CACEConfiguration:
    """Sizes of a CACE network.

    Attributes
    ----------
    atomic_numbers : elements in type order.
    cutoff : Å.
    num_embedding : length d of the two species embeddings; there are d² channels.
    num_bessel, num_radial : radial functions before and after mixing.
    max_l, max_nu : highest degree of the monomials (≥ 1), highest body order of the products (1 to 4).
    num_message_passing : interaction layers after the first; the receptive field is (1 + this) cutoffs.
    message_normalisation : factor of the sum over messages, 1/√(average number of neighbours).
    cutoff_exponent : p of the polynomial cutoff.
    hidden : widths of the hidden layers of the readouts.
    num_charges : latent charge channels n_q; 0 for a short-range model.
    charge_scale : factor of the charge readout.
    repulsion : whether a ZBL core repulsion is added.
    """

    atomic_numbers: tuple[int, ...]
    cutoff: float
    num_embedding: int
    num_bessel: int = 6
    num_radial: int = 12
    max_l: int = 2
    max_nu: int = 2
    num_message_passing: int = 0
    message_normalisation: float = 10.0**-0.5
    cutoff_exponent: int = 6
    hidden: tuple[int, ...] = (32, 16)
    num_charges: int = 1
    charge_scale: float = 0.1
    repulsion: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "atomic_numbers", tuple(int(z) for z in self.atomic_numbers))
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))
        if self.max_l < 1 or not 1 <= self.max_nu <= 4:
            raise ValueError(f"CACE needs max_l ≥ 1 and 1 ≤ max_nu ≤ 4, got {self.max_l} and {self.max_nu}")

    def to_dict(self) -> dict:
        return asdict(self)


def monomial_exponents(degree: int) -> list[tuple[int, int, int]]:
    """Exponents (l_x, l_y, l_z) of one degree, in descending lexicographic order."""
    return [(x, y, degree - x - y) for x in range(degree, -1, -1) for y in range(degree - x, -1, -1)]


def multinomial(exponents: tuple[int, int, int]) -> int:
    """|l|!/(l_x! l_y! l_z!): how often a monomial occurs in the full tensor of its degree."""
    x, y, z = exponents
    return math.factorial(x + y + z) // (math.factorial(x) * math.factorial(y) * math.factorial(z))


def monomials(unit: Tensor, max_l: int) -> list[Tensor]:
    """Monomials of unit vectors [E, 3] for degrees 0..max_l: [E, (l+1)(l+2)/2] each.

    Degree l is built from degree l−1: x times all of it, y times its members free of x, z times its last.
    """
    x, y, z = unit[:, 0:1], unit[:, 1:2], unit[:, 2:3]
    degrees = [torch.ones_like(x)]
    for degree in range(1, max_l + 1):
        previous = degrees[-1]
        count = previous.size(1)
        degrees.append(
            torch.cat([x * previous, y * previous[:, count - degree :], z * previous[:, count - 1 :]], dim=1)
        )
    return degrees


def neighbour_rows(centre: Tensor, num_atoms: int) -> tuple[Tensor, int]:
    """Where each edge goes in a table of [N, width] neighbours, and its width, the largest number of neighbours.

    Parameters: ``centre`` [E], in any order.  Returns: flat positions [E], width.
    """
    counts = torch.bincount(centre, minlength=num_atoms)
    width = int(counts.max().item()) if centre.size(0) > 0 else 0
    order = torch.argsort(centre, stable=True)
    first_edge = torch.cumsum(counts, 0) - counts
    slots = torch.arange(centre.size(0), device=centre.device) - first_edge[centre[order]]
    rows = torch.zeros_like(centre)
    rows[order] = centre[order] * width + slots
    return rows, width


def to_rows(values: Tensor, rows: Tensor, num_atoms: int, width: int) -> Tensor:
    """[E, c] → [N, width, c], zero where an atom has fewer neighbours.

    Sums over neighbours then are batched matrix products, for which neither the products of the edges nor
    their derivatives are ever stored.
    """
    table = torch.zeros([num_atoms * width, values.size(1)], dtype=values.dtype, device=values.device)
    return table.index_copy(0, rows, values).reshape(num_atoms, width, values.size(1))


class InvariantProduct(torch.nn.Module):
    """One invariant of three or four factors: Σ coefficient · Π A[index], over the monomial axis."""

    def __init__(self, indices: list[tuple[int, ...]], coefficients: list[int]) -> None:
        super().__init__()
        self.register_buffer("indices", torch.tensor(indices, dtype=torch.int64).T.contiguous())
        self.register_buffer("coefficients", torch.tensor(coefficients, dtype=torch.float64))

    def forward(self, a: Tensor) -> Tensor:
        """[a, N, M, b, k] → [a, N, b, k]"""
        # index_select, since the derivative of a[:, :, index] is many times slower.
        product = a.index_select(2, self.indices[0]) * self.coefficients[None, None, :, None, None]
        for factor in range(1, self.indices.size(0)):
            product = product * a.index_select(2, self.indices[factor])
        return product.sum(2)


class Symmetriser(torch.nn.Module):
    """Rotationally invariant polynomials of the A-basis.

    ν=1: A_000.  ν=2: Σ μ(l) A_l² for each degree.  ν=3, (ℓ1 ≤ ℓ2): Σ μ(a) μ(b) A_a A_b A_{a+b}.
    ν=4, (ℓ1 < ℓ2, δ): Σ μ(a) μ(b) μ(g) A_a A_b A_{a+g} A_{b+g}.  All degrees that occur are ≤ max_l.
    """

    def __init__(self, max_l: int, max_nu: int) -> None:
        super().__init__()
        exponents = [e for degree in range(max_l + 1) for e in monomial_exponents(degree)]
        self.pairs: bool = max_nu >= 2
        self.starts: list[int] = [l * (l + 1) * (l + 2) // 6 for l in range(max_l + 2)]
        self.register_buffer("multiplicity", torch.tensor([multinomial(e) for e in exponents], dtype=torch.float64))
        products = []
        position = {e: i for i, e in enumerate(exponents)}

        def plus(first: tuple, second: tuple) -> tuple:
            return tuple(p + q for p, q in zip(first, second, strict=True))

        if max_nu >= 3:
            for l1, l2 in itertools.combinations_with_replacement(range(1, max_l), 2):
                if l1 + l2 <= max_l:
                    terms = list(itertools.product(monomial_exponents(l1), monomial_exponents(l2)))
                    products.append(
                        InvariantProduct(
                            [(position[a], position[b], position[plus(a, b)]) for a, b in terms],
                            [multinomial(a) * multinomial(b) for a, b in terms],
                        )
                    )
        if max_nu >= 4:
            for l1, l2 in itertools.combinations(range(1, max_l), 2):
                for delta in range(1, max_l - l2 + 1):
                    terms = list(
                        itertools.product(monomial_exponents(l1), monomial_exponents(l2), monomial_exponents(delta))
                    )
                    products.append(
                        InvariantProduct(
                            [
                                (position[a], position[b], position[plus(a, g)], position[plus(b, g)])
                                for a, b, g in terms
                            ],
                            [multinomial(a) * multinomial(b) * multinomial(g) for a, b, g in terms],
                        )
                    )
        self.products = torch.nn.ModuleList(products)
        self.num_features: int = 1 + (max_l if self.pairs else 0) + len(products)

    def forward(self, a: Tensor) -> Tensor:
        """A [a, N, M, b, k] → B [N, Q, a, b, k]"""
        features = [a[:, :, 0]]
        if self.pairs:
            squares = a * a * self.multiplicity[None, None, :, None, None]
            for degree in range(1, len(self.starts) - 1):
                features.append(squares[:, :, self.starts[degree] : self.starts[degree + 1]].sum(2))
        for product in self.products:
            features.append(product(a))
        return torch.stack(features).permute(2, 0, 1, 3, 4)


class Readout(torch.nn.Module):
    """Multilayer perceptron with SiLU, plus a linear map of its input."""

    def __init__(self, num_inputs: int, hidden: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        widths = [num_inputs, *hidden]
        self.hidden = torch.nn.ModuleList(
            torch.nn.Linear(first, second) for first, second in itertools.pairwise(widths)
        )
        self.output = torch.nn.Linear(widths[-1], num_outputs)
        self.linear = torch.nn.Linear(num_inputs, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for layer in self.hidden:
            x = torch.nn.functional.silu(layer(x))
        return self.output(x) + self.linear(features)


class Message(torch.nn.Module):
    """Weights g_{i,l,c} with which atom i's edges enter the next layer, linear in its invariants."""

    def __init__(self, num_inputs: int, num_degrees: int, num_embedding: int) -> None:
        super().__init__()
        self.num_degrees = num_degrees
        self.num_embedding = num_embedding
        self.linear = torch.nn.Linear(num_inputs, num_degrees * num_embedding**2)

    def forward(self, features: Tensor) -> Tensor:
        """[N, Q, a, b, k] → [N, L+1, a, b]"""
        d = self.num_embedding
        return self.linear(features.flatten(1)).reshape(-1, self.num_degrees, d, d)


class CACENetwork(torch.nn.Module):
    """Short-range energies and latent charges of atoms from the vectors to their neighbours."""

    def __init__(self, configuration: CACEConfiguration) -> None:
        super().__init__()
        c = configuration
        self.cutoff: float = float(c.cutoff)
        self.max_l: int = c.max_l
        self.cutoff_exponent: int = c.cutoff_exponent
        self.message_normalisation: float = float(c.message_normalisation)
        self.charge_scale: float = float(c.charge_scale)
        self.num_charges: int = c.num_charges
        d = c.num_embedding
        num_species = len(c.atomic_numbers)
        self.neighbour_embedding = torch.nn.Parameter(torch.randn(num_species, d))
        self.centre_embedding = torch.nn.Parameter(torch.randn(num_species, d))
        self.bessel_frequencies = torch.nn.Parameter(torch.arange(1, c.num_bessel + 1) * (math.pi / c.cutoff))
        self.register_buffer("bessel_prefactor", torch.tensor(math.sqrt(2.0 / c.cutoff)))
        self.radial_mixing = torch.nn.ParameterList(
            torch.nn.Parameter(torch.randn(d, c.num_bessel, d * c.num_radial) / math.sqrt(c.num_bessel))
            for _ in range(c.max_l + 1)
        )
        self.num_radial: int = c.num_radial
        self.symmetriser = Symmetriser(c.max_l, c.max_nu)
        features_per_layer = self.symmetriser.num_features * d * d * c.num_radial
        self.messages = torch.nn.ModuleList(
            Message(features_per_layer, c.max_l + 1, d) for _ in range(c.num_message_passing)
        )
        num_inputs = features_per_layer * (1 + c.num_message_passing)
        self.energy_readout = Readout(num_inputs, c.hidden, 1)
        # A short-range model still holds the module, so that scripting sees one type.
        self.charge_readout = Readout(num_inputs, c.hidden, max(1, c.num_charges))
        self.has_repulsion: bool = c.repulsion
        self.repulsion = ZBLRepulsion(list(c.atomic_numbers))

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [N] (without reference energies) and charge [N, n_q], in the network's dtype.

        Parameters: ``edge_vectors`` [E, 3] Å from centre to neighbour, ``edge_index`` [2, E] (centre, neighbour),
        ``types`` [N]. Edges beyond the cutoff contribute exactly nothing.
        """
        vectors = edge_vectors.to(self.neighbour_embedding.dtype)
        centre, neighbour = edge_index[0], edge_index[1]
        num_atoms = types.size(0)
        distance = torch.sqrt((vectors * vectors).sum(1))
        # The published models were trained with this 1e-9 (Å); it is visible at the ninth digit.
        angular = monomials(vectors / (distance + 1e-9)[:, None], self.max_l)
        radial = self._radial_functions(distance)

        neighbour_embedding = self.neighbour_embedding[types]
        centre_embedding = self.centre_embedding[types]
        weights = neighbour_embedding[neighbour][:, :, None] * radial[:, None, :]
        rows, width = neighbour_rows(centre, num_atoms)
        angular_rows = [to_rows(values, rows, num_atoms, width) for values in angular]
        sums = torch.bmm(
            torch.cat(angular_rows, dim=2).transpose(1, 2), to_rows(weights.flatten(1), rows, num_atoms, width)
        ).reshape(num_atoms, -1, weights.size(1), weights.size(2))
        mixed: list[Tensor] = []
        start = 0
        for degree, mixing in enumerate(self.radial_mixing):
            size = angular[degree].size(1)
            mixed.append(self._mix(sums[:, start : start + size].permute(2, 0, 1, 3), mixing))
            start += size
        a = torch.cat(mixed, dim=2) * centre_embedding[None, :, None, :, None]
        features = self.symmetriser(a)
        layers = [features.flatten(1)]
        for message in self.messages:
            gate = message(features) * neighbour_embedding[:, None, :, None]
            a = self._message_passing(angular_rows, radial, gate, neighbour, rows)
            a = a * (self.message_normalisation * centre_embedding)[None, :, None, :, None]
            features = self.symmetriser(a)
            layers.append(features.flatten(1))
        inputs = torch.cat(layers, dim=1)

        energy = self.energy_readout(inputs)[:, 0]
        if self.has_repulsion:
            pair = self.repulsion(distance, types[centre], types[neighbour])
            energy = energy + torch.zeros_like(energy).index_add(0, centre, pair)
        if self.num_charges == 0:
            return energy, energy.new_zeros((num_atoms, 0))
        return energy, self.charge_scale * self.charge_readout(inputs)

    def _radial_functions(self, distance: Tensor) -> Tensor:
        """Bessel functions times cutoff, [E, n]."""
        x = distance / self.cutoff
        p = self.cutoff_exponent
        power = x**p
        envelope = 1.0 + power * (-0.5 * (p + 1) * (p + 2) + x * (float(p * (p + 2)) - 0.5 * p * (p + 1) * x))
        envelope = torch.where(x < 1.0, envelope, torch.zeros_like(envelope))
        factor = self.bessel_prefactor * envelope / distance
        return torch.sin(self.bessel_frequencies[None, :] * distance[:, None]) * factor[:, None]

    def _mix(self, atoms: Tensor, mixing: Tensor) -> Tensor:
        """Radial mixing of one degree: [a, N, m, n] with [a, n, (b, k)] → [a, N, m, b, k]."""
        d, num_atoms, size = atoms.size(0), atoms.size(1), atoms.size(2)
        product = torch.bmm(atoms.reshape(d, num_atoms * size, -1), mixing)
        return product.reshape(d, num_atoms, size, -1, self.num_radial)

    def _message_passing(
        self, angular_rows: list[Tensor], radial: Tensor, gate: Tensor, neighbour: Tensor, rows: Tensor
    ) -> Tensor:
        """Sum of the edges of the first layer, each weighted by its neighbour's gate [N, L+1, a, b]."""
        num_atoms, d = gate.size(0), gate.size(2)
        mixed: list[Tensor] = []
        for degree, mixing in enumerate(self.radial_mixing):
            width, size = angular_rows[degree].size(1), angular_rows[degree].size(2)
            weights = gate[:, degree][neighbour].flatten(1)[:, :, None] * radial[:, None, :]
            sums = torch.bmm(
                angular_rows[degree].transpose(1, 2), to_rows(weights.flatten(1), rows, num_atoms, width)
            ).reshape(num_atoms, size, d * d, -1)
            # Here every channel (a, b) has its own sum: a batched product over both.
            per_channel = sums.permute(2, 0, 1, 3).reshape(d * d, num_atoms * size, -1)
            channel_mixing = (
                mixing.reshape(d, -1, d, self.num_radial).permute(0, 2, 1, 3).reshape(d * d, -1, self.num_radial)
            )
            product = torch.bmm(per_channel, channel_mixing).reshape(d, d, num_atoms, size, self.num_radial)
            mixed.append(product.permute(0, 2, 3, 1, 4))
        return torch.cat(mixed, dim=2)
