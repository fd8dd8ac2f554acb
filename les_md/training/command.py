"""Command line ``les-train``."""

from __future__ import annotations

import argparse
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from les_md.training.trainer import Trainer
    from les_md.training.training_run import Preparation


def argument_parser() -> argparse.ArgumentParser:
    """The options of ``les-train``."""
    parser = argparse.ArgumentParser(
        prog="les-train",
        description="Train a native CACE-LES or CHGNet-LES model on energies, forces and stresses, and export it for "
        "LAMMPS, OpenMM and ASE.",
    )
    parser.add_argument("configuration", nargs="?", metavar="CONFIG.yaml", help="what to train on, and how")
    parser.add_argument("--template", action="store_true", help="print a configuration with comments, and stop")
    parser.add_argument("--check", action="store_true", help="check configuration and data, and stop before training")
    going_on = parser.add_mutually_exclusive_group()
    going_on.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    going_on.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """``les-train CONFIG.yaml``: train a native model and export it."""
    parser = argument_parser()
    options = parser.parse_args(arguments)
    if options.template:
        print(files("les_md.training").joinpath("template.yaml").read_text(encoding="utf-8"), end="")
        return 0
    if options.configuration is None:
        parser.error("give a configuration; les-train --template prints one")
    try:
        _run(options)
    except ModuleNotFoundError as error:
        if error.name not in ("yaml", "tqdm", "matplotlib"):
            raise
        print(f"error: {error.name} is not installed: pip install 'les_md[train]'", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        # Every error that a user can cause says in its message what is wrong and what to do.
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: les-train {options.configuration} --resume", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    import warnings

    from les_md.allocator import keep_freed_memory
    from les_md.training.configuration_file import read_configuration
    from les_md.training.run_folder import RunFolder
    from les_md.training.training_data import describe
    from les_md.training.training_run import prepare, train

    # A matter between TorchScript and the authors of modules, not of our user.
    warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support instance-level annotations")
    path = Path(options.configuration)
    configuration = read_configuration(path)
    keep_freed_memory()
    progress = Progress()
    if options.check:
        preparation = prepare(configuration, path.parent, progress.reading)
        progress.close()
        parameters = sum(parameter.numel() for parameter in preparation.model.parameters())
        steps = -(-len(preparation.data.epoch()) // configuration.training.batch_size)
        print(describe(preparation.data, configuration.model.cutoff))
        print(f"\n{parameters} parameters, {steps} steps an epoch, at most {configuration.training.epochs} epochs")
        RunFolder(path.parent / configuration.output).check(options.resume, options.overwrite)
        print("configuration, data and output folder are in order; nothing was trained or written")
        return
    try:
        output = train(
            configuration,
            path.parent,
            resume=options.resume,
            overwrite=options.overwrite,
            started=progress.started,
            after_step=progress.after_step,
            after_epoch=progress.after_epoch,
            reading=progress.reading,
        )
    finally:
        progress.close()
    print(f"\nmodel    {output.model}\ncard     {output.card}\nweights  {output.weights}\nfigure   {output.figure}")


class Progress:
    """A bar with the time left on a terminal; a line for each epoch, with the time left, elsewhere."""

    def __init__(self) -> None:
        self.bar = None
        self.trainer: Trainer | None = None
        self.begin = time.perf_counter()
        self.first_epoch = 0

    def reading(self, done: int, total: int) -> None:
        """Frames are being read."""
        if done == 1:
            self._open(total, "frame", "reading", 0)
        self._advance()
        if done == total:
            self.close()

    def started(self, preparation: Preparation, trainer: Trainer) -> None:
        """Training starts or goes on."""
        from les_md.training.training_data import describe

        print(describe(preparation.data, preparation.network.cutoff), end="\n\n", flush=True)
        self.trainer, self.first_epoch, self.begin = trainer, trainer.epoch, time.perf_counter()
        if trainer.epoch:
            print(f"going on after epoch {trainer.epoch}", flush=True)
        steps = trainer.settings.epochs * trainer.steps_per_epoch
        self._open(steps, "step", "training", trainer.epoch * trainer.steps_per_epoch)

    def after_step(self) -> None:
        """A step was made."""
        self._advance()

    def after_epoch(self, trainer: Trainer) -> None:
        """An epoch has ended: show its errors."""
        line = trainer.history[-1]
        text = ", ".join(
            f"{name} {line[f'training_{name}']:.4g}/{line[f'validation_{name}']:.4g}"
            for name in ("loss", "energy", "forces", "stress")
            if f"training_{name}" in line
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text)
            return
        each = (time.perf_counter() - self.begin) / (trainer.epoch - self.first_epoch)
        left = each * (trainer.settings.epochs - trainer.epoch)
        kept = "  *" if trainer.best.epoch == trainer.epoch else ""
        if trainer.epoch == self.first_epoch + 1:
            print("training/validation in meV/atom, meV/Å, meV/Å³; * lowest validation loss so far")
        print(f"epoch {trainer.epoch}/{trainer.settings.epochs}: {text}; {_duration(left)} left{kept}", flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _open(self, total: int, unit: str, description: str, initial: int) -> None:
        from tqdm import tqdm

        if sys.stderr.isatty():
            self.bar = tqdm(total=total, unit=unit, desc=description, initial=initial)

    def _advance(self) -> None:
        if self.bar is not None:
            self.bar.update(1)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
