"""The recipe of the water model, shortened: it must run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest

from les_md import LESCalculator
from les_md.training import recipes
from les_md.training.configuration_file import parse_configuration
from les_md.training.water import split


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "les_md.training.recipes", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_two_epochs(shared, tmp_path):
    data = shared / "data" / "water_rpbe_d3.xyz"
    result = run("water_rpbe_d3", "--data", data, "--epochs", "2", "--seed", "0", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "epoch 2/2: loss " in result.stdout
    history = json.loads((tmp_path / "model" / "history.json").read_text())
    assert history[-1]["validation_forces"] < 400.0
    frames = ase.io.read(data, ":")
    sources = json.loads((tmp_path / "model" / "split.json").read_text())["frames"]
    for part, indices in split(len(frames)).items():
        assert len(sources[part]) == len(indices)
        stored = ase.io.read(tmp_path / f"{part}.xyz", ":")
        for atoms, index in zip(stored, indices, strict=True):
            assert np.allclose(atoms.get_forces(), frames[index].get_forces(), atol=1e-7)
    frames[0].calc = LESCalculator(tmp_path / "model" / "model.pt")
    assert np.isfinite(frames[0].get_forces()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["water_rpbe_d3", "--data", "data.xyz"], "error: the split belongs to the 40 frames"),
        (["water_rpbe_d3", "--data", "absent.xyz"], "error: no such data file"),
        (["water_rpbe_d3"], "--data is water_rpbe_d3.xyz"),
        (["molten_salt_chgnet", "--data", "data.xyz"], "--data is not needed for molten_salt_chgnet"),
        (["organics_wb97m", "--data", ".", "--epochs", "10"], "error: 10 epochs are too few for the 5 parts of"),
        (["water_rpbe_d3", "--data", "data.xyz", "--epochs", "0"], "--epochs must be at least 1"),
        (["steam"], "invalid choice: 'steam'"),
    ],
)
def test_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    ase.io.write("data.xyz", ase.Atoms("H2O", np.eye(3)))
    try:
        code = recipes.main([*arguments, "--out", "out"])
    except SystemExit as error:
        code = error.code
    assert code != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", list(recipes.DATA))
def test_recipes(name):
    """Twin, seed and a shorter training change that and nothing else."""
    whole, twin, other = (
        parse_configuration(text, name)
        for text in (
            recipes.configuration(name),
            recipes.configuration(name, short_range=True),
            recipes.configuration(name, seed=3),
        )
    )
    assert whole.model.charges and not twin.model.charges and twin.long_range_parameters() is None
    assert not twin.training.guess_charges and not twin.training.restrains_charges
    assert twin.training.guard_sections == whole.training.guard_sections
    assert whole.to_dict() | {"seed": 3} == other.to_dict()
    half = parse_configuration(recipes.configuration(name, epochs=whole.training.epochs // 2), name).training
    assert half.epochs == whole.training.epochs // 2 and len(half.stages) == len(whole.training.stages)
    for short, long in zip(half.stages, whole.training.stages, strict=True):
        assert abs((short.first - 1) - 0.5 * (long.first - 1)) <= 0.5 and short.learning_rate == long.learning_rate
    for short, long in zip(half.guard_sections, whole.training.guard_sections, strict=True):
        assert abs((short.from_epoch - 1) - 0.5 * (long.from_epoch - 1)) <= 0.5
