"""Exported files of every architecture, for all engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architectures.small_models import SMALL_MODELS, export_small_model
from tests.sharing import one_at_a_time, shared_folder

ARCHITECTURES = list(SMALL_MODELS)


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Callable[[str], Path]:
    """The exported file of an architecture's small model, made when it is first asked for."""
    folder = shared_folder(tmp_path_factory, "small_models")

    def get(name: str) -> Path:
        path = folder / f"{name}.pt"
        with one_at_a_time(folder):
            return path if path.is_file() else export_small_model(name, path)

    return get
