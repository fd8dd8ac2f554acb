"""Labelled structures from extended XYZ, checked before anything is trained on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from les_md.neighbors import NeighborList


@dataclass(frozen=True, eq=False)
class Frame:
    """One labelled structure, float64.

    Attributes
    ----------
    types : [N] int64, index into the model's elements.
    positions : [N, 3], Å.
    cell : [3, 3], Å, rows are lattice vectors; zeros for an isolated system.
    energy : [], eV.
    forces : [N, 3], eV/Å.
    """

    types: Tensor
    positions: Tensor
    cell: Tensor
    energy: Tensor
    forces: Tensor
    # Not an argument, so that a changed copy (dataclasses.replace) starts without neighbours.
    _neighbours: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def neighbours(self, cutoff: float) -> tuple[Tensor, Tensor]:
        """Full neighbour list: edge_index [2, E] (centre, neighbour) and lattice offsets [E, 3] Å.

        The vector of an edge is r_neighbour − r_centre + offset. Kept with the frame, which is used at every epoch.
        """
        if cutoff in self._neighbours:
            return self._neighbours[cutoff]
        periodic = np.full(3, bool((self.cell != 0.0).any()))
        positions = self.positions.numpy()
        index, vectors = NeighborList(cutoff, skin=0.0).compute(positions, self.cell.numpy(), periodic)
        offsets = vectors - (positions[index[1]] - positions[index[0]])
        self._neighbours[cutoff] = torch.from_numpy(index), torch.from_numpy(offsets)
        return self._neighbours[cutoff]


def read_frames(path: str | Path, atomic_numbers: tuple[int, ...]) -> list[Frame]:
    """All frames of an extended XYZ file (or any format of ASE) that carries energies in eV and forces in eV/Å.

    Parameters: ``atomic_numbers``, the elements of the model in type order.

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : a frame lacks a label, holds a NaN or an infinity, an element that the model does not know, or
        is periodic along some directions only. The message names file and frame.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    structures = ase.io.read(path, ":")
    if not structures:
        raise ValueError(f"{path} holds no frames")
    return [checked_frame(atoms, f"{path}, frame {i}", atomic_numbers) for i, atoms in enumerate(structures)]


def checked_frame(atoms: ase.Atoms, where: str, atomic_numbers: tuple[int, ...]) -> Frame:
    """A labelled structure as a frame; ``where`` names it in the errors, which are those of ``read_frames``."""
    unknown = sorted(set(atoms.numbers.tolist()) - set(atomic_numbers))
    if unknown:
        names = ", ".join(chemical_symbols[z] for z in unknown)
        known = ", ".join(chemical_symbols[z] for z in atomic_numbers)
        raise ValueError(f"{where}: element {names} is not among the model's elements ({known})")
    labels = atoms.calc.results if atoms.calc is not None else {}
    for name in ("energy", "forces"):
        if name not in labels:
            raise ValueError(f"{where}: no label '{name}'; training needs energy (eV) and forces (eV/Å) in every frame")
        if not np.isfinite(labels[name]).all():
            raise ValueError(f"{where}: label '{name}' holds a value that is not a finite number")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise ValueError(f"{where}: positions or cell hold a value that is not a finite number")
    if atoms.pbc.any() and not atoms.pbc.all():
        raise ValueError(f"{where}: periodic along some directions only; give a structure periodic along all or none")
    type_of = {z: i for i, z in enumerate(atomic_numbers)}
    cell = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
    return Frame(
        types=torch.tensor([type_of[z] for z in atoms.numbers.tolist()], dtype=torch.int64),
        positions=torch.tensor(atoms.positions, dtype=torch.float64),
        cell=torch.tensor(cell, dtype=torch.float64),
        energy=torch.tensor(float(labels["energy"]), dtype=torch.float64),
        forces=torch.tensor(np.asarray(labels["forces"]), dtype=torch.float64),
    )


def reference_energies(frames: list[Frame], num_types: int) -> Tensor:
    """Energy per element [num_types] in eV, the least-squares fit of smallest norm to the total energies.

    Where compositions do not vary independently (water only), only their sum per formula unit has a meaning.
    """
    counts = torch.stack([torch.bincount(f.types, minlength=num_types) for f in frames]).to(torch.float64)
    energies = torch.stack([f.energy for f in frames])
    return torch.linalg.pinv(counts, rtol=1e-10) @ energies
