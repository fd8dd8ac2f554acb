"""What the configuration in a NequIP-LES or Allegro-LES checkpoint says: plain data, none of which is run.

Only what is listed here is accepted; anything else that is switched on is refused by name. Versions of nequip since 0.7
differ in what the same configuration means, see ``builder_options``.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from dataclasses import dataclass
from typing import Any

import ase.data
from torch import Tensor

from les_md.architectures.registry import UnsupportedModelError
from les_md.checkpoint_errors import CheckpointError
from les_md.electrostatics.parameters import NORM_FACTOR_2026, NORM_FACTOR_BEFORE_2026, LongRangeParameters

#: Builders of models: of which kind, and whether their options are the full ones.
_TARGETS = {
    "nequip.model.NequIPGNNModel": ("nequip", False),
    "nequip.model.NequIPGNNEnergyModel": ("nequip", False),
    "nequip.model.FullNequIPGNNModel": ("nequip", True),
    "nequip.model.FullNequIPGNNEnergyModel": ("nequip", True),
    "allegro.model.AllegroModel": ("allegro", False),
    "allegro.model.FullAllegroModel": ("allegro", True),
}
_LES_TARGET = "nequip_les.model.LESModel"
_OWN_LES_TARGET = "les_md.training.nequip.LESModel"
_MODIFY_TARGET = "nequip.model.modify"

#: Changes of a model that leave energies and charges as they are: other ways to compute the same, and what is printed.
_HARMLESS_MODIFIERS = {
    "enable_OpenEquivariance",
    "enable_CuEquivariance",
    "enable_TritonContracter",
    "enable_CuEquivarianceContracter",
    "enable_ForceStressOutput",
    "disable_ForceStressOutput",
    "modify_latent_ewald_sum",
}

#: Options that are used for training or output only.
_NO_MATTER = {"seed", "model_dtype", "compile_mode", "do_derivatives"}

_OF_BOTH = {
    "r_max",
    "type_names",
    "per_edge_type_cutoff",
    "avg_num_neighbors",
    "per_type_energy_scales",
    "per_type_energy_shifts",
    "per_type_energy_scales_trainable",
    "per_type_energy_shifts_trainable",
    "pair_potential",
    "readout_mlp_hidden_layers_depth",
    "readout_mlp_hidden_layers_width",
    "readout_mlp_nonlinearity",
}

_OPTIONS = {
    ("nequip", True): {
        "irreps_edge_sh",
        "type_embed_num_features",
        "feature_irreps_hidden",
        "radial_mlp_depth",
        "radial_mlp_width",
        "num_bessels",
        "bessel_trainable",
        "polynomial_cutoff_p",
        "convnet_sc",
        "learnable_shift",
        "convnet_resnet",
        "convnet_nonlinearity_type",
        "convnet_nonlinearity_scalars",
        "convnet_nonlinearity_gates",
    },
    ("allegro", True): {
        "irreps_edge_sh",
        "tensor_track_allowed_irreps",
        "radial_chemical_embed",
        "radial_chemical_embed_dim",
        "scalar_embed_mlp_hidden_layers_depth",
        "scalar_embed_mlp_hidden_layers_width",
        "scalar_embed_mlp_nonlinearity",
        "num_layers",
        "num_scalar_features",
        "num_tensor_features",
        "allegro_mlp_hidden_layers_depth",
        "allegro_mlp_hidden_layers_width",
        "allegro_mlp_nonlinearity",
        "tp_path_channel_coupling",
        "weight_individual_irreps",
        "forward_normalize",
    },
}
_OPTIONS["nequip", False] = (_OPTIONS["nequip", True] - {"irreps_edge_sh", "feature_irreps_hidden"}) | {
    "num_layers",
    "l_max",
    "parity",
    "num_features",
}
_OPTIONS["allegro", False] = (_OPTIONS["allegro", True] - {"irreps_edge_sh", "tensor_track_allowed_irreps"}) | {
    "l_max",
    "parity",
}

#: Options that are themselves built from a name, and what they take.
_PARTS = {
    "pair_potential": {"nequip.nn.pair_potential.ZBL": {"units", "chemical_species", "polynomial_cutoff_p"}},
    "radial_chemical_embed": {
        "allegro.nn.TwoBodyBesselScalarEmbed": {"num_bessels", "bessel_trainable", "polynomial_cutoff_p"},
        "allegro.nn.TwoBodySplineScalarEmbed": {"num_splines", "spline_span"},
    },
}

#: Nonlinearities that keep zero: with others, edges beyond the cutoff would contribute.
_NONLINEARITIES = {None, "None", "null", "silu", "mish", "gelu", "ssp", "tanh"}

# ---- what les_args may hold

_LES_PARAMETERS = {"sigma", "dl", "remove_mean", "epsilon_factor", "remove_self_interaction", "norm_factor"}

#: Options of LES that change nothing here: of the readout of ``les`` itself, which nequip does not use; of readouts
#: that are refused where they are switched on; of how the long-range energy is printed per atom; and of the code for
#: the sum (``N_max`` must be large enough for all wave vectors up to 2π/dl, which is what is summed here).
_LES_NO_MATTER = {
    "use_atomwise", "n_layers", "n_hidden", "add_linear_nn", "output_scaling_factor",
    "kappa_scale", "alpha_scale", "kappa_alpha_positive", "alpha_irreps", "fixed_atomic_charges_scaling_factor",
    "distribute_lr_energy", "is_periodic", "N_max",
}  # fmt: skip

#: Extensions of LES, by the option that switches them on.
_EXTENSIONS = {
    "use_dipole": "latent dipoles",
    "use_quadrupole": "latent quadrupoles",
    "use_induced_charge": "induced charges (kappa)",
    "use_induced_dipole": "induced dipoles (alpha)",
    "use_anisotropic_polarizability": "anisotropic polarisabilities (alpha)",
    "use_fixed_atomic_charges": "fixed atomic charges",
    "use_atomic_alpha": "atomic polarisabilities (alpha)",
    "use_epsilon_r_scaling": "a scaling by the permittivity",
}

#: When the constant compiled into the LES code changed.
_NORM_FACTOR_CHANGED = datetime.date(2026, 4, 1)


def stored_configuration(checkpoint: dict) -> dict | None:
    """The configuration of the model in a checkpoint; None where there is none."""
    hyperparameters = checkpoint.get("hyper_parameters")
    model = hyperparameters.get("model") if isinstance(hyperparameters, dict) else None
    return model if isinstance(model, dict) and isinstance(model.get("_target_"), str) else None


def version_of(text: object) -> tuple[int, int] | None:
    """The first two numbers of a version."""
    found = re.match(r"(\d+)\.(\d+)", text) if isinstance(text, str) else None
    return None if found is None else (int(found[1]), int(found[2]))


@dataclass
class Settings:
    """A configuration, understood.

    Attributes
    ----------
    kind : "nequip" or "allegro".  full : whether ``options`` are those of nequip's full builders.
    options : of the builder.  les : ``les_args``, None for a short-range model.
    elements : atomic numbers in type order.
    version : of the nequip that wrote the checkpoint; None: unknown.
    """

    kind: str
    full: bool
    options: dict
    les: dict | None
    elements: list[int]
    version: tuple[int, int] | None


def understand(configuration: dict, information: dict) -> Settings:
    """Understand a configuration, or refuse it."""
    training = information.get("training_module")
    trained_by = str(training.get("_target_")) if isinstance(training, dict) else ""
    if "ScheduleFree" in trained_by:
        raise UnsupportedModelError(
            f"the model was trained by {trained_by}, whose weights depend on the state of its optimiser: not supported"
        )
    options = dict(_unmodified(configuration))
    target = options.pop("_target_")
    les = None
    if target in (_LES_TARGET, _OWN_LES_TARGET):
        base = options.pop("base_model", "nequip")
        if base not in ("nequip", "allegro"):
            raise UnsupportedModelError(f"the base_model {base!r} of the LES model is not supported")
        kind, full = str(base), False
        # The first configurations for nequip_les had these two as older ones do, see below.
        section = options.pop("LES", None)
        if section is not None:
            les = _section(section)
        elif options.pop("use_les", True):
            les = options.pop("les_args", None) or {}
        if target == _OWN_LES_TARGET:
            les = {"norm_factor": NORM_FACTOR_2026, **(les or {})}
    elif target in _TARGETS:
        kind, full = _TARGETS[target]
        if options.pop("use_les", False):
            les = options.pop("les_args", None) or {}
    else:
        known = ", ".join((*_TARGETS, _LES_TARGET, _OWN_LES_TARGET))
        raise UnsupportedModelError(f"the model {target!r} is not supported; supported are {known}")
    if les is not None and not isinstance(les, dict):
        raise UnsupportedModelError(f"les_args = {les!r} is not a table of options: not supported")
    # What is printed along with the energy.
    for option in ("les_args", "compute_bec", "bec_output_index"):
        options.pop(option, None)
    for option in _NO_MATTER:
        options.pop(option, None)

    for option, value in options.items():
        if option not in _OF_BOTH | _OPTIONS[kind, full] and value is not None and value is not False:
            raise UnsupportedModelError(f"the option {option} = {shown(value)} of {target} is not supported")
    options = {key: value for key, value in options.items() if key in _OF_BOTH | _OPTIONS[kind, full]}
    for option in ("r_max", "type_names"):
        if option not in options:
            raise CheckpointError(f"the configuration of the model has no {option}")
    _require_positive("r_max", options["r_max"])
    for option, value in options.items():
        if option in _PARTS and value is not None:
            options[option] = _part(option, value)
        if option.endswith("mlp_nonlinearity") and (isinstance(value, (list, dict)) or value not in _NONLINEARITIES):
            raise UnsupportedModelError(f"the option {option} = {shown(value)} is not supported")
    if options.get("convnet_nonlinearity_type", "gate") != "gate":
        raise UnsupportedModelError(
            f"the option convnet_nonlinearity_type = {shown(options['convnet_nonlinearity_type'])} is not supported"
        )
    elements = _elements(options["type_names"], information)
    versions = information.get("versions")
    version = version_of(versions.get("nequip")) if isinstance(versions, dict) else None
    return Settings(kind, full, options, les, elements, version)


def shown(value: Any) -> str:
    """A value of a configuration in a message."""
    if isinstance(value, dict) and isinstance(value.get("_target_"), str):
        return str(value["_target_"])
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


def _require_positive(what: str, value: Any) -> None:
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0.0):
        raise CheckpointError(f"{what} must be a positive number, the checkpoint has {shown(value)}")


def _unmodified(configuration: dict) -> dict:
    """The configuration of the model itself, where ``nequip.model.modify`` is wrapped around it."""
    while configuration.get("_target_") == _MODIFY_TARGET:
        for modifier in configuration.get("modifiers") or []:
            kind = modifier.get("modifier") if isinstance(modifier, dict) else modifier
            if not isinstance(kind, str) or kind not in _HARMLESS_MODIFIERS:
                raise UnsupportedModelError(f"the model has the modifier {shown(kind)}, which is not supported")
        configuration = configuration.get("model")
        if not isinstance(configuration, dict) or "_target_" not in configuration:
            raise CheckpointError("the configuration has modifiers of a model, but no model")
    return configuration


def _section(section: Any) -> dict:
    """``les_args`` of the section LES."""
    if not isinstance(section, dict):
        raise UnsupportedModelError(f"the option LES = {shown(section)} is not supported")
    for option, value in section.items():
        if option not in ("les_args", "compute_bec", "bec_output_index") and value:
            raise UnsupportedModelError(f"the option {option} = {shown(value)} of LES is not supported")
    return section.get("les_args") or {}


def _part(option: str, value: Any) -> dict:
    """A part of a model that is built by its name; its options are plain values."""
    target = value.get("_target_") if isinstance(value, dict) else value
    known = _PARTS[option]
    if not isinstance(value, dict) or not isinstance(target, str) or target not in known:
        raise UnsupportedModelError(f"the {option} {shown(target)} is not supported; supported are {', '.join(known)}")
    for key, entry in value.items():
        if key == "_target_":
            continue
        symbols = isinstance(entry, (list, tuple)) and all(entry_ in ase.data.atomic_numbers for entry_ in entry)
        if key not in known[target] or not (symbols or type(entry) in (bool, int, float) or key == "units"):
            raise UnsupportedModelError(f"the option {key} = {shown(entry)} of {target} is not supported")
    if "units" in value and value["units"] != "metal":
        raise UnsupportedModelError(
            f"the option units = {shown(value['units'])} of {target} is not supported, only metal"
        )
    return dict(value)


def _elements(type_names: Any, information: dict) -> list[int]:
    """Atomic numbers in type order, by the mapping of the training data where there is one."""
    if not isinstance(type_names, (list, tuple)) or not all(isinstance(entry, str) for entry in type_names):
        raise CheckpointError("the type_names of the model are not a list of names")
    symbols = list(type_names)
    for mapper in _find_targets(information.get("data"), "ChemicalSpeciesToAtomTypeMapper"):
        listed, mapping = mapper.get("chemical_symbols"), mapper.get("chemical_species_to_atom_type_map")
        if isinstance(listed, (list, tuple)) and len(listed) == len(type_names):
            symbols = list(listed)
        elif isinstance(mapping, dict):
            for kind in type_names:
                if sum(value == kind for value in mapping.values()) > 1:
                    raise UnsupportedModelError(f"the type {kind!r} stands for several elements: not supported")
            species = {value: key for key, value in mapping.items()}
            symbols = [species.get(kind, kind) for kind in type_names]
        break
    for symbol in symbols:
        if ase.data.atomic_numbers.get(symbol, 0) < 1:
            raise UnsupportedModelError(
                f"the type {symbol!r} is not the symbol of an element, and the checkpoint does not say of which it is"
            )
        if symbols.count(symbol) > 1:
            raise UnsupportedModelError(f"the model has several types of {symbol}: not supported")
    return [ase.data.atomic_numbers[symbol] for symbol in symbols]


def _find_targets(tree: Any, ending: str) -> list[dict]:
    """All tables in nested lists and tables whose ``_target_`` ends so."""
    if isinstance(tree, dict):
        here = [tree] if str(tree.get("_target_", "")).endswith(ending) else []
        return here + [found for value in tree.values() for found in _find_targets(value, ending)]
    if isinstance(tree, (list, tuple)):
        return [found for value in tree for found in _find_targets(value, ending)]
    return []


def long_range_parameters(
    les: dict, norm_factor: float | None, information: dict, notes: list[str]
) -> LongRangeParameters:
    """Parameters of the long-range energy from ``les_args``; says what it decided in ``notes``."""
    for option, value in les.items():
        if option in _EXTENSIONS and value:
            raise UnsupportedModelError(
                f"the LES option {option} = {shown(value)} ({_EXTENSIONS[option]}) is not supported"
            )
        if option not in _LES_PARAMETERS | _LES_NO_MATTER | set(_EXTENSIONS) and value:
            raise UnsupportedModelError(f"the LES option {option} = {shown(value)} is not supported")
    stored = {option: value for option, value in les.items() if option in _LES_PARAMETERS and value is not None}
    for option in ("sigma", "dl", "epsilon_factor", "norm_factor"):
        if option in stored:
            _require_positive(f"the LES option {option}", stored[option])
    if les.get("is_periodic") is False:
        notes.append("trained as isolated systems only (is_periodic: false); periodic ones get the periodic sum here")
    in_checkpoint = stored.pop("norm_factor", None)
    if norm_factor is not None:
        from_checkpoint = "none" if in_checkpoint is None else f"{in_checkpoint:g}"
        notes.append(f"norm_factor set to {norm_factor:g} by the user, {from_checkpoint} in the checkpoint")
    elif in_checkpoint is None:
        norm_factor = _norm_factor_of_its_age(information, notes)
    return LongRangeParameters(
        sigma=float(stored.get("sigma", 1.0)),
        dl=float(stored.get("dl", 2.0)),
        norm_factor=float(in_checkpoint if norm_factor is None else norm_factor),
        remove_self_interaction=bool(stored.get("remove_self_interaction", True)),
        remove_mean=bool(stored.get("remove_mean", True)),
        epsilon_factor=float(stored.get("epsilon_factor", 1.0)),
    )


def _norm_factor_of_its_age(information: dict, notes: list[str]) -> float:
    """The constant that was compiled into the LES code of the day, which nequip names the output folder after."""
    days = []
    for text in re.findall(r"\b(20\d\d-[01]\d-[0-3]\d)\b", str(information.get("trainer"))):
        with contextlib.suppress(ValueError):
            days.append(datetime.date.fromisoformat(text))
    if days and min(days) >= _NORM_FACTOR_CHANGED:
        notes.append(
            f"the checkpoint stores no norm_factor: taken as {NORM_FACTOR_2026:g}, as in LES code since April 2026, "
            f"for it was trained on {min(days)}. If that was with older LES code, use --norm-factor "
            f"{NORM_FACTOR_BEFORE_2026:g}"
        )
        return NORM_FACTOR_2026
    reason = f"it was trained on {min(days)}" if days else "it does not say when it was trained"
    advice = (
        "" if days else f". If that was with LES code of April 2026 or later, use --norm-factor {NORM_FACTOR_2026:g}"
    )
    notes.append(
        f"the checkpoint stores no norm_factor: taken as {NORM_FACTOR_BEFORE_2026:g}, as in LES code before April "
        f"2026, for {reason}{advice}"
    )
    return NORM_FACTOR_BEFORE_2026


# ---- options of nequip's builders


def builder_options(settings: Settings, weights: dict[str, Tensor]) -> list[dict]:
    """Options of nequip's full builders: several where the version that wrote the checkpoint is not known."""
    options = dict(settings.options)
    count = len(settings.elements)
    for which in ("scales", "shifts"):
        # The values are among the weights; here only whether there are none, one, or one for each type.
        stored = weights.get(f"per_type_energy_scale_shift.{which}")
        per_type = dict.fromkeys(options["type_names"], 1.0)
        size = 0 if stored is None else stored.numel()
        options[f"per_type_energy_{which}"] = None if size == 0 else 1.0 if size == 1 and count > 1 else per_type
    potential = options.get("pair_potential")
    if potential is not None:
        # Until 0.16 the cutoff of the pair potential was that of the network.
        embedding = options.get("radial_chemical_embed") or options
        exponent = embedding.get("polynomial_cutoff_p", 6)
        if settings.version is None and exponent != potential.get("polynomial_cutoff_p", 6):
            raise UnsupportedModelError(
                "the checkpoint does not say which nequip wrote it (hyper_parameters.info_dict.versions), and pair "
                "potentials had another cutoff before 0.17"
            )
        if settings.version is not None and settings.version < (0, 17):
            potential = {**potential, "polynomial_cutoff_p": exponent}
        options["pair_potential"] = potential
    if settings.kind == "nequip" and options.get("avg_num_neighbors") is None:
        options["avg_num_neighbors"] = 1.0
    if settings.full:
        return [options]
    if settings.kind == "allegro":
        return [_irreps_of_allegro(options)]
    new = [settings.version >= (0, 16)] if settings.version is not None else [False, True]
    if settings.version is None and any(".conv.tp_scatter." not in key and ".conv.tp." in key for key in weights):
        new = [False]
    return [_irreps(options, weights, convention) for convention in new]


