"""What ``mace_run_train`` offers, in combinations: each agrees with mace-torch's own evaluation or is refused by name.

Every value of an option occurs in one of the models at least; they are as small as the options allow.
"""

import pytest
import torch

pytest.importorskip("mace", reason="mace-torch is not installed")

from e3nn import o3
from mace import modules as mace_modules
from mace.modules.blocks import GeneralNonLinearBiasReadoutBlock, NonLinearBiasReadoutBlock
from mace.modules.extensions import MACELES
from mace.modules.radial import RadialMLP

from les_md.architectures import LoadOptions, UnsupportedModelError, mace
from les_md.checkpoint import read_checkpoint
from les_md.layered_evaluation import LayeredEvaluation
from tests.architectures.test_mace import (
    assert_same,
    crystal,
    evaluate,
    evaluate_with_mace,
    inputs,
    les_package,  # noqa: F401  (a fixture)
    make_model,
    saved,
    scripted,
    unoptimised_torchscript,  # noqa: F401  (a fixture)
)

BLOCKS = mace_modules.interaction_classes
PLAIN, RESIDUAL = "RealAgnosticInteractionBlock", "RealAgnosticResidualInteractionBlock"
DENSITY, DENSITY_RESIDUAL = "RealAgnosticDensityInteractionBlock", "RealAgnosticDensityResidualInteractionBlock"


def sizes(max_l: int, correlation, num_interactions: int, max_ell: int) -> dict:
    hidden = "+".join(f"3x{degree}{'eo'[degree % 2]}" for degree in range(max_l + 1))
    return {
        "hidden_irreps": o3.Irreps(hidden),
        "correlation": correlation,
        "num_interactions": num_interactions,
        "max_ell": max_ell,
    }


def blocks(first: str, others: str) -> dict:
    return {"interaction_cls_first": BLOCKS[first], "interaction_cls": BLOCKS[others]}


OPTIONS = {
    "one interaction": {**sizes(0, 1, 1, 1), "radial_type": "gaussian", "radial_MLP": [7]},
    "Chebyshev, Agnesi": {**sizes(1, 2, 2, 1), "radial_type": "chebyshev", "distance_transform": "Agnesi"},
    "Gauss, Agnesi": {**sizes(0, 2, 2, 1), "radial_type": "gaussian", "distance_transform": "Agnesi"},
    "Soft, deep radial network": {**sizes(2, 3, 2, 2), "distance_transform": "Soft", "radial_MLP": [7, 6, 5, 9]},
    "last readout only": {**sizes(2, 2, 3, 3), "use_last_readout_only": True},
    "ZBL, Agnesi, cutoff of eighth order": {
        **sizes(1, 3, 2, 3),
        "pair_repulsion": True,
        "distance_transform": "Agnesi",
        "num_polynomial_cutoff": 8,
    },
    "cutoff after the radial network, density": {
        **sizes(0, 3, 3, 2),
        **blocks(DENSITY, DENSITY_RESIDUAL),
        "apply_cutoff": False,
    },
    "cutoff after the radial network": {**sizes(1, 1, 2, 1), "apply_cutoff": False, "pair_repulsion": True},
    "last layer with vectors": {**sizes(2, 1, 2, 2), "keep_last_layer_irreps": True},
    "both parities of each degree": {"hidden_irreps": o3.Irreps("3x0e + 3x0o + 3x1o + 3x1e")},
    "odd tensors": {"hidden_irreps": o3.Irreps("3x0e + 3x1o + 3x1e + 3x2e + 3x2o"), "correlation": 1},
    "correlation by layer, edge irreps": {**sizes(1, [1, 3], 2, 2), "edge_irreps": o3.Irreps("2x0e + 2x1o")},
    "edge irreps in the first layer": {
        **sizes(1, 2, 2, 1),
        "edge_irreps": o3.Irreps("2x0e + 2x1o"),
        "use_edge_irreps_first": True,
    },
    "SO(3)": {"use_so3": True, "hidden_irreps": o3.Irreps("3x0e + 3x1e")},
    "no residuals": {**sizes(1, 2, 2, 1), **blocks(PLAIN, PLAIN)},
    "densities without residuals": {**sizes(1, 2, 2, 1), **blocks(DENSITY, DENSITY), "gate": torch.abs},
    "residuals with densities": {**sizes(1, 2, 2, 1), **blocks(DENSITY_RESIDUAL, DENSITY_RESIDUAL)},
    "heads, last readout only": {**sizes(1, 2, 3, 1), "heads": ["a", "b"], "use_last_readout_only": True},
}
SHORT_RANGE_OPTIONS = {
    "biased readout, heads": {**sizes(1, 2, 2, 1), "heads": ["a", "b"], "readout_cls": NonLinearBiasReadoutBlock},
    "linear last readout": {**sizes(1, 2, 2, 1), "gate": None, "pair_repulsion": True},
    # Two polynomials of the distance in Å, which grow beyond 1 Å and cancel to few digits if there are more.
    "Chebyshev": {**sizes(0, 2, 2, 1), "radial_type": "chebyshev", "num_bessel": 2},
}
CASES = [(MACELES, name, changes) for name, changes in OPTIONS.items()]
CASES += [(mace_modules.ScaleShiftMACE, name, changes) for name, changes in SHORT_RANGE_OPTIONS.items()]


