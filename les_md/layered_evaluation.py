"""Values of a network and their vector–Jacobian product, in blocks of atoms where the network has layers.

Automatic differentiation keeps every intermediate array of all layers until the derivative is taken, some ten kilobytes
per edge of a usual MACE. A layer needs of the rest of the system no more than the features of its neighbours. So the
layers are evaluated for one block of atoms after the other, keeping nothing but the features between layers; for the
derivative each block is evaluated once more, with its tape, from the last layer to the first. The memory is that of
one block, and what a block works on stays in the processor's caches.
"""

from __future__ import annotations

from typing import List  # noqa: UP035  (TorchScript knows only this)

import torch
from torch import Tensor

#: Atoms of a block.
BLOCK_SIZE = 64

#: Systems of up to so many atoms are evaluated at once: a second evaluation costs more than it saves.
WHOLE_UP_TO = 256


class Evaluation(torch.nn.Module):
    """What evaluations of networks share: one derivative is the first of those of ``pull_back_all``.

    Subclasses have ``forward`` and ``pull_back_all``, as ``WholeEvaluation``.
    """

    @torch.jit.export
    def pull_back(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        state: List[Tensor],  # noqa: UP006
        energy_cotangent: Tensor,
        charge_cotangent: Tensor,
    ) -> Tensor:
        """Derivative [E, 3] of Σ energy · ``energy_cotangent`` [N] + Σ charge · ``charge_cotangent`` [N, n_q].

        Other parameters as in ``forward``, with its ``state``; may be called several times.
        """
        return self.pull_back_all(
            edge_vectors, edge_index, types, state, energy_cotangent.unsqueeze(0), charge_cotangent.unsqueeze(0)
        )[0]


