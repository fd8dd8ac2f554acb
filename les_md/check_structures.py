"""Small structures on which an exported file is compared with the model it came from."""

from __future__ import annotations

import ase
import ase.neighborlist
import numpy as np
import torch
from ase.data import atomic_numbers, covalent_radii

from les_md.electrostatics.ewald import wave_vector_multiplicity

_WATER = np.array([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]])
_SEED = 20260401
#: Somewhat more than the strains of the finite differences in ``exporting``.
_STRAIN = 1.5e-4


def _random_rotation(generator: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(generator.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def water_box() -> ase.Atoms:
    """Eight water molecules on a jittered grid at the density of the liquid, in a triclinic cell."""
    generator = np.random.default_rng(_SEED)
    cell = np.array([[6.27, 0.0, 0.0], [0.41, 6.17, 0.0], [-0.33, 0.27, 6.31]])
    atoms = ase.Atoms(cell=cell, pbc=True)
    for site in np.ndindex(2, 2, 2):
        centre = (np.array(site) + 0.25) / 2.0 @ cell + generator.uniform(-0.2, 0.2, 3)
        atoms += ase.Atoms("OHH", _WATER @ _random_rotation(generator) + centre)
    return atoms


def packed(elements: list[str], inner_cutoff: float = 0.0) -> ase.Atoms:
    """Atoms of all elements in turn on a jittered simple cubic grid, somewhat wider than bonds.

    Parameters: ``elements`` in type order; neighbours are closer than ``inner_cutoff`` (Å) unless it is 0.
    """
    generator = np.random.default_rng(_SEED)
    size = 3
    while size**3 < 2 * len(elements):
        size += 1
    spacing = 3.0 * max(float(np.mean([covalent_radii[atomic_numbers[symbol]] for symbol in elements])), 0.6)
    if inner_cutoff > 0.0:
        spacing = min(spacing, 0.85 * inner_cutoff)
    cell = np.array([[1.03, 0.0, 0.0], [0.07, 0.99, 0.0], [-0.05, 0.04, 1.01]]) * spacing * size
    sites = np.array(list(np.ndindex(size, size, size)))
    symbols = [elements[index % len(elements)] for index in range(len(sites))]
    positions = (sites + 0.5) / size @ cell + generator.uniform(-0.08, 0.08, (len(sites), 3)) * spacing
    return ase.Atoms(symbols, positions, cell=cell, pbc=True)


def check_structures(
    elements: list[str], dl: float | None, cutoff: float, inner_cutoff: float = 0.0
) -> dict[str, ase.Atoms]:
    """Named structures for the self-check of a model: periodic and isolated, holding every element.

    ``dl`` (Å) of the model's long-range sum, None without one; ``cutoff`` (Å); ``inner_cutoff`` as of ``packed``. The
    periodic cells are scaled slightly, where needed, so that within the strains of a finite difference no wave vector
    enters or leaves the truncated sum, and no pair a cutoff: there some networks have a kink.
    """
    structures = {"packed crystal": packed(elements, inner_cutoff)}
    if {"H", "O"} <= set(elements):
        structures["water"] = water_box()
    for atoms in structures.values():
        factor = _steady_factor(atoms, dl, [cutoff, inner_cutoff])
        atoms.set_cell(atoms.cell.array * factor, scale_atoms=True)
    cluster = structures["packed crystal"][: max(12, len(elements))].copy()
    cluster.set_pbc(False)
    cluster.set_cell(None)
    structures["cluster"] = cluster
    return structures


def _steady_factor(atoms: ase.Atoms, dl: float | None, cutoffs: list[float], strain: float = _STRAIN) -> float:
    """Lowest factor of the cell from 1 to 1.1 with no pair at a cutoff; with many pairs, that with the fewest."""
    factors = 1.0 + 5e-4 * np.arange(200)
    crossing = np.zeros(len(factors))
    for cutoff in cutoffs:
        distances = ase.neighborlist.neighbor_list("d", atoms, cutoff * (1.0 + 2.0 * strain))
        for i, factor in enumerate(factors):
            crossing[i] += (np.abs(distances * factor - cutoff) < strain * cutoff).sum()
    for i in np.argsort(crossing, kind="stable"):
        if dl is None or _wave_vectors_stable(atoms.cell.array * factors[i], dl):
            return float(factors[i])
    raise RuntimeError("no cell of the check structures has a steady set of wave vectors")


def _wave_vectors_stable(cell: np.ndarray, dl: float, strain: float = _STRAIN) -> bool:
    counts = set()
    for factor in (1.0 - strain, 1.0, 1.0 + strain):
        multiplicity = wave_vector_multiplicity(torch.tensor(cell * factor), dl)
        counts.add(float(multiplicity.sum()))
    for axis, other in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        for sign in (-1.0, 1.0):
            deformation = np.eye(3)
            deformation[axis, other] += 0.5 * sign * strain
            deformation[other, axis] += 0.5 * sign * strain
            multiplicity = wave_vector_multiplicity(torch.tensor(cell @ deformation), dl)
            counts.add(float(multiplicity.sum()))
    return len(counts) == 1
