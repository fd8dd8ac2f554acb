"""An exported model as the module that openmm-torch's TorchForce evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from les_md.model_file import ExportedModel
from les_md.openmm.neighbor_search import edges_within
from les_md.openmm.system_checks import OPENMM_DEFAULT_BOX
from les_md.openmm.units import EV_TO_KJ_PER_MOL, NM_TO_ANGSTROM
from les_md.planner import BOUNDS_STEP, Planner


class TorchForceModule(torch.nn.Module):
    """Energy and forces of an exported model from positions and box, in OpenMM's units; scripts and freezes.

    Neighbours and the plan of the long-range sum are made anew at every call, so that the result is a function of
    positions and box alone, whatever was computed before and in however many contexts the module is used.

    Parameters
    ----------
    model : what ``les_md.load`` returned.
    types : [n] type index (``model.types_of``) of the particles that the model sees.
    periodic : along all three box vectors; otherwise an isolated system.
    particles : [n] index of these particles among all of the system, each once; None for all.
    kspace, accuracy : as in ``LatentEwald.plan``.
    num_particles : of the whole System; None for as many as ``types``.
    expected_box, kset_box : [3, 3] nm or None, as in ``LESForce``: a box that OpenMM's default box is not accepted for,
        and the box whose set of wave vectors is kept.
    sum_rule : of the modules below that have a field, as in ``LESForce``.

    Raises
    ------
    ValueError : ``types`` and ``particles`` do not fit each other or the model, or an option is out of range.
    """

    def __init__(
        self,
        model: ExportedModel,
        types: Sequence[int] | np.ndarray,
        periodic: bool,
        particles: Sequence[int] | np.ndarray | None = None,
        kspace: str = "auto",
        accuracy: float = 1e-5,
        num_particles: int | None = None,
        expected_box: np.ndarray | None = None,
        kset_box: np.ndarray | None = None,
        sum_rule: bool = False,
    ) -> None:
        super().__init__()
        types = np.array(types, dtype=np.int64).reshape(-1)
        if types.size and not (types.min() >= 0 and types.max() < len(model.elements)):
            raise ValueError(f"{model.path.name} has the types 0 to {len(model.elements) - 1}")
        self.model = model.module
        self.register_buffer("types", torch.from_numpy(types))
        self.has_long_range: bool = model.has_long_range
        self.cutoff: float = model.cutoff
        self.periodic: bool = bool(periodic)
        self.kspace: str = kspace
        self.accuracy: float = float(accuracy)
        self.all_particles: bool = particles is None
        indices = np.arange(len(types)) if particles is None else np.array(particles, dtype=np.int64).reshape(-1)
        if len(indices) != len(types) or len(np.unique(indices)) != len(indices) or (indices < 0).any():
            raise ValueError("particles must hold one index for each type, each once and none negative")
        self.register_buffer("particles", torch.from_numpy(indices))
        self.num_particles: int = len(types) if num_particles is None else int(num_particles)
        if indices.size and indices.max() >= self.num_particles:
            raise ValueError(f"particles holds the index {indices.max()}, there are {self.num_particles} particles")
        self.default_box_is_wrong: bool = expected_box is not None and not np.allclose(expected_box, OPENMM_DEFAULT_BOX)
        self.register_buffer("default_box", torch.from_numpy(OPENMM_DEFAULT_BOX))
        self.kset_is_fixed: bool = kset_box is not None
        kset_cell = np.zeros((3, 3)) if kset_box is None else NM_TO_ANGSTROM * kset_box
        self.register_buffer("kset_cell", torch.from_numpy(kset_cell))
        self.sum_rule: bool = bool(sum_rule)
        Planner(model, kspace, accuracy)  # raises if an option is out of range

    def forward(self, positions: Tensor, boxvectors: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:  # noqa: UP045
        """Potential energy and forces of one configuration.

        Parameters
        ----------
        positions : [N, 3] nm, of all particles; need not lie inside the box.
        boxvectors : [3, 3] nm, rows are box vectors; None if and only if the system is isolated.

        Returns
        -------
        energy [] float64, kJ/mol; forces [N, 3], kJ/mol/nm, zero for particles that the model does not see. The forces
        have the precision of ``positions`` (on CUDA, TorchForce would otherwise read freed memory).

        Raises
        ------
        ValueError : a box for an isolated system or none for a periodic one; positions, energy or forces that are not
            finite; a singular box.
        """
        places = checked_places(positions, self.particles, self.all_particles, self.num_particles)
        cell = checked_cell(boxvectors, places, self.periodic, self.default_box_is_wrong, self.default_box)
        edge_index, edge_vectors = edges_within(places, cell, self.periodic, self.cutoff)
        energies, charges, state = self.model.evaluate(edge_vectors, edge_index, self.types)
        energy = energies.sum()
        potential = torch.zeros_like(charges)
        forces = torch.zeros_like(places)
        if self.has_long_range:
            bounds = bounds_around(places, self.periodic)
            kset_cell = self.kset_cell if self.kset_is_fixed else cell
            plan = self.model.plan(cell, kset_cell, bounds, places.size(0), self.kspace, self.accuracy, False)
            field, _ = self.model.solve(self.model.spread(places, charges, plan), plan)
            potential, forces, _ = self.model.gather(field, places, charges, plan)
            energy = energy + 0.5 * (charges * potential).sum()
        if edge_vectors.size(0) > 0:
            ones = torch.ones_like(energies)
            gradient = self.model.pull_back(edge_vectors, edge_index, self.types, state, ones, potential)
            forces = forces.index_add(0, edge_index[0], gradient).index_add(0, edge_index[1], -gradient)
        return checked_results(energy, forces, positions, self.particles, self.all_particles)


class MultipoleModule(TorchForceModule):
    """``TorchForceModule`` of a model with latent variables beyond charges."""

    def forward(self, positions: Tensor, boxvectors: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:  # noqa: UP045
        """As ``TorchForceModule.forward``."""
        places = checked_places(positions, self.particles, self.all_particles, self.num_particles)
        cell = checked_cell(boxvectors, places, self.periodic, self.default_box_is_wrong, self.default_box)
        edge_index, edge_vectors = edges_within(places, cell, self.periodic, self.cutoff)
        bounds = bounds_around(places, self.periodic)
        kset_cell = self.kset_cell if self.kset_is_fixed else cell
        plan = self.model.plan(cell, kset_cell, bounds, places.size(0), self.kspace, self.accuracy, False)
        result = self.model(edge_vectors, edge_index, self.types, places, plan)
        return checked_results(
            result["energies"].sum(), result["forces"], positions, self.particles, self.all_particles
        )


class PeriodicFieldModule(TorchForceModule):
    """``TorchForceModule`` of a periodic system in a uniform electric field."""

    def forward(self, positions: Tensor, boxvectors: Tensor, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """As ``TorchForceModule.forward``; further parameters: the field's components [] in kJ/(mol nm e).

        The forces contain the field, the energy does not.
        """
        places = checked_places(positions, self.particles, self.all_particles, self.num_particles)
        cell = checked_cell(boxvectors, places, self.periodic, self.default_box_is_wrong, self.default_box)
        edge_index, edge_vectors = edges_within(places, cell, self.periodic, self.cutoff)
        bounds = bounds_around(places, self.periodic)
        kset_cell = self.kset_cell if self.kset_is_fixed else cell
        plan = self.model.plan(cell, kset_cell, bounds, places.size(0), self.kspace, self.accuracy, False)
        field = volts_per_angstrom(x, y, z, places)
        result = self.model.in_field(edge_vectors, edge_index, self.types, places, plan, cell, field, self.sum_rule)
        return checked_results(
            result["energies"].sum(), result["forces"], positions, self.particles, self.all_particles
        )


class IsolatedFieldModule(TorchForceModule):
    """``TorchForceModule`` of an isolated system in a uniform electric field."""

    def forward(self, positions: Tensor, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """As ``PeriodicFieldModule.forward``, without a box; the energy contains −P·E."""
        places = checked_places(positions, self.particles, self.all_particles, self.num_particles)
        cell = torch.zeros([3, 3], dtype=places.dtype, device=places.device)
        edge_index, edge_vectors = edges_within(places, cell, self.periodic, self.cutoff)
        bounds = bounds_around(places, self.periodic)
        plan = self.model.plan(cell, cell, bounds, places.size(0), self.kspace, self.accuracy, False)
        field = volts_per_angstrom(x, y, z, places)
        result = self.model.in_field(edge_vectors, edge_index, self.types, places, plan, cell, field, False)
        return checked_results(
            result["energies"].sum(), result["forces"], positions, self.particles, self.all_particles
        )


# TorchScript knows constants of a module of Python as default values only.
_NM, _EV, _STEP = NM_TO_ANGSTROM, EV_TO_KJ_PER_MOL, BOUNDS_STEP


# Functions, and called by ``forward`` itself: where a method of a frozen module raises an error, or calls what does,
# torch 2.9 crashes when it writes down where that was.


def checked_places(
    positions: Tensor, particles: Tensor, all_particles: bool, num_particles: int, nm: float = _NM
) -> Tensor:
    """Positions [n, 3] in Å of the model's ``particles`` from those of all in nm; ValueError for another number."""
    # TorchForce freezes the module, and freezing takes every detach() out of it: hence .data, which it keeps.
    places = positions.data.to(torch.float64) * nm
    if places.size(0) != num_particles:
        raise ValueError(
            f"this LESForce was made for {num_particles} particles, the System has {places.size(0)}: topology and "
            "System must describe the same particles"
        )
    return places if all_particles else places.index_select(0, particles)


