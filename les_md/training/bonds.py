"""Bonds and molecules of a structure, from distances and covalent radii alone."""

from __future__ import annotations

import torch
from ase.data import covalent_radii
from torch import Tensor

from les_md.training.dataset import Frame

#: Atoms closer than this times the sum of their covalent radii are bonded.
BONDED = 1.25


def bond_matrix(frame: Frame, numbers: Tensor) -> Tensor:
    """1 for bonded pairs, else 0: [N, N] float64, of atomic ``numbers`` [N]."""
    radius = torch.tensor(covalent_radii, dtype=torch.float64)[numbers]
    edge_index, offsets = frame.neighbours(float(2.0 * BONDED * radius.max()))
    centre, neighbour = edge_index[0], edge_index[1]
    distance = torch.linalg.norm(frame.positions[neighbour] - frame.positions[centre] + offsets, dim=1)
    bonded = distance < BONDED * (radius[centre] + radius[neighbour])
    bonds = torch.zeros((numbers.size(0), numbers.size(0)), dtype=torch.float64)
    bonds[centre[bonded], neighbour[bonded]] = 1.0
    return bonds


def molecules(bonds: Tensor) -> Tensor:
    """Molecule of each atom [N], named by its first atom, from a bond matrix [N, N]."""
    connected = ((bonds + torch.eye(bonds.size(0), dtype=bonds.dtype)) > 0).double()
    while True:
        further = ((connected @ connected) > 0).double()
        if bool((further == connected).all()):
            return torch.argmax(connected, dim=1)
        connected = further
