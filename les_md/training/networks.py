"""What a training does differently for each architecture: the initial network, its checkpoint, its description."""

from __future__ import annotations

import torch
from torch import Tensor

from les_md.architectures import cace, chgnet
from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.architectures.chgnet_network import CHGNetConfiguration, CHGNetNetwork
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.training.dataset import Frame
from les_md.training.fit import standardise_inputs

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