def checked_cell(
    boxvectors: Optional[Tensor],  # noqa: UP045
    places: Tensor,
    periodic: bool,
    default_box_is_wrong: bool,
    default_box: Tensor,
    nm: float = _NM,
) -> Tensor:
    """Cell [3, 3] in Å, of zeros for an isolated system; ValueError for a box that cannot be meant."""
    if periodic != (boxvectors is not None):
        raise ValueError("TorchForce must use periodic boundary conditions if and only if the module does")
    if boxvectors is None:
        return torch.zeros([3, 3], dtype=torch.float64, device=places.device)
    box = boxvectors.data.to(torch.float64)
    if default_box_is_wrong and torch.equal(box, default_box):
        raise ValueError(
            "the System still has OpenMM's default box (2 nm cube), the topology another: call "
            "system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors()) before the Context is created, or "
            "context.setPeriodicBoxVectors(...)"
        )
    return box * nm


def bounds_around(places: Tensor, periodic: bool, step: float = _STEP) -> Tensor:
    """Bounds [2, 3] of the mesh of an isolated system, as Planner.plan makes them."""
    if periodic or places.size(0) == 0:
        return torch.zeros([2, 3], dtype=torch.float64, device=places.device)
    lowest, highest = places.amin(0) / step, places.amax(0) / step
    return step * torch.stack([lowest.floor(), highest.ceil()])