class WholeEvaluation(Evaluation):
    """Of any network: all at once, keeping the tape in between."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor, List[Tensor]]:  # noqa: UP006
        """Energy [N] and charge [N, n_q] without a tape, and what ``pull_back`` needs.

        Parameters: ``edge_vectors`` [E, 3], ``edge_index`` [2, E] (centre, neighbour), ``types`` [N].
        """
        vectors = edge_vectors.data.clone().requires_grad_(True)
        energy, charge = self.network(vectors, edge_index, types)
        return energy.data, charge.data, [vectors, energy, charge]

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
        """``pull_back`` of each of ``energy_cotangents`` [K, N], ``charge_cotangents`` [K, N, n_q]: [K, E, 3]."""
        vectors, energy, charge = state[0], state[1], state[2]
        gradients: List[Tensor] = []  # noqa: UP006
        for k in range(energy_cotangents.size(0)):
            total = (energy * energy_cotangents[k]).sum() + (charge * charge_cotangents[k]).sum()
            if not total.requires_grad:  # no edge, or a network that does not depend on them
                gradients.append(torch.zeros_like(edge_vectors))
            else:
                gradient = torch.autograd.grad([total], [vectors], retain_graph=True, allow_unused=True)[0]
                gradients.append(torch.zeros_like(edge_vectors) if gradient is None else gradient)
        return torch.stack(gradients)


class LayeredEvaluation(Evaluation):
    """Of a network with layers (see ``architectures.registry.TrainedModel``): in blocks.

    Parameters: ``block_size`` and ``whole_up_to``, numbers of atoms.
    """

    def __init__(self, network: torch.nn.Module, block_size: int = BLOCK_SIZE, whole_up_to: int = WHOLE_UP_TO) -> None:
        super().__init__()
        self.network = network
        self.whole = WholeEvaluation(network)
        self.num_layers: int = int(network.num_layers)
        self.block_size: int = block_size
        self.whole_up_to: int = whole_up_to

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor, List[Tensor]]:  # noqa: UP006
        """As ``WholeEvaluation``; the state is the features [N, F] before each layer."""
        if types.size(0) <= self.whole_up_to:
            return self.whole(edge_vectors, edge_index, types)
        vectors, index, _order = self._sorted(edge_vectors.data, edge_index)
        starts = self._starts(index, types.size(0))
        features = self.network.initial_features(types)
        state = [features]
        energies: List[Tensor] = []  # noqa: UP006
        charges: List[Tensor] = []  # noqa: UP006
        for number in range(self.num_layers):
            parts: List[Tensor] = []  # noqa: UP006
            block_energies: List[Tensor] = []  # noqa: UP006
            block_charges: List[Tensor] = []  # noqa: UP006
            for block in range(len(starts) - 1):
                members, local_index, count = self._block(index, starts, block, types.size(0))
                after, energy, charge = self.network.layer(
                    number,
                    features.index_select(0, members),
                    types.index_select(0, members),
                    vectors[starts[block] : starts[block + 1]],
                    local_index,
                    count,
                )
                parts.append(after)
                block_energies.append(energy)
                block_charges.append(charge)
            features = torch.cat(parts)
            energies.append(torch.cat(block_energies))
            charges.append(torch.cat(block_charges))
            state.append(features)
        return torch.stack(energies).sum(0), torch.stack(charges).sum(0), state

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
        """As ``WholeEvaluation.pull_back_all``; every block is evaluated once for all of the K."""
        if types.size(0) <= self.whole_up_to:
            return self.whole.pull_back_all(
                edge_vectors, edge_index, types, state, energy_cotangents, charge_cotangents
            )
        vectors, index, order = self._sorted(edge_vectors.data, edge_index)
        starts = self._starts(index, types.size(0))
        size = energy_cotangents.size(0)
        gradient = torch.stack([torch.zeros_like(vectors)] * size)
        of_features = torch.stack([torch.zeros_like(state[self.num_layers])] * size)
        of_outputs = ((energy_cotangents != 0.0) | (charge_cotangents != 0.0).any(2)).any(0)
        for back in range(self.num_layers):
            number = self.num_layers - 1 - back
            of_features_before = torch.stack([torch.zeros_like(state[number])] * size)
            needed = of_outputs
            if back > 0:
                needed = needed | (of_features != 0.0).any(2).any(0)
            counts = self._count_by_block(needed.to(torch.int64))
            for block in range(len(starts) - 1):
                # A process needs its own atoms only of the last layer, and around them one hop more of each before.
                if counts[block] == 0:
                    continue
                members, local_index, count = self._block(index, starts, block, types.size(0))
                first = block * self.block_size
                block_vectors = vectors[starts[block] : starts[block + 1]].clone().requires_grad_(True)
                # Only the first layer's features do not depend on the edges.
                features = state[number].index_select(0, members).requires_grad_(number > 0)
                after, energy, charge = self.network.layer(
                    number, features, types.index_select(0, members), block_vectors, local_index, count
                )
                inputs = [block_vectors, features] if number > 0 else [block_vectors]
                for k in range(size):
                    total = (energy * energy_cotangents[k, first : first + count]).sum()
                    total = total + (charge * charge_cotangents[k, first : first + count]).sum()
                    if back > 0:
                        total = total + (after * of_features[k, first : first + count]).sum()
                    if total.requires_grad:
                        gradients = torch.autograd.grad([total], inputs, retain_graph=k + 1 < size, allow_unused=True)
                        of_vectors = gradients[0]
                        if of_vectors is not None:
                            gradient[k, starts[block] : starts[block + 1]] += of_vectors
                        if number > 0:
                            of_members = gradients[1]
                            if of_members is not None:
                                of_features_before[k].index_add_(0, members, of_members)
            of_features = of_features_before
        return torch.zeros_like(gradient).index_copy(1, order, gradient)

    def _sorted(self, edge_vectors: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Edges in the order of their centres."""
        order = torch.argsort(edge_index[0], stable=True)
        return edge_vectors.index_select(0, order), edge_index.index_select(1, order), order

    def _starts(self, edge_index: Tensor, num_atoms: int) -> List[int]:  # noqa: UP006
        """First edge of each block, and the number of edges."""
        first_atoms = torch.arange(0, num_atoms, self.block_size, device=edge_index.device)
        starts: List[int] = torch.searchsorted(edge_index[0].contiguous(), first_atoms).tolist()  # noqa: UP006
        starts.append(edge_index.size(1))
        return starts

    def _count_by_block(self, counts: Tensor) -> List[int]:  # noqa: UP006
        """Sums over the atoms of each block of ``counts`` [N] int64."""
        block = torch.div(torch.arange(counts.size(0), device=counts.device), self.block_size, rounding_mode="floor")
        num_blocks = (counts.size(0) + self.block_size - 1) // self.block_size
        sums = torch.zeros([num_blocks], dtype=counts.dtype, device=counts.device)
        result: List[int] = sums.index_add(0, block, counts).tolist()  # noqa: UP006
        return result

    def _block(
        self,
        edge_index: Tensor,
        starts: List[int],  # noqa: UP006
        block: int,
        num_atoms: int,
    ) -> tuple[Tensor, Tensor, int]:
        """Atoms of a block followed by the other ends of its edges, its edges in terms of these, and its size."""
        first = block * self.block_size
        last = min(first + self.block_size, num_atoms)
        centre = edge_index[0, starts[block] : starts[block + 1]]
        neighbour = edge_index[1, starts[block] : starts[block + 1]]
        inside = (neighbour >= first) & (neighbour < last)
        others = torch.unique(neighbour.masked_select(inside.logical_not()))
        members = torch.cat([torch.arange(first, last, device=edge_index.device), others])
        local = torch.where(inside, neighbour - first, torch.searchsorted(others, neighbour) + (last - first))
        return members, torch.stack([centre - first, local]), last - first
