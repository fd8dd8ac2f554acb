"""What reading a checkpoint raises."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file cannot be read as a checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A file asks for something that reading a checkpoint does not need."""
