"""Training with latent dipoles, quadrupoles, κ and α: forces, what is trained, checkpoints, les-train."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from les_md import LESCalculator
from les_md.architectures.cace import load as load_cace
from les_md.architectures.cace import native_checkpoint
from les_md.architectures.registry import LoadOptions, UnsupportedModelError
from les_md.electrostatics import LongRangeParameters
from les_md.les import Les
from les_md.training.configuration import ConfigurationError, LossWeights, TrainingSection
from les_md.training.configuration_file import parse_configuration, read_configuration
from les_md.training.dataset import reference_energies
from les_md.training.deviations import batch_loss, deviations_of
from les_md.training.energy_model import EnergyModel
from les_md.training.les_arguments import les_of_arguments
from les_md.training.networks import initial_network
from les_md.training.trainer import Trainer
from les_md.training.training_run import train
from tests.training.ionic_crystals import crystal, write_crystals
from tests.training.test_configuration import changed
from tests.training.test_stress import CONFIGURATION, LATENT, frames, model
from tests.training.test_training_run import settings, write


@pytest.mark.parametrize("kinds", [LATENT, {"dipoles": True}, {"quadrupoles": True}, {"kappas": True}], ids=str)
def test_forces_are_derivatives_and_the_latent_variables_matter(kinds):
    tested = model(**kinds)
    frame = frames()[0]
    energy, forces = tested(frame, differentiable=False)
    without = model()
    without.network.load_state_dict(tested.network.state_dict(), strict=False)
    assert abs(float((energy - without(frame, differentiable=False)[0]).detach())) > 1e-5
    for atom, axis in ((0, 0), (3, 1), (5, 2)):
        values = []
        for sign in (1.0, -1.0):
            positions = frame.positions.clone()
            positions[atom, axis] += sign * 1e-4
            moved = dataclasses.replace(frame, positions=positions)
            values.append(float(tested(moved, differentiable=False)[0].detach()))
        assert float(forces[atom, axis]) == pytest.approx((values[1] - values[0]) / 2e-4, rel=1e-5, abs=1e-7)


def loss(of: EnergyModel) -> torch.Tensor:
    return batch_loss(frames(), of.evaluate(frames(), differentiable=True), LossWeights(1.0, 1.0, 0.0))


def test_every_weight_is_reached():
    """The loss on forces is differentiable in the weights of all readouts, and no gradient is zero."""
    tested = model(**LATENT)
    loss(tested).backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in tested.named_parameters():
        if "latent_readout" not in name:
            continue
        assert float(parameter.grad.abs().max()) > 0.0, name
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        values = []
        for sign in (1.0, -1.0):
            shifted = copy.deepcopy(tested)
            with torch.no_grad():
                shifted.get_parameter(name).add_(sign * 1e-5 * direction)
            values.append(float(loss(shifted).detach()))
        numeric = (values[0] - values[1]) / 2e-5
        assert float((parameter.grad * direction).sum()) == pytest.approx(numeric, rel=1e-4, abs=1e-9), name


def test_training_reduces_the_error_in_single_precision():
    configuration = dataclasses.replace(CONFIGURATION, **LATENT)
    torch.manual_seed(0)
    network = initial_network(configuration, frames(), torch.float32)
    model = EnergyModel(network, reference_energies(frames(), 2), LongRangeParameters())
    before = deviations_of(model, frames()).rmse()["forces"]
    trainer = Trainer(model, frames(), frames(), TrainingSection(30, warmup_steps=10, average=0.9), seed=0)
    while not trainer.finished:
        trainer.run_epoch()
    assert trainer.history[-1]["validation_forces"] < 0.5 * before


@pytest.mark.parametrize("kinds", [LATENT, {"fixed_charges": (0.7, -0.7)}], ids=str)
def test_checkpoint_and_direct_evaluation(kinds):
    """A checkpoint keeps what the model has; the original's evaluation is the training's."""
    tested = model(**kinds)
    configuration = dataclasses.replace(CONFIGURATION, **kinds)
    checkpoint = native_checkpoint(
        tested.network, configuration, tested.reference_energies, LongRangeParameters(), {}
    )  # fmt: skip
    assert checkpoint["format_version"] == 2
    loaded = load_cace(checkpoint, options=LoadOptions())
    assert loaded.latent == configuration.latent
    if loaded.network.latent_readout is not None:  # (not a weight: made larger for the test)
        for name in ("scale", "response_scale"):
            setattr(loaded.original.network.latent_readout, name, getattr(tested.network.latent_readout, name))
    for seed, frame in zip((1, 2, 4), frames(), strict=True):
        original = loaded.original(crystal(seed))
        result = tested.evaluate([frame], differentiable=False)
        assert original.energy == pytest.approx(float(result.energies[0].detach()), rel=1e-12)
        np.testing.assert_allclose(original.forces, result.forces[0].numpy(), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(original.charges, result.charges[0].detach().numpy(), rtol=1e-9)


def test_checkpoints_of_charges_are_as_before():
    tested = model()
    checkpoint = native_checkpoint(tested.network, CONFIGURATION, tested.reference_energies, LongRangeParameters(), {})
    assert checkpoint["format_version"] == 1
    assert not {"dipoles", "quadrupoles", "kappas", "alphas", "fixed_charges", "response_scale"} & set(
        checkpoint["configuration"]
    )
    assert load_cace(checkpoint, options=LoadOptions()).latent.num_columns == 1
    with pytest.raises(UnsupportedModelError, match="layout 3, this les_md reads up to layout 2"):
        load_cace({**checkpoint, "format_version": 3}, options=LoadOptions())


def test_configuration_file():
    text = changed(
        "cutoff: 4.5",
        "cutoff: 4.5\n  dipoles: true\n  quadrupoles: true\n  kappas: true\n  alphas: true\n"
        "  fixed_charges: {H: 0.4, O: -0.8}",
    )
    section = parse_configuration(text, "c.yaml").model
    network = section.network((1, 8), 20.0)
    assert network.latent.num_columns == 12
    assert network.fixed_charges == (0.4, -0.8)
    with pytest.raises(ConfigurationError, match=r"model.fixed_charges has no charge for C"):
        section.network((1, 6, 8), 20.0)
    with pytest.raises(ConfigurationError, match=r"model.fixed_charges: O is not an element of the model"):
        section.network((1,), 20.0)


def test_fixed_and_guessed_charges_exclude_each_other():
    text = changed("cutoff: 4.5", "cutoff: 4.5\n  fixed_charges: {H: 0.4, O: -0.8}")
    with pytest.raises(ConfigurationError, match=r"guess_charges and model.fixed_charges are two first guesses"):
        parse_configuration(text.replace("epochs: 20", "epochs: 20\n  guess_charges: true"), "c.yaml")


def test_les_train_ends_with_an_exported_model_and_a_card(tmp_path):
    write_crystals(tmp_path / "data.xyz", 12)
    values = settings(model={**LATENT, "fixed_charges": {"Na": 0.6, "Cl": -0.6}}, training={"epochs": 3})
    output = train(read_configuration(write(tmp_path, values)), tmp_path)
    loaded = load_cace(torch.load(output.weights, weights_only=True), options=LoadOptions())
    assert loaded.latent.num_columns == 12
    calculator = LESCalculator(output.model, kspace="ewald")
    model = EnergyModel(loaded.network, loaded.reference_energies, loaded.long_range)
    for atoms, frame in zip((crystal(seed) for seed in (1, 2, 4)), frames(), strict=True):
        calculator.calculate(atoms)
        energy, forces = model(frame, differentiable=False)
        assert calculator.results["energy"] == pytest.approx(float(energy.detach()), rel=1e-11)
        np.testing.assert_allclose(calculator.results["forces"], forces.numpy(), rtol=0, atol=1e-10)
    card = output.card.read_text(encoding="utf-8")
    assert (
        "1 charge(s) an atom on top of fixed ones (Na +0.6, Cl -0.6), latent dipoles, quadrupoles, softness κ (induced "
        "charges), polarisability α (induced dipoles); mean charges" in card
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("  dipoles: yes please", "line 8: 'model.dipoles' must be true or false"),
        ("  dipole: true", "unknown key 'model.dipole'; did you mean 'dipoles'"),
        ("  dipoles: true\n  charges: false", "dipoles needs charges: true"),
        ("  alphas: true\n  charges: false", "alphas needs charges: true"),
        ("  fixed_charges: {H: 1.0}\n  charges: false", "fixed_charges needs charges: true"),
        ("  quadrupoles: true\n  max_l: 1", "quadrupoles needs max_l of at least 2, got 1"),
        ("  fixed_charges: {Xx: 1.0}", "fixed_charges: 'Xx' is not an element"),
        ("  fixed_charges: {}", "'model.fixed_charges' is empty"),
        ("  fixed_charges: {H: much}", "'model.fixed_charges.H' must be a number"),
        ("  fixed_charges: {H: 1.0}\n  charge_channels: 2", "fixed_charges needs one charge channel, got 2"),
    ],
)
def test_wrong_configuration(lines, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_configuration(changed("  cutoff: 4.5", f"  cutoff: 4.5\n{lines}"), "c.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_dipole": True},
        {"use_quad": True},
        {"use_quadrupole": True},
        {"use_induced_charge": True},
        {"use_induced_dipole": True},
        {"use_fixed_atomic_charges": True},
        {"fixed_atomic_charges_scaling_factor": 0.5},
    ],
    ids=str,
)
def test_other_packages_models_refuse_them_by_name(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} asks for latent dipoles, .* this model does not have"):
        les_of_arguments(arguments)
    if arguments[name] is True:
        assert isinstance(les_of_arguments({name: False}), Les)
