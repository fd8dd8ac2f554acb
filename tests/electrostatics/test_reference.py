"""The electrostatics against numbers of other origin: the reference library's, in ``../shared/reference/ewald.npz``."""

import json

import numpy as np
import pytest
import torch

from les_md.electrostatics import LatentEwald, LongRangeParameters
from les_md.electrostatics.response import born_effective_charges, polarisation_sums, polarisation_weights

CASES = (
    "bec_epsilon2", "bec_keep_mean", "cluster", "cluster_charged_selfint", "cubic_charged", "cubic_neutral",
    "cubic_selfint", "general_cell_rotated", "sigma_0.7_dl_1.0", "sigma_1.5_dl_1.5", "slab_elongated", "small_cell",
    "triclinic",
)  # fmt: skip


def relative_error(value, reference) -> float:
    return float(np.abs(np.asarray(value) - reference).max() / np.abs(reference).max())


@pytest.fixture(scope="module")
def references(shared):
    return np.load(shared / "reference" / "ewald.npz")


def test_every_case_is_tested(references):
    assert {key.split("/")[0] for key in references.files} == set(CASES)


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_case(references, case, scripted):
    data = {key.split("/")[1]: references[key] for key in references.files if key.split("/")[0] == case}
    module = LatentEwald(LongRangeParameters(**json.loads(str(data["args"]))))
    if scripted:
        module = torch.jit.script(module)
    positions, cell = torch.tensor(data["positions"]), torch.tensor(data["cell"])
    charges = torch.tensor(data["charges"])[:, None]
    energies, potential, forces, strain_derivative = module(positions, charges, module.direct_plan(cell))
    assert relative_error(energies.sum(), data["energy"]) < 1e-9
    assert relative_error(module.energy(positions, charges, cell), data["energy"]) < 1e-9
    assert relative_error(potential[:, 0], data["potential"]) < 1e-9
    assert relative_error(forces, data["forces"]) < 1e-9
    assert relative_error(strain_derivative, data["strain_derivative"]) < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_born_effective_charges(references, case):
    """The references' charges depend on the positions: q (1 + 0.1 sin(x + y + z))."""
    data = {key.split("/")[1]: references[key] for key in references.files if key.split("/")[0] == case}
    parameters = LongRangeParameters(**json.loads(str(data["args"])))
    cell = torch.tensor(data["cell"])
    positions = torch.tensor(data["positions"], requires_grad=True)
    charges = torch.tensor(data["charges"]) * (1.0 + 0.1 * torch.sin(positions.sum(1)))
    isolated = LatentEwald(parameters).is_isolated(cell)
    weights = polarisation_weights(positions.detach(), cell, isolated)
    means = polarisation_sums(weights, charges.detach()[:, None], parameters.remove_mean) / len(positions)
    pulled_back = torch.stack(
        [torch.autograd.grad(charges, positions, weight, retain_graph=True)[0] for weight in weights - means[:-1, None]]
    )
    result = born_effective_charges(
        charges.detach()[:, None], means[-1], pulled_back, positions.detach(), cell, isolated,
        parameters.epsilon_factor,
    )  # fmt: skip
    assert relative_error(result, data["bec"]) < 1e-9
