"""Total energy of a structure and its derivatives, differentiable in the weights of a network.

Nothing but energies, forces and stresses is trained on: charges are what makes the long-range energy fit. Forces are
derivatives of the total energy over positions, so that a step differentiates twice through network and electrostatics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from les_md.architectures.cace_network import CACENetwork
from les_md.electrostatics.latent_inputs import les_inputs
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.les import Les
from les_md.training.bond_guard import BondGuard
from les_md.training.contact_guard import ContactGuard
from les_md.training.crowd_guard import CrowdGuard
from les_md.training.dataset import Frame

#: Each makes training structures without labels from labelled ones, and says what the loss asks of their forces.
Guard = BondGuard | ContactGuard | CrowdGuard


class Evaluation(NamedTuple):
    """Results for several frames, one entry for each frame.

    Attributes: ``energies`` [] eV and ``forces`` [N, 3] eV/Å, float64; ``charges`` [N, n_q] e, without what is induced;
    ``stresses`` [3, 3] eV/Å³, positive under tension, None where it was not asked for or the frame is isolated.
    """

    energies: list[Tensor]
    forces: list[Tensor]
    charges: list[Tensor]
    stresses: list[Tensor | None]


class EnergyModel(torch.nn.Module):
    """Total energy of a structure: network, reference energies and long-range energy.

    The network is that of any architecture (``registry.TrainedModel``) with its ``cutoff`` as an attribute, and its
    ``latent`` layout where it has latent variables beyond charges.
    """

    def __init__(
        self, network: torch.nn.Module, reference_energies: Tensor, long_range: LongRangeParameters | None
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("reference_energies", reference_energies)
        self.long_range = None if long_range is None else Les(**long_range.to_dict())

    def forward(self, frame: Frame, differentiable: bool) -> tuple[Tensor, Tensor]:
        """Energy [] eV and forces [N, 3] eV/Å, float64; ``differentiable`` in the weights, if asked for."""
        result = self.evaluate([frame], differentiable)
        return result.energies[0], result.forces[0]

    def evaluate(self, frames: Sequence[Frame], differentiable: bool, stress: bool = False) -> Evaluation:
        """Energies, forces, charges and, if asked for, stresses of several frames by one call of the network.

        For small molecules this is much faster than one call each.
        """
        sizes = [frame.types.size(0) for frame in frames]
        first_atoms = [sum(sizes[:i]) for i in range(len(sizes))]
        types = torch.cat([frame.types for frame in frames])
        positions = torch.cat([frame.positions for frame in frames]).requires_grad_(True)
        graphs = [frame.neighbours(self.network.cutoff) for frame in frames]
        edge_index = torch.cat([index + first for (index, _), first in zip(graphs, first_atoms, strict=True)], dim=1)
        offsets = [lattice_offsets for _, lattice_offsets in graphs]
        cells = [frame.cell for frame in frames]
        moved, variables = positions, [positions]
        if stress:
            # r → r(1+ε), h → h(1+ε), with the symmetric part of ε since the energy does not change with a rotation.
            strain = torch.zeros([len(frames), 3, 3], dtype=positions.dtype, device=positions.device)
            strain.requires_grad_(True)
            variables.append(strain)
            symmetric = 0.5 * (strain + strain.transpose(1, 2))
            moved = torch.cat([r + r @ e for r, e in zip(torch.split(positions, sizes), symmetric, strict=True)])
            offsets = [offset + offset @ e for offset, e in zip(offsets, symmetric, strict=True)]
            cells = [cell + cell @ e for cell, e in zip(cells, symmetric, strict=True)]
        vectors = moved[edge_index[1]] - moved[edge_index[0]] + torch.cat(offsets)
        atomic, latent = self.network(vectors, edge_index, types)
        layout = getattr(self.network, "latent", None)
        charges = latent if layout is None else latent[:, : layout.num_charges]
        energies = [e.sum() for e in torch.split(atomic.double() + self.reference_energies[types], sizes)]
        if self.long_range is not None:
            inputs = {"latent_charges": latent} if layout is None else les_inputs(latent, layout)
            result = self.long_range(
                moved,
                torch.stack(cells),
                **{name: values.double() for name, values in inputs.items()},
                batch=torch.repeat_interleave(torch.tensor(sizes)).to(moved.device),
            )
            energies = [short + long for short, long in zip(energies, result["E_lr"], strict=True)]
        gradient, *derivative = torch.autograd.grad(sum(energies), variables, create_graph=differentiable)
        stresses: list[Tensor | None] = [None] * len(frames)
        if stress:
            stresses = [
                d / torch.linalg.det(frame.cell).abs() if bool((frame.cell != 0.0).any()) else None
                for d, frame in zip(derivative[0], frames, strict=True)
            ]
        return Evaluation(energies, list(torch.split(-gradient, sizes)), list(torch.split(charges, sizes)), stresses)


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


def guard_shortfalls(
    model: EnergyModel, batch: Sequence[Frame], guards: Sequence[Guard], step: int, generator: torch.Generator
) -> Iterator[tuple[Guard, Tensor]]:
    """The guards whose turn it is in a step, each with its shortfall [] in (eV/Å)², differentiable in the weights."""
    for turn, current in enumerate(guards):
        # With every = 2 and three guards, each comes every sixth step.
        if step % (current.every * len(guards)) == turn * current.every:
            # A frame may have no contact to squeeze: the first one of the batch that has is taken.
            tried = (current.disturb(frame, generator) for frame in batch)
            disturbed = next((each for each in tried if each is not None), None)
            if disturbed is not None:
                _, forces = model(disturbed.frame, differentiable=True)
                yield current, disturbed.shortfall(forces, current.least_force)
