"""Evaluation of a network by automatic differentiation over positions: the reference for natively written
architectures.

It shares the network with the exported file, but not the scripting, the precision, the split rule or the analytic
long-range derivatives.
"""

from __future__ import annotations

import copy

import ase
import numpy as np
import torch

from les_md.architectures.registry import OriginalResult
from les_md.electrostatics.latent_ewald import LatentEwald
from les_md.electrostatics.latent_layout import LatentLayout
from les_md.electrostatics.multipole_ewald import MultipoleEwald
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.neighbors import NeighborList


class DirectEvaluation:
    """Energy, forces and charges of a network in float64, differentiating the total energy over positions.

    Parameters: ``network`` as in ``TrainedModel``; ``atomic_numbers`` in type order; ``reference_energies`` [types] eV;
    ``long_range`` parameters or None; ``latent`` layout of what the network returns, None for charges alone.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        atomic_numbers: list[int],
        cutoff: float,
        reference_energies: torch.Tensor,
        long_range: LongRangeParameters | None,
        latent: LatentLayout | None = None,
    ) -> None:
        self.network = copy.deepcopy(network).double().eval()
        self.types = {z: i for i, z in enumerate(atomic_numbers)}
        self.cutoff = cutoff
        self.reference_energies = reference_energies
        self.long_range = None if long_range is None else LatentEwald(long_range)
        self.latent = latent
        if long_range is not None and latent is not None and (latent.has_multipoles or latent.responds):
            self.long_range = MultipoleEwald(long_range, latent)

    def __call__(self, atoms: ase.Atoms) -> OriginalResult:
        positions = torch.tensor(atoms.get_positions(), requires_grad=True)
        cell = torch.tensor(atoms.cell.array)
        types = torch.tensor([self.types[int(z)] for z in atoms.numbers])
        index, vectors = NeighborList(self.cutoff, skin=0.0).compute(atoms.get_positions(), atoms.cell.array, atoms.pbc)
        edge_index = torch.from_numpy(index)
        displacement = torch.from_numpy(vectors - (atoms.get_positions()[index[1]] - atoms.get_positions()[index[0]]))
        edge_vectors = positions[edge_index[1]] - positions[edge_index[0]] + displacement
        energies, charges = self.network(edge_vectors, edge_index, types)
        energy = energies.sum() + self.reference_energies[types].sum()
        long_range_energy = 0.0
        if self.long_range is not None:
            long_range_cell = cell if atoms.pbc.any() else torch.zeros_like(cell)
            electrostatic = self.long_range.energy(positions, charges, long_range_cell)
            long_range_energy = float(electrostatic.detach())
            energy = energy + electrostatic
        forces = np.zeros((len(atoms), 3))
        if energy.requires_grad:
            forces = -torch.autograd.grad(energy, positions)[0].numpy()
        charges = charges.detach().numpy()
        if self.latent is not None:
            charges = charges[:, : self.latent.num_charges]
        return OriginalResult(float(energy.detach()), long_range_energy, forces, charges)
