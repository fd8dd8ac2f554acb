"""Published CACE-LES checkpoints against their authors' results, and the network against worked examples."""

import ase
import numpy as np
import pytest
import torch
from ase.stress import voigt_6_to_full_3x3_stress

from les_md import LESCalculator, export
from les_md.architectures import LoadOptions, cace
from les_md.architectures.cace_network import monomials
from les_md.checkpoint import read_checkpoint

MODELS = ("caceles_water_r4.5_nu2", "caceles_water_r5.5_nu2", "caceles_dipeptide_r4_nl2_nu2", "caceles_au_mgo_r5.5_nu2")


def relative_error(value, reference) -> float:
    return float(np.abs(np.asarray(value).reshape(reference.shape) - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Energies of float32 networks are differences of larger numbers: tolerances are relative to the largest value.
    [("float64", 1e-9), ("float32", 3e-4)],
)
@pytest.mark.parametrize("name", MODELS)
def test_reference(shared, tmp_path, name, dtype, tolerance):
    report = export(shared / "models" / f"{name}.pth", tmp_path / "model.pt", dtype=dtype, charge_sign="keep")
    calculator = LESCalculator(report.path)
    reference = np.load(shared / "reference" / f"{name}.npz")
    frames = sorted({key.split("/")[0] for key in reference.files})
    assert frames
    for frame in frames:
        data = {key.split("/")[1]: reference[key] for key in reference.files if key.split("/")[0] == frame}
        atoms = ase.Atoms(data["numbers"], data["positions"], cell=data["cell"], pbc=data["pbc"])
        calculator.calculate(atoms, ["energy", "born_effective_charges"])
        results = calculator.results
        assert relative_error(results["energy"], data["energy"]) < tolerance
        assert relative_error(results["long_range_energy"], data["les_energy"]) < tolerance
        assert relative_error(results["forces"], data["forces"]) < tolerance
        assert relative_error(results["charges"], data["charges"]) < tolerance
        assert relative_error(results["born_effective_charges"], data["bec"]) < tolerance
        if "stress" in data:
            assert relative_error(voigt_6_to_full_3x3_stress(results["stress"]), data["stress"]) < 10 * tolerance


@pytest.mark.parametrize(("system", "model"), [("water", MODELS[0]), ("dipep", MODELS[2])])
def test_worked_example(shared, system, model):
    """Every intermediate quantity of the worked examples."""
    checkpoint = read_checkpoint(shared / "models" / f"{model}.pth")
    network = cace.load(checkpoint, options=LoadOptions()).network
    example = np.load(shared / "reference" / "cace_worked_example.npz")
    data = {key.split("/")[1]: example[key] for key in example.files if key.split("/")[0] == system}
    types = torch.tensor([list(checkpoint.representation.zs).index(z) for z in data["numbers"]])
    vectors, distance = torch.tensor(data["edge_vector"]), torch.tensor(data["edge_length"])
    edge_index = torch.from_numpy(np.stack([data["edge_receiver"], data["edge_sender"]]).astype(np.int64))
    radial = network._radial_functions(distance)
    assert relative_error(radial, data["radial_basis"] * data["cutoff"][:, None]) < 1e-12
    angular = torch.cat(monomials(vectors / (distance + 1e-9)[:, None], network.max_l), dim=1)
    assert relative_error(angular, data["angular"]) < 1e-12
    # The example's vectors point from sender to receiver, ours from centre (receiver) to neighbour (sender).
    energy, charge = network(-vectors, edge_index, types)
    assert relative_error(energy, data["out_E_sr_atom"].reshape(-1)) < 1e-12
    assert relative_error(charge, data["out_q"].reshape(charge.shape)) < 1e-12
