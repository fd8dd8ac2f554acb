r"""Sums of messages of a CACE network over tables of edges, and their derivative, written out.

    S_i,m,(a,b,n) = Σ_j Y_m(u_ij) g_j,|m|,a,b σ_a[Z_j] R_n(r_ij)

with the functions and tables of ``cace_edges.py``; g are the weights of the neighbours, by degree and channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from les_md.architectures.cace_products import first_row


class MessageSums(torch.nn.Module):
    """S from tables; ``num_embedding`` is the length d of both embeddings."""

    def __init__(self, max_l: int, num_embedding: int, num_bessel: int) -> None:
        super().__init__()
        self.max_l: int = max_l
        self.num_embedding: int = num_embedding
        self.num_bessel: int = num_bessel
        self.first_rows: list[int] = [first_row(degree) for degree in range(max_l + 2)]

    def _weighted(self, gates: Tensor, weights: Tensor, degree: int) -> Tensor:
        """g σ R of one degree, [N, (a, b, n), w]"""
        num_atoms, d, width = gates.size(0), self.num_embedding, gates.size(2)
        of_degree = gates.reshape(num_atoms, self.max_l + 1, d, d, width)[:, degree]
        radial = weights.reshape(num_atoms, d, 1, self.num_bessel, width)
        return (of_degree.unsqueeze(3) * radial).reshape(num_atoms, d * d * self.num_bessel, width)

    def forward(self, angular: Tensor, weights: Tensor, gates: Tensor) -> Tensor:
        """Y [N, M, w], σ R [N, (a, n), w] and g [N, (l, a, b), w] → S [N, M, (a, b, n)]"""
        sums: list[Tensor] = []
        for degree in range(self.max_l + 1):
            of_degree = angular[:, self.first_rows[degree] : self.first_rows[degree + 1]]
            sums.append(torch.bmm(of_degree, self._weighted(gates, weights, degree).transpose(1, 2)))
        return torch.cat(sums, dim=1)

    @torch.jit.export
    def pull_back(
        self, angular: Tensor, weights: Tensor, gates: Tensor, of_sums: Tensor, of_weights: Tensor, of_angular: Tensor
    ) -> Tensor:
        """Derivative by g, [N, (l, a, b), w]; those by σ R and Y are added to ``of_weights`` and ``of_angular``."""
        num_atoms, d, width = gates.size(0), self.num_embedding, gates.size(2)
        radial = weights.reshape(num_atoms, d, 1, self.num_bessel, width)
        by_degree = gates.reshape(num_atoms, self.max_l + 1, d, d, 1, width)
        of_radial = of_weights.view(num_atoms, d, self.num_bessel, width)
        of_gates: list[Tensor] = []
        for degree in range(self.max_l + 1):
            first, last = self.first_rows[degree], self.first_rows[degree + 1]
            of_degree = of_sums[:, first:last]
            of_angular[:, first:last] += torch.bmm(of_degree, self._weighted(gates, weights, degree))
            of_weighted = torch.bmm(of_degree.transpose(1, 2), angular[:, first:last])
            of_weighted = of_weighted.reshape(num_atoms, d, d, self.num_bessel, width)
            of_gates.append((of_weighted * radial).sum(3).reshape(num_atoms, d * d, width))
            of_radial += (of_weighted * by_degree[:, degree]).sum(2)
        return torch.cat(of_gates, dim=1)
