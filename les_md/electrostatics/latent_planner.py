"""How the long-range sum of a cell is done: term by term or on a mesh, and on which.

All of it depends on cell and solver only and is kept in a plan, for as many steps as the cell stays the same.
"""

from __future__ import annotations

import math
from typing import Dict  # noqa: UP035  (TorchScript knows only this)

import torch
from torch import Tensor

from les_md.electrostatics.ewald import reciprocal_weights, wave_vector_limits
from les_md.electrostatics.isolated_mesh import pair_kernel, truncation_of_gaussian
from les_md.electrostatics.mesh import window_transform_inside
from les_md.electrostatics.mesh_window import ORDERS, OVERSAMPLINGS, polynomial_degree, window_table
from les_md.electrostatics.parameters import LongRangeParameters


class LatentPlanner(torch.nn.Module):
    """The planning part of ``LatentEwald``, which does the sum.

    A cell of zeros means an isolated system (no periodic axis); any other cell is summed as a three-dimensional
    periodic one.

    A **plan** (``plan``) holds everything that depends on cell and solver only: a dictionary of tensors to be handed to
    ``spread``, ``solve`` and ``gather``, valid until the cell changes (isolated: until an atom leaves the bounds).
    Its entry ``solver`` is 0 for the direct reciprocal sum, 1 for the mesh, 2 for the sum over all pairs of an isolated
    system, 3 for the mesh of an isolated system. LAMMPS reads some of solvers 0 and 1 (``reciprocal_sum.h``),
    all others are private.
    """

    def __init__(self, parameters: LongRangeParameters) -> None:
        super().__init__()
        self.sigma: float = float(parameters.sigma)
        self.dl: float = float(parameters.dl)
        self.norm_factor: float = float(parameters.norm_factor)
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
