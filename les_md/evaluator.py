"""One evaluation of an exported model from positions and cell, for engines in Python (ASE, OpenMM)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from les_md.electrostatics.response import dipole_moment
from les_md.model_file import ExportedModel
from les_md.neighbors import NeighborList
from les_md.planner import Planner


class PotentialEvaluator:
    """Neighbour list, plan of the long-range sum and model together.

    What is kept between calls (pairs, plan) saves time and changes no result: results depend on the arguments alone.

    Parameters
    ----------
    model : what ``les_md.load`` returned, on the device it shall run on.
    skin : Å added to the cutoff of the neighbour list, so that it need not be searched every step.
    kspace, accuracy, slab : the long-range solver, as in ``LESCalculator``.
    kset_cell : [3, 3] Å, the cell whose set of wave vectors is used whatever the cell; None for the present cell's.

    Raises ValueError where an option is out of range.
    """

    def __init__(
        self,
        model: ExportedModel,
        skin: float = 0.5,
        kspace: str = "auto",
        accuracy: float = 1e-5,
        slab: bool = False,
        kset_cell: np.ndarray | None = None,
    ) -> None:
        self.model = model
        self.device = model.device
        self.neighbor_list = NeighborList(model.cutoff, skin)
        kset = None if kset_cell is None else torch.from_numpy(kset_cell).to(self.device)
        self.planner = Planner(model, kspace, accuracy, slab, kset)

    def types_of(self, atomic_numbers: np.ndarray) -> Tensor:
        """Types [N] int64 on the model's device; raises ValueError for an element that the model does not know."""
        return torch.from_numpy(self.model.types_of(atomic_numbers)).to(self.device)

    def compute(
        self,
        types: Tensor,
        positions: np.ndarray,
        cell: np.ndarray,
        periodic: np.ndarray,
        field: np.ndarray | None = None,
        sum_rule: bool = False,
    ) -> dict:
        """Energy, forces, charges and strain derivative of a configuration.

        Parameters
        ----------
        types : [N] as ``types_of`` returned them.
        positions : [N, 3] float64, Å; need not be inside the cell.
        cell : [3, 3] float64, Å, rows are lattice vectors; only looked at if an axis is periodic.
        periodic : [3] bool.
        field : [3] V/Å, a uniform electric field; see ``LESPotential.in_field`` for it and for ``sum_rule``.

        Returns
        -------
        numpy arrays ``energies``, ``long_range_energies`` [N] eV, ``charges`` [N, n_q] e, ``forces`` [N, 3] eV/Å,
        ``strain_derivative`` [3, 3] eV, and ``energy``, ``long_range_energy``, ``field_energy`` (0.0 without one, and
        in a periodic system), their sums, as floats. Of models with latent variables beyond charges also
        ``total_charges`` [N, n_q] e and ``total_dipoles`` [N, 3] e Å, all that is induced included.

        Raises ValueError for positions that are not finite, for an energy or force that is not, and for a field on a
        model that ``check_field`` refuses.
        """
        if len(positions) == 0:
            return self._nothing()
        *graph, positions_tensor, long_range_cell = self._inputs(types, positions, cell, periodic)
        plan = self.planner.plan(positions_tensor, long_range_cell)
        # The optimising executor specialises on shapes, and the number of edges changes with every step.
        with torch.jit.optimized_execution(False):
            if field is None:
                tensors = self.model.module(*graph, positions_tensor, plan)
            else:
                self.check_field()
                field_tensor = torch.from_numpy(np.asarray(field, dtype=np.float64)).to(self.device)
                tensors = self.model.module.in_field(
                    *graph, positions_tensor, plan, long_range_cell, field_tensor, sum_rule
                )
        output = {key: value.cpu().numpy() for key, value in tensors.items()}
        output["energy"] = float(output["energies"].sum())
        output["long_range_energy"] = float(output["long_range_energies"].sum())
        output["field_energy"] = float(output["field_energies"].sum()) if field is not None else 0.0
        if not np.isfinite(output["energy"]) or not np.isfinite(output["forces"]).all():
            raise ValueError(
                "the model's energy or forces are not finite: check the positions for atoms on top of each other"
            )
        return output

    def _nothing(self) -> dict:
        """Results without atoms, where networks have nothing to work on."""
        empty = {"energies": np.zeros(0), "long_range_energies": np.zeros(0), "forces": np.zeros((0, 3))}
        charges = np.zeros((0, int(self.model.metadata.get("n_q", 0))))
        sums = {"energy": 0.0, "long_range_energy": 0.0, "field_energy": 0.0}
        fields = {"field_energies": np.zeros(0)}
        return {**empty, **fields, **sums, "charges": charges, "strain_derivative": np.zeros((3, 3))}

    def check_field(self) -> None:
        """Raises ValueError unless an electric field can act on the model."""
        name = self.model.path.name
        if not self.model.has_long_range:
            raise ValueError(f"{name} is a short-range model: it has no charges for an electric field to act on")
        if self.model.format_version < 4:
            raise ValueError(
                f"an electric field needs a model file of format 4 or newer, {name} has format "
                f"{self.model.format_version}: export the checkpoint again"
            )

    def born_effective_charges(
        self, types: Tensor, positions: np.ndarray, cell: np.ndarray, periodic: np.ndarray
    ) -> np.ndarray:
        """Born effective charges [N, 3, 3] in e, polarisation index first; arguments as of ``compute``."""
        if not self.model.has_long_range:
            raise ValueError(f"{self.model.path.name} is a short-range model: it has no Born effective charges")
        if len(positions) == 0:
            return np.zeros((0, 3, 3))
        inputs = self._inputs(types, positions, cell, periodic)
        with torch.jit.optimized_execution(False):
            if self.model.latent.responds:
                plan = self.planner.plan(inputs[-2], inputs[-1])
                return self.model.module.born_effective_charges_by(*inputs, plan).cpu().numpy()
            return self.model.module.born_effective_charges(*inputs).cpu().numpy()

    def dipole_moment(self, charges: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Dipole moment [3] in e Å of ``charges`` [N, n_q] at ``positions`` [N, 3]; see ``response.dipole_moment``."""
        parameters = self.model.metadata["long_range"]
        return dipole_moment(
            torch.from_numpy(charges),
            torch.from_numpy(positions),
            bool(parameters["remove_mean"]),
            float(parameters["epsilon_factor"]),
        ).numpy()

    def dipole_moment_of(self, output: dict, positions: np.ndarray) -> np.ndarray:
        """``dipole_moment`` of what ``compute`` returned for ``positions`` [N, 3].

        With the latent dipoles, and all that is induced, where a model has any.
        """
        if "total_dipoles" not in output:
            return self.dipole_moment(output["charges"], positions)
        factor = np.sqrt(float(self.model.metadata["long_range"]["epsilon_factor"]))
        return self.dipole_moment(output["total_charges"], positions) + factor * output["total_dipoles"].sum(0)

    def _inputs(
        self, types: Tensor, positions: np.ndarray, cell: np.ndarray, periodic: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        finite = np.isfinite(positions)
        if not finite.all():
            raise ValueError(f"positions of atoms {np.flatnonzero(~finite.all(1)).tolist()} are not finite")
        edge_index, edge_vectors = self.neighbor_list.compute(positions, cell, periodic)
        # An isolated system is told to the model by a cell of zeros.
        long_range_cell = cell if np.any(periodic) else np.zeros((3, 3))
        vectors, index, coordinates, box = (
            torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
            for array in (edge_vectors, edge_index, positions, long_range_cell)
        )
        return vectors, index, types, coordinates, box