def volts_per_angstrom(x: Tensor, y: Tensor, z: Tensor, places: Tensor, ev: float = _EV, nm: float = _NM) -> Tensor:
    """[3], from components [] in kJ/(mol nm e), on the device of ``places``."""
    return torch.stack([x, y, z]).to(places.device, torch.float64) / (ev * nm)


def checked_results(
    energy: Tensor,
    forces: Tensor,
    positions: Tensor,
    particles: Tensor,
    all_particles: bool,
    ev: float = _EV,
    nm: float = _NM,
) -> tuple[Tensor, Tensor]:
    """What ``forward`` returns, from the energy in eV and forces [n, 3] in eV/Å; ValueError if they are not finite."""
    energy = energy * ev
    forces = forces * (ev * nm)
    if not bool((torch.isfinite(energy) & torch.isfinite(forces).all()).item()):
        raise ValueError(
            "the model's energy or forces are not finite: check the positions for atoms on top of each other"
        )
    if not all_particles:
        forces = torch.zeros_like(positions, dtype=torch.float64).index_copy(0, particles, forces)
    return energy.data, forces.data.to(positions.dtype).contiguous()


def module_class(model: ExportedModel, periodic: bool, in_field: bool) -> type[TorchForceModule]:
    """Which of the classes above a force needs."""
    if in_field:
        return PeriodicFieldModule if periodic else IsolatedFieldModule
    return MultipoleModule if model.latent.num_columns > model.latent.num_charges else TorchForceModule


def configure_executor() -> None:
    """Switch off, in this process, TorchScript's specialisation of code to the tensors of its first runs.

    It is for tensors of few shapes. Here the number of edges changes at every step: specialised code takes a quarter
    more time on a CPU, its compilation another second or two at the second step, and the first step differs from all
    later ones by rounding. There is no way to switch it off for one module.
    """
    torch.jit.set_fusion_strategy([("DYNAMIC", 0)])
