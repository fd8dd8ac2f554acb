"""The bundled models are what their recipes make: settings, data and errors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import les_md
from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.electrostatics import LongRangeParameters
from les_md.models import bundled_models
from les_md.training import recipes
from les_md.training.configuration_file import parse_configuration
from les_md.training.dataset import read_frames
from les_md.training.deviations import deviations_of
from les_md.training.energy_model import EnergyModel
from les_md.training.training_run import plain
from les_md.training.water import split

CARDS = Path(les_md.__file__).parent / "models"
TWIN = "_short_range"


def training_of(name: str) -> dict:
    """The record of its training inside a checkpoint."""
    return torch.load(bundled_models()[name], weights_only=True)["training"]


@pytest.mark.parametrize("name", sorted(bundled_models()))
def test_settings_are_those_of_the_recipe(name):
    """All of them, the seed included."""
    assert bundled_models()[name].stat().st_size <= 1_000_000
    text = recipes.configuration(name.removesuffix(TWIN), short_range=name.endswith(TWIN))
    assert training_of(name)["configuration"] == plain(parse_configuration(text, name).to_dict())


@pytest.mark.parametrize("name", ["water_rpbe_d3", "water_rpbe_d3_short_range", "organics_wb97m"])
def test_data_are_those_of_the_recipe(name, shared, tmp_path):
    """The files of frames that training read, to the byte."""
    data = shared / "data" / ("water_rpbe_d3.xyz" if name.startswith("water") else "")
    recipes.write_data(name.removesuffix(TWIN), data, tmp_path)
    made = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    stored = training_of(name)["split"]["files_sha256"]
    assert {file: made[file] for file in stored} == stored


@pytest.mark.parametrize("name", ["water_rpbe_d3", "water_rpbe_d3_short_range"])
def test_errors_of_the_water_models(shared, name):
    """The errors that the card states, measured again; the model's own is at most 40 meV/Å on the test frames."""
    checkpoint = torch.load(bundled_models()[name], weights_only=True)
    network = CACENetwork(CACEConfiguration(**checkpoint["configuration"])).float()
    network.load_state_dict(checkpoint["state_dict"])
    stored = checkpoint["long_range"]
    assert (stored is None) == name.endswith(TWIN)
    model = EnergyModel(
        network, checkpoint["reference_energies"], None if stored is None else LongRangeParameters(**stored)
    )
    frames = read_frames(shared / "data" / "water_rpbe_d3.xyz", (1, 8))
    card = (CARDS / "water_rpbe_d3.md").read_text(encoding="utf-8")
    columns = (3, 5) if stored is None else (2, 4)
    for part in ("validation", "test"):
        measured = deviations_of(model, [frames[i] for i in split(len(frames))[part]]).rmse()
        assert measured["forces"] == pytest.approx(checkpoint["training"]["errors"][part]["forces"], abs=0.01)
        row = next(line for line in card.splitlines() if line.startswith(f"| {part}")).split("|")
        assert row[columns[0]].strip() == f"{measured['forces']:.1f}"
        assert row[columns[1]].strip() == f"{measured['energy']:.2f}"
        if stored is not None:
            assert measured["forces"] <= 40.0
