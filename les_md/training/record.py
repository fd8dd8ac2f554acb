"""What a training leaves behind besides its results: checkpoints, written whole or not at all, and circumstances."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch


def write_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint so that a reader sees the whole file or none."""
    partial = path.with_name(path.name + ".part")
    torch.save(checkpoint, partial)
    os.replace(partial, path)


def circumstances() -> dict:
    """Versions, threads and date of a training."""
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
    }
