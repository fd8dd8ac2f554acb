"""CACE-LES in ASE as its published formulas stand, in plain PyTorch: what ``compare_upstream.py`` compares with.

The package of CACE's authors, ``cace``, cannot be installed from PyPI (the one of that name there is another), so the
benchmarks cannot ask it. ``PlainCACE`` is its calculator's work with les_md's CACE network, evaluated operation by
operation: ASE's neighbour list at every step, the network, the long-range energy by les_md's differentiable direct sum
(cheaper than the textbook's), and forces by automatic differentiation of the energy. It has none of the bookkeeping of
the authors' modules, so it is no slower than their program need be.
"""

import ase
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list

from les_md.architectures import LoadOptions, find_architecture
from les_md.checkpoint import read_checkpoint
from les_md.electrostatics import LatentEwald
from les_md.models import resolve_checkpoint


class PlainCACE(Calculator):
    """Energy (eV) and forces (eV/Å) of a periodic system; ``checkpoint`` or bundled model, network in float32."""

    implemented_properties = ("energy", "forces")

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        contents = read_checkpoint(resolve_checkpoint(checkpoint))
        self.trained = find_architecture(contents).load(contents, options=LoadOptions(torch.float32))
        self.network = self.trained.network.eval()
        self.sum = LatentEwald(self.trained.long_range)

    def calculate(self, atoms: ase.Atoms, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        centre, neighbour, shift = (torch.from_numpy(a) for a in neighbor_list("ijS", atoms, self.trained.cutoff))
        cell = torch.tensor(atoms.cell.array)
        positions = torch.tensor(atoms.positions, requires_grad=True)
        types = torch.tensor([self.trained.atomic_numbers.index(z) for z in atoms.numbers])
        vectors = positions[neighbour] - positions[centre] + shift.to(torch.float64) @ cell
        energy, charge = self.network(vectors, torch.stack([centre, neighbour]), types)
        references = torch.as_tensor(self.trained.reference_energies, dtype=torch.float64)[types].sum()
        total = energy.double().sum() + references + self.sum.energy(positions, charge.double(), cell)
        (gradient,) = torch.autograd.grad(total, positions)
        self.results = {"energy": float(total), "forces": -gradient.numpy()}
