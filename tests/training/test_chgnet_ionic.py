"""The model molten salt, and the CHGNet-LES that finds its charges from energies and forces."""

import json
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
import torch

pytest.importorskip("openmm", reason="the force field needs OpenMM (pip install 'les_md[openmm]')")

from les_md import LESCalculator, export
from les_md.architectures import LoadOptions, chgnet
from les_md.checkpoint import read_checkpoint
from les_md.models import bundled_models
from les_md.training import recipes
from les_md.training.configuration_file import parse_configuration
from les_md.training.dataset import checked_frame
from les_md.training.deviations import deviations_of
from les_md.training.energy_model import EnergyModel
from les_md.training.molten_salt import CHARGES, LENGTH, RADII, STRENGTH, ForceField, labelled

#: Structures of the two test trajectories, with their labels.
HELD_OUT = Path(__file__).parent / "data" / "molten_salt_test.xyz"


@pytest.fixture(scope="module")
def held_out() -> list[ase.Atoms]:
    return ase.io.read(HELD_OUT, ":")


def model(name: str):
    return chgnet.load(read_checkpoint(bundled_models()[name]), options=LoadOptions(allow_short_range=True))


def errors_of(trained, structures: list[ase.Atoms]):
    energy_model = EnergyModel(trained.network, trained.reference_energies, trained.long_range)
    frames = [checked_frame(atoms, f"frame {i}", (11, 12, 17)) for i, atoms in enumerate(structures)]
    return deviations_of(energy_model, frames).rmse()


# ---- the force field


def test_rock_salt():
    """The Coulomb energy is Madelung's; the repulsion is summed by hand."""
    length = 6.2
    crystal = ase.build.bulk("NaCl", "rocksalt", a=length, cubic=True).repeat(2)
    energy, forces = ForceField(crystal.get_chemical_symbols(), crystal.cell.array).evaluate(crystal.positions)
    distances = crystal.get_all_distances(mic=True)
    radii = np.array([RADII[symbol] for symbol in crystal.get_chemical_symbols()])
    pairs = STRENGTH * np.exp((radii[:, None] + radii[None, :] - distances) / LENGTH)
    counted = np.triu(distances < 6.0, 1)  # each image within 6 Å is the nearest one: the cell is 12.4 Å wide
    madelung = -1.747564594633 * 14.3996454784 / (0.5 * length) * len(crystal) / 2
    assert energy == pytest.approx(madelung + pairs[counted].sum(), abs=2e-4)
    assert np.abs(forces).max() < 1e-8


def test_forces_are_derivatives(held_out):
    atoms = held_out[0]
    field = ForceField(atoms.get_chemical_symbols(), atoms.cell.array)
    _energy, forces = field.evaluate(atoms.positions)
    for index, axis in ((0, 0), (17, 2), (41, 1)):
        energies = []
        for step in (1e-4, -1e-4):
            moved = atoms.positions.copy()
            moved[index, axis] += step
            energies.append(field.evaluate(moved)[0])
        assert (energies[1] - energies[0]) / 2e-4 == pytest.approx(forces[index, axis], abs=2e-5)


def test_labels_are_those_of_the_force_field(held_out):
    for atoms in held_out:
        again = labelled(atoms)
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), rtol=0, atol=1e-6)


# ---- the trained models


def test_cells_are_larger_than_the_receptive_field(held_out):
    trained = model("molten_salt_chgnet")
    assert trained.num_layers == 1
    for atoms in held_out:
        assert min(atoms.cell.lengths()) > 2.0 * trained.cutoff * trained.num_layers


def test_charges_have_the_right_sign_and_ratio(held_out, tmp_path):
    """As an exported file gives them: positive metals, twice as much on Mg as on Na, and neutral in sum."""
    report = export("molten_salt_chgnet", tmp_path / "salt.pt")
    calculator = LESCalculator(report.path)
    charges, symbols = [], []
    for atoms in held_out:
        calculator.calculate(atoms, ["energy"])
        charges += calculator.results["charges"].tolist()
        symbols += atoms.get_chemical_symbols()
    charges, symbols = np.array(charges), np.array(symbols)
    mean = {symbol: charges[symbols == symbol].mean() for symbol in CHARGES}
    for symbol, charge in CHARGES.items():
        assert mean[symbol] == pytest.approx(charge, rel=0.1)
        assert charges[symbols == symbol].std() < 0.05
    assert mean["Mg"] / mean["Na"] == pytest.approx(2.0, rel=0.05)
    assert mean["Na"] / mean["Cl"] == pytest.approx(-1.0, rel=0.1)


def test_long_range_beats_its_twin(held_out):
    """On structures of trajectories that training never saw; the errors are those of the card."""
    long_range = errors_of(model("molten_salt_chgnet"), held_out)
    twin = errors_of(model("molten_salt_chgnet_short_range"), held_out)
    assert long_range["forces"] < 0.25 * twin["forces"]
    assert long_range["energy"] < 0.25 * twin["energy"]
    stored = torch.load(bundled_models()["molten_salt_chgnet"], weights_only=True)["training"]
    assert long_range["forces"] == pytest.approx(stored["errors"]["test"]["forces"], rel=0.01)


@pytest.mark.parametrize("short_range", [False, True])
def test_recipe(held_out, tmp_path, monkeypatch, short_range):
    """Four epochs of the recipe: the network of the bundled model, of which the loss falls."""

    def write(out: Path) -> None:
        for part, structures in {"train": held_out[:2], "validation": held_out[2:3], "test": held_out[3:4]}.items():
            ase.io.write(out / f"{part}.xyz", structures, format="extxyz")

    monkeypatch.setattr(recipes.molten_salt, "write_parts", write)
    arguments = ["molten_salt_chgnet", "--out", str(tmp_path), "--epochs", "4"]
    assert recipes.main([*arguments, "--short-range"] if short_range else arguments) == 0
    stored = read_checkpoint(tmp_path / "model" / "model.pth")
    name = "molten_salt_chgnet_short_range" if short_range else "molten_salt_chgnet"
    bundled = torch.load(bundled_models()[name], weights_only=True)
    assert stored["configuration"] == bundled["configuration"] and stored["long_range"] == bundled["long_range"]
    history = json.loads((tmp_path / "model" / "history.json").read_text())
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]
    settings = parse_configuration(recipes.configuration("molten_salt_chgnet"), "recipe").training
    assert (settings.epochs, settings.stages[0].learning_rate, settings.gradient_limit) == (240, 0.004, 1.0)
