"""MACE models with modules of cuEquivariance, which is not installed here, against its own stored results."""

import sys
import types
from pathlib import Path

import pytest
import torch

pytest.importorskip("mace", reason="mace-torch is not installed")

from e3nn import o3

from les_md.architectures import LoadOptions, UnsupportedModelError, mace
from les_md.checkpoint import read_checkpoint
from les_md.checkpoint_errors import CheckpointError, UnsafeCheckpointError
from les_md.stand_in import StandIn
from tests.architectures.test_mace import (
    assert_same,
    crystal,
    evaluate,
    inputs,
    les_package,  # noqa: F401  (a fixture)
    make_model,
    saved,
    scripted,
)

CHECKPOINT = Path(__file__).parent / "data" / "mace_cueq.ckpt"  # written by make_mace_cueq_checkpoints.py beside it
ACCELERATED = ("MACE's basis", "reduced basis", "in part")


def stored(variant: str) -> tuple[torch.nn.Module, dict]:
    contents = read_checkpoint(CHECKPOINT)[variant]
    return contents["model"], contents["results"]


def load(model: torch.nn.Module, head: str | None = None):
    return mace.load(model, options=LoadOptions(dtype=torch.float64, head=head))


@pytest.mark.parametrize("variant", [*ACCELERATED, "e3nn with reduced couplings"])
def test_agrees_with_cuequivariance(variant):
    model, results = stored(variant)
    paths = [module.class_path for module in model.modules() if isinstance(module, StandIn)]
    assert any(path.startswith("cuequivariance_torch.") for path in paths) == (variant in ACCELERATED)
    for head, want in results.items():
        model, _ = stored(variant)
        assert mace.matches(model)
        trained = load(model, head)
        assert any("cuEquivariance" in note for note in trained.notes) == (variant in ACCELERATED)
        with torch.jit.optimized_execution(False):
            got = evaluate(scripted(trained), inputs(trained, crystal()))
        original = trained.original(crystal())
        assert_same(got["energies"].sum(), want["energy"][0], 1e-12)
        assert_same(original.energy, want["energy"][0], 1e-14)
        assert want["forces"].abs().max() > 1e-3
        assert want["latent_charges"].abs().max() > 1e-3
        for forces, charges, long_range in (
            (got["forces"], got["charges"][:, 0], got["long_range_energies"].sum()),
            (original.forces, original.charges[:, 0], original.long_range_energy),
        ):
            assert_same(forces, want["forces"], 1e-10)
            assert_same(charges, want["latent_charges"], 1e-10)
            assert_same(long_range, want["les_energy"][0], 1e-10)


def test_couplings_are_those_of_mace():
    """In MACE's own basis the contraction made of the stored polynomial is that of mace-torch, weight by weight."""
    from mace.modules.symmetric_contraction import SymmetricContraction

    from les_md.architectures.e3nn_code import generate_code
    from les_md.architectures.mace_cuequivariance import convert_to_e3nn

    model, _ = stored("MACE's basis")
    weight = model.products[1].symmetric_contractions.tensor("weight")
    convert_to_e3nn(model)
    generate_code(model)
    ours = model.products[1].symmetric_contractions
    torch.set_default_dtype(torch.float64)
    try:
        theirs = SymmetricContraction(ours.irreps_in, ours.irreps_out, 2, num_elements=3, use_reduced_cg=False)
    finally:
        torch.set_default_dtype(torch.float32)
    first = 0
    for contraction in theirs.contractions:  # all weights of one irrep, from the highest order on, then the next
        for parameter in (contraction.weights_max, *contraction.weights):
            count = parameter.size(1)
            parameter.data.copy_(weight[:, first : first + count])
            first += count
    assert first == weight.size(1)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(7, 2, 9, dtype=torch.float64, generator=generator)
    elements = torch.nn.functional.one_hot(torch.arange(7) % 3).double()
    assert_same(ours(features, elements), theirs(features, elements), 1e-12)


def find(model: torch.nn.Module, kind: str) -> StandIn:
    return next(m for m in model.modules() if isinstance(m, StandIn) and m.class_path.endswith(f".{kind}"))


def test_what_cannot_be_converted_is_refused():
    changes = {
        "conv_fusion": lambda model: setattr(model.interactions[1], "conv_fusion", True),
        "another group": lambda model: setattr(
            type(find(model, "Linear").irreps_in._mulirreps[0].ir), "class_path", "cuequivariance.group_theory.O3"
        ),
        "where e3nn has": lambda model: setattr(find(model, "Linear"), "irreps_out", find(model, "Linear").irreps_in),
        "another version": lambda model: delattr(find(model, "SymmetricContraction"), "etp"),
        "another polynomial": lambda model: setattr(
            find(model, "SymmetricContraction").etp.polynomial.operations[0][0], "buffers", (0, 2, 1)
        ),
        "BatchNorm": lambda model: setattr(
            type(find(model, "Linear")), "class_path", "cuequivariance_torch.layers.batchnorm.BatchNorm"
        ),
        "unknown number of weights": lambda model: setattr(model.interactions[0].conv_tp, "weight_numel", 1),
        "irreps_in1 of a convolution": lambda model: setattr(
            model.interactions[1], "edge_irreps", o3.Irreps("3x0e + 2x1o")
        ),
    }
    for words, change in changes.items():
        model, _ = stored("MACE's basis")
        change(model)
        with pytest.raises(UnsupportedModelError, match=rf"{words}.*mace_cueq_to_e3nn"):
            load(model)


def test_openequivariance_is_refused(tmp_path):
    from mace.modules.wrapper_ops import OEQConfig

    model = make_model(num_interactions=1)
    model.interactions[0].oeq_config = OEQConfig(enabled=True)
    with pytest.raises(CheckpointError, match=r"OpenEquivariance.*convert_oeq_e3nn"):
        read_checkpoint(saved(model, tmp_path))


def test_older_versions_are_refused(tmp_path):
    """Version 0.8 gave its constants attributes, functions among them."""
    model = make_model(num_interactions=1)
    model.r_max.remark = "not to be converted"
    with pytest.raises(CheckpointError, match=r"cuEquivariance.*mace_cueq_to_e3nn"):
        read_checkpoint(saved(model, tmp_path))


def test_nothing_of_cuequivariance_is_called(tmp_path, monkeypatch):
    """A name of these packages in a pickle makes a stand-in, whatever it is; a function of others is still refused."""

    class Call:
        def __init__(self, function, *arguments):
            self.function, self.arguments = function, arguments

        def __reduce__(self):
            return self.function, self.arguments

    def run(*arguments):
        raise AssertionError("was called")

    module = types.ModuleType("cuequivariance_torch")
    run.__module__, run.__qualname__, module.run = "cuequivariance_torch", "run", run
    monkeypatch.setitem(sys.modules, "cuequivariance_torch", module)
    torch.save({"model": Call(run, 1, "two")}, tmp_path / "a.ckpt")
    torch.save({"model": Call(eval, "1 + 1")}, tmp_path / "b.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")["model"]
    assert isinstance(found, StandIn)
    assert found.arguments == (1, "two")
    with pytest.raises(UnsafeCheckpointError, match="eval"):
        read_checkpoint(tmp_path / "b.ckpt")
