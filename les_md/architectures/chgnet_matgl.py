"""CHGNet checkpoints of MatGL: folders that its ``save`` wrote, and state dictionaries, of today and of its DGL era.

MatGL itself has no latent charges; its LES variant (class ``CHGNet_LR``) adds ``latent_charge_readout``, a perceptron
with SiLU of the features after the last block, and

    E = data_std (E_short + E_long) + data_mean + Σ element references .

data_std multiplies the long-range energy, so it goes into the constant C; data_mean is one number for a structure of
any size and is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from ase.data import atomic_numbers as numbers_of
from torch import Tensor

from les_md.architectures.chgnet_layers import ACTIVATIONS
from les_md.architectures.chgnet_network import CHGNetConfiguration, CHGNetNetwork
from les_md.architectures.registry import UnsupportedModelError
from les_md.checkpoint import SavedFolder
from les_md.checkpoint_errors import CheckpointError
from les_md.electrostatics.parameters import LongRangeParameters

#: Of the published CHGNet-LES models, whose state dictionaries do not tell.
PUBLISHED_CUTOFF = 4.5
PUBLISHED_NORM_FACTOR = 1.0

_READOUT = "latent_charge_readout."


@dataclass
class StoredModel:
    """What a checkpoint of MatGL holds.

    Attributes
    ----------
    configuration : of the network, ``energy_scale`` being data_std.
    arguments : of MatGL's own constructor of the short-range model.
    weights : of the short-range model, by MatGL's names of today.
    charge_readout : linear maps (weight, bias) of the charge readout in their order; empty without charges.
    reference_energies : [types] float64, eV.
    long_range : None without charges; C as stored, without data_std.
    notes : what was decided, for the user.
    """

    configuration: CHGNetConfiguration
    arguments: dict
    weights: dict[str, Tensor]
    charge_readout: list[tuple[Tensor, Tensor]]
    reference_energies: Tensor
    long_range: LongRangeParameters | None
    notes: list[str] = field(default_factory=list)


def is_of_matgl(checkpoint: object) -> bool:
    """Whether a checkpoint is a folder or a state dictionary of a CHGNet of MatGL."""
    if isinstance(checkpoint, SavedFolder):
        return str(_class_of_model(checkpoint)).startswith("CHGNet")
    return isinstance(checkpoint, dict) and bool(_prefixes(_table(checkpoint)))


def read(checkpoint: Any, cutoff: float | None) -> StoredModel:
    """Understand a checkpoint.

    Parameters: ``cutoff`` in Å that the user gives for a checkpoint of weights alone.

    Raises
    ------
    UnsupportedModelError : it uses an option that is not supported; the message names it.
    CheckpointError : its parts do not belong together.
    ValueError : ``cutoff`` is missing, or given for a checkpoint that stores one.
    """
    notes: list[str] = []
    if isinstance(checkpoint, SavedFolder):
        table = checkpoint.state
        potential = checkpoint.arguments if "model" in checkpoint.arguments else {}
        arguments = potential["model"]["init_args"] if potential else checkpoint.arguments
    else:
        table = _table(checkpoint)
        potential = checkpoint.get("hyper_parameters")
        potential = potential if "state_dict" in checkpoint and isinstance(potential, dict) else {}
        arguments = None
    prefix, wrapper = _choose_prefix(table, notes)
    state = {key[len(prefix) :]: value.detach() for key, value in table.items() if key.startswith(prefix)}
    is_of_dgl_era = any(".conv_layer." in key or ".gates." in key for key in state)
    weights, readout = _split(_matgl_names(state))
    widths = _widths(weights)
    if arguments is None:
        options = _default_options(cutoff, bool(readout), weights, notes)
    else:
        if cutoff is not None:
            raise ValueError("the checkpoint stores its cutoff: --cutoff does not apply")
        options = _options(dict(arguments), widths, weights)
    if widths["gated_readout"] and is_of_dgl_era:
        raise UnsupportedModelError(
            "the option final_mlp_type = 'gated' of a model from MatGL's DGL era is not supported: MatGL changed what "
            "it means"
        )
    if readout and len(readout) > 1 and options["activation"] not in ("swish", "silu"):
        raise UnsupportedModelError(
            f"the option activation_type = {options['activation']!r} is not supported together with a charge readout "
            "of several layers, whose activation function is not stored"
        )
    scale, energies = _energies(potential, table, wrapper, len(options["atomic_numbers"]), notes)
    elements = options["atomic_numbers"][: len(energies)]
    if len(elements) < len(options["atomic_numbers"]):
        notes.append(f"only the first {len(elements)} elements have reference energies: the others are left out")
        weights["atom_embedding.weight"] = weights["atom_embedding.weight"][: len(elements)]
    options["atomic_numbers"] = elements
    configuration = CHGNetConfiguration(
        **widths,
        **options,
        num_charges=int(readout[-1][0].shape[0]) if readout else 0,
        charge_hidden=tuple(int(weight.shape[0]) for weight, _bias in readout[:-1]),
        energy_scale=scale,
    )
    if arguments is None:
        own = matgl_arguments(configuration)
    else:
        own = {key: value for key, value in dict(arguments).items() if not str(key).startswith("latent_charge")}
        own["element_types"] = matgl_arguments(configuration)["element_types"]
    long_range = _long_range(potential, notes) if readout else None
    return StoredModel(configuration, own, weights, readout, energies, long_range, notes)


def make_network(stored: StoredModel) -> CHGNetNetwork:
    """The network of a stored model, with its weights, in float64."""
    configuration = stored.configuration
    network = CHGNetNetwork(configuration).double()
    weights = dict(own_names(stored.weights, configuration))
    for i, (weight, bias) in enumerate(stored.charge_readout):
        weights[f"{_READOUT}layers.{i}.weight"] = weight
        weights[f"{_READOUT}layers.{i}.bias"] = bias
    own = network.state_dict()
    for key, value in weights.items():
        if key not in own:
            raise UnsupportedModelError(f"the checkpoint has weights {key}, which a CHGNet of its options lacks")
        if value.shape != own[key].shape:
            raise CheckpointError(
                f"the weights {key} have the shape {tuple(value.shape)}, the options ask for {tuple(own[key].shape)}"
            )
    missing = [key for key in own if key not in weights and not _is_unused(key, configuration)]
    if missing:
        raise CheckpointError(f"the checkpoint has no weights {missing[0]}, which its options ask for")
    network.load_state_dict({**own, **weights})
    return network


def matgl_arguments(configuration: CHGNetConfiguration) -> dict:
    """Arguments of MatGL's constructor for a configuration."""
    c = configuration
    shared = {(True, True): "both", (True, False): "bond", (False, True): "three_body_bond", (False, False): None}
    symbols = {z: symbol for symbol, z in numbers_of.items()}
    return {
        "element_types": tuple(symbols[z] for z in c.atomic_numbers),
        "dim_atom_embedding": c.atom_width,
        "dim_bond_embedding": c.bond_width,
        "dim_angle_embedding": c.angle_width,
        "non_linear_bond_embedding": c.nonlinear_bond_embedding,
        "non_linear_angle_embedding": c.nonlinear_angle_embedding,
        "cutoff": c.cutoff,
        "threebody_cutoff": c.three_body_cutoff,
        "cutoff_exponent": c.cutoff_exponent,
        "max_n": c.max_n,
        "max_f": c.max_f,
        "num_blocks": c.num_blocks,
        "shared_bond_weights": shared[c.atom_bond_weights, c.three_body_weights],
        "layer_bond_weights": "three_body_bond" if c.layer_three_body_weights else None,
        "atom_conv_hidden_dims": c.atom_hidden,
        "bond_update_hidden_dims": c.bond_update_hidden,
        "bond_conv_hidden_dims": c.bond_hidden,
        "angle_update_hidden_dims": c.angle_hidden,
        "final_mlp_type": "gated" if c.gated_readout else "mlp",
        "final_hidden_dims": c.readout_hidden,
        "activation_type": c.activation,
        "normalization": "layer" if c.layer_norm else None,
        "normalize_hidden": c.normalise_hidden,
        "num_site_targets": 0,
    }


