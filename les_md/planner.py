"""The plan of the long-range sum, made anew only when it no longer fits."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from les_md.model_file import ExportedModel

#: Å; the bounds of an isolated system are rounded outwards to multiples of this, so that most steps share one plan.
BOUNDS_STEP = 2.0


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real)


class Planner:
    """Keeps the plan of the last configuration, for engines in Python.

    The plan handed out depends on positions and cell alone, not on earlier ones.

    Parameters: ``kspace``, ``accuracy``, ``slab`` as in ``LatentEwald.plan``; ``kset_cell`` [3, 3] Å, the cell whose
    set of wave vectors is used whatever the cell (None: the present cell's).

    Raises ValueError where an option is out of range (at once), or does not fit the system (in ``plan``).
    """

    def __init__(
        self,
        model: ExportedModel,
        kspace: str = "auto",
        accuracy: float = 1e-5,
        slab: bool = False,
        kset_cell: Tensor | None = None,
    ) -> None:
        if kspace not in ("auto", "ewald", "mesh"):
            raise ValueError(f"unknown kspace {kspace!r}: give auto, ewald or mesh")
        if not _is_number(accuracy) or not accuracy > 0.0:
            raise ValueError(f"accuracy must be a positive number (a relative force error), not {accuracy!r}")
        self.module = model.module
        self.kset_cell = kset_cell
        self.kspace = kspace
        self.accuracy = float(accuracy)
        self.slab = slab
        self._plan: dict[str, Tensor] | None = None
        self._cell: Tensor | None = None
        self._bounds: Tensor | None = None
        self._num_atoms = -1
        if slab and not model.has_long_range:
            raise ValueError(f"{model.path.name} is a short-range model: a slab correction does not apply")
        if model.has_long_range:
            self._make(torch.eye(3, dtype=torch.float64) * 10.0, torch.zeros(2, 3, dtype=torch.float64), 1)

    def plan(self, positions: Tensor, cell: Tensor) -> dict[str, Tensor]:
        """A plan for these ``positions`` [N, 3] and ``cell`` [3, 3] (zeros: isolated), Å."""
        bounds = torch.zeros(2, 3, dtype=cell.dtype, device=cell.device)
        if len(positions) > 0 and not bool(cell.any()):
            lowest, highest = positions.amin(0), positions.amax(0)
            bounds = BOUNDS_STEP * torch.stack([(lowest / BOUNDS_STEP).floor(), (highest / BOUNDS_STEP).ceil()])
        if (
            self._plan is None
            or self._cell is None
            or self._bounds is None
            or self._num_atoms != len(positions)
            or not torch.equal(self._cell, cell)
            or not torch.equal(self._bounds, bounds)
        ):
            self._plan = self._make(cell, bounds, len(positions))
            self._cell, self._bounds, self._num_atoms = cell.clone(), bounds, len(positions)
        return self._plan

    def _make(self, cell: Tensor, bounds: Tensor, num_atoms: int) -> dict[str, Tensor]:
        kset_cell = cell if self.kset_cell is None else self.kset_cell.to(cell.device)
        try:
            return self.module.plan(cell, kset_cell, bounds, num_atoms, self.kspace, self.accuracy, self.slab)
        except (RuntimeError, torch.jit.Error) as error:  # the last line of a script's trace is the message
            message = str(error).strip().splitlines()[-1]
            raise ValueError(message.removeprefix("builtins.").removeprefix("RuntimeError: ")) from error
