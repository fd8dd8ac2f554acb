"""One layer of MACE, arranged for speed: sums over neighbours and products of features as matrix products.

mace-torch forms the tensor product of every edge, [E, channels · (l_max + 1)²], adds those of each atom up, and raises
the result to products through arrays over all pairs of its components. On a CPU nearly all of its time goes into moving
these arrays. Here the same sums are done in another order; the results agree to rounding.

Source: Batatia et al., NeurIPS 2022, eq. 8 (``NeighborSum``), eqs. 10 and 11 (``SymmetricProduct``).
"""

from __future__ import annotations

import collections
import itertools
from typing import NamedTuple, Optional

import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from torch import Tensor

from les_md.architectures.radial_spline import RadialSpline
from les_md.architectures.registry import UnsupportedModelError

#: Edges of one centre are handled in groups of so many; the last one is filled up with edges that have no weight.
GROUP_SIZE = 8


class Edges(NamedTuple):
    """Edges of n centres, in groups of ``GROUP_SIZE`` with a common centre; P places, some of them empty.

    Attributes
    ----------
    neighbour, centre : [P] int64.  centre_of_group : [P / GROUP_SIZE].
    species : [S] types of neighbours if the edges of a group also have the type of the neighbour in common; else empty.
    key_of_group : [P / GROUP_SIZE], centre · S + the type's place in ``species``; without species ``centre_of_group``.
    lengths : [P, 1] Å.  harmonics : [P, (l_max + 1)²].  radial : [P, basis], zero at an empty place.
        Without rows if the layer's functions of the distance are splines.
    cutoff : [P, 1] if the radial functions are without it, and then zero at an empty place.
    kinds : [P] int64, the class of each edge whose functions of the distance are the same; empty if there is one.
    """

    neighbour: Tensor
    centre: Tensor
    centre_of_group: Tensor
    species: Tensor
    key_of_group: Tensor
    lengths: Tensor
    harmonics: Tensor
    radial: Tensor
    cutoff: Optional[Tensor]  # noqa: UP045
    kinds: Tensor


class MACELayer(torch.nn.Module):
    """Interaction and product of one layer, made of those of a MACE model, whose modules it takes over.

    Further parameter: ``messages``, in place of ``Messages(interaction)``.
    """

    def __init__(
        self, interaction: torch.nn.Module, product: torch.nn.Module, messages: torch.nn.Module | None = None
    ) -> None:
        super().__init__()
        self.group_size: int = GROUP_SIZE
        self.messages = Messages(interaction) if messages is None else messages
        self.skip = interaction.skip_tp
        self.reshape = interaction.reshape
        self.avg_num_neighbors: float = float(interaction.avg_num_neighbors)
        kind = type(interaction).__name__
        # Where there is a residual connection, ``skip`` is of the layer's input, otherwise it mixes the messages.
        self.is_residual: bool = "Residual" in kind
        self.has_density: bool = "Density" in kind
        self.density = Density(interaction.density_fn if self.has_density else torch.nn.Identity())
        self.use_residual: bool = bool(product.use_sc)
        self.product = SymmetricProduct(
            product.symmetric_contractions, agnostic=bool(getattr(product, "use_agnostic_product", False))
        )
        self.product_linear = product.linear

    def forward(
        self,
        features: Tensor,
        types: Tensor,
        node_attributes: Tensor,
        num_centres: int,
        edges: Edges,
    ) -> Tensor:
        """Features [n, F'] of the first ``num_centres`` nodes from ``features`` [N, F] of all.

        Parameters: ``types`` [N]; ``node_attributes`` [N, elements], one-hot.
        """
        centre_attributes = node_attributes[:num_centres]
        messages = self.messages(features, num_centres, edges)
        if self.has_density:
            density = self.density(edges)
            of_group = density.view(-1, self.group_size).sum(1, keepdim=True)
            total = torch.zeros([num_centres, 1], dtype=density.dtype, device=density.device)
            messages = messages / (total.index_add(0, edges.centre_of_group, of_group) + 1.0)
        else:
            messages = messages / self.avg_num_neighbors
        if not self.is_residual:
            messages = self.skip(messages, centre_attributes)
        result = self.product_linear(self.product(self.reshape(messages), types[:num_centres]))
        if self.is_residual and self.use_residual:
            result = result + self.skip(features[:num_centres], centre_attributes)
        return result


