"""Values of a trained CACE network and their vector–Jacobian product, written out: no automatic differentiation.

The network is ``CACENetwork`` without latent variables beyond charges; results are the same to rounding. What is exact
here and saves time:

- Derivatives are written out, so nothing but what they need is kept, and they take few operations.
- Edges lie in tables by centre and neighbour throughout (``cace_edges.py``); sums over neighbours are one batched
  matrix product, their derivatives two.
- Invariant products share contractions (``cace_products.py``); readouts are merged (``cace_perceptrons.py``).
- Atoms are the last axis of their arrays, so that no operation has to reorder the features.
- Atoms are evaluated in blocks that fit into the processor's cache.
"""

from __future__ import annotations

from typing import List  # noqa: UP035  (TorchScript knows only this)

import torch
from torch import Tensor

from les_md.architectures.cace_edges import EdgeFunctions
from les_md.architectures.cace_messages import MessageSums
from les_md.architectures.cace_network import CACENetwork
from les_md.architectures.cace_perceptrons import AffineMap, MergedReadouts
from les_md.architectures.cace_products import InvariantProducts
from les_md.architectures.zbl import ZBLRepulsion
from les_md.layered_evaluation import Evaluation

#: Atoms of a block on a CPU; elsewhere there is one block.
BLOCK_SIZE = 256


