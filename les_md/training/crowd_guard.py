"""Atoms must push molecules away when too many of them crowd around, and keep their own bonds.

The data hold hardly an oxygen that accepts more than three hydrogen bonds. A liquid at 300 K now and then offers a
fourth, and what a network that has never seen one makes of it is left to chance: one pulled all six hydrogens, the
oxygen's own ones first, into itself. A guard is a training structure with water molecules moved around one atom, more
of them and closer than they usually come, and with the atom's own bonds to hydrogens compressed. It carries no label:
the loss only asks that the closest molecules are pushed away with at least ``least_force`` on average and each of the
hydrogens with ``least_bond_force``. For scale: in a water dimer a hydrogen at 1.6 Å from the other oxygen is repelled
with 0.4 eV/Å, and each further neighbour makes it worse; a free O–H bond compressed to nine tenths pushes with about
5 eV/Å.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from les_md.training.bonds import bond_matrix, molecules
from les_md.training.dataset import Frame


@dataclass(frozen=True)
class CrowdGuard:
    """How atoms are crowded.

    Attributes
    ----------
    atomic_numbers : elements of the model in type order.
    centres : atomic numbers of the atoms that water molecules are moved to, hydrogens first; one is drawn.
    numbers : fewest and most molecules around an atom.
    distances : range of the contacts, Å.
    repelled : molecules with a contact shorter than this must be pushed away, Å; longer ones may be held.
    clearance : of a moved atom from all atoms but the centre, Å: of two hydrogens or a hydrogen and a heavier atom,
        and of two heavier atoms.
    compressed : range of the factor of the centre's own bonds to hydrogens.
    least_force : mean over the repelled molecules of the net force away from the centre, eV/Å.
    least_bond_force : on each hydrogen of the centre, away from it, eV/Å.
    every : training steps from one guard to the next.
    weight : of shortfall² in the loss.
    """

    atomic_numbers: tuple[int, ...]
    centres: tuple[int, ...] = (8, 8, 8, 7)
    numbers: tuple[int, int] = (2, 5)
    distances: tuple[float, float] = (1.3, 2.0)
    repelled: float = 1.5
    clearance: tuple[float, float] = (1.3, 2.2)
    compressed: tuple[float, float] = (0.7, 0.92)
    least_force: float = 0.5
    least_bond_force: float = 2.0
    every: int = 2
    weight: float = 0.1

    def to_dict(self) -> dict:
        return asdict(self)

    def disturb(self, frame: Frame, generator: torch.Generator) -> CrowdedFrame | None:
        """``frame`` with one atom crowded; None where there are too few water molecules or too little room."""
        return crowd_atom(frame, self, generator)


@dataclass(frozen=True)
class CrowdedFrame:
    """A frame with one atom crowded.

    Attributes: water molecules ``moved`` [K, 3] int64, their directions ``outward`` [K, 3], and whether they must be
    ``repelled`` [K]; the centre's own ``hydrogens`` [B] int64 and their directions ``along`` [B, 3];
    ``least_bond_force`` on these, eV/Å.
    """

    frame: Frame
    moved: Tensor
    outward: Tensor
    repelled: Tensor
    hydrogens: Tensor
    along: Tensor
    least_bond_force: float

    def shortfall(self, forces: Tensor, least_force: float) -> Tensor:
        """(missing repulsion)² of the molecules, and of the hydrogens, (eV/Å)², from forces [N, 3]."""
        bonds = (forces[self.hydrogens] * self.along).sum(1)
        missing = torch.relu(self.least_bond_force - bonds).square().sum()
        if bool(self.repelled.any()):
            net = (forces[self.moved].sum(1) * self.outward).sum(1)
            missing = missing + torch.relu(least_force - net[self.repelled].mean()).square()
        return missing


def crowd_atom(frame: Frame, guard: CrowdGuard, generator: torch.Generator, tries: int = 8) -> CrowdedFrame | None:
    """Move the water molecules nearest to an atom, chosen at random, up to it; of an isolated cluster.

    Gives up after ``tries`` atoms that too few molecules, or too large ones, are around of.
    """
    if bool((frame.cell != 0.0).any()):
        return None
    numbers = torch.tensor(guard.atomic_numbers)[frame.types]
    bonds = bond_matrix(frame, numbers)
    if int((numbers == 8).sum()) < guard.numbers[0]:
        return None
    molecule = molecules(bonds)
    for _ in range(tries):
        crowded = _crowd_one(frame, numbers, bonds, molecule, guard, generator)
        if crowded is not None:
            return crowded
    return None


def _crowd_one(
    frame: Frame,
    numbers: Tensor,
    bonds: Tensor,
    molecule: Tensor,
    guard: CrowdGuard,
    generator: torch.Generator,
    directions: int = 100,
) -> CrowdedFrame | None:
    element = guard.centres[int(torch.randint(len(guard.centres), (1,), generator=generator))]
    candidates = (numbers == element).nonzero()[:, 0]
    if candidates.size(0) == 0:
        return None
    centre = int(candidates[int(torch.randint(candidates.size(0), (1,), generator=generator))])
    waters = [
        members
        for first in torch.unique(molecule).tolist()
        if first != int(molecule[centre])
        and (members := (molecule == first).nonzero()[:, 0]).size(0) == 3
        and sorted(numbers[members].tolist()) == [1, 1, 8]
    ]
    fewest, most = guard.numbers
    count = int(torch.randint(fewest, most + 1, (1,), generator=generator))
    if len(waters) < count:
        return None
    place = frame.positions[centre]
    waters.sort(key=lambda members: float((frame.positions[members] - place).norm(dim=1).min()))
    waters = waters[:count]
    positions = frame.positions.clone()
    hydrogens = ((bonds[centre] > 0) & (numbers == 1)).nonzero()[:, 0]
    bond = positions[hydrogens] - place
    low, high = guard.compressed
    factor = low + (high - low) * torch.rand(hydrogens.size(0), 1, generator=generator, dtype=torch.float64)
    positions[hydrogens] = place + factor * bond
    present = torch.ones(len(numbers), dtype=torch.bool)
    present[torch.cat(waters)] = False
    present[centre] = False
    low, high = guard.distances
    outward, repelled = [], []
    for members in waters:
        distance = low + (high - low) * float(torch.rand(1, generator=generator, dtype=torch.float64))
        # The hydrogen of a straight hydrogen bond.
        own = positions[members] - positions[members[numbers[members] == 1][0]]
        axis = own[numbers[members] == 8][0]
        for _ in range(directions):
            direction = torch.randn(3, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            angle = 2.0 * math.pi * float(torch.rand(1, generator=generator, dtype=torch.float64))
            moved = place + distance * direction + own @ _rotation(axis / axis.norm(), direction, angle).T
            if _is_clear(moved, numbers[members], positions[present], numbers[present], guard.clearance):
                break
        else:
            return None
        positions[members] = moved
        present[members] = True
        outward.append(direction)
        repelled.append(distance < guard.repelled)
    return CrowdedFrame(
        replace(frame, positions=positions),
        torch.stack(waters),
        torch.stack(outward),
        torch.tensor(repelled),
        hydrogens,
        bond / bond.norm(dim=1, keepdim=True),
        guard.least_bond_force,
    )


def _rotation(start: Tensor, end: Tensor, angle: float) -> Tensor:
    """Rotation [3, 3] that takes the unit vector ``start`` to ``end``, after a turn by ``angle`` about ``start``."""
    half = start + end
    norm = float(half.norm())
    # Half a turn about the bisector; about any normal where the two are opposite.
    if norm > 1e-6:
        half = half / norm
    else:
        half = torch.linalg.cross(start, torch.eye(3, dtype=start.dtype)[int(start.abs().argmin())])
        half = half / half.norm()
    flip = 2.0 * torch.outer(half, half) - torch.eye(3, dtype=start.dtype)
    x, y, z = start.tolist()
    skew = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=start.dtype)
    turn = torch.eye(3, dtype=start.dtype) + math.sin(angle) * skew + (1.0 - math.cos(angle)) * skew @ skew
    return flip @ turn


def _is_clear(
    moved: Tensor, kinds: Tensor, others: Tensor, other_kinds: Tensor, clearance: tuple[float, float]
) -> bool:
    distance = torch.cdist(moved, others)
    both_heavy = (kinds > 1)[:, None] & (other_kinds > 1)[None, :]
    return bool((distance > torch.where(both_heavy, clearance[1], clearance[0])).all())
