"""Values of a CACE network and their vector–Jacobian product by functions that were compiled ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

#: Atoms and neighbours that a table has at least: compilers take dimensions of one for constants.
SMALLEST = 2


class CompiledEvaluation(torch.nn.Module):
    """As ``WholeEvaluation``, in Python: the tables of edges and the repulsion by ``plain``, the network compiled.

    Parameters
    ----------
    plain : ``CACEEvaluation`` of the same network without message passing, in Python or scripted.
    values, derivative : compiled ``cace_blocks.BlockValues`` and ``BlockDerivative``; both return lists of tensors.
    """

    def __init__(self, plain: torch.nn.Module, values: Callable, derivative: Callable) -> None:
        super().__init__()
        self.plain = plain
        self._values = values
        self._derivative = derivative

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """See ``WholeEvaluation.forward``. The state is of this class alone."""
        with torch.no_grad():
            return self._forward(edge_vectors, edge_index, types)

    def _forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        plain = self.plain
        arranged, starts = plain.arrange(edge_vectors, edge_index, types)
        order, centre, _neighbour, neighbour_types, edges, counts, slots = arranged
        num_nodes, num_atoms = types.size(0), counts.size(0)
        if num_atoms == 0:
            nothing = torch.zeros([0], dtype=edges.dtype, device=types.device)
            return nothing, nothing.reshape(0, plain.num_charges), [order]
        vectors = edges[:, :3]
        x, y, z = vectors.unbind(1)  # sums over so few columns are slow
        distance = torch.sqrt(x * x + y * y + z * z)
        pair_energy, pairs, slope, pair_centre = plain.close_pairs(distance, centre, types[:num_atoms], neighbour_types)
        along = (slope / distance.index_select(0, pairs)).unsqueeze(1) * vectors.index_select(0, pairs)
        state = [order, pairs, along, pair_centre]
        size = plain.size_of_blocks(counts)
        outputs = []
        for block, (start, end) in enumerate(itertools.pairwise(starts)):
            first, last = block * size, min((block + 1) * size, num_atoms)
            width = max(int(counts[first:last].max()), SMALLEST)
            rows = (centre[start:end] - first) * width + slots[start:end]
            table = plain.table(edges[start:end], rows, max(last - first, SMALLEST), width)
            scales = _padded(plain.scales.index_select(2, types[first:last]))
            values, *kept = self._values(table, scales)
            outputs.append(values[:, : last - first])
            state.extend([rows, table, scales, *kept])
        values = torch.cat(outputs, dim=1)
        values[0] += pair_energy
        if num_nodes > num_atoms:
            values = torch.cat([values, values[:, -1:].expand(-1, num_nodes - num_atoms)], dim=1)
        return values[0], values[1:].t(), state

    def pull_back(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        state: list[Tensor],
        energy_cotangent: Tensor,
        charge_cotangent: Tensor,
    ) -> Tensor:
        """See ``WholeEvaluation.pull_back``."""
        return self.pull_back_all(
            edge_vectors, edge_index, types, state, energy_cotangent.unsqueeze(0), charge_cotangent.unsqueeze(0)
        )[0]

    def pull_back_all(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        state: list[Tensor],
        energy_cotangents: Tensor,
        charge_cotangents: Tensor,
    ) -> Tensor:
        """See ``WholeEvaluation.pull_back_all``."""
        cotangents = torch.cat([energy_cotangents.unsqueeze(1), charge_cotangents.transpose(1, 2)], dim=1)
        with torch.no_grad():
            gradients = [self._pull_back(state, each) for each in cotangents.detach().to(self.plain.scales.dtype)]
            return torch.stack(gradients).to(edge_vectors.dtype)

    def _pull_back(self, state: list[Tensor], cotangent: Tensor) -> Tensor:
        """Derivative [E, 3] of one ``cotangent`` [1 + n_q, N]."""
        if len(state) == 1:
            return torch.zeros([0, 3], dtype=cotangent.dtype, device=cotangent.device)
        order, pairs, along, pair_centre = state[:4]
        per_block = 6 + self.plain.num_hidden
        parts = []
        first = 0
        for start in range(4, len(state), per_block):
            rows, table, scales, *kept = state[start : start + per_block]
            of_block = _padded(cotangent[:, first : first + table.size(0)])
            (gradient,) = self._derivative(table, scales, of_block, *kept)
            parts.append(gradient.transpose(1, 2).reshape(-1, 3).index_select(0, rows))
            first += table.size(0)
        gradient = torch.cat(parts)
        gradient.index_add_(0, pairs, along * cotangent[0].index_select(0, pair_centre).unsqueeze(1))
        return gradient if order.size(0) == 0 else torch.zeros_like(gradient).index_copy_(0, order, gradient)


def _padded(of_atoms: Tensor) -> Tensor:
    """[..., N] with at least ``SMALLEST`` atoms, those added being zero."""
    missing = SMALLEST - of_atoms.size(-1)
    return of_atoms.contiguous() if missing <= 0 else torch.nn.functional.pad(of_atoms, (0, missing))
