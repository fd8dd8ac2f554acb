"""The two costly sums of a MACE layer as functions of tensors alone.

An engine may run operators of its own in place of them: LAMMPS has them in ``network_operators.cpp``, which it puts
where an exported file calls these functions. They are found by their names, and get the same arguments.
"""

from __future__ import annotations

from typing import List  # noqa: UP035  (TorchScript knows only this)

import torch
from torch import Tensor


def sum_over_neighbours(
    hidden: Tensor,
    weight: Tensor,
    features: Tensor,
    coupled: Tensor,
    neighbour: Tensor,
    centre_of_group: Tensor,
    num_centres: int,
    out_dims: List[int],  # noqa: UP006
) -> List[Tensor]:  # noqa: UP006
    """Σ_p Σ_d ``coupled``[p, d → o] (``hidden``[p] · ``weight``)[c] ``features``[``neighbour``[p], d, c], by centre.

    Parameters
    ----------
    hidden : [P, K], of which the radial functions of each path and channel are linear combinations.
    weight : [K, paths · C], constant.
    features : [N, dim, C] of the nodes.
    coupled : [P, Σ dim · out], harmonics of each edge times coupling coefficients: for path after path [dim, out].
    neighbour : [P] int64, whose features a place takes.
    centre_of_group : [G] int64, of each P / G places in a row; in ascending order.
    num_centres, out_dims : n; components of each path's outcome.

    Returns [n, out, C] for each path.
    """
    dim, channels = features.size(1), features.size(2)
    places, groups, paths = neighbour.size(0), centre_of_group.size(0), len(out_dims)
    # rows: places of a group, then components of the neighbour's features
    rows = dim * (places // max(groups, 1))
    of_neighbour = features.flatten(1).index_select(0, neighbour).view(places, 1, dim, channels)
    weighted = (torch.matmul(hidden, weight).view(places, paths, 1, channels) * of_neighbour).unbind(1)
    sums: List[Tensor] = []  # noqa: UP006
    first = 0
    for path, out in enumerate(out_dims):
        left = coupled[:, first : first + dim * out].reshape(groups, rows, out)
        first += dim * out
        of_group = torch.bmm(left.transpose(1, 2), weighted[path].reshape(groups, rows, channels))
        zeros = torch.zeros([num_centres, out * channels], dtype=features.dtype, device=features.device)
        sums.append(zeros.index_add(0, centre_of_group, of_group.flatten(1)).view(num_centres, out, channels))
    return sums


def symmetric_product(
    x: Tensor,
    kinds: Tensor,
    monomials: Tensor,
    counts: List[int],  # noqa: UP006
    coefficients: Tensor,
    pairs: Tensor,
    matrix: Tensor,
    rows: List[int],  # noqa: UP006
) -> Tensor:
    """Polynomial of the components of ``x`` in each channel: Σ_m coefficients[kind, o, m, c] Π_{i in m} x[i, c].

    Parameters
    ----------
    x : [n, size, C].
    kinds : [n] int64, the class of each atom, whose coefficients are the same.
    monomials : [M, ν] int64, the factors of each; ``counts`` of them have 1, 2, ..., ν factors, and the rest of such a
        row has no meaning.
    coefficients : [kinds, out, M, C], constant.
    pairs, matrix, rows : the same polynomial, constant, as it is evaluated here. Few of the products x[i₁] … x[i_ν]
        occur; two indices of each run over a few ``pairs`` [2, pairs] alone, of which every product contains one.
        ``matrix`` [kinds, C, Σ rows, pairs + size] contracts these, and x itself for ν = 1, in one product; its rows
        are (o, i₁, ..., i_{ν-2}) of the highest ν to 2, one after the other, ``rows`` in number.

    Returns [n, out, C].
    """
    order = kinds.argsort(stable=True)
    in_order: List[int] = torch.bincount(kinds, minlength=matrix.size(0)).tolist()  # noqa: UP006
    outputs: List[Tensor] = []  # noqa: UP006
    first = 0
    for kind in range(matrix.size(0)):
        count = in_order[kind]
        if count > 0:
            # The atoms run fastest: every operation below is over long rows.
            own = x.index_select(0, order[first : first + count]).permute(2, 1, 0).contiguous()
            first += count
            of_pairs = own.index_select(1, pairs[0]) * own.index_select(1, pairs[1])
            partial = torch.bmm(matrix[kind], torch.cat([of_pairs, own], dim=1)).split(rows, dim=1)
            # One index fewer in each round, as in Horner's scheme.
            total = partial[0]
            for i in range(1, len(partial)):
                total = total.view(own.size(0), -1, own.size(1), count) * own.unsqueeze(1)
                total = total.sum(2) + partial[i]
            outputs.append(total.permute(2, 1, 0))
    if len(outputs) == 0:
        return x.new_zeros([0, coefficients.size(1), x.size(2)])
    return torch.cat(outputs).index_select(0, order.argsort())
