"""CACE and CACE-LES checkpoints: those of the ``cace`` package, and the native ones that les_md trains.

Published files are pickles of whole ``cace`` modules; they are read as inert stand-ins, never by importing that
package, and their weights are rearranged into ``CACENetwork``. The formulas and the file's attributes are those of
Cheng, npj Comput. Mater. 10, 157 (2024); what a published file may contain but the published models do not use is
refused by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from les_md.architectures.cace_evaluation import CACEEvaluation, can_evaluate
from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.architectures.cace_readout import Readout
from les_md.architectures.direct_evaluation import DirectEvaluation
from les_md.architectures.registry import LoadOptions, NoLatentChargesError, TrainedModel, UnsupportedModelError
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.stand_in import StandIn

name = "cace"

#: What marks a native checkpoint, and the newest layout that can be read. Layout 2 has latent variables beyond charges;
#: a checkpoint without any is written in layout 1, which older versions read.
NATIVE_MARK = "les_md.cace"
NATIVE_FORMAT_VERSION = 2

_ORIGINAL = "the network in float64, differentiated over positions and by finite strains"


def matches(checkpoint: object) -> bool:
    """Whether a checkpoint is a native one or a pickled ``cace`` potential."""
    if isinstance(checkpoint, dict):
        return checkpoint.get("architecture") == NATIVE_MARK
    return isinstance(checkpoint, StandIn) and checkpoint.class_path in (
        "cace.models.atomistic.NeuralNetworkPotential",
        "cace.models.combined.CombinePotential",
    )


def load(checkpoint: Any, *, options: LoadOptions) -> TrainedModel:
    """Make a network of a checkpoint.

    Raises
    ------
    NoLatentChargesError : the checkpoint has no latent charges and ``options.allow_short_range`` is False.
    UnsupportedModelError : the checkpoint uses a part of CACE that is not implemented here.
    """
    if options.head is not None:
        raise ValueError("a CACE model has one head: --head does not apply")
    if isinstance(checkpoint, dict):
        configuration, network, reference_energies, long_range, notes = _native(checkpoint)
    else:
        configuration, network, long_range, notes = _published(checkpoint)
        reference_energies = torch.zeros(len(configuration.atomic_numbers), dtype=torch.float64)
    if long_range is None and not options.allow_short_range:
        raise NoLatentChargesError()
    if options.norm_factor is not None:
        if long_range is None:
            raise ValueError("a short-range model has no long-range energy: --norm-factor does not apply")
        notes.append(
            f"norm_factor set to {options.norm_factor:g} by the user, {long_range.norm_factor:g} in the checkpoint"
        )
        long_range = LongRangeParameters(**{**long_range.to_dict(), "norm_factor": options.norm_factor})
    network = network.to(options.dtype).eval().requires_grad_(False)
    numbers = list(configuration.atomic_numbers)
    return TrainedModel(
        architecture=name,
        network=network,
        atomic_numbers=numbers,
        cutoff=configuration.cutoff,
        num_layers=1 + configuration.num_message_passing,
        reference_energies=reference_energies,
        long_range=long_range,
        num_charges=configuration.num_charges,
        notes=notes,
        original=DirectEvaluation(
            network, numbers, configuration.cutoff, reference_energies, long_range, configuration.latent
        ),
        original_description=_ORIGINAL,
        latent=configuration.latent,
        evaluation=CACEEvaluation if can_evaluate(network) else None,
    )


def native_checkpoint(
    network: CACENetwork,
    configuration: CACEConfiguration,
    reference_energies: Tensor,
    long_range: LongRangeParameters | None,
    training: dict,
) -> dict:
    """A native checkpoint for ``torch.save``: plain containers and tensors only.

    Parameters: ``reference_energies`` [types] eV; ``training`` plain metadata about how it was trained.
    """
    return {
        "architecture": NATIVE_MARK,
        "format_version": 1 if configuration.has_charges_alone else 2,
        "configuration": configuration.to_dict(),
        "state_dict": {key: value.detach().cpu().clone() for key, value in network.state_dict().items()},
        "reference_energies": reference_energies.to(torch.float64).cpu(),
        "long_range": None if long_range is None else long_range.to_dict(),
        "training": training,
    }


def _native(
    checkpoint: dict,
) -> tuple[CACEConfiguration, CACENetwork, Tensor, LongRangeParameters | None, list[str]]:
    version = checkpoint.get("format_version")
    if version not in (1, NATIVE_FORMAT_VERSION):
        raise UnsupportedModelError(
            f"this checkpoint has layout {version!r}, this les_md reads up to layout {NATIVE_FORMAT_VERSION}: "
            "update les_md"
        )
    configuration = CACEConfiguration(**checkpoint["configuration"])
    network = CACENetwork(configuration)
    if checkpoint["state_dict"]["neighbour_embedding"].dtype == torch.float64:
        network = network.double()  # trained in float64: loading into float32 would round the weights
    network.load_state_dict(checkpoint["state_dict"])
    stored = checkpoint["long_range"]
    long_range = None if stored is None else LongRangeParameters(**stored)
    return configuration, network, checkpoint["reference_energies"], long_range, []


def _published(model: StandIn) -> tuple[CACEConfiguration, CACENetwork, LongRangeParameters | None, list[str]]:
    if model.class_path == "cace.models.combined.CombinePotential":
        if len(model.models) != 1:
            raise UnsupportedModelError(f"a combination of {len(model.models)} CACE potentials is not supported")
        model = model.models[0]
    representation = model.representation
    outputs = list(model.output_modules)
    wrappers = [module for module in outputs if module.class_path.endswith("LesWrapper")]
    energies = [module for module in outputs if module.class_path == "cace.modules.atomwise.Atomwise"]
    known = ("LesWrapper", "cace.modules.atomwise.Atomwise", "FeatureAdd", "cace.modules.forces.Forces")
    for module in outputs:
        if not module.class_path.endswith(known):
            raise UnsupportedModelError(f"the output module {module.class_path} is not supported")
    if len(energies) != 1 or len(wrappers) > 1:
        raise UnsupportedModelError(
            f"{len(energies)} energy and {len(wrappers)} charge readouts; one of each is supported"
        )
    energy_readout = energies[0]
    _require_readout(energy_readout)
    _require_representation(representation)

    les = wrappers[0].les if wrappers else None
    long_range = None if les is None else _long_range(les)
    hidden = tuple(int(dense.linear.weight.shape[0]) for dense in list(energy_readout.outnet)[:-1])
    numbers = [int(z) for z in representation.zs]
    embedding = representation.node_embedding_sender.embedding_weights
    d = int(embedding.shape[1])
    layers = len(representation.message_passing_list)
    configuration = CACEConfiguration(
        atomic_numbers=tuple(numbers),
        cutoff=float(representation.cutoff),
        num_embedding=d,
        num_bessel=int(representation.n_radial_func),
        num_radial=int(representation.n_radial_basis),
        max_l=int(representation.max_l),
        max_nu=int(representation.max_nu),
        num_message_passing=layers,
        message_normalisation=float(representation.mp_norm_factor),
        cutoff_exponent=int(representation.cutoff_fn.p),
        hidden=hidden,
        num_charges=0 if les is None else int(les.atomwise.outnet[-1].linear.weight.shape[0]),
        charge_scale=0.1 if les is None else float(les.atomwise.output_scaling_factor),
    )
    network = CACENetwork(configuration)
    rows = [int(representation.node_onehot.index_map[z]) for z in numbers]
    with torch.no_grad():
        network.neighbour_embedding.copy_(embedding[rows])
        network.centre_embedding.copy_(representation.node_embedding_receiver.embedding_weights[rows])
        network.bessel_frequencies.copy_(representation.radial_basis.bessel_weights)
        # Stored in float32 and not recomputed: the models were trained with the rounded number.
        network.bessel_prefactor.copy_(representation.radial_basis.prefactor)
        for degree, mixing in enumerate(network.radial_mixing):
            weight = representation.radial_transform.weights[degree]  # [n, k, (a, b)]
            n, k = weight.shape[0], weight.shape[1]
            mixing.copy_(weight.reshape(n, k, d, d).permute(2, 0, 3, 1).reshape(d, n, d * k))
        features = network.symmetriser.num_features
        for message, stored in zip(network.messages, representation.message_passing_list, strict=True):
            dense = stored[2].hnet[0].linear
            message.linear.weight.copy_(_reorder(dense.weight, features, d, 1))
            message.linear.bias.copy_(dense.bias)
        _copy_readout(network.energy_readout, energy_readout, features, d, layers + 1)
        if les is not None:
            _copy_readout(network.charge_readout, les.atomwise, features, d, layers + 1)
    notes = ["the checkpoint holds no atomic reference energies: energies are relative to those of its training"]
    return configuration, network, long_range, notes


def _reorder(weight: Tensor, features: int, d: int, layers: int) -> Tensor:
    """Columns from the published order (k, q, a, b, layer) to (layer, q, a, b, k)."""
    outputs = weight.shape[0]
    return weight.reshape(outputs, -1, features, d, d, layers).permute(0, 5, 2, 3, 4, 1).reshape(outputs, -1)


def _copy_readout(readout: Readout, stored: StandIn, features: int, d: int, layers: int) -> None:
    linears = [*readout.hidden, readout.output]
    for index, (linear, dense) in enumerate(zip(linears, stored.outnet, strict=True)):
        weight = dense.linear.weight
        linear.weight.copy_(_reorder(weight, features, d, layers) if index == 0 else weight)
        linear.bias.copy_(dense.linear.bias)
    readout.linear.weight.copy_(_reorder(stored.linear_nn.linear.weight, features, d, layers))
    readout.linear.bias.copy_(stored.linear_nn.linear.bias)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise UnsupportedModelError(f"this CACE checkpoint uses {what}, which is not supported")


def _require_readout(readout: StandIn) -> None:
    _require(bool(readout.get("add_linear_nn", False)), "a readout without its linear part")
    _require(not readout.get("residual", False), "a residual readout")
    _require(not readout.get("use_batchnorm", False), "batch normalisation")
    _require(readout.get("post_process", None) is None, "a post-processed energy")
    _require(readout.get("aggregation_mode", "sum") == "sum", "an energy that is not the sum over atoms")


def _require_representation(representation: StandIn) -> None:
    _require(bool(representation.edge_coding.directed), "undirected edge coding")
    _require(
        representation.cutoff_fn.class_path.endswith("PolynomialCutoff"), "a cutoff function that is not polynomial"
    )
    _require(
        representation.radial_basis.class_path.endswith("BesselRBF"), "radial functions that are not Bessel functions"
    )
    _require(not representation.get("keep_node_features_A", False), "the A-basis as features")
    _require(not representation.get("forward_features", []), "forwarded features")
    for slots in representation.message_passing_list:
        _require(slots[0] is None, "node memory in message passing")
        _require(slots[1] is None, "the Ar message")
        message = slots[2]
        _require(message is not None and message.class_path.endswith("MessageBchi"), "another message than Bchi")
        # A pickle without the flag is older than the flag and means shared.
        _require(not message.get("shared_channels", True), "messages shared by channels")
        _require(not message.get("shared_l", True), "messages shared by degrees")
        _require(len(message.hnet) == 1, "a message network of several layers")


def _long_range(les: StandIn) -> LongRangeParameters:
    for flag in ("use_epsilon_r_scaling", "use_fixed_atomic_charges", "use_atomic_alpha"):
        _require(not les.get(flag, False), f"the LES option {flag}")
    # Old pickles lack the flag; what counts is whether the charge readout is there.
    _require(
        les.get("atomwise", None) is not None and les.atomwise.get("outnet", None) is not None, "no charge readout"
    )
    _require(bool(les.atomwise.get("add_linear_nn", False)), "a charge readout without its linear part")
    ewald, bec = les.ewald, les.get("bec", None)
    return LongRangeParameters(
        sigma=float(ewald.sigma),
        dl=float(ewald.dl),
        norm_factor=float(ewald.norm_factor),
        remove_self_interaction=bool(ewald.remove_self_interaction),
        remove_mean=True if bec is None else bool(bec.get("remove_mean", True)),
        epsilon_factor=1.0 if bec is None else float(bec.get("epsilon_factor", 1.0)),
    )