class CACEEvaluation(Evaluation):
    """As ``layered_evaluation.WholeEvaluation`` of a CACE network.

    Parameters: ``network`` for which ``can_evaluate`` is true, in its final dtype; ``block_size``, a number of atoms.
    """

    def __init__(self, network: CACENetwork, block_size: int = BLOCK_SIZE) -> None:
        super().__init__()
        if not can_evaluate(network):
            raise ValueError("CACEEvaluation is for networks without latent variables beyond charges")
        self.block_size: int = block_size
        self.num_charges: int = network.num_charges
        self.num_embedding: int = network.neighbour_embedding.size(1)
        self.num_bessel: int = network.bessel_frequencies.size(0)
        self.num_radial: int = network.num_radial
        self.num_monomials: int = sum(network.sizes)
        self.cutoff: float = network.cutoff
        self.dtype: torch.dtype = network.neighbour_embedding.dtype
        self.register_buffer("neighbour_embedding", network.neighbour_embedding.detach().clone())
        self.edges = EdgeFunctions(network)
        self.products = InvariantProducts(network.max_l, network.symmetriser.max_order)
        self.num_features: int = network.symmetriser.num_features * self.num_embedding**2 * network.num_radial
        #: Tensors that a block keeps for the derivative, of the first and of each further layer.
        self.num_kept: int = 10 + len(self.products.contractions)
        self.num_kept_further: int = 2 + len(self.products.contractions)
        # [(m, a), (b, k), n]: mixing of each monomial and each channel of the neighbours
        mixing = [
            matrix.detach().transpose(1, 2)
            for matrix, size in zip(network.radial_mixing, network.sizes, strict=True)
            for _ in range(size)
        ]
        self.register_buffer("mixing", torch.cat(mixing).contiguous())
        # ρ_b^ν of every invariant and element, [Q, b, types]
        orders = torch.tensor(self.products.orders, dtype=torch.int64)
        powers = network.centre_embedding.detach().t().unsqueeze(0) ** orders[:, None, None]
        self.register_buffer("scales", powers.to(self.dtype))
        normalisation = network.message_normalisation ** orders.to(torch.float64)
        self.register_buffer("message_scales", (powers * normalisation[:, None, None]).to(self.dtype))
        self.sums = MessageSums(network.max_l, self.num_embedding, self.num_bessel)
        self.messages = torch.nn.ModuleList(
            AffineMap(message.linear.weight, message.linear.bias) for message in network.messages
        )
        readouts, scales = [network.energy_readout], [1.0]
        if self.num_charges > 0:
            readouts.append(network.charge_readout)
            scales.append(network.charge_scale)
        self.readouts = MergedReadouts(readouts, scales)
        self.num_hidden: int = self.readouts.num_hidden
        self.has_repulsion: bool = network.has_repulsion
        self.repulsion: ZBLRepulsion = network.repulsion
        self.to(self.dtype)  # the multiplicities of monomials

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor, List[Tensor]]:  # noqa: UP006
        """See ``WholeEvaluation.forward``."""
        arranged, starts = self.arrange(edge_vectors, edge_index, types)
        order, centre, neighbour, neighbour_types, edges, counts, slots = (
            arranged[0], arranged[1], arranged[2], arranged[3], arranged[4], arranged[5], arranged[6]
        )  # fmt: skip
        num_nodes, num_atoms = types.size(0), counts.size(0)
        size = self.size_of_blocks(counts)
        state: List[Tensor] = [order]  # noqa: UP006
        if num_atoms == 0:
            nothing = torch.zeros([0], dtype=self.dtype, device=types.device)
            return nothing, nothing.reshape(0, self.num_charges), state
        pair_energies: List[Tensor] = []  # noqa: UP006
        features: List[Tensor] = []  # noqa: UP006
        for block in range(len(starts) - 1):
            first, last = block * size, min((block + 1) * size, num_atoms)
            start, end = starts[block], starts[block + 1]
            width = int(counts[first:last].max().item())
            block_centre = centre[start:end] - first
            rows = block_centre * width + slots[start:end]
            of_block, pair_energy = self._first_layer(
                edges[start:end], rows, width, types[first:last], block_centre, neighbour_types[start:end], state
            )
            features.append(of_block)
            pair_energies.append(pair_energy)
        inputs = [features]
        for message in self.messages:
            gates = message(torch.cat(features, dim=1)).t()
            features = self._further_features(gates, types, neighbour, state)
            inputs.append(features)
        outputs: List[Tensor] = []  # noqa: UP006
        for block in range(len(starts) - 1):
            parts: List[Tensor] = []  # noqa: UP006
            for layer in inputs:
                parts.append(layer[block])
            values, hidden = self.readouts(torch.cat(parts) if len(parts) > 1 else parts[0])
            values[0] += pair_energies[block]
            outputs.append(values)
            state.extend(hidden)
        values = torch.cat(outputs, dim=1)
        if num_nodes > num_atoms:
            values = torch.cat([values, values[:, -1:].expand(-1, num_nodes - num_atoms)], dim=1)
        return values[0], values[1:].t(), state

    @torch.jit.export
    def arrange(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[List[Tensor], List[int]]:  # noqa: UP006
        """Edges in the order of their centres, and the first edge of every block, followed by the number of edges.

        The former is a list: what sorts the edges (empty if they are sorted); ``centre``, ``neighbour`` and type of the
        neighbour [E]; vector and embedding of the neighbour [E, 3 + d]; number of edges [N] of each atom; number of
        each edge among those of its centre [E]. N counts the atoms that have outputs of their own: of a part of a
        system, the last nodes are neighbours only. Outputs are computed up to the last centre and one node beyond,
        which stands for all further ones: none of them has a neighbour.
        """
        vectors = edge_vectors.data
        centre, neighbour = edge_index[0], edge_index[1]
        order = torch.empty([0], dtype=centre.dtype, device=centre.device)
        if not bool((centre[1:] >= centre[:-1]).all().item()):  # as those of neighbour lists mostly are
            order = torch.argsort(centre, stable=True)
            vectors = vectors.index_select(0, order)
            centre, neighbour = centre.index_select(0, order), neighbour.index_select(0, order)
        last_centre = int(centre[-1].item()) if centre.size(0) > 0 else -1
        num_atoms = min(types.size(0), last_centre + 2)
        counts = torch.bincount(centre, minlength=num_atoms)
        first_edges = torch.cumsum(counts, 0) - counts
        starts: List[int] = first_edges[:: self.size_of_blocks(counts)].tolist()  # noqa: UP006
        starts.append(centre.size(0))
        slots = torch.arange(centre.size(0), device=centre.device) - first_edges.index_select(0, centre)
        neighbour_types = types.index_select(0, neighbour)
        embedding = self.neighbour_embedding.index_select(0, neighbour_types)
        edges = torch.cat([vectors.to(self.dtype), embedding], dim=1)
        return [order, centre, neighbour, neighbour_types, edges, counts, slots], starts

    @torch.jit.export
    def size_of_blocks(self, counts: Tensor) -> int:
        """Number of atoms of every block but the last; ``counts`` as of ``arrange``."""
        return self.block_size if counts.device.type == "cpu" else max(counts.size(0), 1)

    @torch.jit.export
    def table(self, edges: Tensor, rows: Tensor, num_atoms: int, width: int) -> Tensor:
        """Table [N, 3 + d, w] of ``edges`` [E, 3 + d] that have places ``rows`` [E] among its N w."""
        table = torch.zeros([num_atoms * width, edges.size(1)], dtype=edges.dtype, device=edges.device)
        table[:, 0].fill_(self.cutoff)
        table.index_copy_(0, rows, edges)
        return table.reshape(num_atoms, width, edges.size(1)).transpose(1, 2).contiguous()

    @torch.jit.export
    def close_pairs(
        self, distance: Tensor, centre: Tensor, types: Tensor, neighbour_types: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Repulsion [N] of atoms, and of the pairs that have any: their numbers, derivatives and centres.

        Parameters: ``distance`` and ``centre`` [E] of edges; ``types`` [N]; ``neighbour_types`` [E].
        """
        energy = torch.zeros(types.size(0), dtype=self.dtype, device=types.device)
        if not self.has_repulsion:
            return energy, centre[:0], energy[:0], centre[:0]
        # Few pairs are as close as this, so the others are left out of the arithmetic.
        pairs = (distance < min(self.repulsion.longest_range, self.cutoff)).nonzero()[:, 0]
        close_centre = centre.index_select(0, pairs)
        pair_energy, derivative = self.repulsion.with_derivative(
            distance.index_select(0, pairs), types.index_select(0, close_centre), neighbour_types.index_select(0, pairs)
        )
        energy.index_add_(0, close_centre, pair_energy)
        return energy, pairs, derivative, close_centre

    def _first_layer(
        self,
        edges: Tensor,
        rows: Tensor,
        width: int,
        types: Tensor,
        centre: Tensor,
        neighbour_types: Tensor,
        state: List[Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor]:
        """Invariants [features, N] of a block of N atoms and its repulsion [N]; what the derivative needs goes to
        ``state``.

        Parameters: ``edges`` [E, 3 + d], vector and embedding of the neighbour; their places ``rows`` [E] in a table of
        the given ``width``; ``types`` [N]; ``centre`` [E] among these; ``neighbour_types`` [E].
        """
        num_atoms = types.size(0)
        table = self.table(edges, rows, num_atoms, width)
        distance, angular, sines, factor = self.edges(table[:, :3])
        sums = torch.bmm(angular, self._weights(table, factor, sines).transpose(1, 2))
        a = torch.bmm(self.mixing, sums.reshape(num_atoms, -1, self.num_bessel).permute(1, 2, 0))
        a = a.reshape(self.num_monomials, -1)
        features, contractions = self.products(a)
        energy, pairs, derivative, close_centre = self.close_pairs(
            distance.reshape(-1).index_select(0, rows) if self.has_repulsion else distance.reshape(-1)[:0],
            centre,
            types,
            neighbour_types,
        )
        close = rows.index_select(0, pairs)
        state.extend([rows, table, distance, angular, sines, factor, close, derivative, close_centre, a])
        state.extend(contractions)
        return self._scaled(features, types, self.scales).reshape(-1, num_atoms), energy

    def _weights(self, table: Tensor, factor: Tensor, sines: Tensor) -> Tensor:
        """Embedding of the neighbour times radial functions, [N, (a, n), w]"""
        return ((table[:, 3:] * factor.unsqueeze(1)).unsqueeze(2) * sines.unsqueeze(1)).flatten(1, 2)

    def _further_features(
        self,
        gates: Tensor,
        types: Tensor,
        neighbour: Tensor,
        state: List[Tensor],  # noqa: UP006
    ) -> List[Tensor]:  # noqa: UP006
        """Invariants of the next layer by block, from the weights ``gates`` [N, (l, a, b)] of the atoms of all blocks.

        Parameters: ``types`` of all nodes; ``neighbour`` [E] of the sorted edges; ``state`` of the blocks' first layer,
        to which what the derivative needs is appended.
        """
        num_atoms = gates.size(0)
        following: List[Tensor] = []  # noqa: UP006
        if types.size(0) > num_atoms:
            gates = torch.cat([gates, gates[-1:].expand(types.size(0) - num_atoms, -1)])
        first, edge, block = 0, 0, 0
        while first < num_atoms:
            kept = state[1 + block * self.num_kept : 1 + (block + 1) * self.num_kept]
            last, last_edge = first + kept[2].size(0), edge + kept[0].size(0)
            of_neighbours = gates.index_select(0, neighbour[edge:last_edge])
            following.append(self._further_layer(of_neighbours, kept, types[first:last], state))
            first, edge = last, last_edge
            block += 1
        return following

    def _further_layer(self, gates: Tensor, kept: List[Tensor], types: Tensor, state: List[Tensor]) -> Tensor:  # noqa: UP006
        """Invariants [features, N] of a block from the weights [E, (l, a, b)] of its neighbours."""
        rows, table, angular = kept[0], kept[1], kept[3]
        num_atoms, width = table.size(0), table.size(2)
        gate_table = torch.zeros([num_atoms * width, gates.size(1)], dtype=gates.dtype, device=gates.device)
        gate_table.index_copy_(0, rows, gates)
        gate_table = gate_table.reshape(num_atoms, width, gates.size(1)).transpose(1, 2).contiguous()
        sums = self.sums(angular, self._weights(table, kept[5], kept[4]), gate_table)
        a = torch.bmm(self._channel_mixing(), sums.reshape(num_atoms, -1, self.num_bessel).permute(1, 2, 0))
        a = a.reshape(self.num_monomials, -1)
        features, contractions = self.products(a)
        state.extend([gate_table, a])
        state.extend(contractions)
        return self._scaled(features, types, self.message_scales).reshape(-1, num_atoms)

    def _channel_mixing(self) -> Tensor:
        """The radial mixing by monomial and channel, [(m, a, b), k, n]"""
        return self.mixing.reshape(-1, self.num_radial, self.num_bessel)

    def _scaled(self, features: Tensor, types: Tensor, scales: Tensor) -> Tensor:
        """Invariants [Q, X], or their cotangents, times the power of their centre's embedding: [Q, a, b, k, N]"""
        d = self.num_embedding
        of_atoms = scales.index_select(2, types)
        shape = [features.size(0), d, d, self.num_radial, types.size(0)]
        return features.reshape(shape) * of_atoms[:, None, :, None, :]

    @torch.jit.export
    def pull_back_all(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        state: List[Tensor],  # noqa: UP006
        energy_cotangents: Tensor,
        charge_cotangents: Tensor,
    ) -> Tensor:
        """See ``WholeEvaluation.pull_back_all``."""
        cotangents = torch.cat([energy_cotangents.unsqueeze(1), charge_cotangents.transpose(1, 2)], dim=1)
        cotangents = cotangents.data.to(self.dtype)
        neighbour = edge_index[1]
        if state[0].size(0) > 0:
            neighbour = neighbour.index_select(0, state[0])
        gradients: List[Tensor] = []  # noqa: UP006
        for k in range(cotangents.size(0)):
            gradient = self._pull_back(neighbour, types, state, cotangents[k])
            if state[0].size(0) > 0:
                gradient = torch.zeros_like(gradient).index_copy(0, state[0], gradient)
            gradients.append(gradient.to(edge_vectors.dtype))
        return torch.stack(gradients)

    def _pull_back(self, neighbour: Tensor, types: Tensor, state: List[Tensor], cotangent: Tensor) -> Tensor:  # noqa: UP006
        """Derivative [E, 3] by the sorted edges with these ``neighbour`` [E], of one ``cotangent`` [1 + n_q, N]."""
        num_layers = 1 + len(self.messages)
        per_block = self.num_kept + (num_layers - 1) * self.num_kept_further + self.num_hidden
        num_blocks = (len(state) - 1) // per_block
        further, hidden = 1 + num_blocks * self.num_kept, len(state) - num_blocks * self.num_hidden
        of_features: List[Tensor] = []  # noqa: UP006
        of_weights: List[Tensor] = []  # noqa: UP006
        of_angular: List[Tensor] = []  # noqa: UP006
        firsts = [0]
        for block in range(num_blocks):
            kept = state[1 + block * self.num_kept : 1 + (block + 1) * self.num_kept]
            last = firsts[-1] + kept[2].size(0)
            of_hidden = state[hidden + block * self.num_hidden : hidden + (block + 1) * self.num_hidden]
            of_features.append(self.readouts.pull_back(of_hidden, cotangent[:, firsts[-1] : last]))
            firsts.append(last)
            if num_layers > 1:
                of_weights.append(torch.zeros_like(self._weights(kept[1], kept[5], kept[4])))
                of_angular.append(torch.zeros_like(kept[3]))
        size = self.num_features
        number = num_layers - 1
        for message in self.messages[::-1]:  # from the last layer to the second
            of_gates = torch.zeros([types.size(0), message.bias.size(0)], dtype=self.dtype, device=types.device)
            edge = 0
            for block in range(num_blocks):
                kept = state[1 + block * self.num_kept : 1 + (block + 1) * self.num_kept]
                start = further + ((number - 1) * num_blocks + block) * self.num_kept_further
                of_neighbours = self._pull_back_further_layer(
                    types[firsts[block] : firsts[block + 1]],
                    kept,
                    state[start : start + self.num_kept_further],
                    of_features[block][number * size : (number + 1) * size],
                    of_weights[block],
                    of_angular[block],
                )
                last_edge = edge + kept[0].size(0)
                of_gates.index_add_(0, neighbour[edge:last_edge], of_neighbours)
                edge = last_edge
            number -= 1
            for block in range(num_blocks):
                of_block = of_gates[firsts[block] : firsts[block + 1]].t()
                of_features[block][number * size : (number + 1) * size] += message.pull_back(of_block)
        parts = [torch.zeros([0, 3], dtype=self.dtype, device=types.device)]
        for block in range(num_blocks):
            parts.append(
                self._pull_back_first_layer(
                    types[firsts[block] : firsts[block + 1]],
                    state[1 + block * self.num_kept : 1 + (block + 1) * self.num_kept],
                    cotangent[0, firsts[block] : firsts[block + 1]],
                    of_features[block][:size],
                    of_weights[block : block + 1],
                    of_angular[block : block + 1],
                )
            )
        return torch.cat(parts)

    def _pull_back_further_layer(
        self,
        types: Tensor,
        kept: List[Tensor],  # noqa: UP006
        kept_further: List[Tensor],  # noqa: UP006
        of_features: Tensor,
        of_weights: Tensor,
        of_angular: Tensor,
    ) -> Tensor:
        """Derivative [E, (l, a, b)] by the weights of a block's neighbours; the others are added to the last two."""
        of_a = self._pull_back_products(kept_further[1], kept_further[2:], types, of_features, self.message_scales)
        of_sums = torch.bmm(
            self._channel_mixing().transpose(1, 2), of_a.reshape(-1, self.num_radial, types.size(0))
        ).reshape(self.num_monomials, -1, types.size(0))
        of_gates = self.sums.pull_back(
            kept[3],
            self._weights(kept[1], kept[5], kept[4]),
            kept_further[0],
            of_sums.permute(2, 0, 1).contiguous(),
            of_weights,
            of_angular,
        )
        size = of_gates.size(0) * of_gates.size(2)
        return of_gates.transpose(1, 2).reshape(size, of_gates.size(1)).index_select(0, kept[0])

    def _pull_back_products(
        self,
        a: Tensor,
        contractions: list[Tensor],
        types: Tensor,
        of_features: Tensor,
        scales: Tensor,
    ) -> Tensor:
        """Derivative [M, X] by A of Σ features · ``of_features`` [features, N]."""
        of_features = self._scaled(of_features.reshape(len(self.products.orders), -1), types, scales)
        return self.products.pull_back(a, contractions, of_features.flatten(1))

    def _pull_back_first_layer(
        self,
        types: Tensor,
        kept: List[Tensor],  # noqa: UP006
        of_energy: Tensor,
        of_features: Tensor,
        of_weights_further: List[Tensor],  # noqa: UP006
        of_angular_further: List[Tensor],  # noqa: UP006
    ) -> Tensor:
        """Derivative [E, 3] by the edge vectors of a block, with what further layers give, if there are any."""
        rows, table, distance, angular, sines, factor = kept[0], kept[1], kept[2], kept[3], kept[4], kept[5]
        vectors, embedding = table[:, :3], table[:, 3:]
        num_atoms, width = table.size(0), table.size(2)
        of_a = self._pull_back_products(kept[9], kept[10:], types, of_features, self.scales)
        of_sums = torch.bmm(self.mixing.transpose(1, 2), of_a.reshape(self.mixing.size(0), -1, num_atoms))
        of_sums = of_sums.reshape(self.num_monomials, -1, num_atoms).permute(2, 0, 1).contiguous()
        of_derivatives = torch.bmm(self.edges.derivative_of_sums(of_sums), self._weights(table, factor, sines))
        of_weights = torch.bmm(of_sums.transpose(1, 2), angular)
        if len(of_weights_further) > 0:
            of_weights = of_weights + of_weights_further[0]
            of_derivatives = of_derivatives + self.edges.derivative_of_sums(of_angular_further[0])
        of_weights = of_weights.reshape(num_atoms, self.num_embedding, self.num_bessel, width)
        of_radial = of_weights[:, 0] * embedding[:, 0:1]
        for channel in range(1, self.num_embedding):
            of_radial.addcmul_(of_weights[:, channel], embedding[:, channel : channel + 1])
        of_distance = torch.zeros_like(distance)
        if self.has_repulsion:
            of_distance.view(-1).index_add_(0, kept[6], kept[7] * of_energy.index_select(0, kept[8]))
        gradient = self.edges.pull_back(
            vectors, distance, angular, sines, factor, of_derivatives, of_radial, of_distance
        )
        return gradient.transpose(1, 2).reshape(num_atoms * width, 3).index_select(0, rows)


def can_evaluate(network: CACENetwork) -> bool:
    """Whether ``CACEEvaluation`` knows all parts of a network."""
    return network.latent_readout is None and not network.has_fixed_charges
