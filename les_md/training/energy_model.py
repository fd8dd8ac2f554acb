"""Total energy of a structure and its derivatives, differentiable in the weights of a network.

Nothing but energies, forces and stresses is trained on: charges are what makes the long-range energy fit. Forces are
derivatives of the total energy over positions, so that a step differentiates twice through network and electrostatics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from les_md.electrostatics.latent_inputs import les_inputs
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.les import Les
from les_md.training.dataset import Frame


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
