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
from les_md.electrostatics.latent_inputs import les_inputs
from les_md.electrostatics.latent_layout import LatentLayout
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.les import Les
from les_md.neighbors import NeighborList


class DirectEvaluation:
    """Energy, forces and charges of a network in float64, differentiating the total energy over positions.

    Parameters: ``network`` as in ``TrainedModel``; ``atomic_numbers`` in type order; ``reference_energies`` [types] eV;
    ``long_range`` parameters or None; ``latent``, the columns that the network returns, None for charges alone. With
    other latent variables the long-range energy is that of ``les_md.Les``, which exported files share no code with.
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
        self.les: Les | None = None
        if long_range is not None and latent is not None and latent.num_columns > latent.num_charges:
            self.les = Les(**long_range.to_dict())

    def __call__(self, atoms: ase.Atoms) -> OriginalResult:
        positions = torch.tensor(atoms.get_positions(), requires_grad=True)
        cell = torch.tensor(atoms.cell.array)
        types = torch.tensor([self.types[int(z)] for z in atoms.numbers])
        index, vectors = NeighborList(self.cutoff, skin=0.0).compute(atoms.get_positions(), atoms.cell.array, atoms.pbc)
        edge_index = torch.from_numpy(index)
        displacement = torch.from_numpy(vectors - (atoms.get_positions()[index[1]] - atoms.get_positions()[index[0]]))
        edge_vectors = positions[edge_index[1]] - positions[edge_index[0]] + displacement
        energies, latent = self.network(edge_vectors, edge_index, types)
        charges = latent if self.latent is None else latent[:, : self.latent.num_charges]
        energy = energies.sum() + self.reference_energies[types].sum()
        long_range_energy = 0.0
        if self.long_range is not None:
            long_range_cell = cell if atoms.pbc.any() else torch.zeros_like(cell)
            if self.les is None:
                electrostatic = self.long_range.energy(positions, charges, long_range_cell)
            else:
                electrostatic = self.les(positions, long_range_cell, **les_inputs(latent, self.latent))["E_lr"][0]
            long_range_energy = float(electrostatic.detach())
            energy = energy + electrostatic
        forces = np.zeros((len(atoms), 3))
        if energy.requires_grad:
            forces = -torch.autograd.grad(energy, positions)[0].numpy()
        return OriginalResult(float(energy.detach()), long_range_energy, forces, charges.detach().numpy())
