"""The long-range energy of latent charges in three steps: spread, solve, gather, after a plan of how to do it.

One process calls the three in a row; N processes put one sum over processes between ``spread`` and ``solve``.
Every step is analytic (MD needs no autograd tape) and made of differentiable operations (training may differentiate
twice). The module scripts, and is the ``long_range`` part of every exported file.
"""

from __future__ import annotations

import math
from typing import Dict, List  # noqa: UP035  (TorchScript knows only these)

import torch
from torch import Tensor

from les_md.electrostatics.ewald import (
    half_space_limits,
    reciprocal_energy,
    reciprocal_field,
    reciprocal_potential,
    reciprocal_strain_derivative,
    reciprocal_weights,
    structure_factor,
)
from les_md.electrostatics.isolated import gaussian_self_potential, pair_potential
from les_md.electrostatics.isolated_mesh import isolated_coordinates, isolated_mesh_potential
from les_md.electrostatics.latent_planner import LatentPlanner, three_integers
from les_md.electrostatics.mesh import (
    forces_on_mesh,
    gather_from_mesh,
    mesh_of_field,
    padded_shape,
    periodic_coordinates,
    spread_on_mesh,
    structure_factor_of_mesh,
)
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.electrostatics.slab import slab_moments, slab_potential, slab_strain_derivative


