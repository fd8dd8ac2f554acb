"""Fit of a network and its latent charges to energies and forces: ``fit`` a native CACE, ``optimise`` any network.

Nothing but energies and forces is trained on: charges are what makes the long-range energy fit. Forces are
derivatives of the total energy over positions, so that a step differentiates twice through network and electrostatics.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.electrostatics.latent_inputs import les_inputs
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.les import Les
from les_md.training.bond_guard import BondGuard
from les_md.training.charge_guess import bond_increment_charges, start_from_guess
from les_md.training.contact_guard import ContactGuard
from les_md.training.crowd_guard import CrowdGuard
from les_md.training.dataset import Frame, reference_energies

#: Each makes training structures without labels from labelled ones, and says what the loss asks of their forces.
Guard = BondGuard | ContactGuard | CrowdGuard


@dataclass(frozen=True)
class Schedule:
    """How long and how a model is trained.

    Attributes
    ----------
    epochs : passes over the training frames.
    learning_rate : rises over the first ``warmup_steps`` steps, then falls to zero as a cosine.
    average : decay of the exponential average of the weights, per step; the average is what is kept.
    energy_weight : w_E in the loss mean(ΔF²) + w_E (ΔE/N)², F in eV/Å and E in eV.
    gradient_limit : the norm of the gradient is cut off here.
    validate_every : epochs between two validations; the average with the lowest force error is kept.
    seed : of the initial weights and of the order of frames.
    """

    epochs: int = 250
    learning_rate: float = 0.01
    warmup_steps: int = 100
    average: float = 0.99
    energy_weight: float = 1.0
    gradient_limit: float = 0.1
    validate_every: int = 5
    seed: int = 0

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Errors:
    """Root mean square errors: ``energy`` in meV/atom, ``forces`` in meV/Å."""

    energy: float
    forces: float

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Fit:
    """A trained model.

    Attributes: ``network`` float32; ``reference_energies`` [types] eV; ``history`` one dict per validation (epoch,
    learning_rate, training_forces, validation_forces, validation_energy, seconds); ``best_epoch``; ``seconds``.
    """

    network: torch.nn.Module
    reference_energies: Tensor
    history: list[dict]
    best_epoch: int
    seconds: float


class Evaluation(NamedTuple):
    """Results for several frames, one entry for each frame.

    Attributes: ``energies`` [] eV and ``forces`` [N, 3] eV/Å, float64; ``charges`` [N, n_q] e, without what is induced;
    ``stresses`` [3, 3] eV/Å³, positive under tension, None where it was not asked for or the frame is isolated.
    """

    energies: list[Tensor]
    forces: list[Tensor]
    charges: list[Tensor]
    stresses: list[Tensor | None]


class EnergyModel(torch.nn.Module):
    """Total energy of a structure: network, reference energies and long-range energy.

    The network is that of any architecture (``registry.TrainedModel``) with its ``cutoff`` as an attribute, and its
    ``latent`` layout where it has latent variables beyond charges.
    """

    def __init__(
        self, network: torch.nn.Module, reference_energies: Tensor, long_range: LongRangeParameters | None
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("reference_energies", reference_energies)
        self.long_range = None if long_range is None else Les(**long_range.to_dict())

    def forward(self, frame: Frame, differentiable: bool) -> tuple[Tensor, Tensor]:
        """Energy [] eV and forces [N, 3] eV/Å, float64; ``differentiable`` in the weights, if asked for."""
        result = self.evaluate([frame], differentiable)
        return result.energies[0], result.forces[0]

    def evaluate(self, frames: Sequence[Frame], differentiable: bool, stress: bool = False) -> Evaluation:
        """Energies, forces, charges and, if asked for, stresses of several frames by one call of the network.

        For small molecules this is much faster than one call each.
        """
        sizes = [frame.types.size(0) for frame in frames]
        first_atoms = [sum(sizes[:i]) for i in range(len(sizes))]
        types = torch.cat([frame.types for frame in frames])
        positions = torch.cat([frame.positions for frame in frames]).requires_grad_(True)
        graphs = [frame.neighbours(self.network.cutoff) for frame in frames]
        edge_index = torch.cat([index + first for (index, _), first in zip(graphs, first_atoms, strict=True)], dim=1)
        offsets = [lattice_offsets for _, lattice_offsets in graphs]
        cells = [frame.cell for frame in frames]
        moved, variables = positions, [positions]
        if stress:
            # r → r(1+ε), h → h(1+ε), with the symmetric part of ε since the energy does not change with a rotation.
            strain = torch.zeros([len(frames), 3, 3], dtype=positions.dtype, device=positions.device)
            strain.requires_grad_(True)
            variables.append(strain)
            symmetric = 0.5 * (strain + strain.transpose(1, 2))
            moved = torch.cat([r + r @ e for r, e in zip(torch.split(positions, sizes), symmetric, strict=True)])
            offsets = [offset + offset @ e for offset, e in zip(offsets, symmetric, strict=True)]
            cells = [cell + cell @ e for cell, e in zip(cells, symmetric, strict=True)]
        vectors = moved[edge_index[1]] - moved[edge_index[0]] + torch.cat(offsets)
        atomic, latent = self.network(vectors, edge_index, types)
        layout = getattr(self.network, "latent", None)
        charges = latent if layout is None else latent[:, : layout.num_charges]
        energies = [e.sum() for e in torch.split(atomic.double() + self.reference_energies[types], sizes)]
        if self.long_range is not None:
            inputs = {"latent_charges": latent} if layout is None else les_inputs(latent, layout)
            result = self.long_range(
                moved,
                torch.stack(cells),
                **{name: values.double() for name, values in inputs.items()},
                batch=torch.repeat_interleave(torch.tensor(sizes)).to(moved.device),
            )
            energies = [short + long for short, long in zip(energies, result["E_lr"], strict=True)]
        gradient, *derivative = torch.autograd.grad(sum(energies), variables, create_graph=differentiable)
        stresses: list[Tensor | None] = [None] * len(frames)
        if stress:
            stresses = [
                d / torch.linalg.det(frame.cell).abs() if bool((frame.cell != 0.0).any()) else None
                for d, frame in zip(derivative[0], frames, strict=True)
            ]
        return Evaluation(energies, list(torch.split(-gradient, sizes)), list(torch.split(charges, sizes)), stresses)


@torch.no_grad()
def standardise_inputs(network: CACENetwork, frames: list[Frame]) -> None:
    """Scale and shift the readouts' first layers so that they see features of zero mean and unit variance.

    The forms of the function stay the same; only its initial weights change. Charges and other latent variables start
    small but not at zero, which is a stationary point of the energy.
    """
    captured: list[tuple[Tensor, ...]] = []
    latent = network.latent_readout
    # The readout of latent variables sees the invariants, too, and the vectors and tensors.
    watched = network.energy_readout if latent is None else latent
    hook = watched.register_forward_pre_hook(lambda _module, inputs: captured.append(inputs))
    for frame in frames:
        edge_index, offsets = frame.neighbours(network.cutoff)
        vectors = frame.positions[edge_index[1]] - frame.positions[edge_index[0]] + offsets
        network(vectors, edge_index, frame.types)
    hook.remove()
    features, *others = (torch.cat(parts) for parts in zip(*captured, strict=True))
    deviation = features.std(0) + 1e-3 * features.std()
    mean = features.mean(0)
    readouts = [(network.energy_readout, 1.0), (network.charge_readout, 0.1)]
    if latent is not None:
        latent.standardise(*others)
        readouts += [(readout, 0.1) for readout in latent.perceptrons()]
    for readout, factor in readouts:
        for layer in (*readout.hidden, readout.output, readout.linear):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
        for layer in (readout.hidden[0], readout.linear):
            layer.weight.div_(deviation)
            layer.bias.sub_(layer.weight @ mean)
        readout.linear.weight.mul_(0.1)
        readout.linear.bias.mul_(0.1)


def loss(
    model: EnergyModel,
    frames: Frame | Sequence[Frame],
    energy_weight: float,
    guesses: Sequence[Tensor] | None = None,
    charge_restraint: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """mean(ΔF²) + w_E (ΔE/N)² + w_q mean((q − guess)²), and its first term; eV, Å and e. Of several frames, the mean.

    Parameters: ``guesses`` of the charges [N] of each frame, needed only with a ``charge_restraint`` w_q.
    """
    frames = [frames] if isinstance(frames, Frame) else frames
    energies, forces, charges, _ = model.evaluate(frames, differentiable=True)
    total, of_forces = [], []
    for frame, energy, force in zip(frames, energies, forces, strict=True):
        force_loss = (force - frame.forces).square().mean()
        energy_error = (energy - frame.energy) / frame.types.size(0)
        total.append(force_loss + energy_weight * energy_error.square())
        of_forces.append(force_loss.detach())
    if charge_restraint > 0.0:
        differences = [q.sum(1).double() - guess for q, guess in zip(charges, guesses, strict=True)]
        total.extend(charge_restraint * difference.square().mean() for difference in differences)
    return sum(total) / len(frames), sum(of_forces) / len(frames)


def guard_shortfalls(
    model: EnergyModel, batch: Sequence[Frame], guards: Sequence[Guard], step: int, generator: torch.Generator
) -> Iterator[tuple[Guard, Tensor]]:
    """The guards whose turn it is in a step, each with its shortfall [] in (eV/Å)², differentiable in the weights."""
    for turn, current in enumerate(guards):
        # With every = 2 and three guards, each comes every sixth step.
        if step % (current.every * len(guards)) == turn * current.every:
            # A frame may have no contact to squeeze: the first one of the batch that has is taken.
            tried = (current.disturb(frame, generator) for frame in batch)
            disturbed = next((each for each in tried if each is not None), None)
            if disturbed is not None:
                _, forces = model(disturbed.frame, differentiable=True)
                yield current, disturbed.shortfall(forces, current.least_force)


def errors(model: EnergyModel, frames: list[Frame]) -> Errors:
    """Root mean square errors over frames."""
    energy_error, force_error, components = 0.0, 0.0, 0
    for frame in frames:
        energy, forces = model(frame, differentiable=False)
        energy_error += float((energy.detach() - frame.energy) / frame.types.size(0)) ** 2
        force_error += float((forces - frame.forces).square().sum())
        components += forces.numel()
    return Errors(1e3 * math.sqrt(energy_error / len(frames)), 1e3 * math.sqrt(force_error / components))


def fit(
    configuration: CACEConfiguration,
    long_range: LongRangeParameters | None,
    training: list[Frame],
    validation: list[Frame],
    schedule: Schedule,
    report: Callable[[dict], None] | None = None,
    guard: Guard | Sequence[Guard] | None = None,
    initial: CACENetwork | None = None,
    frames_per_step: int = 1,
    standardise_on: int = 1,
    guess_charges: bool = False,
    charge_restraint: float = 0.0,
) -> Fit:
    """Train a model; return the averaged weights with the lowest force error on the validation frames.

    Parameters
    ----------
    training : frames; a frame given several times counts as often.
    report : called with each line of the history.
    guard : keeps bonds from breaking, molecules apart or atoms from being crowded, see ``bond_guard.py``,
        ``contact_guard.py`` and ``crowd_guard.py``; of several, each has its turn.
    initial : is trained further (a copy of it) instead of a new network.
    frames_per_step : frames of which a step takes the mean loss.
    standardise_on : number of frames, spread over ``training``, on which the initial weights are scaled; their
        environments should be like those of all of it.
    guess_charges : start from charges by electronegativity, see ``charge_guess.py``, instead of small random ones.
    charge_restraint : w_q of ``loss``, which keeps the charges near that guess while the short range is learned.

    Raises
    ------
    ValueError : charges without long-range parameters or the reverse, or no frames.
    FloatingPointError : the loss is not finite.
    """
    if (long_range is None) != (configuration.num_charges == 0):
        raise ValueError("a model has long-range parameters if and only if it has charges")
    if frames_per_step < 1 or standardise_on < 1:
        raise ValueError("frames_per_step and standardise_on must be at least 1")
    if not training or not validation:
        raise ValueError("training needs at least one training frame and one validation frame")
    start = time.perf_counter()
    torch.manual_seed(schedule.seed)
    if initial is None:
        network = CACENetwork(configuration).float()
        initial_frames = training[:: -(-len(training) // standardise_on)]
        standardise_inputs(network, initial_frames)
        if guess_charges and configuration.num_charges > 0:
            start_from_guess(network, initial_frames, configuration.atomic_numbers)
    else:
        network = copy.deepcopy(initial)
    energies = reference_energies(training, len(configuration.atomic_numbers))
    guesses: list[Tensor] | None = None
    if charge_restraint > 0.0:
        guesses = [bond_increment_charges(frame, configuration.atomic_numbers) for frame in training]
    result = optimise(
        network,
        energies,
        long_range,
        training,
        validation,
        schedule,
        report,
        guard,
        frames_per_step,
        guesses,
        charge_restraint,
    )
    return replace(result, seconds=time.perf_counter() - start)


def optimise(
    network: torch.nn.Module,
    energies: Tensor,
    long_range: LongRangeParameters | None,
    training: list[Frame],
    validation: list[Frame],
    schedule: Schedule,
    report: Callable[[dict], None] | None = None,
    guard: Guard | Sequence[Guard] | None = None,
    frames_per_step: int = 1,
    guesses: list[Tensor] | None = None,
    charge_restraint: float = 0.0,
) -> Fit:
    """Train a network of any architecture, in place; return the averaged weights with the lowest force error.

    Parameters
    ----------
    network : as of ``EnergyModel``.
    energies : reference energies [types] eV.
    guesses : of the charges [N] of each training frame, needed only with a ``charge_restraint``.

    Other parameters and errors as of ``fit``.
    """
    guards = () if guard is None else (guard,) if isinstance(guard, Guard) else tuple(guard)
    if not training or not validation:
        raise ValueError("training needs at least one training frame and one validation frame")
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(schedule.seed)
    model = EnergyModel(network, energies, long_range)
    average = copy.deepcopy(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=schedule.learning_rate, amsgrad=True)
    total_steps = schedule.epochs * -(-len(training) // frames_per_step)

    history: list[dict] = []
    best = (math.inf, 0, copy.deepcopy(average.network))
    step = 0
    for epoch in range(1, schedule.epochs + 1):
        force_loss = 0.0
        order = torch.randperm(len(training), generator=generator)
        for chosen in torch.split(order, frames_per_step):
            batch = [training[index] for index in chosen.tolist()]
            rate = schedule.learning_rate * min(1.0, (step + 1) / schedule.warmup_steps)
            rate *= 0.5 * (1.0 + math.cos(math.pi * step / total_steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen_guesses = None if guesses is None else [guesses[index] for index in chosen.tolist()]
            value, of_forces = loss(model, batch, schedule.energy_weight, chosen_guesses, charge_restraint)
            if not torch.isfinite(value):
                raise FloatingPointError(f"the loss is not finite in epoch {epoch}: lower the learning rate")
            optimizer.zero_grad()
            value.backward()
            for current, shortfall in guard_shortfalls(model, batch, guards, step, generator):
                (current.weight * shortfall).backward()
            torch.nn.utils.clip_grad_norm_(parameters, schedule.gradient_limit)
            optimizer.step()
            force_loss += float(of_forces) * len(batch)
            step += 1
            # A short memory at first, so that the initial weights are soon forgotten.
            decay = min(schedule.average, step / (step + 10.0))
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                    slow.lerp_(fast, 1.0 - decay)
        if epoch % schedule.validate_every and epoch != schedule.epochs:
            continue
        measured = errors(average, validation)
        history.append(
            {
                "epoch": epoch,
                "learning_rate": rate,
                "training_forces": 1e3 * math.sqrt(force_loss / len(training)),
                "validation_forces": measured.forces,
                "validation_energy": measured.energy,
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        if report is not None:
            report(history[-1])
        if measured.forces < best[0]:
            best = (measured.forces, epoch, copy.deepcopy(average.network))
    return Fit(best[2], energies, history, best[1], time.perf_counter() - start)
