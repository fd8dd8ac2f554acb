"""The example that trains a water model, shortened: it must run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np

from les_md import LESCalculator
from les_md.training.configuration_file import read_configuration
from les_md.training.water import CONFIGURATION as BUNDLED
from les_md.training.water import GUARD, split

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "train_water"


def test_two_epochs(shared, tmp_path):
    data = shared / "data" / "water_rpbe_d3.xyz"
    arguments = [sys.executable, EXAMPLE / "run.py", "--data", data, "--epochs", "2", "--output", tmp_path]
    result = subprocess.run(
        arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr
    assert "epoch 2/2: loss " in result.stdout
    history = json.loads((tmp_path / "model" / "history.json").read_text())
    assert history[-1]["validation_forces"] < 400.0
    frames = ase.io.read(data, ":")
    sources = json.loads((tmp_path / "model" / "split.json").read_text())["frames"]
    for part, indices in split(frames).items():
        assert len(sources[part]) == len(indices)
        stored = ase.io.read(tmp_path / f"{part}.xyz", ":")
        for atoms, index in zip(stored, indices, strict=True):
            assert np.allclose(atoms.get_forces(), frames[index].get_forces(), atol=1e-7)
    frames[0].calc = LESCalculator(tmp_path / "model" / "model.pt")
    assert np.isfinite(frames[0].get_forces()).all()


def test_settings_are_those_of_the_bundled_model():
    configuration = read_configuration(EXAMPLE / "water.yaml")
    assert configuration.model.network((1, 8), 10.0).to_dict() == BUNDLED.to_dict()
    (section,) = configuration.training.bond_guards
    assert section.guard((1, 8)) == GUARD


def test_wrong_data(tmp_path):
    path = tmp_path / "data.xyz"
    ase.io.write(path, ase.Atoms("H2O", np.eye(3)))
    result = subprocess.run(
        [sys.executable, EXAMPLE / "run.py", "--data", path, "--output", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "error: the split belongs to the 40 frames" in result.stderr
