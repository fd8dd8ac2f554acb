"""NequIP-LES and Allegro-LES checkpoints, through nequip and nequip-allegro (needed for the export only).

Source: Batzner et al., Nat. Commun. 13, 2453 (2022) (NequIP); Musaelian et al., Nat. Commun. 14, 579 (2023) (Allegro);
Kim et al., J. Chem. Theory Comput. (2025), doi 10.1021/acs.jctc.5c01400 (their LES variants).

    E_i = shift + scale · readout(h_i) + pair repulsion_i ,     q_i = w · h_i                                 (NequIP)
    E_i = shift + scale · Σ_j readout(h_ij)/√(2n) + ... ,       q_i = Σ_j charge readout(h_ij)/√(2n)          (Allegro)

h are the features of the last layer, n the average number of neighbours. The shifts go into the reference energies, so
that they are summed in float64 whatever the network's precision.

A checkpoint (``best.ckpt``, ``last.ckpt``) is plain data: weights, and the configuration of the model as a dictionary.
The configuration names what is to be built; only names listed in ``nequip_configuration`` are.
"""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
import torch
from torch import Tensor

from les_md.architectures.nequip_configuration import (
    Settings,
    builder_options,
    long_range_parameters,
    stored_configuration,
    understand,
    version_of,
)
from les_md.architectures.registry import (
    LoadOptions,
    NoLatentChargesError,
    OriginalResult,
    TrainedModel,
    UnsupportedModelError,
)
from les_md.checkpoint_errors import CheckpointError
from les_md.electrostatics.latent_ewald import LatentEwald
from les_md.electrostatics.parameters import LongRangeParameters

name = "nequip"

_ORIGINAL = "nequip's own forward pass and neighbour list in float64, given les_md's long-range energy"

_INSTALL = (
    "in a Python environment of its own (it cannot share one with mace-torch): pip install 'les_md[nequip]'. "
    "The exported file needs none of this to run"
)

#: The oldest nequip whose modules are used as they are here.
_MINIMUM_NEQUIP = (0, 19)


def matches(checkpoint: object) -> bool:
    """Whether a checkpoint is one of nequip's: a dictionary with weights and the configuration of a model."""
    return (
        isinstance(checkpoint, dict)
        and "state_dict" in checkpoint
        and isinstance(stored_configuration(checkpoint), dict)
    )


def load(checkpoint: Any, *, options: LoadOptions) -> TrainedModel:
    """Make a network of the weights and the configuration in a checkpoint.

    Raises
    ------
    NoLatentChargesError : the model has no latent charges and ``options.allow_short_range`` is False.
    UnsupportedModelError : the model has something that is not supported here.
    CheckpointError : nequip is not installed, or weights and configuration do not belong together.
    """
    if options.head is not None:
        raise ValueError("a NequIP or Allegro model has one head: --head does not apply")
    notes: list[str] = []
    information = checkpoint["hyper_parameters"].get("info_dict")
    information = information if isinstance(information, dict) else {}
    settings = understand(stored_configuration(checkpoint), information)
    if settings.les is None and not options.allow_short_range:
        raise NoLatentChargesError()
    if settings.les is None and options.norm_factor is not None:
        raise ValueError("a short-range model has no long-range energy: --norm-factor does not apply")
    long_range = (
        None if settings.les is None else long_range_parameters(settings.les, options.norm_factor, information, notes)
    )
    weights = _weights(checkpoint["state_dict"])
    _require_nequip(settings.kind)

    built = _build(settings, weights, checkpoint["state_dict"], notes)
    original = _Original(copy.deepcopy(built), settings, long_range)
    scale_shift = built.energy_model._modules["per_type_energy_scale_shift"]
    reference_energies = torch.zeros(len(settings.elements), dtype=torch.float64)
    if scale_shift.has_shifts:
        reference_energies += scale_shift.shifts.detach().flatten()
        scale_shift.shifts.data.zero_()

    from les_md.architectures.nequip_network import AllegroNetwork, NequIPNetwork

    cutoff = float(settings.options["r_max"])
    network = (
        NequIPNetwork(built.energy_model, built.charge_readout, cutoff)
        if settings.kind == "nequip"
        else AllegroNetwork(built.energy_model, built.charge_readout, built.charge_sum, cutoff)
    )
    return TrainedModel(
        architecture=settings.kind,
        network=network.to(options.dtype).eval().requires_grad_(False),
        atomic_numbers=settings.elements,
        cutoff=cutoff,
        num_layers=network.num_layers,
        reference_energies=reference_energies,
        long_range=long_range,
        num_charges=network.num_charges,
        notes=notes,
        original=original,
        original_description=_ORIGINAL,
        script=_script,
    )