class Density(torch.nn.Module):
    """What each edge adds to the density that a sum over neighbours is divided by."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, edges: Edges) -> Tensor:
        """[P, 1], zero at an empty place."""
        density = torch.tanh(self.network(edges.radial) ** 2)
        cutoff = edges.cutoff
        return density if cutoff is None else density * cutoff


class RadialNetwork(torch.nn.Module):
    """All but the last, linear layer of a radial network."""

    def __init__(self, layers: list[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, edges: Edges) -> Tensor:
        """[P, hidden], of which the radial functions are linear combinations; zero at an empty place."""
        hidden = edges.radial
        for layer in self.layers:
            hidden = layer(hidden)
        cutoff = edges.cutoff
        return hidden if cutoff is None else hidden * cutoff


class SplinesOfEdges(torch.nn.Module):
    """In place of ``RadialNetwork`` or ``Density``: the same functions as splines of the distance."""

    def __init__(self, spline: RadialSpline) -> None:
        super().__init__()
        self.spline = spline

    def forward(self, edges: Edges) -> Tensor:
        """[P, functions], zero at an empty place."""
        return self.spline(edges.lengths, edges.kinds)


class Messages(torch.nn.Module):
    """Sums over neighbours between two linear maps, of a MACE interaction, whose modules it takes over."""

    def __init__(self, interaction: torch.nn.Module) -> None:
        super().__init__()
        self.group_size: int = GROUP_SIZE
        self.linear_up = interaction.linear_up
        self.neighbor_sum = NeighborSum(interaction.conv_tp, interaction.conv_tp_weights)
        self.linear = interaction.linear

    def forward(self, features: Tensor, num_centres: int, edges: Edges) -> Tensor:
        """Messages [n, F'] to the first ``num_centres`` nodes, from ``features`` [N, F] of all."""
        return self.linear(self.neighbor_sum(self.linear_up(features), num_centres, edges))


class EdgeGroups(torch.nn.Module):
    """Sorts edges into groups of ``GROUP_SIZE`` with a common key, as their centre."""

    def __init__(self) -> None:
        super().__init__()
        self.size: int = GROUP_SIZE

    def forward(self, key: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
        """Number of the edge at each place [P], E at a place that stays empty; key of each group [P / GROUP_SIZE].

        Parameters: ``key`` [E] int64, each below ``num_keys``.
        """
        order = torch.argsort(key, stable=True)
        counts = torch.bincount(key, minlength=num_keys)
        groups = torch.div(counts + (self.size - 1), self.size, rounding_mode="floor")
        keys = torch.arange(num_keys, device=key.device)
        key_of_group = torch.repeat_interleave(keys, groups)
        # From the first edge of a key to the first place of its groups.
        shift = self.size * (groups.cumsum(0) - groups) - (counts.cumsum(0) - counts)
        places = torch.arange(key.size(0), device=key.device) + shift.index_select(0, key[order])
        edges = torch.full([self.size * key_of_group.size(0)], key.size(0), dtype=torch.int64, device=key.device)
        return edges.index_copy(0, places, order), key_of_group


class NeighborSum(torch.nn.Module):
    """Sum over neighbours of (their features) ⊗ (spherical harmonics of the edge), weighted by radial networks.

    Parameters: MACE's ``conv_tp`` (e3nn TensorProduct, connections ``uvu`` with one harmonic of each degree) and
    ``conv_tp_weights`` (e3nn FullyConnectedNet).
    """

    def __init__(self, tensor_product: o3.TensorProduct, radial_network: torch.nn.Module) -> None:
        super().__init__()
        first, second = tensor_product.irreps_in1, tensor_product.irreps_in2
        instructions = tensor_product.instructions
        for path in instructions:
            if path.connection_mode != "uvu" or not path.has_weight or second[path.i_in2].mul != 1:
                raise UnsupportedModelError("a MACE convolution with another than its usual tensor product")
        if [path.i_out for path in instructions] != list(range(len(tensor_product.irreps_out))):
            raise UnsupportedModelError("a MACE convolution in which several paths share an output")
        if not isinstance(radial_network, FullyConnectedNet):
            raise UnsupportedModelError(f"a MACE convolution with a {type(radial_network).__name__} as radial network")
        layers = list(radial_network.children())
        last = layers.pop()
        if last.act is not None:
            raise UnsupportedModelError("a MACE convolution whose radial network ends with an activation")
        self.hidden = RadialNetwork(layers)
        weight = last.weight.detach() / (last.h_in * last.var_in / last.var_out) ** 0.5
        starts = [0]
        for path in instructions:
            starts.append(starts[-1] + first[path.i_in1].mul)
        self.inputs = torch.nn.ModuleList()
        self.order: list[int] = []
        for i in range(len(first)):
            numbers = [number for number, path in enumerate(instructions) if path.i_in1 == i]
            if numbers:
                columns = [weight[:, starts[number] : starts[number + 1]] for number in numbers]
                self.inputs.append(_PathsOfInput(tensor_product, i, numbers, torch.cat(columns, dim=1)))
                self.order += numbers
        # position of path 0, 1, ... among the outputs of ``inputs``
        self.order = [self.order.index(number) for number in range(len(instructions))]

    def forward(self, features: Tensor, num_centres: int, edges: Edges) -> Tensor:
        """Sums [n, F] in e3nn's layout of ``conv_tp``'s output, from the nodes' ``features`` after ``linear_up``."""
        hidden = self.hidden(edges)
        sums: list[Tensor] = []
        for paths in self.inputs:
            sums.extend(paths(features, num_centres, edges, hidden))
        return torch.cat([sums[i] for i in self.order], dim=1)

    @torch.jit.unused
    def path_weights(self) -> list[Tensor]:
        """Per path of the tensor product, the weights [hidden, channels] of its radial functions."""
        weights = [weight for paths in self.inputs for weight in paths.weight.chunk(len(paths.paths), dim=1)]
        return [weights[i] for i in self.order]


class _PathsOfInput(torch.nn.Module):
    """All paths that start from one irrep of the neighbours' features."""

    def __init__(self, tensor_product: o3.TensorProduct, number: int, paths: list[int], weight: Tensor) -> None:
        super().__init__()
        self.start: int = tensor_product.irreps_in1.slices()[number].start
        self.channels: int = tensor_product.irreps_in1[number].mul
        self.dim: int = tensor_product.irreps_in1[number].ir.dim
        self.paths = torch.nn.ModuleList([_Path(tensor_product, path) for path in paths])
        self.register_buffer("weight", weight)

    def forward(self, features: Tensor, num_centres: int, edges: Edges, hidden: Tensor) -> list[Tensor]:
        places, channels, dim = edges.neighbour.size(0), self.channels, self.dim
        own = features[:, self.start : self.start + channels * dim].view(-1, channels, dim)
        of_neighbour = own.transpose(1, 2).reshape(-1, dim * channels).index_select(0, edges.neighbour)
        weights = torch.matmul(hidden, self.weight).view(places, len(self.paths), 1, channels)
        weighted = (weights * of_neighbour.view(places, 1, dim, channels)).unbind(1)
        sums: list[Tensor] = []
        for i, path in enumerate(self.paths):
            of_group = path(weighted[i], edges.harmonics).view(-1, path.out_dim * channels)
            zeros = torch.zeros([num_centres, path.out_dim * channels], dtype=features.dtype, device=features.device)
            total = zeros.index_add(0, edges.centre_of_group, of_group).view(-1, path.out_dim, channels)
            sums.append(total.transpose(1, 2).reshape(num_centres, -1))
        return sums


class _Path(torch.nn.Module):
    """One path: (irrep of the features) ⊗ (harmonics of one degree) → (irrep), summed over each group of edges."""

    def __init__(self, tensor_product: o3.TensorProduct, number: int) -> None:
        super().__init__()
        self.group_size: int = GROUP_SIZE
        path = tensor_product.instructions[number]
        first, second = tensor_product.irreps_in1[path.i_in1].ir, tensor_product.irreps_in2[path.i_in2].ir
        out = tensor_product.irreps_out[path.i_out].ir
        self.start: int = tensor_product.irreps_in2.slices()[path.i_in2].start
        self.second_dim: int = second.dim
        self.out_dim: int = out.dim
        self.dim: int = first.dim
        coupling = path.path_weight * o3.wigner_3j(first.l, second.l, out.l, dtype=torch.float64)
        self.register_buffer("coupling", coupling.permute(1, 0, 2).reshape(second.dim, first.dim * out.dim))

    def forward(self, weighted: Tensor, harmonics: Tensor) -> Tensor:
        """[P / GROUP_SIZE, out_dim, channels] from ``weighted`` [P, dim, channels] and ``harmonics`` [P, all]."""
        own = harmonics[:, self.start : self.start + self.second_dim]
        # rows: places of a group, then components of the neighbour's features
        left = torch.matmul(own, self.coupling).view(-1, self.group_size * self.dim, self.out_dim)
        right = weighted.reshape(-1, self.group_size * self.dim, weighted.size(2))
        return torch.bmm(left.transpose(1, 2), right)


class SymmetricProduct(torch.nn.Module):
    """Symmetric products of an atom's messages with themselves, [N, channels, (l_max + 1)²] → [N, F].

    Parameters: MACE's SymmetricContraction; ``agnostic``: the same weights for all elements.
    """

    def __init__(self, contractions: torch.nn.Module, agnostic: bool) -> None:
        super().__init__()
        self.agnostic: bool = agnostic
        parts = list(contractions.contractions)
        self.num_elements: int = 1 if agnostic else int(parts[0].weights_max.size(0))
        self.elements = torch.nn.ModuleList(
            torch.nn.ModuleList([_Polynomial(part, element) for part in parts]) for element in range(self.num_elements)
        )

    def forward(self, messages: Tensor, types: Tensor) -> Tensor:
        """Parameters: ``messages`` [N, channels, (l_max + 1)²], ``types`` [N]."""
        kinds = torch.zeros_like(types) if self.agnostic else types
        order = kinds.argsort(stable=True)
        counts = torch.bincount(kinds, minlength=self.num_elements)
        outputs: list[Tensor] = []
        first = 0
        for element, polynomials in enumerate(self.elements):
            count = int(counts[element])
            if count > 0:
                # The atoms run fastest: every operation below is over long rows.
                x = messages.index_select(0, order[first : first + count]).permute(1, 2, 0).contiguous()
                first += count
                parts: list[Tensor] = []
                for polynomial in polynomials:
                    parts.append(polynomial(x).permute(2, 0, 1).reshape(count, -1))
                outputs.append(torch.cat(parts, dim=1))
        return torch.cat(outputs).index_select(0, order.argsort())


class _Polynomial(torch.nn.Module):
    """One output irrep for one element: Σ_ν Σ A_ν[m; i₁ … i_ν] x[i₁] … x[i_ν] in each channel.

    Few of the products x[i₁] … x[i_ν] couple to an irrep. So for ν ≥ 2 two indices of each run over a few pairs alone,
    chosen such that every product that occurs contains one of them. One matrix product contracts these pairs, and x
    itself for ν = 1.
    """

    def __init__(self, contraction: torch.nn.Module, element: int) -> None:
        super().__init__()
        highest = int(contraction.correlation)
        weights = [contraction.weights_max, *contraction.weights]  # of ν = highest, ..., 1
        coefficients = []
        for order in range(1, highest + 1):
            coupling = contraction.get_buffer(f"U_matrix_{order}").double()
            size = coupling.size(-2)
            coupling = coupling.reshape(-1, *([size] * order), coupling.size(-1))
            weight = weights[highest - order].detach()[element].double()
            # [channels, out, i₁, ..., i_ν]
            coefficients.append(torch.einsum("...k,kc->c...", coupling, weight))
        linear = coefficients[0]
        channels, self.out_dim, self.size = linear.shape
        products = [_products(tensor) for tensor in coefficients[1:]]
        pairs = _common_pairs([indices for product, _ in products for indices in product])
        # rows: (out, i₁, ..., i_{ν-2}) of ν = highest, ..., 2, one after the other; columns: pairs, then x
        matrices = []
        for order, (indices, values) in reversed(list(enumerate(products, 2))):
            matrix = torch.zeros([channels, self.out_dim, self.size ** (order - 2), len(pairs)], dtype=torch.float64)
            for i, product in enumerate(indices):
                pair, rest = next((p, left) for p, left in _pairs_of(product) if p in pairs)
                row = 0
                for index in rest:
                    row = row * self.size + index
                matrix[:, :, row, pairs[pair]] += values[:, :, i]
            matrices.append(torch.nn.functional.pad(matrix.flatten(1, 2), (0, self.size)))
        if not matrices:
            matrices.append(torch.zeros([channels, self.out_dim, self.size], dtype=torch.float64))
        matrices[-1][:, :, len(pairs) :] = linear
        self.register_buffer("first_of_pair", torch.tensor([first for first, _ in pairs], dtype=torch.int64))
        self.register_buffer("second_of_pair", torch.tensor([second for _, second in pairs], dtype=torch.int64))
        self.rows: list[int] = [matrix.size(1) for matrix in matrices]
        self.register_buffer("matrix", torch.cat(matrices, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """[channels, out, n] from ``x`` [channels, (l_max + 1)², n]."""
        pairs = x.index_select(1, self.first_of_pair) * x.index_select(1, self.second_of_pair)
        partial = torch.bmm(self.matrix, torch.cat([pairs, x], dim=1)).split(self.rows, dim=1)
        # One index fewer in each round, as in Horner's scheme.
        total = partial[0]
        for i in range(1, len(partial)):
            total = total.view(x.size(0), -1, self.size, x.size(2)) * x.unsqueeze(1)
            total = total.sum(2) + partial[i]
        return total


def _products(tensor: Tensor) -> tuple[list[tuple[int, ...]], Tensor]:
    """The products, as sorted indices, that occur in ``tensor`` [channels, out, i₁, ..., i_ν], and their coefficients.

    Returns a list of M products and [channels, out, M].
    """
    size = tensor.abs().amax((0, 1))
    # Coupling coefficients that vanish by symmetry are stored as rounding errors.
    entries = (size > 1e-13 * size.max()).nonzero()
    products, place = torch.unique(entries.sort(dim=1).values, dim=0, return_inverse=True)
    values = tensor[(slice(None), slice(None), *entries.unbind(1))]
    total = torch.zeros([*values.shape[:2], len(products)], dtype=values.dtype)
    return [tuple(product) for product in products.tolist()], total.index_add(2, place, values)


def _pairs_of(product: tuple[int, ...]) -> list[tuple[tuple[int, int], tuple[int, ...]]]:
    """Each pair of factors of a product, as indices in ascending order, with the other factors."""
    places = itertools.combinations(range(len(product)), 2)
    return [((product[i], product[j]), product[:i] + product[i + 1 : j] + product[j + 1 :]) for i, j in places]


def _common_pairs(products: list[tuple[int, ...]]) -> dict[tuple[int, int], int]:
    """A small set of pairs, numbered, of which every product contains one: greedily the most common pair first."""
    pairs: dict[tuple[int, int], int] = {}
    left = [{pair for pair, _ in _pairs_of(product)} for product in products]
    while left:
        counts = collections.Counter(pair for own in left for pair in own)
        best = max(counts, key=lambda pair: (counts[pair], pair))
        pairs[best] = len(pairs)
        left = [own for own in left if best not in own]
    return pairs
