r"""Dipoles and quadrupoles in the reciprocal sum: S(k) = Σ (q + i k·u − ½ k·Q·k) exp(i k·r).

Every component of the sources is transformed like a charge, on the mesh with the same window; in reciprocal space it
is multiplied with its factor f(k) = 1, i k_a, −½ k_a² or −k_a k_b and all are added to S(k). On the way back the field
is multiplied with the conjugate factors. So the sums over wave vectors, densities and their reduction over processes
are those of charges, and potential, forces and strain derivative are exact derivatives of the energy on the mesh too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from les_md.electrostatics.multipole_sources import multipole_order, quadrupole_axes


def wave_vectors(cell: Tensor, limits: list[int]) -> Tensor:
    """k of the half space, [3, K_1+1, 2K_2+1, 2K_3+1] in 1/Å."""
    n1 = torch.arange(0, limits[0] + 1, device=cell.device, dtype=cell.dtype)[:, None, None]
    n2 = torch.arange(-limits[1], limits[1] + 1, device=cell.device, dtype=cell.dtype)[:, None]
    n3 = torch.arange(-limits[2], limits[2] + 1, device=cell.device, dtype=cell.dtype)
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).transpose(0, 1)
    components: list[Tensor] = []
    for axis in range(3):
        components.append(n1 * reciprocal[0, axis] + n2 * reciprocal[1, axis] + n3 * reciprocal[2, axis])
    return torch.stack(components)


def _quadrupole_factor(waves: Tensor, component: int) -> Tensor:
    first, second = quadrupole_axes()
    factor = -0.5 if component < 3 else -1.0
    return (factor * waves[first[component]] * waves[second[component]])[..., None]


def _times_i(numbers: Tensor) -> Tensor:
    """i times complex numbers as pairs of real ones, [..., 2]."""
    return torch.stack([-numbers[..., 1], numbers[..., 0]], dim=-1)


def combined_structure_factor(rows: Tensor, waves: Tensor, num_charges: int) -> Tensor:
    """S(k) [n_q, K_1+1, 2K_2+1, 2K_3+1, 2] from the transforms of every component, ``rows`` [M, …, 2].

    Parameters: ``waves`` of ``wave_vectors``.
    """
    order = multipole_order(rows.size(0), num_charges)
    channels: list[Tensor] = []
    for channel in range(num_charges):
        total = rows[channel]
        if order > 0:
            first = num_charges + 3 * channel
            along = torch.zeros_like(total)
            for axis in range(3):
                along = along + waves[axis][..., None] * rows[first + axis]
            total = total + _times_i(along)
        if order > 1:
            first = 4 * num_charges + 6 * channel
            for component in range(6):
                total = total + _quadrupole_factor(waves, component) * rows[first + component]
        channels.append(total)
    return torch.stack(channels)


def expanded_field(field: Tensor, waves: Tensor, order: int) -> Tensor:
    """The field of every component, [M, K_1+1, 2K_2+1, 2K_3+1, 2], from that of the charges, ``field`` [n_q, …, 2]."""
    rows = [field]
    if order > 0:
        turned = -_times_i(field)
        for channel in range(field.size(0)):
            rows.append(waves[..., None] * turned[channel])
    if order > 1:
        for channel in range(field.size(0)):
            of_channel: list[Tensor] = []
            for component in range(6):
                of_channel.append(_quadrupole_factor(waves, component) * field[channel])
            rows.append(torch.stack(of_channel))
    return torch.cat(rows)
