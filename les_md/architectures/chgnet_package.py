"""Checkpoints of the package chgnet: the pretrained models in its wheel, and what its trainer writes."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from les_md.architectures.chgnet_layers import ACTIVATIONS
from les_md.architectures.chgnet_undirected_network import UndirectedCHGNetNetwork, UndirectedConfiguration
from les_md.architectures.registry import UnsupportedModelError
from les_md.checkpoint_errors import CheckpointError

#: Po, At, Rn, Fr, Ra: none of the databases that the pretrained models were trained on holds them.
_NEVER_TRAINED = range(84, 89)


def is_of_package(checkpoint: object) -> bool:
    """Whether a checkpoint is one of the package chgnet."""
    return _parts(checkpoint) is not None


def _parts(checkpoint: object) -> dict | None:
    """The dictionary of weights and arguments in a checkpoint."""
    if not isinstance(checkpoint, dict):
        return None
    inner = checkpoint.get("model", checkpoint)
    if not (isinstance(inner, dict) and isinstance(inner.get("model_args"), dict)):
        return None
    state = inner.get("state_dict")
    return inner if isinstance(state, dict) and "atom_embedding.embedding.weight" in state else None


#: Arguments that are supported with these values only; the first is the default.
_REQUIRED = {
    "mlp_first": (True,),
    "update_bond": (True,),
    "update_angle": (True,),
    "gMLP_norm": ("layer", None),
    "readout_norm": ("layer", None),
    "conv_norm": (None,),
    "final_mlp": ("MLP", "normal"),
    "skip_connection": (False,),
}

#: Arguments that the shapes of the weights tell, that are read below, or that do not matter for an evaluation.
_UNDERSTOOD = {
    "atom_fea_dim", "bond_fea_dim", "angle_fea_dim", "composition_model", "num_radial", "num_angular", "n_conv",
    "atom_conv_hidden_dim", "bond_conv_hidden_dim", "angle_layer_hidden_dim", "conv_dropout", "read_out",
    "mlp_hidden_dims", "mlp_dropout", "is_intensive", "non_linearity", "atom_graph_cutoff", "bond_graph_cutoff",
    "graph_converter_algorithm", "cutoff_coeff", "cutofff_coeff", "learnable_rbf", "version", "mlp_out_bias",
    "converter_verbose",
}  # fmt: skip


def read(checkpoint: Any, notes: list[str]) -> tuple[UndirectedCHGNetNetwork, list[int], Tensor]:
    """Network in float64, atomic numbers in type order, and reference energies [types] float64 in eV.

    Raises
    ------
    UnsupportedModelError : it uses an option that is not supported; the message names it.
    CheckpointError : weights are missing or do not belong there.
    """
    parts = _parts(checkpoint)
    arguments, state = parts["model_args"], dict(parts["state_dict"])
    for option, values in _REQUIRED.items():
        _require(arguments.get(option, values[0]) in values, option, arguments.get(option))
    for option, value in arguments.items():
        _require(option in _UNDERSTOOD or option in _REQUIRED or not value, option, value)
    activation = arguments.get("non_linearity", "silu")
    _require(activation in ACTIVATIONS, "non_linearity", activation)
    exponent = arguments.get("cutoff_coeff", 8)
    _require(exponent != 0, "cutoff_coeff", exponent)

    references = state.pop("composition_model.fc.weight", None)
    rows = len(state["atom_embedding.embedding.weight"])
    energies = torch.zeros(rows, dtype=torch.float64) if references is None else references.flatten().double()
    known = [z for z in range(1, rows + 1) if z not in _NEVER_TRAINED and not 0.0 < abs(float(energies[z - 1])) < 1e-10]
    left_out = [z for z in range(1, rows + 1) if z not in known]
    if left_out:
        from ase.data import chemical_symbols

        names = " ".join(chemical_symbols[z] for z in left_out)
        notes.append(f"{len(known)} elements; the training data held none of {names}")
    index = torch.tensor(known) - 1
    state["atom_embedding.embedding.weight"] = state["atom_embedding.embedding.weight"][index]
    weights = {_own_name(key): value for key, value in state.items() if not key.startswith("site_wise.")}
    configuration = _configuration(weights, arguments, len(known), activation, int(exponent))
    if configuration.output_bias:
        notes.append(
            "a model of chgnet 0.2.0: in a structure without any angle (bonds below "
            f"{configuration.bond_cutoff:g} Å at one atom) chgnet leaves a constant out that is there otherwise; here "
            "it is always there"
        )
    network = UndirectedCHGNetNetwork(configuration).double()
    own = network.state_dict()
    for key, value in weights.items():
        if key not in own:
            raise UnsupportedModelError(f"the checkpoint has weights {key}, which are not supported")
        if value.shape != own[key].shape:
            raise CheckpointError(
                f"the weights {key} have the shape {tuple(value.shape)}, the options ask for {tuple(own[key].shape)}"
            )
    missing = sorted(set(own) - set(weights) - {key for key in own if _is_unused(key, configuration)})
    if missing:
        raise CheckpointError(f"the checkpoint has no weights {missing[0]}, which its options ask for")
    network.load_state_dict({**own, **weights})
    return network, known, energies[index]


def _require(condition: bool, option: str, value: object) -> None:
    if not condition:
        raise UnsupportedModelError(f"the option {option} = {value!r} of this CHGNet is not supported")


_NAMES = {
    "atom_embedding.embedding.": "atom_embedding.",
    "bond_basis_expansion.rbf_expansion_ag.": "bond_expansion_atoms.",
    "bond_basis_expansion.rbf_expansion_bg.": "bond_expansion_bonds.",
    "angle_basis_expansion.fourier_expansion.": "angle_expansion.",
    "bond_weights_ag.": "atom_weights.",
    "bond_weights_bg.": "bond_weights.",
}


def _own_name(key: str) -> str:
    """Name of weights in ``UndirectedCHGNetNetwork``; linear maps keep their place among activations and dropouts."""
    for theirs, ours in _NAMES.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    key = re.sub(r"^atom_conv_layers\.(\d+)\.twoBody_atom\.", r"atom_layers.\1.message.", key)
    key = re.sub(r"^bond_conv_layers\.(\d+)\.twoBody_bond\.", r"bond_layers.\1.message.", key)
    key = re.sub(r"^angle_layers\.(\d+)\.twoBody_bond\.", r"bond_layers.\1.angle_update.", key)
    key = re.sub(r"^(atom|bond)_conv_layers\.(\d+)\.mlp_out\.layers\.1\.", r"\1_layers.\2.out.", key)
    key = key.replace(".mlp_core.layers.", ".value.layers.").replace(".mlp_gate.layers.", ".gate.layers.")
    key = re.sub(r"^mlp\.layers\.", "readout.layers.", key)
    found = re.fullmatch(r"(.*\.layers)\.(\d+)\.(weight|bias)", key)
    if found and (".message." in key or ".angle_update." in key or key.startswith("readout.")):
        # Of one linear map: dropout, map. Of several: map, activation, map, activation, …, dropout, map.
        place = int(found[2])
        return f"{found[1]}.{place // 2}.{found[3]}" if place != 1 else f"{found[1]}.0.{found[3]}"
    return key


def _is_unused(key: str, configuration: UndirectedConfiguration) -> bool:
    return configuration.num_blocks == 1 and key.startswith(("bond_layers.", "bond_weights.", "angle_"))


def _configuration(
    weights: dict[str, Tensor], arguments: dict, num_types: int, activation: str, exponent: int
) -> UndirectedConfiguration:
    """Sizes from the shapes of the weights; renames the normalisations, whose place follows from the depth."""
    for key in list(weights):
        found = re.fullmatch(r"(.+)\.bn([12])\.(weight|bias)", key)
        if found:
            part = "value" if found[2] == "1" else "gate"
            last = len(_hidden(weights, f"{found[1]}.{part}"))
            weights[f"{found[1]}.{part}.norms.{last}.{found[3]}"] = weights.pop(key)
    try:
        return UndirectedConfiguration(
            num_types=num_types,
            cutoff=float(arguments.get("atom_graph_cutoff", 6)),
            bond_cutoff=float(arguments.get("bond_graph_cutoff", 3)),
            cutoff_exponent=exponent,
            num_blocks=1 + max(int(key.split(".")[1]) for key in weights if key.startswith("atom_layers.")),
            num_radial=len(weights["bond_expansion_atoms.frequencies"]),
            num_frequencies=len(weights["angle_expansion.frequencies"]),
            atom_width=int(weights["atom_embedding.weight"].shape[1]),
            bond_width=int(weights["bond_embedding.weight"].shape[0]),
            angle_width=int(weights["angle_embedding.weight"].shape[0]),
            atom_hidden=_hidden(weights, "atom_layers.0.message.value"),
            bond_hidden=_hidden(weights, "bond_layers.0.message.value"),
            angle_hidden=_hidden(weights, "bond_layers.0.angle_update.value"),
            readout_hidden=_hidden(weights, "readout"),
            activation=activation,
            layer_norm=any(".norms." in key for key in weights),
            readout_norm="readout_norm.weight" in weights,
            output_bias="atom_layers.0.out.bias" in weights,
        )
    except KeyError as error:
        raise CheckpointError(f"the checkpoint of a CHGNet has no weights {error.args[0]}") from error


def _hidden(weights: dict, prefix: str) -> tuple[int, ...]:
    """Hidden widths of a perceptron."""
    found = {
        int(match[1]): int(value.shape[0])
        for key, value in weights.items()
        if (match := re.fullmatch(re.escape(prefix) + r"\.layers\.(\d+)\.weight", key))
    }
    return tuple(found[number] for number in sorted(found))[:-1]
