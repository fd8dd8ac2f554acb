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

from les_md.architectures.cace_latent import LatentReadout
from les_md.architectures.cace_readout import Readout
from les_md.architectures.zbl import ZBLRepulsion
from les_md.electrostatics.latent_layout import LatentLayout


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
    dipoles, quadrupoles, kappas, alphas : which latent variables there are beyond charges, see ``cace_latent.py``.
    fixed_charges : e, in type order, added to the charges; None for none. One charge channel only.
    response_scale : factor of κ (e²/eV) and α (e² Å²/eV).
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
    dipoles: bool = False
    quadrupoles: bool = False
    kappas: bool = False
    alphas: bool = False
    fixed_charges: tuple[float, ...] | None = None
    response_scale: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "atomic_numbers", tuple(int(z) for z in self.atomic_numbers))
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))
        if self.max_l < 1 or not 1 <= self.max_nu <= 4:
            raise ValueError(f"CACE needs max_l ≥ 1 and 1 ≤ max_nu ≤ 4, got {self.max_l} and {self.max_nu}")
        if self.quadrupoles and self.max_l < 2:
            raise ValueError(
                f"quadrupoles are made of functions of degree 2: max_l must be at least 2, not {self.max_l}"
            )
        if self.fixed_charges is not None:
            object.__setattr__(self, "fixed_charges", tuple(float(charge) for charge in self.fixed_charges))
            if len(self.fixed_charges) != len(self.atomic_numbers) or self.num_charges != 1:
                raise ValueError(
                    f"fixed_charges need one charge channel and the charges of {len(self.atomic_numbers)} elements"
                )
        if not self.response_scale > 0.0:
            raise ValueError(f"response_scale must be positive, got {self.response_scale}")
        self.latent  # noqa: B018  (checks that a model with other latent variables has charges)

    @property
    def latent(self) -> LatentLayout:
        """The columns that the network returns beside the energy."""
        return LatentLayout(self.num_charges, self.dipoles, self.quadrupoles, self.kappas, self.alphas)

    @property
    def has_charges_alone(self) -> bool:
        """Whether there are no latent variables beyond charges and no fixed charges."""
        return self.latent.num_columns == self.num_charges and self.fixed_charges is None

    def to_dict(self) -> dict:
        """All fields; those of latent variables beyond charges only where there are any, as older versions had none."""
        fields = asdict(self)
        if self.has_charges_alone:
            for name in ("dipoles", "quadrupoles", "kappas", "alphas", "fixed_charges", "response_scale"):
                del fields[name]
        return fields


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
    first_edge = torch.cumsum(counts, 0) - counts
    edges = torch.arange(centre.size(0), device=centre.device)
    if bool((centre[1:] >= centre[:-1]).all().item()):  # as neighbour lists mostly are
        return centre * width + edges - first_edge[centre], width
    order = torch.argsort(centre, stable=True)
    slots = edges - first_edge[centre[order]]
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