def _script(network: torch.nn.Module) -> torch.jit.ScriptModule:
    """TorchScript of a network of e3nn modules, which torch.jit.script alone cannot compile."""
    from e3nn.util import jit

    return jit.script(network, in_place=False)


def _require_nequip(kind: str) -> None:
    """Say what to install where nequip, or nequip-allegro for an Allegro model, is missing or too old."""
    try:
        import nequip

        if kind == "allegro":
            import allegro.model.allegro_models
            import allegro.nn  # noqa: F401
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        missing = "nequip-allegro" if package == "allegro" else "nequip"
        reason = "is not installed" if package in ("nequip", "allegro") else f"cannot be imported ({error})"
        raise CheckpointError(f"it needs {missing}, which {reason}. Install it {_INSTALL}") from error
    if version_of(nequip.__version__) < _MINIMUM_NEQUIP:
        wanted = ".".join(map(str, _MINIMUM_NEQUIP))
        raise CheckpointError(
            f"it needs nequip {wanted} or newer, {nequip.__version__} is installed. Install it {_INSTALL}"
        )


# ---- the weights

#: Entries of a state_dict that are constants of the architecture, which not every version of it stores.
_CONSTANTS = re.compile(
    r"(^|\.)(_empty|_rmax_recip|output_mask|w3j|_rtoi|alpha|norm_const|lower|upper|atomic_numbers|_qqr2exesquare)$"
    r"|\._compiled_main|\._w3j_|\._tensor_constant"
)


def _weights(state: Any) -> dict[str, Tensor]:
    """Entries of the energy model in the checkpoint's own order, under the names they have in nequip today."""
    if not isinstance(state, dict):
        raise CheckpointError("the checkpoint has no table of weights")
    weights = {}
    for key, value in state.items():
        found = re.fullmatch(r"model\.sole_model\.model\.(?:func\.)?(.+)", str(key))
        if found and isinstance(value, Tensor):
            # Until 0.7 the tensor product was a part of the convolution itself.
            weights[re.sub(r"\.conv\.tp\.", ".conv.tp_scatter.tp.", found[1])] = value
    if not weights:
        kinds = sorted({".".join(str(key).split(".")[:2]) for key in state if str(key).startswith("model.")})
        raise UnsupportedModelError(
            f"the checkpoint has no single model; it holds {', '.join(kinds) or 'no weights of a model'}"
        )
    return weights


@dataclass
class _Built:
    """Modules of nequip with the weights of a checkpoint, in float64.

    ``model`` is nequip's module that adds forces to ``energy_model``; the charge modules are None without charges.
    """

    model: torch.nn.Module
    charge_readout: torch.nn.Module | None
    charge_sum: torch.nn.Module | None

    @property
    def energy_model(self) -> torch.nn.Module:
        return self.model.func


def _build(settings: Settings, weights: dict[str, Tensor], state: dict, notes: list[str]) -> _Built:
    """Build the model, in the convention of its version, and give it its weights."""
    candidates = builder_options(settings, weights)
    failure: Exception | None = None
    fitting: list[tuple[_Built, list[str]]] = []
    for options in candidates:
        try:
            built = _construct(settings, options)
            fitting.append((built, _fill(built, weights, state)))
        except CheckpointError as error:
            failure = failure or error
    if not fitting:
        assert failure is not None
        raise failure
    if len(fitting) > 1 and settings.options.get("parity", True) and settings.options.get("l_max", 1) > 1:
        raise UnsupportedModelError(
            "the checkpoint does not say which nequip wrote it (hyper_parameters.info_dict.versions), and its features "
            "were ordered in another way before 0.16"
        )
    built, said = fitting[0]
    notes += said
    return built


