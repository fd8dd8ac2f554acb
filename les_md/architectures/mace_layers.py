"""One layer of MACE, arranged for speed: sums over neighbours and products of features as matrix products.

mace-torch forms the tensor product of every edge, [E, channels · (l_max + 1)²], adds those of each atom up, and raises
the result to products through arrays over all pairs of its components. On a CPU nearly all of its time goes into moving
these arrays. Here the same sums are done in another order; the results agree to rounding.

Source: Batatia et al., NeurIPS 2022, eq. 8 (``NeighborSum``), eqs. 10 and 11 (``SymmetricProduct``).
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from torch import Tensor

from les_md.architectures.registry import UnsupportedModelError

#: Edges of one centre are handled in groups of so many; the last one is filled up with edges that have no weight.
GROUP_SIZE = 8


class Edges(NamedTuple):
    """Edges of n centres, in groups of ``GROUP_SIZE`` with a common centre; P places, some of them empty.

    Attributes
    ----------
    neighbour, centre : [P] int64.  centre_of_group : [P / GROUP_SIZE].
    lengths : [P, 1] Å.  harmonics : [P, (l_max + 1)²].  radial : [P, basis], zero at an empty place.
    cutoff : [P, 1] if the radial functions are without it, and then zero at an empty place.
    """

    neighbour: Tensor
    centre: Tensor
    centre_of_group: Tensor
    lengths: Tensor
    harmonics: Tensor
    radial: Tensor
    cutoff: Optional[Tensor]  # noqa: UP045


class MACELayer(torch.nn.Module):
    """Interaction and product of one layer, made of those of a MACE model, whose modules it takes over."""

    def __init__(self, interaction: torch.nn.Module, product: torch.nn.Module) -> None:
        super().__init__()
        self.group_size: int = GROUP_SIZE
        self.linear_up = interaction.linear_up
        self.neighbor_sum = NeighborSum(interaction.conv_tp, interaction.conv_tp_weights)
        self.linear = interaction.linear
        self.skip = interaction.skip_tp
        self.reshape = interaction.reshape
        self.avg_num_neighbors: float = float(interaction.avg_num_neighbors)
        kind = type(interaction).__name__
        # Where there is a residual connection, ``skip`` is of the layer's input, otherwise it mixes the messages.
        self.is_residual: bool = "Residual" in kind
        self.has_density: bool = "Density" in kind
        self.density = interaction.density_fn if self.has_density else torch.nn.Identity()
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
        messages = self.linear(self.neighbor_sum(self.linear_up(features), num_centres, edges))
        if self.has_density:
            density = torch.tanh(self.density(edges.radial) ** 2)
            cutoff = edges.cutoff
            if cutoff is not None:
                density = density * cutoff
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


class EdgeGroups(torch.nn.Module):
    """Sorts edges into groups of ``GROUP_SIZE`` with a common centre."""

    def __init__(self) -> None:
        super().__init__()
        self.size: int = GROUP_SIZE

    def forward(self, centre: Tensor, num_centres: int) -> tuple[Tensor, Tensor]:
        """Number of the edge at each place [P], E at a place that stays empty; centre of each group [P / GROUP_SIZE].

        Parameters: ``centre`` [E] int64, each below ``num_centres``.
        """
        order = torch.argsort(centre, stable=True)
        counts = torch.bincount(centre, minlength=num_centres)
        groups = torch.div(counts + (self.size - 1), self.size, rounding_mode="floor")
        nodes = torch.arange(num_centres, device=centre.device)
        centre_of_group = torch.repeat_interleave(nodes, groups)
        # From the first edge of a centre to the first place of its groups.
        shift = self.size * (groups.cumsum(0) - groups) - (counts.cumsum(0) - counts)
        places = torch.arange(centre.size(0), device=centre.device) + shift.index_select(0, centre[order])
        edges = torch.full(
            [self.size * centre_of_group.size(0)], centre.size(0), dtype=torch.int64, device=centre.device
        )
        return edges.index_copy(0, places, order), centre_of_group


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
        self.radial_layers = torch.nn.ModuleList(layers)
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
        hidden = edges.radial
        for layer in self.radial_layers:
            hidden = layer(hidden)
        cutoff = edges.cutoff
        if cutoff is not None:
            hidden = hidden * cutoff
        sums: list[Tensor] = []
        for paths in self.inputs:
            sums.extend(paths(features, num_centres, edges, hidden))
        return torch.cat([sums[i] for i in self.order], dim=1)


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

    For ν ≥ 2 the last two indices run over the pairs i ≤ j alone, since the products do not depend on their order.
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
        self.register_buffer("linear", linear)
        first, second = torch.triu_indices(self.size, self.size)
        self.register_buffer("first_of_pair", first.clone())
        self.register_buffer("second_of_pair", second.clone())
        higher = [torch.zeros([channels, 0, len(first)], dtype=torch.float64)]
        for tensor in reversed(coefficients[1:]):
            both = tensor + tensor.transpose(-1, -2)
            both.diagonal(dim1=-2, dim2=-1).mul_(0.5)
            higher.append(both[..., first, second].reshape(channels, -1, len(first)))
        # rows: (out, i₁, ..., i_{ν-2}) of ν = highest, ..., 2, one after the other
        self.rows: list[int] = [tensor.size(1) for tensor in higher[1:]] or [0]
        self.register_buffer("higher", torch.cat(higher, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """[channels, out, n] from ``x`` [channels, (l_max + 1)², n]."""
        result = torch.bmm(self.linear, x)
        if self.higher.size(1) == 0:
            return result
        pairs = x.index_select(1, self.first_of_pair) * x.index_select(1, self.second_of_pair)
        partial = torch.bmm(self.higher, pairs).split(self.rows, dim=1)
        # One index fewer in each round, as in Horner's scheme.
        total = partial[0]
        for i in range(1, len(partial)):
            total = total.view(x.size(0), -1, self.size, x.size(2)) * x.unsqueeze(1)
            total = total.sum(2) + partial[i]
        return result + total