class InvariantOfThree(torch.nn.Module):
    """Σ μ(a) μ(b) A_a A_b A_{a+b} over the monomials a, b of two degrees."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.first: int = first
        self.second: int = second
        terms = list(itertools.product(monomial_exponents(first), monomial_exponents(second)))
        position = {e: i for i, e in enumerate(monomial_exponents(first + second))}
        self.register_buffer("sums", torch.tensor([position[_plus(a, b)] for a, b in terms]), persistent=False)
        coefficients = [multinomial(a) * multinomial(b) for a, b in terms]
        self.register_buffer("coefficients", torch.tensor(coefficients, dtype=torch.float64), persistent=False)

    def forward(self, degrees: list[Tensor]) -> Tensor:
        """A by degree, [a, N, m, b, k] each → [a, N, b, k]"""
        pairs = (degrees[self.first].unsqueeze(3) * degrees[self.second].unsqueeze(2)).flatten(2, 3)
        # index_select, since the derivative of a[:, :, index] is many times slower.
        third = degrees[self.first + self.second].index_select(2, self.sums)
        return (pairs * third * self.coefficients[None, None, :, None, None]).sum(2)


class InvariantOfFour(torch.nn.Module):
    """Σ μ(a) μ(b) μ(g) A_a A_b A_{a+g} A_{b+g} over the monomials a, b, g of three degrees."""

    def __init__(self, first: int, second: int, delta: int) -> None:
        super().__init__()
        self.degrees: list[int] = [first, second, first + delta, second + delta]
        terms = list(
            itertools.product(monomial_exponents(first), monomial_exponents(second), monomial_exponents(delta))
        )
        factors = [(a, b, _plus(a, g), _plus(b, g)) for a, b, g in terms]
        positions = [{e: i for i, e in enumerate(monomial_exponents(degree))} for degree in self.degrees]
        indices = [[positions[f][term[f]] for term in factors] for f in range(4)]
        self.register_buffer("indices", torch.tensor(indices), persistent=False)
        coefficients = [multinomial(a) * multinomial(b) * multinomial(g) for a, b, g in terms]
        self.register_buffer("coefficients", torch.tensor(coefficients, dtype=torch.float64), persistent=False)

    def forward(self, degrees: list[Tensor]) -> Tensor:
        """A by degree, [a, N, m, b, k] each → [a, N, b, k]"""
        product = self.coefficients[None, None, :, None, None]
        for factor, degree in enumerate(self.degrees):
            product = product * degrees[degree].index_select(2, self.indices[factor])
        return product.sum(2)


def _plus(first: tuple[int, int, int], second: tuple[int, int, int]) -> tuple[int, int, int]:
    return (first[0] + second[0], first[1] + second[1], first[2] + second[2])


class Symmetriser(torch.nn.Module):
    """Rotationally invariant polynomials of the A-basis.

    ν=1: A_000.  ν=2: Σ μ(l) A_l² for each degree.  ν=3, (ℓ1 ≤ ℓ2): Σ μ(a) μ(b) A_a A_b A_{a+b}.
    ν=4, (ℓ1 < ℓ2, δ): Σ μ(a) μ(b) μ(g) A_a A_b A_{a+g} A_{b+g}.  All degrees that occur are ≤ max_l.

    Each invariant is homogeneous of order ν in A, so a factor of A that is the same for all monomials, as the
    embedding of the centre, is applied to the invariants, of which there are fewer.
    """

    def __init__(self, max_l: int, max_nu: int) -> None:
        super().__init__()
        degrees = range(1, max_l + 1)
        squares = list(degrees) if max_nu >= 2 else []
        self.num_squares: int = len(squares)
        multiplicity = [multinomial(e) for degree in squares for e in monomial_exponents(degree)]
        self.register_buffer("multiplicity", torch.tensor(multiplicity, dtype=torch.float64), persistent=False)
        # Not empty, of which TorchScript could not tell the type; without squares it is not used.
        self.sizes: list[int] = [(degree + 1) * (degree + 2) // 2 for degree in squares] or [0]
        threes = [
            InvariantOfThree(l1, l2)
            for l1, l2 in itertools.combinations_with_replacement(degrees, 2)
            if max_nu >= 3 and l1 + l2 <= max_l
        ]
        fours = [
            InvariantOfFour(l1, l2, delta)
            for l1, l2 in itertools.combinations(degrees, 2)
            for delta in range(1, max_l - l2 + 1)
            if max_nu >= 4
        ]
        self.products = torch.nn.ModuleList([*threes, *fours])
        orders = [1] + [2] * len(squares) + [3] * len(threes) + [4] * len(fours)
        self.register_buffer("orders", torch.tensor(orders), persistent=False)
        self.max_order: int = max(orders)
        self.num_features: int = len(orders)

    def forward(self, degrees: list[Tensor], factor: Tensor) -> Tensor:
        """Invariants of factor · A.

        Parameters: A by degree, [a, N, m, b, k] each; ``factor`` [N, b].  Returns: B [N, Q, a, b, k].
        """
        features = [degrees[0].squeeze(2)]
        if self.num_squares > 0:
            multiplicities = torch.split(self.multiplicity, self.sizes)
            for degree, multiplicity in enumerate(multiplicities):
                a = degrees[degree + 1]
                features.append((a * a * multiplicity[None, None, :, None, None]).sum(2))
        for product in self.products:
            features.append(product(degrees))
        powers = [factor]
        for _ in range(1, self.max_order):
            powers.append(powers[-1] * factor)
        scales = torch.stack(powers).index_select(0, self.orders - 1)
        return (torch.stack(features) * scales[:, None, :, :, None]).permute(2, 0, 1, 3, 4)


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
    """Short-range energies and latent variables of atoms from the vectors to their neighbours.

    ``latent`` is the layout of the latent variables.
    """

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
        # No annotation: of one to a list PyTorch warns whoever scripts the module.
        self.sizes = [(degree + 1) * (degree + 2) // 2 for degree in range(c.max_l + 1)]
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
        self.latent: LatentLayout = c.latent
        self.has_quadrupoles: bool = c.quadrupoles
        self.latent_readout = None
        if c.latent.has_multipoles or c.latent.responds:
            self.latent_readout = LatentReadout(
                num_inputs,
                d * d * c.num_radial * (1 + c.num_message_passing),
                c.hidden,
                c.num_charges,
                c.dipoles,
                c.quadrupoles,
                c.kappas,
                c.alphas,
                self.charge_scale,
                float(c.response_scale),
            )
        fixed = c.fixed_charges or (0.0,) * num_species
        self.has_fixed_charges: bool = c.fixed_charges is not None
        self.register_buffer("fixed_charges", torch.tensor(fixed, dtype=torch.float64), persistent=False)

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [N] (without reference energies) and latent variables [N, ``latent.num_columns``], charges first.

        Both are in the network's dtype.

        Parameters: ``edge_vectors`` [E, 3] Å from centre to neighbour, ``edge_index`` [2, E] (centre, neighbour),
        ``types`` [N]. Edges beyond the cutoff contribute exactly nothing.
        """
        vectors = edge_vectors.to(self.neighbour_embedding.dtype)
        centre, neighbour = edge_index[0], edge_index[1]
        num_nodes = types.size(0)
        # Of a part of a system, the last nodes are neighbours only. Features are computed up to the last centre and one
        # node beyond, which stands for all further ones: none of them has a neighbour.
        last_centre = int(centre.max().item()) if centre.size(0) > 0 else -1
        num_atoms = min(num_nodes, last_centre + 2)
        distance = torch.sqrt((vectors * vectors).sum(1))
        # The published models were trained with this 1e-9 (Å); it is visible at the ninth digit.
        angular = torch.cat(monomials(vectors / (distance + 1e-9)[:, None], self.max_l), dim=1)
        radial = self._radial_functions(distance)

        neighbour_embedding = self.neighbour_embedding[types]
        centre_embedding = self.centre_embedding[types[:num_atoms]]
        weights = neighbour_embedding[neighbour][:, :, None] * radial[:, None, :]
        rows, width = neighbour_rows(centre, num_atoms)
        flat_weights = weights.flatten(1)
        # One table of both factors; split, since a slice would have a derivative as large as the whole.
        table = to_rows(torch.cat([angular, flat_weights], dim=1), rows, num_atoms, width)
        angular_rows, weight_rows = torch.split(table, [angular.size(1), flat_weights.size(1)], dim=2)
        sums = torch.bmm(angular_rows.transpose(1, 2), weight_rows)
        sums = sums.reshape(num_atoms, -1, weights.size(1), weights.size(2))
        mixed: list[Tensor] = []
        sums_by_degree = torch.split(sums, self.sizes, dim=1)
        for degree, mixing in enumerate(self.radial_mixing):
            mixed.append(self._mix(sums_by_degree[degree].permute(2, 0, 1, 3), mixing))
        features = self.symmetriser(mixed, centre_embedding)
        layers = [features.flatten(1)]
        by_layer, factors = [mixed], [centre_embedding]
        for message in self.messages:
            gate = _continued(message(features), num_nodes) * neighbour_embedding[:, None, :, None]
            a = self._message_passing(torch.split(angular_rows, self.sizes, dim=2), radial, gate, neighbour, rows)
            features = self.symmetriser(a, self.message_normalisation * centre_embedding)
            layers.append(features.flatten(1))
            by_layer.append(a)
            factors.append(self.message_normalisation * centre_embedding)
        inputs = torch.cat(layers, dim=1)

        energy = self.energy_readout(inputs)[:, 0]
        if self.has_repulsion:
            # Few pairs are as close as this, so the others are left out of the arithmetic.
            close = (distance.detach() < min(self.repulsion.longest_range, self.cutoff)).nonzero()[:, 0]
            close_centre = centre[close]
            pair = self.repulsion(distance.index_select(0, close), types[close_centre], types[neighbour[close]])
            energy = energy.index_add(0, close_centre, pair)
        energy = _continued(energy, num_nodes)
        if self.num_charges == 0:
            return energy, energy.new_zeros((num_nodes, 0))
        latent = self.charge_scale * self.charge_readout(inputs)
        if self.latent_readout is not None:
            vectors = _tensors_of_degree(1, by_layer, factors)
            tensors = _tensors_of_degree(2 if self.has_quadrupoles else 1, by_layer, factors)
            latent = torch.cat([latent, self.latent_readout(inputs, vectors, tensors)], dim=1)
        latent = _continued(latent, num_nodes)
        if self.has_fixed_charges:  # of every node: those beyond the last centre differ in their element
            charge = latent[:, :1] + self.fixed_charges.to(latent.dtype).index_select(0, types)[:, None]
            latent = torch.cat([charge, latent[:, 1:]], dim=1)
        return energy, latent

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
    ) -> list[Tensor]:
        """Sums of the edges of the first layer, each weighted by its neighbour's gate [N, L+1, a, b], by degree."""
        num_atoms, d = angular_rows[0].size(0), gate.size(2)
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
        return mixed


def _tensors_of_degree(degree: int, by_layer: list[list[Tensor]], factors: list[Tensor]) -> Tensor:
    """A-basis of one degree of all layers, [N, m, channels of all layers].

    Parameters: ``by_layer``, A by degree of each layer, [a, N, m, b, k] each; ``factors`` [N, b] of each layer.
    """
    parts: list[Tensor] = []
    for layer, factor in zip(by_layer, factors):  # noqa: B905  (scripts know no strict)
        parts.append((layer[degree] * factor[:, None, :, None]).permute(1, 2, 0, 3, 4).flatten(2))
    return torch.cat(parts, dim=2)


def _continued(values: Tensor, num_nodes: int) -> Tensor:
    """[n, …] with the last row repeated, [num_nodes, …]."""
    missing = num_nodes - values.size(0)
    if missing == 0:
        return values
    sizes = list(values.shape)
    sizes[0] = missing
    return torch.cat([values, values[-1:].expand(sizes)])
