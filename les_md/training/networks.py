"""What a training does differently for each architecture: the initial network, its checkpoint, its description."""

from __future__ import annotations

import torch
from torch import Tensor

from les_md.architectures import cace, chgnet
from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.architectures.chgnet_network import CHGNetConfiguration, CHGNetNetwork
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.training.dataset import Frame

NetworkConfiguration = CACEConfiguration | CHGNetConfiguration


def initial_network(configuration: NetworkConfiguration, frames: list[Frame], dtype: torch.dtype) -> torch.nn.Module:
    """A network with random weights; those of a CACE are scaled to the environments in ``frames``."""
    if isinstance(configuration, CHGNetConfiguration):
        network = CHGNetNetwork(configuration).to(dtype)
        for basis in (network.bond_expansion, network.threebody_bond_expansion):
            # Never trained, see chgnet_section.py, and exact in float64 too.
            basis.frequencies = torch.nn.Parameter(
                torch.pi * torch.arange(1, configuration.max_n + 1, dtype=dtype), False
            )
        return network
    network = CACENetwork(configuration).to(dtype)
    standardise_inputs(network, frames)
    return network


@torch.no_grad()
def standardise_inputs(network: CACENetwork, frames: list[Frame]) -> None:
    """Scale and shift the readouts' first layers so that they see features of zero mean and unit variance.

    The forms of the function stay the same; only its initial weights change. Charges and other latent variables start
    small but not at zero, which is a stationary point of the energy.
    """
    captured: list[tuple[Tensor, ...]] = []
    latent = network.latent_readout
    # The readout of latent variables sees the invariants, too, and the vectors and tensors.
    watched = network.energy_readout if latent is None else latent
    hook = watched.register_forward_pre_hook(lambda _module, inputs: captured.append(inputs))
    for frame in frames:
        edge_index, offsets = frame.neighbours(network.cutoff)
        vectors = frame.positions[edge_index[1]] - frame.positions[edge_index[0]] + offsets
        network(vectors, edge_index, frame.types)
    hook.remove()
    features, *others = (torch.cat(parts) for parts in zip(*captured, strict=True))
    deviation = features.std(0) + 1e-3 * features.std()
    mean = features.mean(0)
    readouts = [(network.energy_readout, 1.0), (network.charge_readout, 0.1)]
    if latent is not None:
        latent.standardise(*others)
        readouts += [(readout, 0.1) for readout in latent.perceptrons()]
    for readout, factor in readouts:
        for layer in (*readout.hidden, readout.output, readout.linear):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
        for layer in (readout.hidden[0], readout.linear):
            layer.weight.div_(deviation)
            layer.bias.sub_(layer.weight @ mean)
        readout.linear.weight.mul_(0.1)
        readout.linear.bias.mul_(0.1)


@torch.no_grad()
def shift_energies(network: torch.nn.Module, energy: Tensor) -> None:
    """Add ``energy`` [] eV to the energy of every atom."""
    output = network.final_layer.layers[-1] if isinstance(network, CHGNetNetwork) else network.energy_readout.linear
    output.bias += energy


def checkpoint(
    network: torch.nn.Module,
    configuration: NetworkConfiguration,
    reference_energies: Tensor,
    long_range: LongRangeParameters | None,
    training: dict,
) -> dict:
    """A native checkpoint of the network's architecture, see its ``native_checkpoint``."""
    architecture = chgnet if isinstance(configuration, CHGNetConfiguration) else cace
    return architecture.native_checkpoint(network, configuration, reference_energies, long_range, training)


def description(configuration: NetworkConfiguration, parameters: int) -> str:
    """Architecture and sizes in a line; ``parameters`` is their number."""
    c = configuration
    if isinstance(c, CHGNetConfiguration):
        return (
            f"CHGNet in MatGL's layout (native), cutoff {c.cutoff:g} Å, {c.num_blocks} blocks, three-body cutoff "
            f"{c.three_body_cutoff:g} Å, {c.atom_width} features of atoms, {parameters} trained parameters"
        )
    return (
        f"CACE (native), cutoff {c.cutoff:g} Å, {c.num_message_passing} message-passing layers, max_l {c.max_l}, "
        f"max_nu {c.max_nu}, {parameters} parameters; {'with' if c.repulsion else 'without'} ZBL core repulsion"
    )


def beyond_charges(network: NetworkConfiguration, symbols: list[str]) -> str:
    """Fixed charges and latent variables beyond charges, in words; ``symbols`` of the elements in type order."""
    if isinstance(network, CHGNetConfiguration):
        return ""
    words = []
    if network.fixed_charges is not None:
        fixed = ", ".join(f"{s} {charge:+g}" for s, charge in zip(symbols, network.fixed_charges, strict=True))
        words.append(f" on top of fixed ones ({fixed})")
    kinds = {
        "dipoles": network.dipoles,
        "quadrupoles": network.quadrupoles,
        "softness κ (induced charges)": network.kappas,
        "polarisability α (induced dipoles)": network.alphas,
    }
    present = [name for name, there in kinds.items() if there]
    return "".join(words) + (f", latent {', '.join(present)}" if present else "")