def _irreps(options: dict, weights: dict[str, Tensor], since_0_16: bool) -> dict:
    """Options of FullNequIPGNNModel from those of NequIPGNNModel.

    Before 0.16, "parity: false" made all features and harmonics even, and with parity the features were ordered by
    parity first; since 0.16, it keeps those of natural parity only, and features are ordered by degree first. Depth
    and width of the radial networks had other defaults before 0.17: they are those of the weights.
    """
    options = dict(options)
    layers, l_max = options.pop("num_layers", 4), options.pop("l_max", 1)
    parity, features = options.pop("parity", True), options.pop("num_features", 32)
    if type(layers) is not int or type(l_max) is not int or not (0 < layers < 100 and 0 <= l_max < 12):
        raise CheckpointError(f"num_layers = {shown(layers)} or l_max = {shown(l_max)} is no proper number")
    multiplicities = list(features) if isinstance(features, (list, tuple)) else [features] * (l_max + 1)
    if len(multiplicities) != l_max + 1 or not all(type(n) is int and n > 0 for n in multiplicities):
        raise CheckpointError("num_features does not fit l_max")
    degrees = range(l_max + 1)
    if since_0_16:
        natural = {l: ((1,) if l % 2 == 0 else (-1,)) for l in degrees}
        kinds = [(l, p) for l in degrees for p in ((1, -1) if parity else natural[l])]
    else:
        kinds = [(l, p) for p in ((1, -1) if parity else (1,)) for l in degrees]
    odd = -1 if parity or since_0_16 else 1
    letter = {1: "e", -1: "o"}
    hidden = " + ".join(f"{multiplicities[l]}x{l}{letter[p]}" for l, p in kinds)
    depth, width = _size_of_radial_network(weights)
    options["irreps_edge_sh"] = " + ".join(f"1x{l}{letter[odd**l]}" for l in degrees)
    options["feature_irreps_hidden"] = [hidden] * (layers - 1) + [f"{multiplicities[0]}x0e"]
    options["radial_mlp_depth"] = [options.get("radial_mlp_depth") or depth] * layers
    options["radial_mlp_width"] = [options.get("radial_mlp_width") or width] * layers
    if options.get("type_embed_num_features") is None:
        options["type_embed_num_features"] = multiplicities[0]
    return options


def _size_of_radial_network(weights: dict[str, Tensor]) -> tuple[int, int]:
    """Number and width of the hidden layers."""
    pattern = r"layer0_convnet\.conv\.edge_mlp\.mlp\.(?:weights\.)?\d+(?:\.weight)?"
    shapes = [tuple(value.shape) for key, value in weights.items() if re.fullmatch(pattern, key)]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        raise CheckpointError("the checkpoint has no weights of a radial network")
    return len(shapes) - 1, shapes[0][1]


def _irreps_of_allegro(options: dict) -> dict:
    """Options of FullAllegroModel from those of AllegroModel."""
    options = dict(options)
    l_max, parity = options.pop("l_max", None), options.pop("parity", True)
    if type(l_max) is not int or not 0 <= l_max < 12:
        raise CheckpointError(f"l_max = {shown(l_max)} is no proper number")
    natural = [f"1x{l}{'e' if l % 2 == 0 else 'o'}" for l in range(l_max + 1)]
    options["irreps_edge_sh"] = " + ".join(natural)
    both = [f"1x{l}{letter}" for l in range(l_max + 1) for letter in "eo"]
    options["tensor_track_allowed_irreps"] = " + ".join(both if parity else natural)
    return options