def _construct(settings: Settings, options: dict) -> _Built:
    """The modules of a model with weights of no meaning, in float64."""
    from nequip.model import FullNequIPGNNModel

    with _building(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing scales and shifts, and of e3nn
        try:
            if settings.kind == "nequip":
                # What nequip wraps around its builders sets global state: seeds, dtypes, options of torch and e3nn.
                model = FullNequIPGNNModel.__wrapped__(**options)
            else:
                from allegro.model.allegro_models import FullAllegroModel

                model = FullAllegroModel.__wrapped__(**options)
        except Exception as error:  # The configuration comes from a file and can be wrong in any way.
            raise CheckpointError(
                f"nequip cannot build the model of this configuration: {type(error).__name__}: {error}"
            ) from error
        model.eval()
        if settings.les is None:
            return _Built(model, None, None)
        readout, total = charge_modules(settings.kind, options, model.func.irreps_out)
        return _Built(model, readout.eval(), None if total is None else total.eval())


def charge_modules(
    kind: str, options: Mapping[str, Any], irreps: dict
) -> tuple[torch.nn.Module, torch.nn.Module | None]:
    """Modules of nequip that make latent charges: a readout, and for Allegro the sum over edges.

    Parameters: ``kind`` "nequip" or "allegro", ``options`` of its builder, ``irreps`` that its energy model gives.
    """
    from nequip.nn import ScalarMLP

    if kind == "nequip":
        return ScalarMLP(output_dim=1, field="node_features", out_field="LES_q", irreps_in=irreps), None
    from allegro.nn import EdgewiseReduce

    readout = ScalarMLP(
        output_dim=1,
        hidden_layers_depth=1,
        hidden_layers_width=options.get("readout_mlp_hidden_layers_width", 32),
        field="edge_features",
        out_field="edge_LES_q",
        irreps_in=irreps,
    )
    total = EdgewiseReduce(
        field="edge_LES_q",
        out_field="LES_q",
        avg_num_neighbors=options.get("avg_num_neighbors"),
        type_names=options["type_names"],
        irreps_in=readout.irreps_out,
    )
    return readout, total


@contextlib.contextmanager
def _building():
    """Build modules in float64, not yet scripted, and leave all global state as it was."""
    import e3nn
    from nequip.utils.compile import conditional_torchscript_mode

    defaults = dict(e3nn.get_optimization_defaults())
    mode = conditional_torchscript_mode(False)
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        mode.__enter__()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            mode.__exit__(None, None, None)
            # e3nn takes jit_script_fx for another jit_mode, so the mode comes last.
            e3nn.set_optimization_defaults(**{key: defaults[key] for key in defaults if key != "jit_mode"})
            if "jit_mode" in defaults:
                e3nn.set_optimization_defaults(jit_mode=defaults["jit_mode"])


def _fill(built: _Built, weights: dict[str, Tensor], state: dict) -> list[str]:
    """Copy the weights into the modules: all that there are, and nothing that is not there. Returns notes."""
    charge = "latent_charge_readout" if built.charge_sum is None else "edge_latent_charge_readout"
    modules = {"": built.energy_model}
    if built.charge_readout is not None:
        modules[f"{charge}."] = built.charge_readout
    parameters, buffers = {}, {}
    for prefix, module in modules.items():
        parameters.update({prefix + key: value for key, value in module.named_parameters()})
        buffers.update({prefix + key: value for key, value in module.named_buffers()})

    for key, value in weights.items():
        if key not in parameters and key not in buffers and value.numel() > 0 and not _CONSTANTS.search(key):
            what = key.split(".")[0]
            raise UnsupportedModelError(
                f"the checkpoint has weights of {what}, which the model of its configuration lacks"
            )
    notes: list[str] = []
    averages = _averages(weights, parameters, state, notes)
    for key, target in {**buffers, **parameters}.items():
        value = averages.get(key, weights.get(key))
        if value is None:
            if key in parameters and target.numel() > 0:
                raise CheckpointError(f"the checkpoint has no weights {key}, which its configuration asks for")
            continue
        # Scales and shifts were stored as a row until 0.12.
        if key.startswith("per_type_energy_scale_shift.") and value.numel() == target.numel():
            value = value.reshape(target.shape)
        if value.shape != target.shape:
            raise CheckpointError(
                f"the weights {key} have the shape {tuple(value.shape)}, the configuration asks for "
                f"{tuple(target.shape)}"
            )
        target.data.copy_(value.detach())
    return notes


def _averages(
    weights: dict[str, Tensor], parameters: dict[str, Tensor], state: dict, notes: list[str]
) -> dict[str, Tensor]:
    """Running averages of the weights (EMA), which nequip evaluates with; empty where the checkpoint has none.

    They are numbered in the order in which the parameters of the model come in the checkpoint's own state_dict, which
    is not their order in nequip today.
    """
    numbers = sorted(int(key.rsplit("_", 1)[1]) for key in state if re.fullmatch(r"ema\.ema_weight_\d+", str(key)))
    if not numbers:
        return {}
    extra = state.get("ema._extra_state")
    if isinstance(extra, dict) and not extra.get("is_holding_ema_weights", True):
        notes.append("the averaged weights (EMA) are in place of the others in this checkpoint")
        return {}
    names = [key for key in weights if key in parameters]
    if numbers != list(range(len(names))):
        raise CheckpointError(f"the checkpoint has {len(numbers)} averaged weights (EMA) for {len(names)} weights")
    averages = {key: state[f"ema.ema_weight_{number}"] for number, key in enumerate(names)}
    for key, value in averages.items():
        if not isinstance(value, Tensor) or value.shape != weights[key].shape:
            raise CheckpointError(f"the averaged weights (EMA) do not have the shape of the weights {key}")
    notes.append("the averaged weights (EMA) are used, as nequip does")
    return averages


# ---- the original


class _LongRangeEnergy(torch.nn.Module):
    """Comes after nequip's modules and adds the long-range energy to the total."""

    def __init__(self, built: _Built, long_range: LongRangeParameters) -> None:
        super().__init__()
        self.charge_readout = built.charge_readout
        self.charge_sum = built.charge_sum
        self.ewald = LatentEwald(long_range)
        self.irreps_in = dict(built.energy_model.irreps_out)
        self.irreps_out = dict(built.energy_model.irreps_out)
        self.is_isolated = False

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        data = self.charge_readout(data)
        if self.charge_sum is not None:
            data = self.charge_sum(data)
        cell = data["pos"].new_zeros((3, 3)) if self.is_isolated else data["cell"].reshape(3, 3)
        energy = self.ewald.energy(data["pos"], data["LES_q"], cell)
        data["long_range_energy"] = energy.reshape(1, 1)
        data["total_energy"] = data["total_energy"] + energy
        return data


class _Original:
    """Evaluates a model in nequip's own forward pass, data and neighbour list, differentiating over positions."""

    def __init__(self, built: _Built, settings: Settings, long_range: LongRangeParameters | None) -> None:
        self.model = built.model
        self.cutoff = float(settings.options["r_max"])
        self.types = {z: i for i, z in enumerate(settings.elements)}
        self.electrostatics = None if long_range is None else _LongRangeEnergy(built, long_range)
        if self.electrostatics is not None:
            self.model.func.append("long_range_energy", self.electrostatics)

    def __call__(self, atoms: ase.Atoms) -> OriginalResult:
        from nequip.data import compute_neighborlist_, from_ase

        if self.electrostatics is not None:
            self.electrostatics.is_isolated = not bool(atoms.pbc.any())
        bare = ase.Atoms(atoms.numbers, atoms.get_positions(), cell=atoms.cell.array, pbc=atoms.pbc)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # as nequip does for its own process; data take it too
        try:
            data = compute_neighborlist_(from_ase(bare), self.cutoff)
            data["atom_types"] = torch.tensor([self.types[int(z)] for z in atoms.numbers])
            result = self.model(data)
        finally:
            torch.set_default_dtype(default)
        charges, long_range_energy = np.zeros((len(atoms), 0)), 0.0
        if self.electrostatics is not None:
            charges = result["LES_q"].detach().reshape(len(atoms), -1).numpy()
            long_range_energy = float(result["long_range_energy"].detach())
        return OriginalResult(
            energy=float(result["total_energy"].detach()),
            long_range_energy=long_range_energy,
            forces=result["forces"].detach().numpy(),
            charges=charges,
        )
