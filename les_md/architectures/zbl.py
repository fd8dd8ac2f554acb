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
        #: Weights and decays of the universal screening function.
        self.terms: list[tuple[float, float]] = [
            (0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162)
        ]  # fmt: skip

    def forward(self, distance: Tensor, centre_type: Tensor, neighbour_type: Tensor) -> Tensor:
        """Half the pair energy of every edge, [E] in eV, from distances [E] in Å and types [E]."""
        z_i, z_j = self.nuclear_charge[centre_type], self.nuclear_charge[neighbour_type]
        x = distance / (self.radius[centre_type] + self.radius[neighbour_type])
        envelope = torch.where(x < 1.0, 1.0 + x**6 * (-28.0 + x * (48.0 - 21.0 * x)), torch.zeros_like(x))
        reduced = distance * (z_i**0.23 + z_j**0.23) / 0.46850
        screening = torch.zeros_like(x)
        for weight, decay in self.terms:
            screening = screening + weight * torch.exp(-decay * reduced)
        # e²/(4π eps0) = 14.399645478 eV Å (CODATA 2018).
        return 0.5 * 14.399645478 * z_i * z_j / distance * screening * envelope

    @torch.jit.export
    def with_derivative(self, distance: Tensor, centre_type: Tensor, neighbour_type: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` and its derivative [E] by the distance, in eV/Å."""
        z_i, z_j = self.nuclear_charge[centre_type], self.nuclear_charge[neighbour_type]
        inverse_range = 1.0 / (self.radius[centre_type] + self.radius[neighbour_type])
        x = distance * inverse_range
        inside = x < 1.0
        x5 = x**5
        envelope = torch.where(inside, 1.0 + x5 * x * (-28.0 + x * (48.0 - 21.0 * x)), torch.zeros_like(x))
        of_envelope = torch.where(inside, -168.0 * x5 * (1.0 - x) * (1.0 - x) * inverse_range, torch.zeros_like(x))
        scale = (z_i**0.23 + z_j**0.23) / 0.46850
        screening, of_screening = torch.zeros_like(x), torch.zeros_like(x)
        for weight, decay in self.terms:
            term = weight * torch.exp(-decay * scale * distance)
            screening = screening + term
            of_screening = of_screening - decay * scale * term
        bare = 0.5 * 14.399645478 * z_i * z_j / distance
        energy = bare * screening * envelope
        return energy, bare * (of_screening * envelope + screening * of_envelope) - energy / distance