# ---- names of weights


def _table(checkpoint: dict) -> dict[str, Tensor]:
    """The state dictionary in a checkpoint: itself, or that of a Lightning checkpoint."""
    table = checkpoint.get("state_dict", checkpoint)
    if not isinstance(table, dict):
        return {}
    return {key: value for key, value in table.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _prefixes(table: dict) -> list[str]:
    """What comes before the names of a CHGNet's weights; several where a checkpoint holds several copies."""
    mark = "atom_embedding.weight"
    found = [key[: -len(mark)] for key in table if key.endswith(mark)]
    return [p for p in found if any(key.startswith(f"{p}atom_graph_layers.0.") for key in table)]


def _choose_prefix(table: dict, notes: list[str]) -> tuple[str, str]:
    """Prefix of the network, and of the potential around it."""
    prefixes = _prefixes(table)
    averages = [prefix for prefix in prefixes if prefix.startswith("ema_model.")]
    if averages and len(prefixes) == 2:
        notes.append("the averaged weights (ema_model) are used, with which the training was validated")
        prefixes = averages
    if len(prefixes) != 1:
        raise UnsupportedModelError(f"the checkpoint holds {len(prefixes)} CHGNets ({', '.join(prefixes)}), not one")
    return prefixes[0], prefixes[0].removesuffix("model.")


def _matgl_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of MatGL's DGL era turned into those of today."""
    renamed = {}
    for key, value in state.items():
        key = key.replace(".conv_layer.", ".conv.").replace(".norm_layers.", ".norms.")
        key = re.sub(r"(_func|^final_layer)\.layers\.(layers|norms)\.", r"\1.value.\2.", key)
        key = re.sub(r"(_func|^final_layer)\.gates\.", r"\1.gate.", key)
        renamed[key] = value
    return renamed


def _split(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Weights of the short-range model, and the linear maps of the charge readout."""
    weights, maps, biases = {}, {}, {}
    for key, value in state.items():
        if key.startswith(("sitewise_readout.", "magmom_readout.")):
            continue  # magnetic moments
        if not key.startswith(_READOUT):
            weights[key] = value
            continue
        found = re.fullmatch(r"(?:layers\.)?(?:(\d+)\.)?(weight|bias)", key.removeprefix(_READOUT))
        if not found or (found[2] == "weight" and value.dim() != 2):
            raise UnsupportedModelError(f"the part {key} of the charge readout is not supported")
        (maps if found[2] == "weight" else biases)[int(found[1] or 0)] = value
    readout = []
    for number in sorted(maps):
        weight = maps[number]
        if readout and weight.shape[1] != readout[-1][0].shape[0]:
            raise CheckpointError("the layers of the charge readout do not fit together")
        readout.append((weight, biases.get(number, torch.zeros_like(weight[:, 0]))))
    return weights, readout


def own_names(weights: dict[str, Tensor], configuration: CHGNetConfiguration) -> dict[str, Tensor]:
    """Weights by the names of ``CHGNetNetwork``, from MatGL's."""
    renamed = {}
    for key, value in weights.items():
        parts = re.fullmatch(r"(.+)\.norms\.0\.(.+)", key)
        if parts and not configuration.normalise_hidden:
            last = max(_numbers(weights, f"{parts[1]}.layers."))
            key = f"{parts[1]}.norms.{last}.{parts[2]}"
        renamed[key.replace(".conv.", ".")] = value
    return renamed


def names_in_matgl(weights: dict[str, Tensor], configuration: CHGNetConfiguration) -> dict[str, Tensor]:
    """Weights of the short-range model by MatGL's names, from those of ``CHGNetNetwork``."""
    renamed = {}
    for key, value in weights.items():
        if key.startswith(_READOUT) or _is_unused(key, configuration):
            continue
        key = re.sub(r"^((?:atom|bond)_graph_layers\.\d+)\.(node|edge)_", r"\1.conv.\2_", key)
        if not configuration.normalise_hidden:
            key = re.sub(r"\.norms\.\d+\.", ".norms.0.", key)
        renamed[key] = value
    return renamed


def _is_unused(key: str, configuration: CHGNetConfiguration) -> bool:
    """Whether weights of ``CHGNetNetwork`` are there for TorchScript only."""
    c = configuration
    of_angles = ("threebody_bond_expansion.", "angle_expansion.", "angle_embedding.", "threebody_bond_weights.")
    return (
        (c.three_body_cutoff == 0.0 and key.startswith(of_angles))
        or (not c.atom_bond_weights and key.startswith(("atom_bond_weights.", "bond_bond_weights.")))
        or (not c.three_body_weights and key.startswith("threebody_bond_weights."))
        or (c.num_charges == 0 and key.startswith(_READOUT))
    )


# ---- options


def _numbers(weights: dict, prefix: str) -> set[int]:
    """Numbers that follow a prefix."""
    return {int(key[len(prefix) :].split(".")[0]) for key in weights if key.startswith(prefix)}


def _hidden(weights: dict, prefix: str) -> tuple[int, ...]:
    """Hidden widths of a perceptron."""
    return tuple(
        int(weights[f"{prefix}.layers.{i}.weight"].shape[0]) for i in sorted(_numbers(weights, f"{prefix}.layers."))
    )[:-1]


def _widths(weights: dict[str, Tensor]) -> dict:
    """What the shapes of the weights tell of a configuration."""
    try:
        first = "atom_graph_layers.0.conv"
        bond = "bond_graph_layers.0.conv"
        sizes = {
            "num_blocks": len(_numbers(weights, "atom_graph_layers.")),
            "max_n": len(weights["bond_expansion.frequencies"]),
            "atom_width": int(weights["atom_embedding.weight"].shape[1]),
            "bond_width": int(weights["bond_embedding.layers.0.weight"].shape[0]),
            "atom_hidden": _hidden(weights, f"{first}.node_update_func.value"),
            "bond_update_hidden": None,
            "readout_hidden": _hidden(weights, "final_layer.value" if _is_gated(weights) else "final_layer"),
            "gated_readout": _is_gated(weights),
            "layer_norm": any(".norms." in key for key in weights),
            "atom_bond_weights": "atom_bond_weights.weight" in weights,
            "three_body_weights": "threebody_bond_weights.weight" in weights,
            "layer_three_body_weights": f"{bond}.node_weight_func.weight" in weights,
        }
        if f"{first}.edge_update_func.value.layers.0.weight" in weights:
            sizes["bond_update_hidden"] = _hidden(weights, f"{first}.edge_update_func.value")
        if "angle_embedding.layers.0.weight" in weights:
            sizes["max_f"] = len(weights["angle_expansion.frequencies"]) - 1
            sizes["angle_width"] = int(weights["angle_embedding.layers.0.weight"].shape[0])
        if _numbers(weights, "bond_graph_layers."):
            sizes["bond_hidden"] = _hidden(weights, f"{bond}.node_update_func.value")
            updated = f"{bond}.edge_update_func.value"
            has_update = f"{updated}.layers.0.weight" in weights
            sizes["angle_hidden"] = _hidden(weights, updated) if has_update else None
    except KeyError as error:
        raise CheckpointError(f"the checkpoint of a CHGNet has no weights {error.args[0]}") from error
    return sizes


def _is_gated(weights: dict) -> bool:
    return "final_layer.gate.layers.0.weight" in weights


#: Options that are supported with these values only (and their default is the first).
_REQUIRED = {
    "dim_state_embedding": (None,),
    "dim_state_feats": (None,),
    "layer_bond_weights": (None, "three_body_bond"),
    "pooling_operation": ("sum",),
    "readout_field": ("atom_feat",),
    "normalization": (None, "layer"),
    "is_intensive": (False,),
    "num_targets": (1,),
    "task_type": ("regression",),
}

#: Options that the shapes of the weights tell, or that do not matter for an evaluation.
_UNDERSTOOD = {
    "element_types", "dim_atom_embedding", "dim_bond_embedding", "dim_angle_embedding", "non_linear_bond_embedding",
    "non_linear_angle_embedding", "cutoff", "threebody_cutoff", "cutoff_exponent", "max_n", "max_f", "learn_basis",
    "num_blocks", "shared_bond_weights", "atom_conv_hidden_dims", "bond_update_hidden_dims", "bond_conv_hidden_dims",
    "angle_update_hidden_dims", "conv_dropout", "final_mlp_type", "final_hidden_dims", "final_dropout",
    "activation_type", "normalize_hidden", "num_site_targets",
}  # fmt: skip


def _options(arguments: dict, widths: dict, weights: dict[str, Tensor]) -> dict:
    """What MatGL's arguments tell of a configuration, beyond the shapes."""
    for option, values in _REQUIRED.items():
        _require(arguments.get(option, values[0]) in values, option, arguments.get(option))
    for option, value in arguments.items():
        is_known = option in _UNDERSTOOD or option in _REQUIRED or str(option).startswith("latent_charge")
        _require(is_known or not value, str(option), value)
    activation = arguments.get("activation_type", "swish")
    _require(activation in ACTIVATIONS, "activation_type", activation)
    blocks = arguments.get("num_blocks", 4)
    if blocks != widths["num_blocks"]:
        raise CheckpointError(f"the checkpoint has weights of {widths['num_blocks']} blocks, its options say {blocks}")
    return {
        "atomic_numbers": _elements(arguments.get("element_types"), len(weights["atom_embedding.weight"])),
        "cutoff": float(arguments.get("cutoff", 6.0)),
        "three_body_cutoff": float(arguments.get("threebody_cutoff", 3.0)),
        "cutoff_exponent": int(arguments.get("cutoff_exponent", 5)),
        "activation": activation,
        "normalise_hidden": bool(arguments.get("normalize_hidden", False)) and widths["layer_norm"],
        "nonlinear_bond_embedding": bool(arguments.get("non_linear_bond_embedding", False)),
        "nonlinear_angle_embedding": bool(arguments.get("non_linear_angle_embedding", False)),
    }


def _default_options(cutoff: float | None, has_charges: bool, weights: dict[str, Tensor], notes: list[str]) -> dict:
    """Options of a checkpoint that holds weights alone."""
    if cutoff is None and not has_charges:
        raise ValueError("the checkpoint holds weights alone, which do not tell the cutoff: give it with --cutoff")
    if any(".norms." in key for key in weights):
        raise UnsupportedModelError(
            "the checkpoint holds weights alone, which do not tell the option normalize_hidden of a model with "
            "normalization: export the folder that MatGL's save writes"
        )
    chosen = PUBLISHED_CUTOFF if cutoff is None else float(cutoff)
    notes.append(
        f"the checkpoint holds weights alone: taken are a cutoff of {chosen:g} Å "
        f"({'as of the published CHGNet-LES models; --cutoff sets another' if cutoff is None else 'set by the user'}), "
        "and MatGL's defaults for all options that the weights do not tell (three-body cutoff 3 Å, cutoff exponent 5, "
        "swish)"
    )
    return {
        "atomic_numbers": _elements(None, len(weights["atom_embedding.weight"])),
        "cutoff": chosen,
        "three_body_cutoff": 3.0 if "angle_embedding.layers.0.weight" in weights else 0.0,
        "activation": "swish",
    }


def _require(condition: bool, option: str, value: object) -> None:
    if not condition:
        raise UnsupportedModelError(f"the option {option} = {value!r} of this CHGNet is not supported")


def _elements(symbols: Any, rows: int) -> tuple[int, ...]:
    """Atomic numbers in type order."""
    missing_in_older = range(84, 89)
    if symbols is None:
        known = {94: tuple(range(1, 95)), 89: tuple(z for z in range(1, 95) if z not in missing_in_older)}
        if rows not in known:
            raise UnsupportedModelError(
                f"the checkpoint does not say which elements its {rows} types are: export the folder that MatGL's save "
                "writes"
            )
        return known[rows]
    unknown = [symbol for symbol in symbols if symbol not in numbers_of]
    if unknown or len(symbols) != rows:
        raise CheckpointError(f"the checkpoint names {len(symbols)} elements {unknown or ''} for {rows} types")
    return tuple(numbers_of[symbol] for symbol in symbols)


# ---- the potential around the model


def _class_of_model(folder: SavedFolder) -> object:
    """Name of the class of the model in a folder, within a ``Potential`` or alone."""
    model = folder.arguments.get("model")
    if folder.description.get("@class") == "Potential" and isinstance(model, dict):
        return model.get("@class")
    return folder.description.get("@class")


#: Arguments of MatGL's ``Potential`` that do not change energies and charges, or are read below.
_OF_POTENTIAL = {
    "model", "data_mean", "data_std", "element_refs", "calc_forces", "calc_stresses", "calc_hessian", "calc_magmom",
    "zbl_trainable", "debug_mode", "return_charge", "compile_model", "compile_mode", "calc_BEC", "calc_ewald",
    "include_long_range", "les_params",
}  # fmt: skip


def _energies(
    potential: dict, table: dict[str, Tensor], wrapper: str, num_types: int, notes: list[str]
) -> tuple[float, Tensor]:
    """data_std and the reference energies [types] float64."""
    if "model" in potential:
        for option, value in potential.items():
            is_known = option in _OF_POTENTIAL or str(option).startswith("les_")
            _require(is_known or not value, str(option), value)

    def stored(name: str, default: float) -> float:
        value = table.get(f"{wrapper}{name}", potential.get(name))
        return default if value is None else float(torch.as_tensor(value, dtype=torch.float64))

    scale, mean = stored("data_std", 1.0), stored("data_mean", 0.0)
    _require(scale > 0.0, "data_std", scale)
    if mean != 0.0:
        notes.append(
            f"the constant data_mean = {mean:g} eV, the same for structures of any size, is left out: energies are "
            "lower by this, forces and stresses the same"
        )
    references = table.get(f"{wrapper}element_refs.property_offset", potential.get("element_refs"))
    if any(key.startswith(f"{wrapper}repuls.") for key in table):
        raise UnsupportedModelError("the option calc_repuls = True of this CHGNet is not supported")
    if references is None:
        return scale, torch.zeros(num_types, dtype=torch.float64)
    energies = torch.as_tensor(references).detach().to(torch.float64)
    if energies.dim() != 1:
        raise UnsupportedModelError("element references of several states (element_refs) are not supported")
    return scale, energies[:num_types].clone()


def _long_range(potential: dict, notes: list[str]) -> LongRangeParameters:
    """Parameters of the long-range energy, without data_std."""
    nested = potential.get("les_params")
    given = dict(nested) if isinstance(nested, dict) else {}
    given.update(
        {key: value for key, value in potential.items() if str(key).startswith("les_") and key != "les_params"}
    )
    given = {str(key).removeprefix("les_"): value for key, value in given.items() if value is not None}
    switches = [name for name in ("include_long_range", "calc_ewald") if name in potential]
    if not switches and "calc_BEC" in potential:
        switches = ["calc_BEC"]
    for switch in switches:
        if not potential[switch]:
            raise UnsupportedModelError(
                f"the option {switch} = False: the model has a charge readout, but its energy leaves the long-range "
                "part out"
            )
    _require(bool(given.pop("pbc", True)), "les_pbc", False)
    known = {"sigma", "dl", "norm_factor", "remove_self_interaction", "remove_mean", "epsilon_factor"}
    for option, value in given.items():
        _require(option in known or not value, f"les_{option}", value)
    taken = {"sigma": 1.0, "dl": 2.0, "norm_factor": PUBLISHED_NORM_FACTOR, "remove_self_interaction": True}
    absent = [f"{name} = {value:g}" for name, value in taken.items() if name not in given]
    if absent:
        notes.append(f"the checkpoint does not store {', '.join(absent)}: taken as of the published CHGNet-LES models")
    taken.update({name: given[name] for name in known if name in given})
    booleans = ("remove_self_interaction", "remove_mean")
    return LongRangeParameters(**{k: bool(v) if k in booleans else float(v) for k, v in taken.items()})
