"""What a training leaves behind: checkpoints, the results of stages to go on from, and the history."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from les_md.architectures.cace import native_checkpoint
from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.training.fit import Fit


def write_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint so that a reader sees the whole file or none."""
    partial = path.with_name(path.name + ".part")
    torch.save(checkpoint, partial)
    os.replace(partial, path)


def write_stage(
    path: Path, result: Fit, configuration: CACEConfiguration, long_range: LongRangeParameters | None, made_with: dict
) -> None:
    """Keep the result of a stage, with everything it was made with, for ``stored_stage``."""
    training = {
        "made_with": made_with,
        "best_epoch": result.best_epoch,
        "seconds": result.seconds,
        "history": result.history,
    }
    write_checkpoint(
        path, native_checkpoint(result.network, configuration, result.reference_energies, long_range, training)
    )


def stored_stage(path: Path, configuration: CACEConfiguration, made_with: dict) -> Fit | None:
    """The result of a stage from its file; None if there is no file or it was made with anything else."""
    stored = torch.load(path, weights_only=True) if path.is_file() else None
    if stored is None or stored["training"].get("made_with") != made_with:
        return None
    network = CACENetwork(configuration).float()
    network.load_state_dict(stored["state_dict"])
    kept = stored["training"]
    return Fit(network, stored["reference_energies"], kept["history"], kept["best_epoch"], kept["seconds"])


def write_history(path: Path, stages: Sequence[Sequence[dict]]) -> None:
    """The histories of the stages, counted from 1, as CSV."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=["stage", *stages[-1][0]])
        writer.writeheader()
        for number, history in enumerate(stages, start=1):
            writer.writerows({"stage": number, **line} for line in history)


def circumstances() -> dict:
    """Versions, threads and date of a training."""
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
    }
