"""Small ionic crystals with the energies, forces and stresses of a force field: point charges and a repulsion."""

from __future__ import annotations

from pathlib import Path

import ase
import ase.io
import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from les_md.electrostatics import LongRangeParameters
from les_md.electrostatics.latent_ewald import LatentEwald
from les_md.neighbors import NeighborList

CHARGES = {"Na": 0.7, "Cl": -0.7}
ATOMIC_ENERGIES = {"Na": -10.0, "Cl": -20.0}
#: eV and Å of A exp(−r/ρ), cut off smoothly.
REPULSION, DECAY, CUTOFF = 600.0, 0.35, 4.0


def energy_forces_stress(atoms: ase.Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """eV, eV/Å [N, 3], eV/Å³ [3, 3] of the force field, by differentiation over positions and strain."""
    index, vectors = NeighborList(CUTOFF, skin=0.0).compute(atoms.positions, atoms.cell.array, np.full(3, True))
    positions = torch.tensor(atoms.positions)
    offsets = torch.from_numpy(vectors) - (positions[index[1]] - positions[index[0]])
    positions.requires_grad_(True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    deformation = torch.eye(3, dtype=torch.float64) + 0.5 * (strain + strain.T)
    moved, cell = positions @ deformation, torch.tensor(atoms.cell.array) @ deformation
    distance = torch.linalg.norm(moved[index[1]] - moved[index[0]] + offsets @ deformation, dim=1)
    window = (1.0 - (distance / CUTOFF) ** 2) ** 3
    charges = torch.tensor([[CHARGES[symbol]] for symbol in atoms.symbols], dtype=torch.float64)
    energy = 0.5 * (REPULSION * torch.exp(-distance / DECAY) * window).sum()
    energy = energy + LatentEwald(LongRangeParameters()).energy(moved, charges, cell)
    gradient, derivative = torch.autograd.grad(energy, (positions, strain))
    atomic = sum(ATOMIC_ENERGIES[symbol] for symbol in atoms.symbols)
    return float(energy.detach()) + atomic, -gradient.numpy(), derivative.numpy() / atoms.get_volume()


def crystal(seed: int) -> ase.Atoms:
    """Eight or, at every third seed, six ions near the sites of rock salt, in a triclinic cell, labelled."""
    generator = np.random.default_rng(seed)
    cell = 5.4 * (np.eye(3) + generator.uniform(-0.04, 0.04, (3, 3)))
    sites = np.array(list(np.ndindex(2, 2, 2)))
    symbols = ["Na" if site.sum() % 2 == 0 else "Cl" for site in sites]
    positions = (0.5 * sites) @ cell + generator.uniform(-0.18, 0.18, (8, 3))
    atoms = ase.Atoms(symbols, positions, cell=cell, pbc=True)
    if seed % 3 == 0:
        del atoms[[0, 1]]
    if seed % 5 == 0:
        del atoms[[symbol == "Na" for symbol in atoms.symbols].index(True)]
    energy, forces, stress = energy_forces_stress(atoms)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=full_3x3_to_voigt_6_stress(stress))
    return atoms


def write_crystals(path: Path, count: int, first: int = 1) -> Path:
    """Write ``count`` crystals, with the trajectory each is said to come from under the key ``run``."""
    frames = [crystal(seed) for seed in range(first, first + count)]
    for i, atoms in enumerate(frames):
        atoms.info["run"] = f"run{i // 3}"
    ase.io.write(path, frames)
    return path
