"""Deviations of a model from the labels, collected frame by frame: what the loss, the history and the card say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from les_md.training.configuration import LossWeights
from les_md.training.dataset import Frame
from les_md.training.energy_model import EnergyModel, Evaluation


def frame_loss(frame: Frame, energy: Tensor, forces: Tensor, stress: Tensor | None, weights: LossWeights) -> Tensor:
    """w_F mean(ΔF²) + w_E (ΔE/N)² + w_S mean((V Δσ/N)²) of a frame, [], eV and Å; the last where there is a stress.

    V σ/N, the virial of an atom, is of the size of an energy whatever the cell.
    """
    count = frame.types.size(0)
    total = weights.forces * (forces - frame.forces).square().mean()
    total = total + weights.energy * ((energy - frame.energy) / count).square()
    if weights.stress > 0.0 and frame.stress is not None:
        volume = torch.linalg.det(frame.cell).abs()
        total = total + weights.stress * ((stress - frame.stress) * (volume / count)).square().mean()
    return total


def batch_loss(frames: list[Frame], result: Evaluation, weights: LossWeights) -> Tensor:
    """Mean of ``frame_loss`` over frames."""
    parts = zip(frames, result.energies, result.forces, result.stresses, strict=True)
    return sum(frame_loss(frame, e, f, s, weights) for frame, e, f, s in parts) / len(frames)


def charge_deviation(charges: list[Tensor], guesses: list[Tensor]) -> Tensor:
    """Mean over frames of mean((q − guess)²), [], e²; ``charges`` [N, n_q] (their sum counts), ``guesses`` [N]."""
    parts = zip(charges, guesses, strict=True)
    return sum((q.sum(1).double() - guess).square().mean() for q, guess in parts) / len(guesses)


@dataclass
class _Sums:
    squares: float = 0.0
    absolutes: float = 0.0
    count: int = 0

    def add(self, difference: Tensor) -> None:
        self.squares += float(difference.square().sum())
        self.absolutes += float(difference.abs().sum())
        self.count += difference.numel()

    def include(self, other: _Sums) -> None:
        self.squares += other.squares
        self.absolutes += other.absolutes
        self.count += other.count

    def rmse(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def mae(self) -> float:
        return self.absolutes / self.count if self.count else math.nan


@dataclass
class Deviations:
    """Sums over frames, from which the errors come.

    Units of all errors: ``energy`` meV/atom, ``forces`` meV/Å, ``stress`` meV/Å³; NaN where there is no label.
    """

    energy: _Sums = field(default_factory=_Sums)
    forces: _Sums = field(default_factory=_Sums)
    stress: _Sums = field(default_factory=_Sums)
    by_type: dict[int, _Sums] = field(default_factory=dict)

    def include(self, other: Deviations) -> None:
        """Take the sums over other frames in."""
        for name in ("energy", "forces", "stress"):
            getattr(self, name).include(getattr(other, name))
        for kind, sums in other.by_type.items():
            self.by_type.setdefault(kind, _Sums()).include(sums)

    @torch.no_grad()
    def add(self, frames: list[Frame], result: Evaluation) -> None:
        """Take frames and what the model gave for them into the sums."""
        parts = zip(frames, result.energies, result.forces, result.stresses, strict=True)
        for frame, energy, forces, stress in parts:
            self.energy.add((energy - frame.energy) / frame.types.size(0))
            difference = forces - frame.forces
            self.forces.add(difference)
            for kind in torch.unique(frame.types).tolist():
                self.by_type.setdefault(kind, _Sums()).add(difference[frame.types == kind])
            if stress is not None and frame.stress is not None:
                self.stress.add(stress - frame.stress)

    def rmse(self) -> dict[str, float]:
        """Root mean square errors by label."""
        return {name: 1e3 * getattr(self, name).rmse() for name in ("energy", "forces", "stress")}

    def mae(self) -> dict[str, float]:
        """Mean absolute errors by label."""
        return {name: 1e3 * getattr(self, name).mae() for name in ("energy", "forces", "stress")}

    def forces_by_type(self) -> dict[int, float]:
        """Root mean square error of the forces on the atoms of each type, meV/Å."""
        return {kind: 1e3 * sums.rmse() for kind, sums in sorted(self.by_type.items())}


def deviations_of(model: EnergyModel, frames: list[Frame], batch_size: int = 1, stress: bool = False) -> Deviations:
    """Deviations of a model on frames, which may lie on another device."""
    device = model.reference_energies.device
    deviations = Deviations()
    for first in range(0, len(frames), batch_size):
        batch = [frame.to(device) for frame in frames[first : first + batch_size]]
        deviations.add(batch, model.evaluate(batch, differentiable=False, stress=stress))
    return deviations


def together(parts: Iterable[Deviations]) -> Deviations:
    """Deviations on all frames of several."""
    sums = Deviations()
    for part in parts:
        sums.include(part)
    return sums
