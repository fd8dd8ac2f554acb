"""Ziegler–Biersack–Littmark screened nuclear repulsion between close atoms.

Trained potentials have seen no two atoms closer than a bond; without a repulsive core, a rare close contact in MD
falls into an unphysical well. Source: Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Matter (1985).
"""

from __future__ import annotations

import torch
from ase.data import covalent_radii
from torch import Tensor


class ZBLRepulsion(torch.nn.Module):
    """Per-atom ZBL energy, taken smoothly to zero at the sum of the covalent radii of a pair.

    The envelope is 1 − 28x⁶ + 48x⁷ − 21x⁸ with x = r/(R_i + R_j): value, slope and curvature vanish at x = 1.
    ``longest_range`` (Å) is the largest such sum. Each directed edge carries half of the pair's energy to its centre.
    """

    def __init__(self, atomic_numbers: list[int]) -> None:
        super().__init__()
        self.register_buffer("nuclear_charge", torch.tensor(atomic_numbers, dtype=torch.float64), persistent=False)
        radii = torch.tensor(covalent_radii[atomic_numbers], dtype=torch.float64)
        self.register_buffer("radius", radii, persistent=False)
        self.longest_range: float = 2.0 * float(radii.max())

    def forward(self, distance: Tensor, centre_type: Tensor, neighbour_type: Tensor) -> Tensor:
        """Half the pair energy of every edge, [E] in eV, from distances [E] in Å and types [E]."""
        z_i, z_j = self.nuclear_charge[centre_type], self.nuclear_charge[neighbour_type]
        x = distance / (self.radius[centre_type] + self.radius[neighbour_type])
        envelope = torch.where(x < 1.0, 1.0 + x**6 * (-28.0 + x * (48.0 - 21.0 * x)), torch.zeros_like(x))
        reduced = distance * (z_i**0.23 + z_j**0.23) / 0.46850
        screening = (
            0.18175 * torch.exp(-3.19980 * reduced)
            + 0.50986 * torch.exp(-0.94229 * reduced)
            + 0.28022 * torch.exp(-0.40290 * reduced)
            + 0.02817 * torch.exp(-0.20162 * reduced)
        )
        # e²/(4π eps0) = 14.399645478 eV Å (CODATA 2018).
        return 0.5 * 14.399645478 * z_i * z_j / distance * screening * envelope
