"""Molecules must push each other away when they are squeezed together closer than the data show.

The data of clusters hold few contacts closer than a strong hydrogen bond; a liquid at 300 K finds them. A guard is a
training structure with one molecule moved as a whole onto a neighbour. It carries no label: the loss only asks that
the net force on the molecule pushes it away with at least ``least_force``, well below the repulsion of real molecules.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from les_md.training.bonds import bond_matrix, molecules
from les_md.training.dataset import Frame


@dataclass(frozen=True)
class ContactGuard:
    """How molecules are squeezed.

    Attributes
    ----------
    atomic_numbers : elements of the model in type order.
    hydrogens, hydrogen_heavy, heavy : ranges of the distances given to contacts of two hydrogens, of a hydrogen and
        a heavier atom, and of two heavier atoms, Å.
    reach : contacts are chosen among pairs of different molecules closer than this, Å.
    clearance : a squeezed contact is left out if another pair of the two sides is less than this longer, Å.
    least_force : on the moved molecule, along the contact, eV/Å.
    every : training steps from one guard to the next.
    weight : of mean(shortfall²) in the loss.
    """

    atomic_numbers: tuple[int, ...]
    hydrogens: tuple[float, float] = (0.9, 1.4)
    hydrogen_heavy: tuple[float, float] = (0.95, 1.35)
    heavy: tuple[float, float] = (1.6, 2.2)
    reach: float = 3.0
    clearance: float = 0.1
    least_force: float = 0.8
    every: int = 2
    weight: float = 0.1

    def to_dict(self) -> dict:
        return asdict(self)

    def disturb(self, frame: Frame, generator: torch.Generator) -> SqueezedFrame | None:
        """``frame`` with one contact squeezed; None where it has no suitable contact."""
        return squeeze_contact(frame, self, generator)


@dataclass(frozen=True)
class SqueezedFrame:
    """A frame with one molecule moved: its atoms ``moved`` [M] int64, and ``direction`` [3] away from the contact."""

    frame: Frame
    moved: Tensor
    direction: Tensor

    def shortfall(self, forces: Tensor, least_force: float) -> Tensor:
        """(missing repulsion)², (eV/Å)², from forces [N, 3]."""
        return torch.relu(least_force - forces[self.moved].sum(0) @ self.direction).square()


def squeeze_contact(frame: Frame, guard: ContactGuard, generator: torch.Generator) -> SqueezedFrame | None:
    """Move one molecule of an isolated cluster along one of its contacts, chosen at random.

    Returns None if the frame is one molecule, has no contact within reach, or the move brings other atoms together.
    """
    if bool((frame.cell != 0.0).any()):
        return None
    numbers = torch.tensor(guard.atomic_numbers)[frame.types]
    distance = torch.cdist(frame.positions, frame.positions)
    molecule = molecules(bond_matrix(frame, numbers))
    foreign = molecule[:, None] != molecule[None, :]
    contacts = (foreign & (distance < guard.reach)).nonzero()
    if contacts.size(0) == 0:
        return None
    first, second = contacts[int(torch.randint(contacts.size(0), (1,), generator=generator))].tolist()
    hydrogens = int(numbers[first] == 1) + int(numbers[second] == 1)
    low, high = (guard.heavy, guard.hydrogen_heavy, guard.hydrogens)[hydrogens]
    length = low + (high - low) * float(torch.rand(1, generator=generator, dtype=torch.float64))
    vector = frame.positions[second] - frame.positions[first]
    direction = vector / torch.linalg.norm(vector)
    moved = (molecule == molecule[second]).nonzero()[:, 0]
    positions = frame.positions.clone()
    positions[moved] += length * direction - vector
    others = torch.cdist(positions[moved], positions[molecule != molecule[second]]).flatten()
    # The contact itself is one of them; of hydrogen bonds, the donor's heavy atom comes with it.
    shortest = torch.sort(others).values[:2]
    if float(shortest[0]) < length - 1e-6 or (shortest.size(0) > 1 and float(shortest[1]) < length + guard.clearance):
        return None
    return SqueezedFrame(replace(frame, positions=positions), moved, direction)
