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

from les_md.architectures.mace_operators import sum_over_neighbours, symmetric_product
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
        self.dims: list[int] = [ir.dim for _, ir in interaction.linear.irreps_out]
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
            messages = messages / (total.index_add(0, edges.centre_of_group, of_group) + 1.0).unsqueeze(2)
        else:
            messages = messages / self.avg_num_neighbors
        if not self.is_residual:
            mixed = self.skip(to_e3nn_layout(messages, self.dims), centre_attributes)
            messages = self.reshape(mixed).transpose(1, 2)
        result = self.product_linear(self.product(messages, types[:num_centres]))
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
        self.linear = LinearOfComponents(interaction.linear, interaction.conv_tp.irreps_out)

    def forward(self, features: Tensor, num_centres: int, edges: Edges) -> Tensor:
        """Messages [n, (l_max + 1)², C] to the first ``num_centres`` nodes, from ``features`` [N, F] of all."""
        return self.linear(self.neighbor_sum(self.linear_up(features), num_centres, edges))


class LinearOfComponents(torch.nn.Module):
    """e3nn's ``linear`` of parts in the layout (component, channel).

    Parameters: ``parts``, the irreps of the inputs, which are those of ``linear`` or, where several in a row are alike,
    parts of these.
    """

    def __init__(self, linear: o3.Linear, parts: o3.Irreps) -> None:
        super().__init__()
        if linear.bias_numel > 0:
            raise UnsupportedModelError("a MACE convolution with a bias after the sum over neighbours")
        outputs = linear.irreps_out
        self.dims: list[int] = [ir.dim for _, ir in outputs]
        self.channels: list[int] = [mul for mul, _ in outputs]
        # of each output: the parts that it is a map of; the maps lie one above the other
        self.parts: list[list[int]] = [[] for _ in outputs]
        weights: list[list[Tensor]] = [[] for _ in outputs]
        starts = [0]
        for mul, _ in parts:
            starts.append(starts[-1] + mul)
        start_of_input = [0]
        for mul, _ in linear.irreps_in:
            start_of_input.append(start_of_input[-1] + mul)
        for _, instruction, matrix in linear.weight_views(yield_instruction=True):
            first, last = start_of_input[instruction.i_in], start_of_input[instruction.i_in + 1]
            matrix = instruction.path_weight * matrix.detach()
            own = [i for i, start in enumerate(starts[:-1]) if first <= start < last]
            if starts[own[0]] != first or starts[own[-1] + 1] != last:
                raise UnsupportedModelError("a MACE convolution whose linear map is not of its sums over neighbours")
            for i in own:
                if parts[i].ir != outputs[instruction.i_out].ir:
                    raise UnsupportedModelError(
                        "a MACE convolution whose linear map is not of its sums over neighbours"
                    )
                self.parts[instruction.i_out].append(i)
                weights[instruction.i_out].append(matrix[starts[i] - first : starts[i + 1] - first])
        if any(len(own) == 0 for own in self.parts) or len(set(self.channels)) != 1:
            raise UnsupportedModelError("a MACE convolution whose messages have other irreps than its products need")
        self.sizes: list[int] = [sum(len(weight) for weight in own) for own in weights]
        self.register_buffer("weight", torch.cat([weight for own in weights for weight in own]))

    def forward(self, parts: list[Tensor]) -> Tensor:
        """[n, Σ dim, C'] from ``parts`` [n, dim, C]."""
        outputs: list[Tensor] = []
        weights = self.weight.split(self.sizes)
        for i, own in enumerate(self.parts):
            inputs: list[Tensor] = []
            for number in own:
                inputs.append(parts[number])
            together = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=2)
            output = torch.matmul(together.reshape(-1, self.sizes[i]), weights[i])
            outputs.append(output.view(-1, self.dims[i], self.channels[i]))
        return torch.cat(outputs, dim=1)


def to_e3nn_layout(components: Tensor, dims: list[int]) -> Tensor:
    """[n, Σ dim · C], for irrep after irrep (channel, component), from [n, Σ dim, C]."""
    parts: list[Tensor] = []
    for part in components.split(dims, dim=1):
        parts.append(part.transpose(1, 2).flatten(1))
    return torch.cat(parts, dim=1)


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

    def forward(self, features: Tensor, num_centres: int, edges: Edges) -> list[Tensor]:
        """Sums [n, dim, C] of each path of ``conv_tp``, from the nodes' ``features`` after ``linear_up``."""
        hidden = self.hidden(edges)
        sums: list[Tensor] = []
        for paths in self.inputs:
            sums.extend(paths(features, num_centres, edges, hidden))
        return [sums[i] for i in self.order]

    @torch.jit.unused
    def path_weights(self) -> list[Tensor]:
        """Per path of the tensor product, the weights [hidden, channels] of its radial functions."""
        weights = [weight for paths in self.inputs for weight in paths.weight.chunk(len(paths.out_dims), dim=1)]
        return [weights[i] for i in self.order]


