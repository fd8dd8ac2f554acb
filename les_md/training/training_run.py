"""One training from configuration to exported model: ``les-train`` in Python."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from les_md.exporting import ExportError, export
from les_md.training.charge_guess import bond_increment_charges, start_from_guess
from les_md.training.configuration import ConfigurationError, TrainingConfiguration, TrainingSection
from les_md.training.dataset import Frame
from les_md.training.deviations import Deviations, deviations_of, together
from les_md.training.energy_model import EnergyModel
from les_md.training.guards import Guard
from les_md.training.history import write_figure, write_history
from les_md.training.model_card import model_card
from les_md.training.networks import NetworkConfiguration, checkpoint, initial_network, shift_energies
from les_md.training.record import circumstances, write_checkpoint
from les_md.training.run_folder import RunFolder, made_with, plain, write_text
from les_md.training.trainer import Trainer, TrainingError
from les_md.training.training_data import PARTS, TrainingData, average_neighbours, read_training_data

#: Frames, spread over the training frames, on which the initial weights are scaled.
STANDARDISE_ON = 20


@dataclass(frozen=True)
class Preparation:
    """What a training starts from.

    Attributes: ``data``, ``network`` configuration, initial ``model``, the ``guards``, and ``guesses`` of the charges
    [N] of each training frame where they are restrained.
    """

    data: TrainingData
    network: NetworkConfiguration
    model: EnergyModel
    guards: tuple[Guard, ...]
    guesses: list[torch.Tensor] | None


def prepare(
    configuration: TrainingConfiguration, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Preparation:
    """Read the data and make the initial model; nothing is written. Sets the number of threads of torch.

    Parameters: ``folder`` to which paths of the data are relative; ``progress`` as of ``read_training_data``.

    Raises what ``read_training_data`` raises, and ConfigurationError for a device that is not there.
    """
    torch.set_num_threads(configuration.threads)
    device = _device(configuration.device)
    data = read_training_data(
        configuration.data, folder, configuration.model.cutoff, configuration.model.elements, progress
    )
    network_configuration = configuration.model.network(
        data.atomic_numbers, average_neighbours(data, configuration.model.cutoff)
    )
    frames = data.frames["train"]
    guards = _guards(configuration.training, data)
    torch.manual_seed(configuration.seed)
    initial_frames = frames[:: -(-len(frames) // STANDARDISE_ON)]
    network = initial_network(network_configuration, initial_frames, getattr(torch, configuration.dtype))
    if configuration.training.guess_charges:
        start_from_guess(network, initial_frames, data.atomic_numbers)
    if isinstance(configuration.data.atomic_energies, dict):
        # The network begins with the mean binding energy, which average energies leave out.
        binding = torch.stack([(f.energy - data.reference_energies[f.types].sum()) / len(f.types) for f in frames])
        shift_energies(network, binding.mean())
    model = EnergyModel(network, data.reference_energies, configuration.long_range_parameters())
    guesses = None
    if configuration.training.restrains_charges:
        guesses = [bond_increment_charges(frame, data.atomic_numbers) for frame in frames]
    return Preparation(data, network_configuration, model.to(device), guards, guesses)


def _guards(settings: TrainingSection, data: TrainingData) -> tuple[Guard, ...]:
    isolated = any(not bool((frame.cell != 0.0).any()) for frame in data.frames["train"])
    for key in ("contact_guard", "crowd_guard"):
        if getattr(settings, key) is not None and not isolated:
            raise ConfigurationError(f"training.{key} disturbs isolated clusters; all training frames are periodic")
    return tuple(section.guard(data.atomic_numbers) for section in settings.guard_sections)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"device '{name}' cannot be used: {reason}") from error
    return device


def train(
    configuration: TrainingConfiguration,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    started: Callable[[Preparation, Trainer], None] | None = None,
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[Trainer], None] | None = None,
    reading: Callable[[int, int], None] | None = None,
) -> RunFolder:
    """Train a model and write everything to the output folder.

    Parameters
    ----------
    folder : to which the paths of the configuration are relative.
    resume : go on from the checkpoint in the output folder, if there is one.
    overwrite : remove the run that the output folder holds.
    started, after_step, after_epoch, reading : called when training starts or goes on, after each step, after each
        epoch (once its checkpoint is written), and while frames are read.

    Raises
    ------
    ConfigurationError, FrameError, FileNotFoundError : configuration or data are wrong.
    TrainingError : the output folder holds another run, the loss is not finite, or the trained model cannot be
        exported.
    """
    if resume and overwrite:
        raise TrainingError("--resume and --overwrite exclude each other")
    output = RunFolder(folder / configuration.output)
    output.check(resume, overwrite)
    preparation = prepare(configuration, folder, reading)
    output.open(overwrite)
    data, device = preparation.data, torch.device(configuration.device)
    training, validation = ([frame.to(device) for frame in data.frames[part]] for part in PARTS[:2])
    numbers, guesses = data.epoch(), preparation.guesses
    trainer = Trainer(
        preparation.model,
        [training[i] for i in numbers],
        validation,
        configuration.training,
        configuration.seed,
        preparation.guards,
        None if guesses is None else [guesses[i].to(device) for i in numbers],
    )
    origin = made_with(configuration, data)
    if output.checkpoint.is_file():
        trainer.restore(output.read_state(origin))
    output.write_start(configuration, data)
    if started is not None:
        started(preparation, trainer)
    while not trainer.finished:
        trainer.run_epoch(after_step)
        output.write_state(trainer.state(), origin)
        write_history(output, trainer.history)
        if after_epoch is not None:
            after_epoch(trainer)
    _finish(configuration, preparation, trainer, output)
    return output


def measure(model: EnergyModel, data: TrainingData, settings: TrainingSection) -> dict[str, dict[str, Deviations]]:
    """Deviations of a model on each part of the data that has frames, by file."""
    measured: dict[str, dict[str, Deviations]] = {}
    for part, frames in data.frames.items():
        by_file: dict[str, list[Frame]] = {}
        for frame, source in zip(frames, data.sources[part], strict=True):
            by_file.setdefault(source.file, []).append(frame)
        if by_file:
            measured[part] = {
                file: deviations_of(model, each, settings.batch_size, settings.trains_on_stress)
                for file, each in by_file.items()
            }
    return measured


def _finish(
    configuration: TrainingConfiguration, preparation: Preparation, trainer: Trainer, output: RunFolder
) -> None:
    """Write weights, exported model, history, figure and, last, the card."""
    data, settings = preparation.data, configuration.training
    network = copy.deepcopy(trainer.average.network)
    network.load_state_dict(trainer.best.weights)
    long_range = configuration.long_range_parameters()
    model = EnergyModel(network, data.reference_energies, long_range).to(trainer.model.reference_energies.device)
    by_file = measure(model, data, settings)
    deviations = {part: together(each.values()) for part, each in by_file.items()}
    record = circumstances()
    record["versions"]["les_md"] = importlib.metadata.version("les_md")
    training = {
        "configuration": plain(configuration.to_dict()),
        "split": data.split(),
        "best_epoch": trainer.best.epoch,
        "epochs": trainer.epoch,
        "seconds": round(trainer.seconds, 1),
        "errors": {part: each.rmse() for part, each in deviations.items()},
        "errors_by_file": {
            part: {file: each.rmse() for file, each in files.items()} for part, files in by_file.items()
        },
        "error_units": {"energy": "RMSE, meV/atom", "forces": "RMSE, meV/Å", "stress": "RMSE, meV/Å³"},
        **record,
    }
    write_checkpoint(
        output.weights,
        checkpoint(network, preparation.network, data.reference_energies, long_range, training),
    )
    write_history(output, trainer.history)
    write_figure(output, trainer.history, trainer.best.epoch)
    try:
        report = export(
            output.weights, output.model, dtype=configuration.dtype, short_range=not configuration.model.charges
        )
    except (ExportError, RuntimeError) as error:
        raise TrainingError(f"the trained weights are in {output.weights}, but their export failed: {error}") from error
    write_text(output.card, model_card(configuration, preparation, trainer, by_file, report.metadata, record))
