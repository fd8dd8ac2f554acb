"""Writes ``mace_cueq.ckpt`` beside this file: small MACE models of random weights with modules of cuEquivariance.

Installed, cuEquivariance changes what mace-torch makes of its defaults, so the tests do without: each model comes with
the energies, forces and charges that mace-torch gets with cuEquivariance, on the CPU. From the root of the repository:

    pip install cuequivariance==0.13.0 cuequivariance-torch==0.13.0     # into a copy of the environment
    python -m tests.architectures.data.make_mace_cueq_checkpoints
"""

import io
import zipfile
from pathlib import Path

import mace  # noqa: F401  (before e3nn, which cannot be imported by itself with a recent torch)
import pytest
import torch
from e3nn import o3
from mace import modules as mace_modules
from mace.modules.wrapper_ops import CUET_AVAILABLE, CuEquivarianceConfig

from tests.architectures import test_mace

OUTPUT = Path(__file__).parent / "mace_cueq.ckpt"
BLOCKS = mace_modules.interaction_classes
SMALL = {"hidden_irreps": o3.Irreps("2x0e + 2x1o"), "MLP_irreps": o3.Irreps("2x0e"), "radial_MLP": [4]}
ACCELERATED = {"enabled": True, "group": "O3_e3nn"}

VARIANTS = {
    "MACE's basis": {
        "cueq_config": CuEquivarianceConfig(layout="ir_mul", optimize_all=True, **ACCELERATED),
        "keep_last_layer_irreps": True,
    },
    "reduced basis": {
        "cueq_config": CuEquivarianceConfig(layout="mul_ir", optimize_all=True, **ACCELERATED),
        "use_reduced_cg": True,
        "correlation": 3,
        "max_ell": 1,
        "heads": ["dft", "cc"],
        "pair_repulsion": True,
    },
    "in part": {
        "cueq_config": CuEquivarianceConfig(
            layout="mul_ir", optimize_linear=True, optimize_symmetric=True, **ACCELERATED
        ),
        "use_reduced_cg": True,
        "interaction_cls_first": BLOCKS["RealAgnosticDensityInteractionBlock"],
        "interaction_cls": BLOCKS["RealAgnosticDensityResidualInteractionBlock"],
        "max_ell": 1,
    },
    "e3nn with reduced couplings": {"use_reduced_cg": True, "correlation": 3, "max_ell": 1},
}


def main() -> None:
    if not CUET_AVAILABLE:
        raise SystemExit("cuequivariance and cuequivariance-torch are not installed")
    contents = {}
    with pytest.MonkeyPatch.context() as patch:
        test_mace.les_package.__wrapped__(patch)
        for name, changes in VARIANTS.items():
            model = test_mace.make_model(**SMALL, **changes)
            results = {}
            for head in model.heads:
                evaluated = test_mace.evaluate_with_mace(model, test_mace.crystal(), head)
                results[head] = {
                    key: evaluated[key].detach() for key in ("energy", "forces", "latent_charges", "les_energy")
                }
            contents[name] = {"model": model, "results": results}
        written = io.BytesIO()
        torch.save(contents, written)
    # The pickle is long and repeats itself: the same archive with its members compressed has a third of the size.
    with (
        zipfile.ZipFile(written) as source,
        zipfile.ZipFile(OUTPUT, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        for name in source.namelist():
            archive.writestr(name, source.read(name))


if __name__ == "__main__":
    main()
