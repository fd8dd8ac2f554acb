"""The long-range energy of latent charges in three steps: spread, solve, gather.

One process calls the three in a row; N processes put one sum over processes between ``spread`` and ``solve``.
Every step is analytic (MD needs no autograd tape) and made of differentiable operations (training may differentiate
twice). The module scripts, and is the ``long_range`` part of every exported file.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from les_md.electrostatics.ewald import reciprocal_energy, reciprocal_potential, structure_factor
from les_md.electrostatics.isolated import pair_potential
from les_md.electrostatics.parameters import LongRangeParameters


class LatentEwald(torch.nn.Module):
    """Latent Ewald Summation (Cheng, npj Comput. Mater. 11, 80 (2025)) in float64.

    A cell of zeros means an isolated system (no periodic axis); any other cell is summed as a
    three-dimensional periodic one, whatever its handedness. Charge channels never mix; their energies add up.

    ``E = ½ Σ_ic charges_ic potential_ic`` exactly, since the energy is quadratic in the charges.
    """

    def __init__(self, parameters: LongRangeParameters) -> None:
        super().__init__()
        self.sigma: float = float(parameters.sigma)
        self.dl: float = float(parameters.dl)
        self.norm_factor: float = float(parameters.norm_factor)
        self.remove_self_interaction: bool = bool(parameters.remove_self_interaction)
        self.remove_mean: bool = bool(parameters.remove_mean)
        self.epsilon_factor: float = float(parameters.epsilon_factor)

    def is_isolated(self, cell: Tensor) -> bool:
        """Whether the cell stands for an isolated system, that is, holds only zeros."""
        return bool((cell == 0.0).all().item())

    @torch.jit.export
    def spread(self, positions: Tensor, charges: Tensor, cell: Tensor) -> Tensor:
        """Density of the charges; densities of disjoint sets of atoms add up.

        Parameters: ``positions`` [N, 3] Å, ``charges`` [N, n_q] e, ``cell`` [3, 3] Å.

        Returns: periodic: structure factor [n_q, K_1+1, 2K_2+1, 2K_3+1, 2]; isolated: the atoms themselves,
        [N, 3 + n_q] (positions, charges), where a set of atoms occupies its rows and zero charge adds nothing.
        """
        if self.is_isolated(cell):
            return torch.cat([positions, charges], dim=1)
        return structure_factor(positions, charges, cell, self.dl)

    @torch.jit.export
    def solve(self, density: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energy (without the atoms' self-interaction), field and strain derivative of a density.

        Returns: energy [] eV, field (shape of the density), strain derivative dE/dε [3, 3] eV under r → r(1+ε),
        h → h(1+ε) at fixed charges.
        """
        if self.is_isolated(cell):
            positions = density[:, :3]
            charges = density[:, 3:]
            potential, field = pair_potential(positions, positions, charges, self.sigma, self.norm_factor)
            potential = potential - self._gaussian_self_potential() * charges
            forces = (charges[:, :, None] * field).sum(1)
            # Homogeneous deformation moves every atom with r: dE/dε = −Σ r ⊗ f, and the forces sum to zero.
            return 0.5 * (charges * potential).sum(), density, -torch.matmul(positions.transpose(0, 1), forces)
        return reciprocal_energy(density, cell, self.sigma, self.dl, self.norm_factor)

    @torch.jit.export
    def gather(self, field: Tensor, positions: Tensor, charges: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Potential ∂E/∂q (self-interaction included) and forces −∂E/∂r at fixed charges.

        Returns: potential [N, n_q] eV/e, forces [N, 3] eV/Å.
        """
        if self.is_isolated(cell):
            potential, electric_field = pair_potential(
                positions, field[:, :3], field[:, 3:], self.sigma, self.norm_factor
            )
            forces = (charges[:, :, None] * electric_field).sum(1)
            if self.remove_self_interaction:
                potential = potential - self._gaussian_self_potential() * charges
            return potential, forces
        potential, forces = reciprocal_potential(field, positions, charges, cell, self.dl)
        if self.remove_self_interaction:
            potential = potential - self._gaussian_self_potential() * charges
        return potential, forces

    def _gaussian_self_potential(self) -> float:
        """∂/∂q of C q²/(σ (2π)^{3/2}), per unit charge: the interaction of a Gaussian charge with itself."""
        return 2.0 * self.norm_factor / (self.sigma * (2.0 * math.pi) ** 1.5)

    @torch.jit.export
    def energy(self, positions: Tensor, charges: Tensor, cell: Tensor) -> Tensor:
        """Long-range energy [] in eV of one configuration, differentiable in all arguments."""
        density = self.spread(positions, charges, cell)
        energy, _field, _strain_derivative = self.solve(density, cell)
        self_energy = 0.5 * self._gaussian_self_potential() * (charges**2).sum()
        if self.is_isolated(cell):
            return energy if self.remove_self_interaction else energy + self_energy
        return energy - self_energy if self.remove_self_interaction else energy

    def forward(self, positions: Tensor, charges: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The three steps in a row.

        Returns: energy per atom [N] (½ Σ_c q φ) eV, potential [N, n_q] eV/e, forces at fixed charges [N, 3] eV/Å,
        strain derivative at fixed charges [3, 3] eV.
        """
        density = self.spread(positions, charges, cell)
        _energy, field, strain_derivative = self.solve(density, cell)
        potential, forces = self.gather(field, positions, charges, cell)
        return 0.5 * (charges * potential).sum(1), potential, forces, strain_derivative
