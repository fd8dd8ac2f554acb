"""The plan of the long-range sum, made anew only when it no longer fits."""

from __future__ import annotations

import torch
from torch import Tensor

from les_md.model_file import ExportedModel


class Planner:
    """Keeps the plan of the last configuration, for engines in Python.

    Parameters: ``kspace``, ``accuracy``, ``slab`` as in ``LatentEwald.plan``.

    Raises ValueError where an option is out of range (at once), or does not fit the system (in ``plan``).
    """

    def __init__(self, model: ExportedModel, kspace: str = "auto", accuracy: float = 1e-5, slab: bool = False) -> None:
        self.module = model.module
        self.kspace = kspace
        self.accuracy = accuracy
        self.slab = slab
        self._plan: dict[str, Tensor] | None = None
        self._cell: Tensor | None = None
        self._num_atoms = -1
        if slab and not model.has_long_range:
            raise ValueError(f"{model.path.name} is a short-range model: a slab correction does not apply")
        if model.has_long_range:
            self._make(torch.eye(3, dtype=torch.float64) * 10.0, torch.zeros(2, 3, dtype=torch.float64), 1)

    def plan(self, positions: Tensor, cell: Tensor) -> dict[str, Tensor]:
        """A plan for these ``positions`` [N, 3] and ``cell`` [3, 3] (zeros: isolated), Å."""
        fits = self._plan is not None and self._num_atoms == len(positions) and torch.equal(self._cell, cell)
        bounds = torch.zeros(2, 3, dtype=cell.dtype, device=cell.device)
        if len(positions) > 0 and not bool(cell.any()):
            bounds = torch.stack([positions.amin(0), positions.amax(0)])
            if fits and "bounds" in self._plan:
                within = self._plan["bounds"]
                fits = bool((bounds[0] >= within[0]).all() and (bounds[1] <= within[1]).all())
        if not fits:
            self._plan = self._make(cell, bounds, len(positions))
            self._cell, self._num_atoms = cell.clone(), len(positions)
        return self._plan

    def _make(self, cell: Tensor, bounds: Tensor, num_atoms: int) -> dict[str, Tensor]:
        try:
            return self.module.plan(cell, cell, bounds, num_atoms, self.kspace, self.accuracy, self.slab)
        except (RuntimeError, torch.jit.Error) as error:  # the last line of a script's trace is the message
            message = str(error).strip().splitlines()[-1]
            raise ValueError(message.removeprefix("builtins.").removeprefix("RuntimeError: ")) from error
