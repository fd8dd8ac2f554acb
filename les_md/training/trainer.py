"""Optimisation of a model epoch by epoch, of which the state after any epoch can be kept and gone on from exactly."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from les_md.training.configuration import Stage, TrainingSection
from les_md.training.dataset import Frame
from les_md.training.deviations import Deviations, batch_loss, charge_deviation
from les_md.training.energy_model import EnergyModel
from les_md.training.guards import Guard, guard_shortfalls
from les_md.training.learning_rate import LearningRate


class TrainingError(RuntimeError):
    """A training cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Best:
    """The averaged weights with the lowest validation loss so far: ``weights`` of the network, ``epoch``, ``loss``."""

    epoch: int
    loss: float
    weights: dict[str, torch.Tensor]


class Trainer:
    """Adam with a schedule, an exponential average of the weights, stages, and early stopping.

    The validation loss is that of the averaged weights, with the weights of the loss of the last epoch throughout, so
    that epochs can be compared; the guards that act add their terms, on the validation frames.

    Parameters
    ----------
    model : trained in place; frames must be on its device.
    training, validation : frames; a training frame given several times counts as often.
    settings : how it is trained.
    seed : of the order of frames.
    guards : of ``settings.guard_sections``, in their order.
    guesses : of the charges [N] of each training frame, e; needed where ``settings`` restrain them.
    """

    def __init__(
        self,
        model: EnergyModel,
        training: list[Frame],
        validation: list[Frame],
        settings: TrainingSection,
        seed: int,
        guards: tuple[Guard, ...] = (),
        guesses: list[torch.Tensor] | None = None,
    ) -> None:
        self.model = model
        self.training = training
        self.validation = validation
        self.settings = settings
        self.guards = guards
        self.guesses = guesses
        self.disturbed: dict[Guard, list] = {}
        self.average = copy.deepcopy(model)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.order = torch.Generator().manual_seed(seed)
        self.steps_per_epoch = -(-len(training) // settings.batch_size)
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[dict] = []
        self.best: Best | None = None
        self._begin(settings.stage(1))

    def _begin(self, stage: Stage) -> None:
        """Make all that a stage has of its own."""
        self.step = 0
        self.optimizer = torch.optim.Adam(self.parameters, lr=stage.learning_rate, amsgrad=True)
        steps = (stage.last - stage.first + 1) * self.steps_per_epoch
        self.learning_rate = LearningRate(self.settings, stage.learning_rate, steps)

    def _next_stage(self, stage: Stage) -> None:
        """Begin a stage with the weights kept of the one before."""
        for model in (self.model, self.average):
            model.network.load_state_dict(self.best.weights)
        self.best = None
        self._begin(stage)

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not fallen for ``patience`` epochs."""
        patience = self.settings.patience
        if self.epoch < self.settings.guarded_from:
            return False
        return patience is not None and self.best is not None and self.epoch - self.best.epoch >= patience

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.epoch >= self.settings.epochs or self.stopped_early

    def run_epoch(self, after_step: Callable[[], None] | None = None) -> dict:
        """Train one epoch and validate; return its line of the history.

        The line holds epoch, learning_rate (of the last step), the weights of the loss, charge_restraint (where there
        ever is one; it is part of the training loss only), training_* (of the moving weights, over the epoch) and
        validation_* (of the averaged weights) as loss and root mean square errors in meV/atom, meV/Å and meV/Å³,
        guard_shortfall (root mean square of the force that disturbed validation frames lack, eV/Å) and seconds since
        the start of the training.

        Raises TrainingError where the loss is not finite.
        """
        start = time.perf_counter()
        epoch = self.epoch + 1
        stage = self.settings.stage(epoch)
        if epoch == stage.first > 1:
            self._next_stage(stage)
        weights, restraint = self.settings.weights(epoch), self.settings.restraint(epoch)
        stress = self.settings.trains_on_stress
        active = [
            guard
            for guard, section in zip(self.guards, self.settings.guard_sections, strict=True)
            if epoch >= section.from_epoch
        ]
        deviations, total = Deviations(), 0.0
        for chosen in torch.split(torch.randperm(len(self.training), generator=self.order), self.settings.batch_size):
            batch = [self.training[index] for index in chosen.tolist()]
            rate = self.learning_rate.at(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            result = self.model.evaluate(batch, differentiable=True, stress=stress)
            loss = batch_loss(batch, result, weights)
            if restraint > 0.0:
                guesses = [self.guesses[index] for index in chosen.tolist()]
                loss = loss + restraint * charge_deviation(result.charges, guesses)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is not finite in epoch {epoch}: lower training.learning_rate or set "
                    "training.gradient_limit"
                )
            self.optimizer.zero_grad()
            loss.backward()
            for guard, shortfall in guard_shortfalls(self.model, batch, active, self.step, self.order):
                (guard.weight * shortfall).backward()
            if self.settings.gradient_limit is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.gradient_limit)
            self.optimizer.step()
            self.step += 1
            self._average()
            deviations.add(batch, result)
            total += float(loss.detach()) * len(batch)
            if after_step is not None:
                after_step()
        self.epoch = epoch
        validation_loss, validated = self._validate()
        shortfalls = self._validate_guards(active)
        validation_loss += sum(guard.weight * value for guard, value in shortfalls)
        if not math.isfinite(validation_loss):
            raise TrainingError(f"the validation loss is not finite in epoch {epoch}: lower training.learning_rate")
        self.learning_rate.validated(validation_loss)
        if epoch == self.settings.guarded_from:
            self.best = None
        if self.best is None or validation_loss < self.best.loss:
            kept = {name: value.detach().clone() for name, value in self.average.network.state_dict().items()}
            self.best = Best(epoch, validation_loss, kept)
        self.seconds += time.perf_counter() - start
        line = {"epoch": epoch, "learning_rate": rate, "energy_weight": weights.energy, "forces_weight": weights.forces}
        if stress:
            line["stress_weight"] = weights.stress
        if self.settings.restrains_charges:
            line["charge_restraint"] = restraint
        for part, loss_of_part, errors in (
            ("training", total / len(self.training), deviations.rmse()),
            ("validation", validation_loss, validated.rmse()),
        ):
            line[f"{part}_loss"] = loss_of_part
            for name in ("energy", "forces", "stress") if stress else ("energy", "forces"):
                line[f"{part}_{name}"] = errors[name]
        if self.guards:
            mean = sum(value for _, value in shortfalls) / len(shortfalls) if shortfalls else math.nan
            line["guard_shortfall"] = math.sqrt(mean)
        line["seconds"] = round(self.seconds, 2)
        self.history.append(line)
        return line

    @torch.no_grad()
    def _average(self) -> None:
        # A short memory at first, so that the initial weights are soon forgotten.
        decay = min(self.settings.average, self.step / (self.step + 10.0))
        for slow, fast in zip(self.average.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 1.0 - decay)

    def _validate(self) -> tuple[float, Deviations]:
        weights = self.settings.weights(self.settings.epochs)
        deviations, total = Deviations(), 0.0
        for first in range(0, len(self.validation), self.settings.batch_size):
            batch = self.validation[first : first + self.settings.batch_size]
            result = self.average.evaluate(batch, differentiable=False, stress=self.settings.trains_on_stress)
            total += float(batch_loss(batch, result, weights).detach()) * len(batch)
            deviations.add(batch, result)
        return total / len(self.validation), deviations

    def _validate_guards(self, active: list[Guard]) -> list[tuple[Guard, float]]:
        """Each guard that acts, with its mean shortfall in (eV/Å)² on the validation frames, disturbed always alike.

        Of frames that a guard cannot disturb nothing is asked; a guard for which there is no other one is left out.
        """
        shortfalls = []
        for guard in active:
            if guard not in self.disturbed:
                generator = torch.Generator().manual_seed(0)
                tried = (guard.disturb(frame, generator) for frame in self.validation)
                self.disturbed[guard] = [each for each in tried if each is not None]
            if not self.disturbed[guard]:
                continue
            total = 0.0
            for each in self.disturbed[guard]:
                _, forces = self.average(each.frame, differentiable=False)
                total += float(each.shortfall(forces, guard.least_force).detach())
            shortfalls.append((guard, total / len(self.disturbed[guard])))
        return shortfalls

    def state(self) -> dict:
        """Everything that the rest of the training depends on: plain containers and tensors."""
        return {
            "model": self.model.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learning_rate": self.learning_rate.state(),
            "order": self.order.get_state(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "best": None if self.best is None else vars(self.best),
        }

    def restore(self, state: dict) -> None:
        """Go on from what ``state`` returned, with the same frames and settings."""
        self.model.network.load_state_dict(state["model"])
        self.average.network.load_state_dict(state["average"])
        self._begin(self.settings.stage(max(state["epoch"], 1)))
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["learning_rate"].items():
            setattr(self.learning_rate, name, value)
        self.order.set_state(state["order"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.history = list(state["history"])
        self.best = None if state["best"] is None else Best(**state["best"])
