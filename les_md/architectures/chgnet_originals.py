"""The originals of CHGNet models: the packages matgl and chgnet on their own evaluation path, in float64."""

from __future__ import annotations

import ase
import numpy as np
import torch
from torch import Tensor

from les_md.architectures.chgnet_matgl import StoredModel
from les_md.architectures.registry import OriginalResult
from les_md.checkpoint_errors import CheckpointError
from les_md.electrostatics.latent_ewald import LatentEwald
from les_md.electrostatics.parameters import LongRangeParameters

MATGL = "matgl's own CHGNet and neighbour list in float64, given les_md's long-range energy"
CHGNET = "chgnet's own model and graph in float64"

_INSTALL = "pip install 'les_md[chgnet]'. The exported file needs none of this to run"


def require(package: str) -> None:
    """Say what to install where a package is missing.

    Raises CheckpointError.
    """
    try:
        __import__(f"{package}.model" if package == "chgnet" else f"{package}.models")
    except ImportError as error:
        is_absent = (error.name or "").split(".")[0] == package
        reason = "is not installed" if is_absent else f"cannot be imported ({error})"
        raise CheckpointError(
            f"it needs {package}, with which the export is compared and which {reason}. Install it: {_INSTALL}"
        ) from error


def is_installed(package: str) -> bool:
    """Whether ``require`` would not raise."""
    try:
        require(package)
    except CheckpointError:
        return False
    return True


class MatGLOriginal:
    """Evaluates a model with matgl's CHGNet, differentiating over positions.

    Parameters: ``stored`` model; ``long_range`` with data_std in its constant, None without charges.
    """

    def __init__(self, stored: StoredModel, long_range: LongRangeParameters | None) -> None:
        require("matgl")
        from matgl.ext.ase import Atoms2Graph
        from matgl.models import CHGNet

        try:
            self.model = CHGNet(**stored.arguments).double().eval()
            result = self.model.load_state_dict({k: v.double() for k, v in stored.weights.items()}, strict=False)
        except Exception as error:  # The arguments come from a file and can be wrong in any way.
            raise CheckpointError(f"matgl cannot build the model: {type(error).__name__}: {error}") from error
        lacking = [key for key in result.missing_keys if not key.startswith("sitewise_readout.")]
        if lacking or result.unexpected_keys:
            raise CheckpointError(
                f"the weights do not belong to matgl's model of these options: {[*lacking, *result.unexpected_keys][0]}"
            )
        self.model.requires_grad_(False)
        self.stored = stored
        self.ewald = None if long_range is None else LatentEwald(long_range)
        self.converter = Atoms2Graph(stored.arguments["element_types"], stored.configuration.cutoff)

    def __call__(self, atoms: ase.Atoms) -> OriginalResult:
        if atoms.pbc.any() and not atoms.pbc.all():
            raise ValueError("matgl knows structures that are periodic along all axes or none")
        bare = ase.Atoms(atoms.numbers, atoms.get_positions(), cell=atoms.cell.array, pbc=atoms.pbc)
        graph, _lattice, _state = self.converter.get_graph(bare)
        positions = torch.tensor(atoms.get_positions(), requires_grad=True)
        cell = torch.tensor(np.array(atoms.cell.array))
        # The converter rounds positions and cell; the images are whole numbers.
        graph.pos = positions
        graph.pbc_offset = graph.pbc_offset.double()
        graph.pbc_offshift = graph.pbc_offset @ cell
        energy = self.stored.configuration.energy_scale * self.model(g=graph).reshape(())
        energy = energy + self.stored.reference_energies[graph.node_type].sum()
        charges, long_range_energy = torch.zeros((len(atoms), 0)), 0.0
        if self.ewald is not None:
            blocks = self.stored.configuration.num_blocks
            charges = self._charges(self.model.feature_dict[f"gc_{blocks}"]["atom_feat"])
            electrostatic = self.ewald.energy(positions, charges, cell if atoms.pbc.any() else torch.zeros_like(cell))
            long_range_energy = float(electrostatic.detach())
            energy = energy + electrostatic
        forces = np.zeros((len(atoms), 3))
        if energy.requires_grad:
            gradient = torch.autograd.grad(energy, positions, allow_unused=True)[0]
            forces = forces if gradient is None else -gradient.numpy()
        return OriginalResult(float(energy.detach()), long_range_energy, forces, charges.detach().numpy())

    def _charges(self, features: Tensor) -> Tensor:
        readout = self.stored.charge_readout
        for number, (weight, bias) in enumerate(readout):
            features = torch.nn.functional.linear(features, weight.double(), bias.double())
            if number < len(readout) - 1:
                features = torch.nn.functional.silu(features)
        return features


class PackageOriginal:
    """Evaluates a checkpoint of the package chgnet with its own model, whose graph takes float64 positions here.

    Parameters: ``parts`` of a checkpoint, with ``model_args`` and ``state_dict``.
    """

    def __init__(self, parts: dict) -> None:
        require("chgnet")
        import contextlib
        import io

        from chgnet.model import CHGNet

        state = {key: value.detach() for key, value in parts["state_dict"].items()}
        arguments = dict(parts["model_args"])
        arguments.setdefault("mlp_out_bias", "atom_conv_layers.0.mlp_out.layers.1.bias" in state)
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its number of parameters
            model = CHGNet(**arguments)
        model.load_state_dict(state)
        self.references = torch.zeros(len(state["atom_embedding.embedding.weight"]), dtype=torch.float64)
        if model.composition_model is not None:
            self.references = model.composition_model.fc.weight.detach().flatten().double()
        # It rounds compositions to float32; the sum is taken below.
        model.composition_model = None
        model.graph_converter.set_isolated_atom_response("ignore")
        self.model = model.double().eval().requires_grad_(False)

    def __call__(self, atoms: ase.Atoms) -> OriginalResult:
        from pymatgen.core import Lattice, Structure

        positions, cell = atoms.get_positions(), np.array(atoms.cell.array)
        if not atoms.pbc.any():
            cell = np.diag(np.ptp(positions, axis=0) + 10.0)
        lattice = Lattice(cell, pbc=tuple(bool(p) for p in atoms.pbc))
        # The images of neighbours belong to coordinates as they are, which need not be in the cell.
        structure = Structure(lattice, atoms.get_chemical_symbols(), positions, coords_are_cartesian=True)
        graph = self.model.graph_converter(structure)
        graph.lattice = torch.tensor(cell)
        graph.atom_frac_coord = torch.tensor(positions @ np.linalg.inv(cell), requires_grad=True)
        graph.neighbor_image = graph.neighbor_image.double()
        result = self.model([graph], task="ef")
        numbers = torch.tensor(atoms.numbers.astype(np.int64))
        count = len(atoms) if self.model.is_intensive else 1
        energy = float(result["e"].detach()[0]) * count + float(self.references[numbers - 1].sum())
        return OriginalResult(energy, 0.0, result["f"][0].detach().numpy(), np.zeros((len(atoms), 0)))
