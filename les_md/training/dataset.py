"""Labelled structures from extended XYZ, checked before anything is trained on them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from les_md.neighbors import NeighborList
from les_md.training.labels import FrameError, LabelKeys


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
    stress : [3, 3], eV/Å³, positive under tension; None where it is not trained on or the system is isolated.
    """

    types: Tensor
    positions: Tensor
    cell: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor | None = None
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

    def to(self, device: torch.device | str) -> Frame:
        """The frame on another device, with the neighbour lists that it has; new ones are made on the CPU only."""
        labels = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        moved = Frame(**{name: None if label is None else label.to(device) for name, label in labels.items()})
        for cutoff, (index, offsets) in self._neighbours.items():
            moved._neighbours[cutoff] = index.to(device), offsets.to(device)
        return moved


def read_structures(path: str | Path) -> list[ase.Atoms]:
    """All structures of a file.

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : ASE cannot read it, or it holds none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    try:
        structures = ase.io.read(path, ":")
    except Exception as error:  # each format of ASE has errors of its own
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not structures:
        raise ValueError(f"{path} holds no frames")
    return structures


def read_frames(path: str | Path, atomic_numbers: tuple[int, ...]) -> list[Frame]:
    """All frames of an extended XYZ file (or any format of ASE) that carries energies in eV and forces in eV/Å.

    Parameters: ``atomic_numbers``, the elements of the model in type order.

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : a frame lacks a label, holds a NaN or an infinity, an element that the model does not know, or
        is periodic along some directions only. The message names file and frame.
    """
    structures = read_structures(path)
    return [checked_frame(atoms, f"{path}, frame {i}", atomic_numbers) for i, atoms in enumerate(structures)]


def checked_frame(
    atoms: ase.Atoms, where: str, atomic_numbers: tuple[int, ...], labels: LabelKeys | None = None
) -> Frame:
    """A labelled structure as a frame; ``where`` names it in the errors (FrameError), those of ``read_frames``.

    Parameters: ``labels`` says where the labels are; None for energy and forces as ASE reads them.
    """
    labels = LabelKeys() if labels is None else labels
    unknown = sorted(set(atoms.numbers.tolist()) - set(atomic_numbers))
    if unknown:
        names = ", ".join(chemical_symbols[z] for z in unknown)
        known = ", ".join(chemical_symbols[z] for z in atomic_numbers)
        raise FrameError(f"{where}: element {names} is not among the model's elements ({known})")
    energy, forces = labels.find_energy(atoms, where), labels.find_forces(atoms, where)
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise FrameError(f"{where}: positions or cell hold a value that is not a finite number")
    if atoms.pbc.any() and not atoms.pbc.all():
        raise FrameError(f"{where}: periodic along some directions only; give a structure periodic along all or none")
    if atoms.pbc.any() and atoms.cell.rank < 3:
        raise FrameError(f"{where}: periodic, but its cell has no volume")
    stress = labels.find_stress(atoms, where) if labels.stress is not None and atoms.pbc.any() else None
    type_of = {z: i for i, z in enumerate(atomic_numbers)}
    cell = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
    return Frame(
        types=torch.tensor([type_of[z] for z in atoms.numbers.tolist()], dtype=torch.int64),
        positions=torch.tensor(atoms.positions, dtype=torch.float64),
        cell=torch.tensor(cell, dtype=torch.float64),
        energy=torch.tensor(energy, dtype=torch.float64),
        forces=torch.tensor(forces, dtype=torch.float64),
        stress=None if stress is None else torch.tensor(stress, dtype=torch.float64),
    )


def reference_energies(frames: list[Frame], num_types: int) -> Tensor:
    """Energy per element [num_types] in eV, the least-squares fit of smallest norm to the total energies.

    Where compositions do not vary independently (water only), only their sum per formula unit has a meaning.
    """
    counts = torch.stack([torch.bincount(f.types, minlength=num_types) for f in frames]).to(torch.float64)
    energies = torch.stack([f.energy for f in frames])
    return torch.linalg.pinv(counts, rtol=1e-10) @ energies
