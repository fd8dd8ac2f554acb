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
    wave_vector_limits,
)
from les_md.electrostatics.isolated import gaussian_self_potential, pair_potential
from les_md.electrostatics.isolated_mesh import (
    isolated_coordinates,
    isolated_mesh_potential,
    pair_kernel,
    truncation_of_gaussian,
)
from les_md.electrostatics.mesh import (
    forces_on_mesh,
    gather_from_mesh,
    mesh_of_field,
    padded_shape,
    periodic_coordinates,
    spread_on_mesh,
    structure_factor_of_mesh,
    window_transform_inside,
)
from les_md.electrostatics.mesh_window import ORDERS, OVERSAMPLINGS, polynomial_degree, window_table
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.electrostatics.slab import slab_moments, slab_potential, slab_strain_derivative


class LatentEwald(torch.nn.Module):
    """Latent Ewald Summation (Cheng, npj Comput. Mater. 11, 80 (2025)) in float64.

    A cell of zeros means an isolated system (no periodic axis); any other cell is summed as a
    three-dimensional periodic one, whatever its handedness. Charge channels never mix; their energies add up.

    ``E = ½ Σ_ic charges_ic potential_ic`` exactly, since the energy is quadratic in the charges.

    A **plan** (``plan``) holds everything that depends on cell and solver only: a dictionary of tensors to be handed to
    ``spread``, ``solve`` and ``gather``, valid until the cell changes (isolated: until an atom leaves the bounds).
    Its entry ``solver`` is 0 for the direct reciprocal sum, 1 for the mesh, 2 for the sum over all pairs of an isolated
    system, 3 for the mesh of an isolated system; other entries are private.
    """

    def __init__(self, parameters: LongRangeParameters) -> None:
        super().__init__()
        self.sigma: float = float(parameters.sigma)
        self.dl: float = float(parameters.dl)
        self.norm_factor: float = float(parameters.norm_factor)
        self.remove_self_interaction: bool = bool(parameters.remove_self_interaction)
        self.remove_mean: bool = bool(parameters.remove_mean)
        self.epsilon_factor: float = float(parameters.epsilon_factor)
        self.orders: list[int] = list(ORDERS)
        self.oversamplings: list[float] = list(OVERSAMPLINGS)
        self.degrees: list[int] = [polynomial_degree(order) for order in ORDERS]
        tables = [
            window_table(self.sigma, self.dl),
            window_table(self.sigma, 2.0 * math.pi * self.sigma / truncation_of_gaussian()),
        ]
        # [periodic or isolated][order][oversampling]
        # Errors of single systems scatter about the estimate by up to 1.5 (tested).
        self.window_errors: list[list[list[float]]] = [(1.5 * table.error).tolist() for table in tables]
        self.window_shapes: list[list[list[float]]] = [table.shape.tolist() for table in tables]
        self.window_amplitudes: list[list[list[float]]] = [table.amplitude.tolist() for table in tables]
        self.best_accuracies: list[str] = [f"{1.06 * errors[-1][-1]:.1e}" for errors in self.window_errors]
        self.assumed_potential: float = tables[0].potential
        # How much larger the mesh's relative error is than that of charges, see ``multipole_ewald.py``
        self.periodic_error_factor: float = 1.0
        polynomials = torch.stack([torch.from_numpy(table.polynomials.copy()) for table in tables])
        self.register_buffer("window_polynomials", polynomials, persistent=False)

    def is_isolated(self, cell: Tensor) -> bool:
        """Whether the cell stands for an isolated system, that is, holds only zeros."""
        return bool((cell == 0.0).all().item())

    @torch.jit.export
    def plan(
        self,
        cell: Tensor,
        kset_cell: Tensor,
        bounds: Tensor,
        num_atoms: int,
        kspace: str,
        accuracy: float,
        slab: bool,
    ) -> Dict[str, Tensor]:  # noqa: UP006
        """How the sum of ``num_atoms`` charges will be done.

        Parameters
        ----------
        cell : [3, 3] Å; zeros for an isolated system.
        kset_cell : [3, 3] Å; the cell whose truncation decides which wave vectors belong to the sum: ``cell``, or an
            earlier one to keep the set fixed while the cell changes. Ignored for isolated systems.
        bounds : [2, 3] Å; lowest and highest coordinates of all charges. Only used for isolated systems.
        num_atoms : of all processes together.
        kspace : "ewald" (the sum term by term; isolated: all pairs), "mesh", or "auto" for the faster of the two.
        accuracy : expected relative root-mean-square error of the mesh's forces.
        slab : take the interaction of slabs across the vacuum along the third axis away (``slab.py``).

        Raises
        ------
        RuntimeError : unknown ``kspace``, an accuracy out of reach of the mesh, a slab without a cell.
        """
        if kspace != "auto" and kspace != "ewald" and kspace != "mesh":
            raise RuntimeError("unknown kspace '" + kspace + "': give auto, ewald or mesh")
        if slab and self.is_isolated(cell):
            raise RuntimeError("a slab correction needs a periodic cell")
        if self.is_isolated(cell):
            return self._plan_isolated(cell, bounds, num_atoms, kspace, accuracy)
        return self._plan_periodic(cell, kset_cell, num_atoms, kspace, accuracy, slab)

    @torch.jit.export
    def direct_plan(self, cell: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        """The plan of the sum term by term (isolated: over all pairs)."""
        return self.plan(cell, cell, torch.zeros([2, 3], dtype=cell.dtype, device=cell.device), 0, "ewald", 0.0, False)

    def _plan_periodic(
        self, cell: Tensor, kset_cell: Tensor, num_atoms: int, kspace: str, accuracy: float, slab: bool
    ) -> Dict[str, Tensor]:  # noqa: UP006
        return self._plan_charges(cell, kset_cell, num_atoms, kspace, accuracy, slab)

    def _plan_charges(
        self, cell: Tensor, kset_cell: Tensor, num_atoms: int, kspace: str, accuracy: float, slab: bool
    ) -> Dict[str, Tensor]:  # noqa: UP006
        weight, anisotropy = reciprocal_weights(cell, kset_cell, self.sigma, self.dl, self.norm_factor)
        limits = wave_vector_limits(kset_cell, self.dl)
        plan = {
            "solver": torch.tensor(0),
            "cell": cell,
            "slab": torch.tensor(slab),
            "weight": weight,
            "anisotropy": anisotropy,
        }
        if kspace == "ewald":
            return plan
        # The half waves of the shortest wave along each axis
        edges = torch.linalg.norm(kset_cell.detach(), dim=1) / self.dl
        half_waves = [2.0 * max(float(edges[axis].item()), float(limits[axis])) for axis in range(3)]
        order_index, oversampling_index, shape, cost = self._cheapest_mesh(
            half_waves, num_atoms, accuracy, self._thinness(weight, cell) * self.periodic_error_factor
        )
        # Both costs in µs of one CPU core, measured; only their ratio matters.
        direct_cost = 1000.0 + 0.0028 * float(num_atoms) * float(weight.numel())
        if kspace == "mesh" or cost < direct_cost:
            plan["solver"] = torch.tensor(1)
            order = self.orders[order_index]
            amplitude = self.window_amplitudes[0][order_index][oversampling_index]
            beta = self.window_shapes[0][order_index][oversampling_index]
            device = cell.device
            n1 = torch.arange(0, limits[0] + 1, device=device, dtype=torch.float64) / shape[0]
            n2 = torch.arange(-limits[1], limits[1] + 1, device=device, dtype=torch.float64) / shape[1]
            n3 = torch.arange(-limits[2], limits[2] + 1, device=device, dtype=torch.float64) / shape[2]
            transform1 = window_transform_inside(n1, amplitude, beta, order)
            transform2 = window_transform_inside(n2, amplitude, beta, order)
            transform3 = window_transform_inside(n3, amplitude, beta, order)
            plan["deconvolution"] = 1.0 / (transform1[:, None, None] * transform2[:, None] * transform3)
            plan["polynomials"] = self._polynomials(0, order_index, oversampling_index)
            plan["shape"] = torch.tensor(shape)
        return plan

    def _plan_isolated(
        self, cell: Tensor, bounds: Tensor, num_atoms: int, kspace: str, accuracy: float
    ) -> Dict[str, Tensor]:  # noqa: UP006
        plan = {"solver": torch.tensor(2), "cell": cell}
        if kspace == "ewald":
            return plan
        extent = bounds[1] - bounds[0]
        margin = float(torch.clamp(0.05 * extent.max(), min=2.0).item())
        lengths = [float(extent[axis].item()) + 2.0 * margin for axis in range(3)]
        order_index, oversampling_index, shape, doubled, cost = self._cheapest_isolated_mesh(
            lengths, num_atoms, accuracy
        )
        order = self.orders[order_index]
        spacing = self._isolated_spacing(oversampling_index)
        too_large = float(doubled[0]) * float(doubled[1]) * float(doubled[2]) > 1.5e9
        if kspace == "auto" and (too_large or 300.0 + 0.15 * float(num_atoms) * float(num_atoms) < cost):
            return plan
        if too_large:
            raise RuntimeError(
                "the mesh of this isolated system would have more than 1.5e9 points: use kspace ewald, or remove atoms "
                "far from the others"
            )
        plan["solver"] = torch.tensor(3)
        plan["bounds"] = torch.stack([bounds[0] - margin, bounds[1] + margin])
        plan["origin"] = bounds[0] - margin - (0.5 * order + 1.0) * spacing
        # (a scripted torch.tensor would round the number to single precision first)
        plan["spacing"] = torch.full([], spacing, dtype=torch.float64)
        plan["shape"] = torch.tensor(shape)
        plan["doubled"] = torch.tensor(doubled)
        plan["polynomials"] = self._polynomials(1, order_index, oversampling_index)
        plan["kernel"] = pair_kernel(
            shape,
            doubled,
            spacing,
            self.sigma,
            self.window_amplitudes[1][order_index][oversampling_index],
            self.window_shapes[1][order_index][oversampling_index],
            order,
        ).to(cell.device)
        return plan

    def _thinness(self, weight: Tensor, cell: Tensor) -> float:
        """How much larger the potential of uncorrelated charges is in this cell than the error estimate assumes.

        Σ_k w(k)² against V/(2π)³ ∫ w(k)² d³k: in a long thin cell few wave vectors are short, but they are very short.
        """
        plane = (weight[0] ** 2).sum()
        volume = torch.abs(torch.linalg.det(cell))
        total = (0.5 * (weight**2).sum() + 0.5 * plane) * (volume / self.norm_factor) ** 2
        assumed = volume / (2.0 * math.pi) ** 3 * self.assumed_potential
        return math.sqrt(max(1.0, float((total / assumed).item())))

    def _polynomials(self, kind: int, order_index: int, oversampling_index: int) -> Tensor:
        columns = 2 * self.orders[order_index]
        degree = self.degrees[order_index]
        return self.window_polynomials[kind, order_index, oversampling_index, : degree + 1, :columns].contiguous()

    def _mesh_cost(self, order: int, points: float, num_atoms: int) -> float:
        """Estimated time of a step on one CPU core, µs."""
        return 2000.0 + float(num_atoms) * (1.5 + 0.011 * float(order * order * order)) + 0.07 * points

    def _oversampling_for(self, kind: int, order_index: int, accuracy: float) -> int:
        """Index of the coarsest mesh that reaches the accuracy with this order; −1 if none does."""
        errors = self.window_errors[kind][order_index]
        for j in range(len(errors)):
            if errors[j] <= accuracy:
                return j
        return -1

    def _check_accuracy(self, kind: int, accuracy: float, thinness: float) -> None:
        lowest = thinness * self.window_errors[kind][-1][-1]
        if not (lowest <= accuracy and accuracy <= 0.1):
            raise RuntimeError(
                "this accuracy is out of reach of the mesh: give a relative force error from "
                f"{self.best_accuracies[kind]} (more in long thin cells) to 0.1, or use kspace ewald"
            )

    def _cheapest_mesh(
        self, half_waves: list[float], num_atoms: int, accuracy: float, thinness: float
    ) -> tuple[int, int, list[int], float]:
        """Order and oversampling (indices), mesh and cost of the cheapest periodic mesh that reaches the accuracy.

        Parameters: ``half_waves`` of the shortest wave along each axis, ``thinness`` of the cell.
        """
        self._check_accuracy(0, accuracy, thinness)
        best = (0, 0, [0, 0, 0], math.inf)
        for i, order in enumerate(self.orders):
            j = self._oversampling_for(0, i, accuracy / thinness)
            if j >= 0:
                shape: list[int] = []
                points = 1.0
                for axis in range(3):
                    # At least one point more than the window has
                    wanted = math.ceil(half_waves[axis] * self.oversamplings[j])
                    shape.append(_smooth_number(max(order + 1, wanted)))
                    points = points * float(shape[axis])
                cost = self._mesh_cost(order, points, num_atoms)
                if cost < best[3]:
                    best = (i, j, shape, cost)
        return best

    def _isolated_spacing(self, oversampling_index: int) -> float:
        return math.pi * self.sigma / (truncation_of_gaussian() * self.oversamplings[oversampling_index])

    def _cheapest_isolated_mesh(
        self, lengths: list[float], num_atoms: int, accuracy: float
    ) -> tuple[int, int, list[int], list[int], float]:
        """The same for an isolated system of these ``lengths`` (Å): also the mesh doubled for its convolution."""
        self._check_accuracy(1, accuracy, 1.0)
        best = (0, 0, [0, 0, 0], [0, 0, 0], math.inf)
        for i, order in enumerate(self.orders):
            j = self._oversampling_for(1, i, accuracy)
            if j >= 0:
                shape: list[int] = []
                doubled: list[int] = []
                points = 1.0
                for axis in range(3):
                    shape.append(math.ceil(lengths[axis] / self._isolated_spacing(j)) + order + 2)
                    doubled.append(_smooth_number(2 * shape[axis] - 1))
                    points = points * float(doubled[axis])
                cost = self._mesh_cost(order, points, num_atoms)
                if cost < best[4]:
                    best = (i, j, shape, doubled, cost)
        return best

    @torch.jit.export
    def describe(self, plan: Dict[str, Tensor]) -> str:  # noqa: UP006
        """A plan in words, for a log."""
        solver = int(plan["solver"].item())
        if solver == 0:
            inside = plan["weight"] > 0.0  # of the half space n_1 ≥ 0, which holds the plane n_1 = 0 whole
            text = f"ewald, {int((2 * inside.sum() - inside[0].sum()).item())} wave vectors"
        elif solver == 2:
            text = "all pairs"
        else:
            shape = plan["shape"]
            text = "mesh {} x {} x {}, order {}".format(
                int(shape[0].item()), int(shape[1].item()), int(shape[2].item()), plan["polynomials"].size(1) // 2
            )
            if solver == 3:
                text = "isolated " + text
        if solver < 2 and bool(plan["slab"].item()):
            text = text + ", slab correction"
        return text

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


def three_integers(sizes: Tensor) -> list[int]:
    """A tensor of three integers, as scripts want them."""
    return [int(sizes[0].item()), int(sizes[1].item()), int(sizes[2].item())]


def _smooth_number(least: int) -> int:
    """The next number without prime factors above 7, for which FFTs are fast."""
    number = least
    while not _is_smooth(number):
        number += 1
    return number


def _is_smooth(number: int) -> bool:
    rest = number
    for factor in (2, 3, 5, 7):
        while rest % factor == 0:
            rest = rest // factor
    return rest == 1