@pytest.mark.parametrize(("kind", "changes"), [case[::2] for case in CASES], ids=[case[1] for case in CASES])
def test_option(kind, changes, tmp_path):
    """Scripted, saved and loaded against mace-torch; in blocks of three of the eight atoms against all at once."""
    model = make_model(
        kind, **{**changes, "MLP_irreps": o3.Irreps("3x0e"), "radial_MLP": changes.get("radial_MLP", [5])}
    )
    head = (changes.get("heads") or [None])[-1]
    options = LoadOptions(dtype=torch.float64, allow_short_range=True, head=head)
    trained = mace.load(read_checkpoint(saved(model, tmp_path)), options=options)
    assert trained.num_layers == len(model.interactions)
    atoms = crystal()
    arguments = inputs(trained, atoms)
    module = scripted(trained)
    got, want = evaluate(module, arguments), evaluate_with_mace(model, atoms, head)
    assert want["forces"].abs().max() > 1e-3
    assert_same(got["energies"].sum(), want["energy"][0], 1e-12)
    assert_same(got["forces"], want["forces"], 1e-10)
    if kind is MACELES:
        assert_same(got["charges"][:, 0], want["latent_charges"], 1e-10)
        assert_same(got["long_range_energies"].sum(), want["les_energy"][0], 1e-10)

    graph = arguments[:3]
    generator = torch.Generator().manual_seed(2)
    cotangents = [torch.randn(len(atoms), generator=generator, dtype=torch.float64)]
    cotangents += [torch.randn(len(atoms), trained.num_charges, generator=generator, dtype=torch.float64)]
    in_blocks = LayeredEvaluation(trained.network, block_size=3, whole_up_to=0)
    energy, charge, state = in_blocks(*graph)
    whole_energy, whole_charge, whole_state = module.evaluate(*graph)
    assert_same(energy + trained.reference_energies[graph[2]], whole_energy, 1e-12)
    if kind is MACELES:
        assert_same(charge, whole_charge, 1e-12)
    gradient = in_blocks.pull_back(*graph, state, *cotangents)
    assert_same(gradient, module.pull_back(*graph, whole_state, *cotangents), 1e-12)


def test_low_rank_adapters_are_refused(tmp_path):
    from mace.modules.lora import inject_lora

    model = make_model(mace_modules.ScaleShiftMACE, **sizes(0, 1, 1, 1))
    inject_lora(model, rank=2)
    with pytest.raises(UnsupportedModelError, match=r"LoRA\w+ \(.*merge_lora_weights"):
        mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions(allow_short_range=True))


def test_unknown_blocks_are_refused(tmp_path):
    model = make_model(mace_modules.ScaleShiftMACE, **sizes(0, 1, 1, 1))
    for where, block in {
        "readouts.0": GeneralNonLinearBiasReadoutBlock,
        "radial_embedding.distance_transform": RadialMLP,
    }.items():
        checkpoint = read_checkpoint(saved(model, tmp_path))
        owner, _, name = where.rpartition(".")
        unknown = block.__new__(block)
        torch.nn.Module.__init__(unknown)
        checkpoint.get_submodule(owner).add_module(name, unknown)
        with pytest.raises(UnsupportedModelError, match=rf"{block.__name__} \({where}\)"):
            mace.load(checkpoint, options=LoadOptions(allow_short_range=True))