class _PathsOfInput(torch.nn.Module):
    """All paths that start from one irrep of the neighbours' features.

    A path is (irrep of the features) ⊗ (harmonics of one degree) → (irrep).
    """

    def __init__(self, tensor_product: o3.TensorProduct, number: int, paths: list[int], weight: Tensor) -> None:
        super().__init__()
        first, second = tensor_product.irreps_in1, tensor_product.irreps_in2
        self.start: int = first.slices()[number].start
        self.channels: int = first[number].mul
        self.dim: int = first[number].ir.dim
        self.out_dims: list[int] = []
        couplings = []
        for path in (tensor_product.instructions[i] for i in paths):
            harmonic, out = second[path.i_in2].ir, tensor_product.irreps_out[path.i_out].ir
            coupling = path.path_weight * o3.wigner_3j(first[number].ir.l, harmonic.l, out.l, dtype=torch.float64)
            rows = torch.zeros([second.dim, self.dim * out.dim], dtype=torch.float64)
            rows[second.slices()[path.i_in2]] = coupling.permute(1, 0, 2).reshape(harmonic.dim, -1)
            couplings.append(rows)
            self.out_dims.append(out.dim)
        self.register_buffer("coupling", torch.cat(couplings, dim=1))
        self.register_buffer("weight", weight)

    def forward(self, features: Tensor, num_centres: int, edges: Edges, hidden: Tensor) -> list[Tensor]:
        own = features[:, self.start : self.start + self.channels * self.dim].view(-1, self.channels, self.dim)
        return sum_over_neighbours(
            hidden,
            self.weight,
            own.transpose(1, 2).contiguous(),
            torch.matmul(edges.harmonics, self.coupling),
            edges.neighbour,
            edges.centre_of_group,
            num_centres,
            self.out_dims,
        )


class SymmetricProduct(torch.nn.Module):
    """Symmetric products of an atom's messages with themselves, [N, (l_max + 1)², channels] → [N, F].

    Parameters: MACE's SymmetricContraction; ``agnostic``: the same weights for all elements.
    """

    def __init__(self, contractions: torch.nn.Module, agnostic: bool) -> None:
        super().__init__()
        self.agnostic: bool = agnostic
        num_elements = 1 if agnostic else int(next(iter(contractions.contractions)).weights_max.size(0))
        self.polynomials = torch.nn.ModuleList(_Polynomial(part, num_elements) for part in contractions.contractions)

    def forward(self, messages: Tensor, types: Tensor) -> Tensor:
        """In e3nn's layout. Parameters: ``messages`` [N, (l_max + 1)², channels], ``types`` [N]."""
        kinds = torch.zeros_like(types) if self.agnostic else types
        parts: list[Tensor] = []
        for polynomial in self.polynomials:
            parts.append(polynomial(messages, kinds).transpose(1, 2).flatten(1))
        return torch.cat(parts, dim=1)


class _Polynomial(torch.nn.Module):
    """One output irrep: Σ_ν Σ A_ν[m; i₁ … i_ν] x[i₁] … x[i_ν] in each channel, see ``symmetric_product``."""

    def __init__(self, contraction: torch.nn.Module, num_elements: int) -> None:
        super().__init__()
        highest = int(contraction.correlation)
        weights = [contraction.weights_max, *contraction.weights]  # of ν = highest, ..., 1
        tensors = []
        for order in range(1, highest + 1):
            coupling = contraction.get_buffer(f"U_matrix_{order}").double()
            size = coupling.size(-2)
            coupling = coupling.reshape(-1, *([size] * order), coupling.size(-1))
            weight = weights[highest - order].detach()[:num_elements].double()
            # [elements, channels, out, i₁, ..., i_ν]
            tensors.append(torch.einsum("...k,ekc->ec...", coupling, weight))
        elements, channels, out_dim, size = tensors[0].shape
        products = [_products(tensor.flatten(0, 1)) for tensor in tensors]
        monomials, coefficients = [], []
        for indices, values in products:
            monomials += [[*product, *[0] * (highest - len(product))] for product in indices]
            coefficients.append(values.view(elements, channels, out_dim, len(indices)).permute(0, 2, 3, 1))
        self.counts: list[int] = [len(indices) for indices, _ in products]
        self.register_buffer("monomials", torch.tensor(monomials, dtype=torch.int64).view(-1, highest))
        self.register_buffer("coefficients", torch.cat(coefficients, dim=2).contiguous())
        pairs = _common_pairs([indices for product, _ in products[1:] for indices in product])
        matrices = []
        for order, (indices, values) in reversed(list(enumerate(products[1:], 2))):
            rows = out_dim * size ** (order - 2)
            matrix = torch.zeros([elements * channels, out_dim, rows // out_dim, len(pairs)], dtype=torch.float64)
            for i, product in enumerate(indices):
                pair, rest = next((p, left) for p, left in _pairs_of(product) if p in pairs)
                row = 0
                for index in rest:
                    row = row * size + index
                matrix[:, :, row, pairs[pair]] += values[:, :, i]
            matrices.append(torch.nn.functional.pad(matrix.flatten(1, 2), (0, size)))
        if not matrices:
            matrices.append(torch.zeros([elements * channels, out_dim, size], dtype=torch.float64))
        matrices[-1][:, :, len(pairs) :] = tensors[0].flatten(0, 1)
        self.register_buffer("pairs", torch.tensor(list(pairs), dtype=torch.int64).view(-1, 2).t().contiguous())
        self.rows: list[int] = [matrix.size(1) for matrix in matrices]
        self.register_buffer("matrix", torch.cat(matrices, dim=1).unflatten(0, (elements, channels)))

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        """[n, out, channels] from ``x`` [n, (l_max + 1)², channels] and the atoms' ``kinds`` [n]."""
        return symmetric_product(
            x, kinds, self.monomials, self.counts, self.coefficients, self.pairs, self.matrix, self.rows
        )


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
