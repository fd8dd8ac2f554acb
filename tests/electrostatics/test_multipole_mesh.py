"""The mesh of periodic systems with dipoles and quadrupoles: as accurate as it says."""

import numpy as np
import pytest
import torch

from les_md.electrostatics import LongRangeParameters
from les_md.electrostatics.latent_layout import LatentLayout
from les_md.electrostatics.multipole_ewald import MultipoleEwald
from tests.electrostatics.multipole_systems import random_latent
from tests.electrostatics.test_mesh import BOUNDS, force_error, mesh_plan, random_case, random_water

#: Sources: layout and how large charges, dipoles and quadrupoles are.
SOURCES = {
    "charges and dipoles": (LatentLayout(1, dipoles=True), (1.0, 1.0, 0.0)),
    "dipoles": (LatentLayout(1, dipoles=True), (0.0, 1.0, 0.0)),
    "small multipoles": (LatentLayout(1, dipoles=True, quadrupoles=True), (1.0, 0.1, 0.1)),
    "all": (LatentLayout(1, dipoles=True, quadrupoles=True), (1.0, 1.0, 1.0)),
    "quadrupoles": (LatentLayout(1, dipoles=True, quadrupoles=True), (0.0, 0.0, 1.0)),
}
#: System, σ, dl, accuracy: the worst of those that the charges are tested with, and others.
ERROR_CASES = [
    ("cubic", 0.7, 1.0, 1e-3), ("cubic", 1.0, 2.0, 1e-3), ("cubic", 1.0, 2.0, 1e-5), ("triclinic", 0.7, 1.0, 1e-4),
    ("triclinic", 1.0, 2.0, 1e-5), ("triclinic", 1.5, 3.0, 1e-6), ("long", 1.0, 2.0, 1e-4),
    ("left-handed", 0.7, 2.0, 1e-6), ("charged", 1.0, 2.0, 1e-5), ("molecules", 0.7, 1.0, 1e-4),
    ("molecules", 1.0, 2.0, 1e-4), ("molecules", 1.0, 2.0, 1e-6), ("molecules", 1.5, 3.0, 1e-3),
]  # fmt: skip


def sources_of(kind: str, charges: torch.Tensor) -> tuple[LatentLayout, torch.Tensor]:
    layout, (of_charges, of_dipoles, of_quadrupoles) = SOURCES[kind]
    latent = random_latent(len(charges), layout, seed=3)
    latent[:, :1] = of_charges * charges
    latent[:, 1:4] *= of_dipoles
    latent[:, 4:] *= of_quadrupoles
    return layout, latent


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(("name", "sigma", "dl", "accuracy"), ERROR_CASES)
def test_error_of_forces(name, sigma, dl, accuracy, kind):
    """The force error at fixed multipoles is below the accuracy asked for."""
    positions, charges, cell = random_water() if name == "molecules" else random_case(name)
    layout, latent = sources_of(kind, charges)
    module = MultipoleEwald(LongRangeParameters(sigma=sigma, dl=dl), layout)
    assert force_error(module, positions, latent, cell, accuracy) <= accuracy


def test_energy_potential_and_strain_converge_with_the_forces():
    """Of permanent and induced sources; the potential of each kind relative to its own size."""
    layout = LatentLayout(1, dipoles=True, quadrupoles=True, kappas=True, alphas=True)
    positions, _charges, cell = random_case("triclinic")
    latent = random_latent(len(positions), layout)
    module = MultipoleEwald(LongRangeParameters(), layout)
    direct = module(positions, latent, module.direct_plan(cell))
    for accuracy in (1e-3, 1e-4, 1e-5, 1e-6):
        mesh = module(positions, latent, mesh_plan(module, cell, len(positions), accuracy))
        errors = [float((mesh[0].sum() - direct[0].sum()).abs() / direct[0].abs().sum())]
        pairs = list(zip(direct[1].split((1, 3, 6, 1, 1), 1), mesh[1].split((1, 3, 6, 1, 1), 1), strict=True))
        for want, got in [*pairs, (direct[2], mesh[2]), (direct[3], mesh[3])]:
            errors.append(float(torch.linalg.norm(got - want) / torch.linalg.norm(want)))
        assert max(errors) < accuracy, errors


def test_accuracy_out_of_reach():
    cell = torch.tensor(np.diag([15.0, 15.0, 15.0]))
    layout = LatentLayout(1, dipoles=True, quadrupoles=True)
    with pytest.raises(RuntimeError, match="out of reach of the mesh"):
        MultipoleEwald(LongRangeParameters(), layout).plan(cell, cell, BOUNDS, 10, "mesh", 1e-9, False)
