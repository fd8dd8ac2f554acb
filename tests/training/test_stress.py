"""Stress of a model in training: the strain derivative of its whole energy, differentiable in the weights."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from ase.stress import voigt_6_to_full_3x3_stress

from les_md import LESCalculator, export
from les_md.architectures.cace import native_checkpoint
from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.electrostatics import LongRangeParameters
from les_md.training.dataset import Frame, checked_frame, reference_energies
from les_md.training.energy_model import EnergyModel
from les_md.training.labels import LabelKeys
from les_md.training.networks import standardise_inputs
from tests.training.ionic_crystals import crystal

CONFIGURATION = CACEConfiguration((11, 17), 4.0, 2, num_bessel=4, num_radial=3, max_l=2, hidden=(8,), repulsion=True)
LABELS = LabelKeys(stress="stress", stress_unit="eV/Å^3", stress_sign="tension")


def frames() -> list[Frame]:
    # Crystals whose cells are not at a jump of the set of wave vectors.
    return [checked_frame(crystal(seed), f"crystal {seed}", (11, 17), LABELS) for seed in (1, 2, 4)]


#: Every latent variable beyond charges.
LATENT = {"dipoles": True, "quadrupoles": True, "kappas": True, "alphas": True}


def model(layers: int = 0, charges: int = 1, **latent) -> EnergyModel:
    torch.manual_seed(4)
    configuration = dataclasses.replace(CONFIGURATION, num_message_passing=layers, num_charges=charges, **latent)
    network = CACENetwork(configuration).double()
    standardise_inputs(network, frames())
    with torch.no_grad():
        network.charge_readout.linear.weight.mul_(20.0)  # charges of a tenth, so that the long range matters
        if network.latent_readout is not None:
            network.latent_readout.scale *= 20.0
            network.latent_readout.response_scale *= 5.0
    long_range = LongRangeParameters() if charges else None
    return EnergyModel(network, reference_energies(frames(), 2), long_range)


def strained(frame: Frame, strain: np.ndarray) -> Frame:
    deformation = torch.from_numpy(np.eye(3) + strain)
    return Frame(frame.types, frame.positions @ deformation, frame.cell @ deformation, frame.energy, frame.forces)


@pytest.mark.parametrize(
    ("layers", "charges", "latent"), [(0, 1, {}), (1, 1, {}), (0, 0, {}), (1, 1, LATENT), (0, 2, LATENT)], ids=str
)
def test_stress_is_the_strain_derivative(layers, charges, latent):
    tested, step = model(layers, charges, **latent), 1e-5
    for frame, stress in zip(frames(), tested.evaluate(frames(), False, stress=True).stresses, strict=True):
        volume = float(torch.linalg.det(frame.cell).abs())
        for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * step
            strain[b, a] += 0.5 * step
            up, down = (float(tested(strained(frame, s * strain), False)[0].detach()) for s in (1.0, -1.0))
            numeric = (up - down) / (2.0 * step * volume)
            assert float(stress[a, b]) == pytest.approx(numeric, rel=1e-6, abs=1e-9)
            assert float(stress[b, a]) == float(stress[a, b])


def test_forces_and_energy_are_those_without_stress():
    tested = model()
    without, with_stress = (tested.evaluate(frames(), False, stress=stress) for stress in (False, True))
    assert without.stresses == [None, None, None]
    for name in ("energies", "forces", "charges"):
        for first, second in zip(getattr(without, name), getattr(with_stress, name), strict=True):
            assert torch.allclose(first, second, rtol=1e-12, atol=1e-12)


def test_long_range_part_is_there():
    """The stress with charges differs from that of the same network without its long-range energy."""
    tested, short = model(), model()
    short.long_range = None
    with_charges, without = (each.evaluate(frames(), False, stress=True).stresses[0] for each in (tested, short))
    assert float((with_charges - without).abs().max()) > 1e-5


@pytest.mark.parametrize("latent", [{}, LATENT], ids=str)
def test_stress_loss_is_differentiable_in_the_weights(latent):
    tested = model(layers=1, **latent)

    def loss(of: EnergyModel) -> torch.Tensor:
        stresses = of.evaluate(frames(), True, stress=True).stresses
        return sum((s - f.stress).square().sum() for s, f in zip(stresses, frames(), strict=True))

    loss(tested).backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in tested.named_parameters():
        # Biases of the energy have no part in the stress.
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        values = []
        for sign in (1.0, -1.0):
            shifted = copy.deepcopy(tested)
            with torch.no_grad():
                shifted.get_parameter(name).add_(sign * 1e-5 * direction)
            values.append(float(loss(shifted).detach()))
        numeric = (values[0] - values[1]) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-4, abs=1e-9), name


def test_stress_is_that_of_the_exported_model(tmp_path):
    tested = model(layers=1)
    configuration = dataclasses.replace(CONFIGURATION, num_message_passing=1)
    path = tmp_path / "model.pth"
    torch.save(
        native_checkpoint(tested.network, configuration, tested.reference_energies, LongRangeParameters(), {}), path
    )
    calculator = LESCalculator(export(path, tmp_path / "model.pt", dtype="float64").path, kspace="ewald")
    for seed, stress in zip((1, 2, 4), tested.evaluate(frames(), False, stress=True).stresses, strict=True):
        atoms = crystal(seed)
        atoms.calc = calculator
        expected = voigt_6_to_full_3x3_stress(atoms.get_stress())
        assert np.allclose(stress.numpy(), expected, rtol=1e-9, atol=1e-12)
