"""A small model with random weights and latent charges of every architecture, for the tests of all engines.

A new architecture is one function that writes a checkpoint and one entry of ``SMALL_MODELS``: ``tests/engines`` then
runs for it. The reference energies are small, so that relative errors show, and the weights such that charges matter.

Where an architecture's package cannot be installed beside the others, an environment variable names the Python that
has it, which then writes and exports the model as a program; the exported file is run by this environment:

    python -m tests.architectures.small_models NequIP exported.pt
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from les_md import export, exporting
from les_md.cli import export_main
from les_md.electrostatics.latent_layout import LatentLayout
from tests.architectures import multipole_architecture

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SmallModel:
    """How to make a model; all know H and O and have latent charges.

    Attributes
    ----------
    write : writes a checkpoint to a path.
    num_layers : depth of the exported model: atoms within this many cutoffs matter.
    package : the module without which ``write`` or the export fails.
    architecture : what loads the checkpoint, where it is none of the registered ones.
    elsewhere : environment variable with the Python that has the package, if this one cannot; what runs such tests.
    """

    write: Callable[[Path], None]
    num_layers: int
    package: str = "torch"
    elsewhere: tuple[str, str] | None = None
    architecture: ModuleType | None = None


def write_cace(path: Path) -> None:
    from tests.test_exporting import write_checkpoint

    write_checkpoint(path, reference_energies=(-0.5, -1.5), num_message_passing=1)


def write_latent_cace(path: Path) -> None:
    """All latent variables, each of which changes the long-range energy of water by more than a hundredth."""
    from les_md.architectures.cace import native_checkpoint
    from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
    from les_md.electrostatics import LongRangeParameters

    torch.manual_seed(0)
    configuration = CACEConfiguration(
        (1, 8), 3.0, 2, max_l=2, num_radial=4, hidden=(8,), num_message_passing=1, repulsion=True, dipoles=True,
        quadrupoles=True, kappas=True, alphas=True, fixed_charges=(0.1, -0.2), response_scale=0.02,
    )  # fmt: skip
    network = CACENetwork(configuration).double()
    with torch.no_grad():
        for readout in (network.charge_readout, *network.latent_readout.perceptrons()):
            for parameter in readout.parameters():
                parameter.mul_(0.3)
    energies = torch.tensor([-0.5, -1.5], dtype=torch.float64)
    torch.save(native_checkpoint(network, configuration, energies, LongRangeParameters(), {}), path)


def write_mace(path: Path) -> None:
    from tests.architectures import test_mace

    with pytest.MonkeyPatch.context() as patch:
        test_mace.les_package.__wrapped__(patch)
        model = test_mace.make_model(atomic_energies=[[-0.5, -1.5, -1.0]], r_max=3.2)
        torch.save(model, path)


def write_nequip(path: Path) -> None:
    _write_nequip("nequip", path, num_layers=3, per_type_energy_scales=20.0)


def write_allegro(path: Path) -> None:
    _write_nequip("allegro", path, per_type_energy_scales=5.0)


def _write_nequip(kind: str, path: Path, **changes) -> None:
    from tests.architectures import test_nequip

    energies = {"H": -0.5, "O": -1.5, "Si": -1.0}
    model = test_nequip.Model(kind, r_max=3.2, avg_num_neighbors=4.0, per_type_energy_shifts=energies, **changes)
    with torch.no_grad():
        for key, weights in model.graph.named_parameters():
            if "charge_readout" in key:
                weights.mul_(30.0 if kind == "nequip" else 2.0)
    torch.save(model.checkpoint(), path)


def write_chgnet(path: Path) -> None:
    from les_md.architectures.chgnet import native_checkpoint
    from les_md.architectures.chgnet_network import CHGNetConfiguration, CHGNetNetwork
    from les_md.electrostatics.parameters import LongRangeParameters

    torch.manual_seed(7)
    sizes = {"atom_width": 8, "bond_width": 8, "angle_width": 8, "atom_hidden": (8,), "bond_hidden": (8,)}
    # The test boxes have edges of 3 Å: at MatGL's three-body cutoff of 3 Å, where the energy has a step, rounding would
    # tell whether an atom is bonded to its image.
    configuration = CHGNetConfiguration((1, 8), 3.6, three_body_cutoff=2.9, num_blocks=2, **sizes)
    network = CHGNetNetwork(configuration)
    with torch.no_grad():
        for weights in network.parameters():
            if weights.dim() == 2:
                weights.mul_(2.0)
    energies = torch.tensor([-0.5, -1.5], dtype=torch.float64)
    torch.save(native_checkpoint(network, configuration, energies, LongRangeParameters(), {}), path)


def write_multipoles(path: Path) -> None:
    torch.save(multipole_architecture.checkpoint(LatentLayout(1, dipoles=True, quadrupoles=True)), path)


def write_responding(path: Path) -> None:
    layout = LatentLayout(1, dipoles=True, quadrupoles=True, kappas=True, alphas=True)
    torch.save(multipole_architecture.checkpoint(layout), path)


_NEQUIP = ("LES_MD_NEQUIP_PYTHON", "make test-nequip")

SMALL_MODELS = {
    "CACE-latent": SmallModel(write_latent_cace, num_layers=2),
    "CACE": SmallModel(write_cace, num_layers=2),
    "MACE": SmallModel(write_mace, num_layers=2, package="mace"),
    "CHGNet": SmallModel(write_chgnet, num_layers=2),
    "NequIP": SmallModel(write_nequip, num_layers=3, package="nequip", elsewhere=_NEQUIP),
    "Allegro": SmallModel(write_allegro, num_layers=1, package="allegro", elsewhere=_NEQUIP),
    "multipoles": SmallModel(write_multipoles, num_layers=2, architecture=multipole_architecture),
    "responding": SmallModel(write_responding, num_layers=2, architecture=multipole_architecture),
}


def export_small_model(name: str, path: Path) -> Path:
    """The exported file, in float64; skips where neither this Python nor another one has the package."""
    model = SMALL_MODELS[name]
    if importlib.util.find_spec(model.package):
        checkpoint = path.with_suffix(".checkpoint")
        model.write(checkpoint)
        with pytest.MonkeyPatch.context() as patch:
            if model.architecture is not None:
                patch.setattr(exporting, "find_architecture", lambda _contents: model.architecture)
            return export(checkpoint, path, dtype="float64").path
    run_elsewhere(name, ["-m", "tests.architectures.small_models", name, str(path)])
    return path


def export_here_or_elsewhere(name: str, checkpoint: Path, path: Path, *options: str) -> Path:
    """A checkpoint of an architecture exported in float64 by the Python that has its package; skips where none has."""
    arguments = [str(checkpoint), "-o", str(path), "--dtype", "float64", *options]
    if importlib.util.find_spec(SMALL_MODELS[name].package):
        assert export_main(arguments) == 0
    else:
        run_elsewhere(
            name, ["-c", "import sys; from les_md.cli import export_main; sys.exit(export_main())", *arguments]
        )
    return path


def run_elsewhere(name: str, arguments: list[str]) -> None:
    """Run the Python that has an architecture's package; skips where there is none."""
    model = SMALL_MODELS[name]
    if model.elsewhere is None:
        pytest.skip(f"{model.package} is not installed")
    variable, target = model.elsewhere
    if variable not in os.environ:
        pytest.skip(f"{model.package} needs an environment of its own: `{target}` runs this")
    done = subprocess.run(
        [ROOT / os.environ[variable], *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    export_small_model(sys.argv[1], Path(sys.argv[2]))
