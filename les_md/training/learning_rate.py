"""The learning rate of each step, a function of the step and of what the validation has shown."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from les_md.training.configuration import TrainingSection


@dataclass
class LearningRate:
    """Warm-up and then one of the schedules of ``TrainingSection``, in one of its stages.

    Parameters: ``settings``; ``highest`` rate and ``total_steps`` of the stage. The other attributes are what the
    plateau remembers: ``factor``, the lowest validation loss ``best`` and the epochs ``waited`` for a lower one.
    """

    settings: TrainingSection
    highest: float
    total_steps: int
    factor: float = 1.0
    best: float = math.inf
    waited: int = 0

    def at(self, step: int) -> float:
        """Rate of a step of the stage, counted from 0."""
        s = self.settings
        warm = min(1.0, (step + 1) / s.warmup_steps) if s.warmup_steps > 0 else 1.0
        done = step / self.total_steps
        if s.learning_rate_schedule == "cosine":
            final = s.final_learning_rate or 0.0
            rate = final + (self.highest - final) * 0.5 * (1.0 + math.cos(math.pi * done))
        elif s.learning_rate_schedule == "exponential":
            final = s.final_learning_rate or 0.01 * self.highest
            rate = self.highest * (final / self.highest) ** done
        else:
            rate = self.highest * self.factor
        return warm * rate

    def validated(self, loss: float) -> None:
        """Take notice of an epoch's validation loss."""
        if self.settings.learning_rate_schedule != "plateau":
            return
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= (self.settings.plateau_patience or 10):
            self.factor *= self.settings.plateau_factor or 0.5
            self.waited = 0

    def state(self) -> dict[str, float]:
        """What has to be kept to go on later."""
        values = asdict(self)
        return {name: values[name] for name in ("factor", "best", "waited")}
