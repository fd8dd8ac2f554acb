"""Fixtures of all tests: the shared reference data where present, and single-threaded arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"

# The systems are small: threads cost more than they gain, and pytest-xdist runs several processes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data and published checkpoints, beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the reference data and published checkpoints (../shared) are not here")
    return SHARED