class LatentEwald(LatentPlanner):
    """Latent Ewald Summation (Cheng, npj Comput. Mater. 11, 80 (2025)) in float64.

    A cell of zeros means an isolated system (no periodic axis); any other cell is summed as a
    three-dimensional periodic one, whatever its handedness. Charge channels never mix; their energies add up.

    ``E = ½ Σ_ic charges_ic potential_ic`` exactly, since the energy is quadratic in the charges.

    How a sum is done, its ``plan``, is what ``LatentPlanner`` is about.
    """

    def __init__(self, parameters: LongRangeParameters) -> None:
        super().__init__(parameters)
        self.remove_self_interaction: bool = bool(parameters.remove_self_interaction)
        self.remove_mean: bool = bool(parameters.remove_mean)
        self.epsilon_factor: float = float(parameters.epsilon_factor)

    @torch.jit.export
    def spread(self, positions: Tensor, charges: Tensor, plan: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
        """Density of the charges, a flat vector.

        Parameters: ``positions`` [N, 3] Å, ``charges`` [N, n_q] e.

        Densities of disjoint sets of atoms add up; those of solver 2 (the atoms themselves, N rows of 3 + n_q numbers)
        are put one after the other.
        """
        solver = int(plan["solver"].item())
        if solver == 2:
            return torch.cat([positions, charges], dim=1).reshape(-1)
        if solver == 1 or solver == 3:
            coordinates, shape = self.mesh_coordinates(positions, plan)
            mesh = spread_on_mesh(coordinates, charges, shape, plan["polynomials"])
            return self.density_of_mesh(mesh, positions, charges, plan)
        cell = plan["cell"]
        density = structure_factor(positions, charges, cell, half_space_limits(plan["weight"])).reshape(-1)
        return self._with_slab_moments(density, positions, charges, plan)

    def _with_slab_moments(
        self,
        density: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> Tensor:
        if bool(plan["slab"].item()):
            return torch.cat([density, slab_moments(positions, charges, plan["cell"]).reshape(-1)])
        return density

    @torch.jit.export
    def mesh_coordinates(self, positions: Tensor, plan: Dict[str, Tensor]) -> tuple[Tensor, List[int]]:  # noqa: UP006
        """What charges at ``positions`` [N, 3] Å are spread on by a plan of solver 1 or 3.

        ``spread`` is this, ``spread_on_mesh`` with the plan's ``polynomials`` and ``density_of_mesh``; ``gather`` is
        ``mesh_of_field``, ``gather_from_mesh`` and ``gather_from_values``: an engine may have its own operators for the
        two in the middle (``mesh.py``).

        Returns: coordinates [N, 3] in mesh spacings, points of the mesh along its three axes.
        """
        shape = three_integers(plan["shape"])
        order = plan["polynomials"].size(1) // 2
        if int(plan["solver"].item()) == 3:
            return isolated_coordinates(positions, plan["origin"], float(plan["spacing"].item()), shape, order), shape
        return periodic_coordinates(positions, plan["cell"], shape, order), padded_shape(shape, order)

    @torch.jit.export
    def density_of_mesh(
        self,
        mesh: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> Tensor:
        """What ``spread`` returns, from charges spread on a mesh [n_q, points of ``mesh_coordinates``] (changed)."""
        if int(plan["solver"].item()) == 3:
            return mesh.reshape(-1)
        density = structure_factor_of_mesh(mesh, three_integers(plan["shape"]), plan["deconvolution"]).reshape(-1)
        return self._with_slab_moments(density, positions, charges, plan)

    @torch.jit.export
    def solve(self, density: Tensor, num_charges: int, plan: Dict[str, Tensor]) -> tuple[Tensor, Tensor]:  # noqa: UP006
        """The field of the density of all atoms.

        Returns: field, a flat vector for ``gather``; strain derivative [3, 3] in eV at fixed charges, dE/dε under
        r → r(1+ε), h → h(1+ε), to which the contributions of the atoms in ``gather`` are to be added.
        """
        solver = int(plan["solver"].item())
        cell = plan["cell"]
        nothing = torch.zeros_like(cell)
        if solver == 2:
            return density, nothing
        if solver == 3:
            shape = three_integers(plan["shape"])
            mesh = density.reshape(num_charges, shape[0], shape[1], shape[2])
            return isolated_mesh_potential(mesh, plan["kernel"], three_integers(plan["doubled"])).reshape(-1), nothing
        weight = plan["weight"]
        moments = 3 * num_charges if bool(plan["slab"].item()) else 0
        structure = density[: density.size(0) - moments].reshape(
            num_charges, weight.size(0), weight.size(1), weight.size(2), 2
        )
        field = reciprocal_field(structure, weight).reshape(-1)
        strain_derivative = reciprocal_strain_derivative(reciprocal_energy(structure, weight), plan["anisotropy"], cell)
        if moments > 0:
            slab = density[density.size(0) - moments :]
            field = torch.cat([field, slab])
            strain_derivative = strain_derivative + slab_strain_derivative(
                slab.reshape(num_charges, 3), cell, self.norm_factor
            )
        return field, strain_derivative

    @torch.jit.export
    def gather(
        self,
        field: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Potential ∂E/∂q (self-interaction included) and forces −∂E/∂r at fixed charges of these atoms.

        Returns: potential [N, n_q] eV/e, forces [N, 3] eV/Å, and what these atoms add to the strain derivative
        [3, 3] eV (nothing in periodic systems).
        """
        solver = int(plan["solver"].item())
        cell = plan["cell"]
        num_charges = charges.size(1)
        if solver == 1 or solver == 3:
            coordinates, _shape = self.mesh_coordinates(positions, plan)
            mesh = self.mesh_of_field(field, num_charges, plan)
            values, derivatives = gather_from_mesh(mesh, coordinates, plan["polynomials"])
            return self.gather_from_values(values, derivatives, field, positions, charges, plan)
        if solver == 2:
            atoms = field.reshape(-1, 3 + num_charges)
            potential, electric_field = pair_potential(
                positions, atoms[:, :3], atoms[:, 3:], self.sigma, self.norm_factor
            )
            forces = (charges[:, :, None] * electric_field).sum(1)
            centre = atoms[:, :3].mean(0)
            return self._isolated_result(potential, forces, positions, charges, centre)
        potential, forces = reciprocal_potential(self._half_space(field, num_charges, plan), positions, charges, cell)
        return self._periodic_result(potential, forces, field, positions, charges, plan)

    @torch.jit.export
    def mesh_of_field(self, field: Tensor, num_charges: int, plan: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
        """Potential of the field on a mesh [n_q, points of ``mesh_coordinates``], contiguous."""
        shape = three_integers(plan["shape"])
        if int(plan["solver"].item()) == 3:
            return field.reshape(num_charges, shape[0], shape[1], shape[2])
        order = plan["polynomials"].size(1) // 2
        return mesh_of_field(self._half_space(field, num_charges, plan), shape, plan["deconvolution"], order)

    @torch.jit.export
    def gather_from_values(
        self,
        values: Tensor,
        derivatives: Tensor,
        field: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What ``gather`` returns, from ``values`` [N, n_q] of ``mesh_of_field`` at the charges and their
        ``derivatives`` [N, n_q, 3] by the coordinates."""
        if int(plan["solver"].item()) == 3:
            constant = self.norm_factor / (2.0 * math.pi)
            scale = constant / float(plan["spacing"].item())
            forces = -scale * (charges[:, :, None] * derivatives).sum(1)
            return self._isolated_result(constant * values, forces, positions, charges, plan["bounds"].mean(0))
        forces = forces_on_mesh(derivatives, charges, plan["cell"], three_integers(plan["shape"]))
        return self._periodic_result(values, forces, field, positions, charges, plan)

    def _half_space(self, field: Tensor, num_charges: int, plan: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
        """Field of the wave vectors [n_q, K_1+1, 2K_2+1, 2K_3+1, 2], without the slab's moments."""
        weight = plan["weight"]
        moments = 3 * num_charges if bool(plan["slab"].item()) else 0
        return field[: field.size(0) - moments].reshape(num_charges, weight.size(0), weight.size(1), weight.size(2), 2)

    def _periodic_result(
        self,
        potential: Tensor,
        forces: Tensor,
        field: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of ``gather``, with the slab's part, from potential and forces of the three-dimensional sum."""
        cell = plan["cell"]
        if bool(plan["slab"].item()):
            slab_moment = field[field.size(0) - 3 * charges.size(1) :].reshape(charges.size(1), 3)
            slab_part, slab_forces = slab_potential(slab_moment, positions, charges, cell, self.norm_factor)
            potential = potential + slab_part
            forces = forces + slab_forces
        return self._without_self_interaction(potential, charges), forces, torch.zeros_like(cell)

    def _isolated_result(
        self, potential: Tensor, forces: Tensor, positions: Tensor, charges: Tensor, centre: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Homogeneous deformation moves every atom with r. The forces sum to zero (to the mesh's accuracy): the
        # origin does not matter, and rounding errors are smallest about the centre.
        strain_derivative = -torch.matmul((positions - centre).transpose(0, 1), forces)
        return self._without_self_interaction(potential, charges), forces, strain_derivative

    def _without_self_interaction(self, potential: Tensor, charges: Tensor) -> Tensor:
        if self.remove_self_interaction:
            return potential - gaussian_self_potential(self.sigma, self.norm_factor) * charges
        return potential

    @torch.jit.export
    def energy(self, positions: Tensor, charges: Tensor, cell: Tensor) -> Tensor:
        """Long-range energy [] in eV of one configuration by the direct sum, differentiable in all arguments."""
        if self.is_isolated(cell):
            potential, _field = pair_potential(positions, positions, charges, self.sigma, self.norm_factor)
            energy = 0.5 * (charges * potential).sum()
        else:
            weight, _anisotropy = reciprocal_weights(cell, cell, self.sigma, self.dl, self.norm_factor)
            energy = reciprocal_energy(
                structure_factor(positions, charges, cell, half_space_limits(weight)), weight
            ).sum()
        if self.remove_self_interaction:
            energy = energy - 0.5 * gaussian_self_potential(self.sigma, self.norm_factor) * (charges**2).sum()
        return energy

    def forward(
        self,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The three steps in a row.

        Returns: energy per atom [N] (½ Σ_c q φ) eV, potential [N, n_q] eV/e, forces at fixed charges [N, 3] eV/Å,
        strain derivative at fixed charges [3, 3] eV.
        """
        density = self.spread(positions, charges, plan)
        field, strain_derivative = self.solve(density, charges.size(1), plan)
        potential, forces, strain_of_atoms = self.gather(field, positions, charges, plan)
        return 0.5 * (charges * potential).sum(1), potential, forces, strain_derivative + strain_of_atoms
