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


@pytest.fixture(scope="session", params=["water_rpbe_d3 float32", "organics_wb97m float64"])
def compiled_model(request, tmp_path_factory) -> Path:
    """A bundled model exported with its network compiled, by the command."""
    from les_md.ahead_of_time import missing_options
    from les_md.cli import export_main

    if missing_options():
        pytest.skip(f"this PyTorch cannot compile networks: {missing_options()}")
    name, dtype = request.param.split()
    path = tmp_path_factory.mktemp("compiled") / f"{name}_water.pt"
    assert export_main([name, "-o", str(path), "--dtype", dtype, "--compile"]) == 0
    return path
