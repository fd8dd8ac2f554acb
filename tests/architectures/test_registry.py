"""Architectures are found by entry point, those of other packages too."""

import sys
import types

import numpy as np
import pytest
import torch

from les_md import LESCalculator, export
from les_md.architectures import TrainedModel, UnsupportedModelError, architectures, find_architecture
from les_md.check_structures import water_box
from les_md.electrostatics import LongRangeParameters
from les_md.electrostatics.latent_layout import LatentLayout

OUTSIDE = '''
"""A harmonic pair potential with fixed charges, as another package would add it."""
import torch
from les_md.architectures import TrainedModel
from les_md.architectures.direct_evaluation import DirectEvaluation
from les_md.electrostatics import LongRangeParameters

name = "springs"

class Springs(torch.nn.Module):
    def __init__(self, stiffness: float, charges):
        super().__init__()
        self.stiffness = stiffness
        self.register_buffer("charges", charges)

    def forward(self, edge_vectors, edge_index, types):
        vectors = edge_vectors.to(self.charges.dtype)
        stretch = torch.clamp(3.0 - torch.sqrt((vectors * vectors).sum(1)), min=0.0)
        energy = torch.zeros_like(types, dtype=vectors.dtype).index_add(0, edge_index[0], self.stiffness * stretch**4)
        return energy, self.charges[types][:, None] * (1.0 + 0.01 * energy[:, None])

def matches(checkpoint):
    return isinstance(checkpoint, dict) and "springs" in checkpoint

def load(checkpoint, *, options):
    network = Springs(float(checkpoint["springs"]), checkpoint["charges"]).to(options.dtype)
    energies = torch.zeros(2, dtype=torch.float64)
    parameters = LongRangeParameters()
    return TrainedModel(
        architecture=name, network=network, atomic_numbers=[1, 8], cutoff=3.0, num_layers=1,
        reference_energies=energies, long_range=parameters, num_charges=1,
        original=DirectEvaluation(network, [1, 8], 3.0, energies, parameters), original_description="itself",
    )
'''


@pytest.fixture
def outside_package(tmp_path, monkeypatch):
    """A package with an entry point, on the path as an installed one would be."""
    site = tmp_path / "site"
    information = site / "les_springs-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "les_springs.py").write_text(OUTSIDE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: les-springs\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[les_md.architectures]\nsprings = les_springs\n")
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("les_springs", None)


def test_built_in_architectures():
    found = architectures()
    assert {"cace", "mace", "nequip"} <= set(found)
    for name, architecture in found.items():
        assert isinstance(architecture, types.ModuleType)
        assert architecture.name == name
        assert not architecture.matches({"something": "else"})
        assert not architecture.matches(None)


def test_architecture_of_another_package(outside_package, tmp_path):
    assert "springs" in architectures()
    torch.save({"springs": torch.tensor(0.02), "charges": torch.tensor([0.2, -0.4])}, tmp_path / "springs.pth")
    report = export(tmp_path / "springs.pth", tmp_path / "springs.pt", dtype="float64")
    assert report.metadata["architecture"] == "springs"
    water = water_box()
    calculator = LESCalculator(report.path)
    forces = calculator.get_forces(water)
    assert np.isfinite(forces).all()
    assert abs(calculator.results["long_range_energy"]) > 1e-3


def test_unknown_checkpoint():
    with pytest.raises(UnsupportedModelError, match=r"it holds a builtins.list\); known: .*cace.*mace.*nequip"):
        find_architecture([])


def test_layout_of_latent_variables_fits_the_charges():
    fields = {
        "architecture": "none", "network": torch.nn.Identity(), "atomic_numbers": [1], "cutoff": 3.0, "num_layers": 1,
        "reference_energies": torch.zeros(1), "long_range": LongRangeParameters(), "num_charges": 2,
        "original": None, "original_description": "none",
    }  # fmt: skip
    assert TrainedModel(**fields).latent == LatentLayout(2)
    assert TrainedModel(**fields, latent=LatentLayout(2, dipoles=True)).latent.num_columns == 8
    with pytest.raises(ValueError, match="num_charges is 2"):
        TrainedModel(**fields, latent=LatentLayout(1, dipoles=True))
