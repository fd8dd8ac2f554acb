"""Bonds must pull back when they are stretched, and push when they are compressed, beyond what the data show.

The data of a liquid leave a gap between its bonds and its hydrogen bonds: in water, no hydrogen lies between 1.1 and
1.4 Å from an oxygen. What a network does there is left to chance, and in a long simulation a rare vibration finds a
way out of the molecule. Below the shortest bonds of the data it is the same: two water models of equal errors, trained
with different seeds, drew a hydrogen into its oxygen from 0.8 Å on, by more than the ZBL repulsion, which is still weak
there, pushed it out; a minimiser or a hot start falls in. Guards are training structures with some bonds stretched into
the gap or compressed. They carry no label: the loss only asks that the force along such a bond pulls its end back with
at least ``least_force``, or pushes it out with at least ``least_push``, well below the forces of the longest and of the
shortest bonds in the data.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from les_md.training.dataset import Frame


@dataclass(frozen=True)
class BondGuard:
    """How bonds are stretched and compressed.

    Attributes
    ----------
    centre, ligand : types of the atoms of a bond.
    bonded : longest bond in the data, Å; longer distances are no bonds.
    stretched : range of the lengths given to bonds, Å.
    clearance : a stretched bond whose ligand has an atom of another type than itself, other than its centre, closer
        than this is left out, Å.
    fraction : of the bonds changed in one structure; at most one per centre.
    least_force : of a stretched bond, inwards, eV/Å.
    every : training steps from one guard to the next.
    weight : of mean(shortfall²) in the loss.
    compressed : range of the lengths given to every second of the changed bonds (on average), Å; None: to no bond.
    least_push : of a compressed bond, outwards, eV/Å. (A free O–H bond of 0.85 Å pushes with about 7 eV/Å.)
    """

    centre: int
    ligand: int
    bonded: float = 1.25
    stretched: tuple[float, float] = (1.08, 1.45)
    clearance: float = 1.15
    fraction: float = 0.15
    least_force: float = 2.5
    every: int = 2
    weight: float = 0.1
    compressed: tuple[float, float] | None = None
    least_push: float = 5.0

    def to_dict(self) -> dict:
        return asdict(self)

    def disturb(self, frame: Frame, generator: torch.Generator) -> StrainedFrame:
        """``frame`` with some bonds stretched or compressed."""
        return strain_bonds(frame, self, generator)


@dataclass(frozen=True)
class StrainedFrame:
    """A frame with stretched and compressed bonds.

    Attributes: ``ligand`` [B] int64 and ``direction`` [B, 3] from the centre to it; which bonds are ``compressed`` [B];
    ``least_push`` of these, eV/Å.
    """

    frame: Frame
    ligand: Tensor
    direction: Tensor
    compressed: Tensor
    least_push: float

    def shortfall(self, forces: Tensor, least_force: float) -> Tensor:
        """mean of (missing restoring force)² over the strained bonds, (eV/Å)², from forces [N, 3]."""
        if self.ligand.size(0) == 0:
            return forces.sum() * 0.0
        outward = (forces[self.ligand] * self.direction).sum(1)
        missing = torch.where(self.compressed, self.least_push - outward, least_force + outward)
        return torch.relu(missing).square().mean()


def strain_bonds(frame: Frame, guard: BondGuard, generator: torch.Generator) -> StrainedFrame:
    """Change at most one bond per centre of a random share of the bonds of ``frame``, along the bond."""
    edge_index, vectors = edges_within(frame, guard.bonded)
    bonds = (frame.types[edge_index[0]] == guard.centre) & (frame.types[edge_index[1]] == guard.ligand)
    centre, ligand, vectors = edge_index[0, bonds], edge_index[1, bonds], vectors[bonds]
    chosen: dict[int, int] = {}
    for bond in torch.randperm(centre.size(0), generator=generator)[: round(guard.fraction * centre.size(0))].tolist():
        chosen.setdefault(int(centre[bond]), bond)
    index = torch.tensor(sorted(chosen.values()), dtype=torch.int64)
    low, high = guard.stretched
    share = torch.rand(index.size(0), 1, generator=generator, dtype=torch.float64)
    length = low + (high - low) * share
    compressed = torch.zeros(index.size(0), dtype=torch.bool)
    if guard.compressed is not None:
        low, high = guard.compressed
        compressed = torch.rand(index.size(0), generator=generator, dtype=torch.float64) < 0.5
        length = torch.where(compressed[:, None], low + (high - low) * share, length)
    direction = vectors[index] / torch.linalg.norm(vectors[index], dim=1, keepdim=True)
    positions = frame.positions.clone()
    positions[ligand[index]] += length * direction - vectors[index]
    moved = replace(frame, positions=positions)
    close, _ = edges_within(moved, guard.clearance)
    owner = torch.full_like(frame.types, -1)
    owner[ligand] = centre
    foreign = (frame.types[close[0]] != guard.ligand) & (owner[close[1]] != close[0])
    crowded = torch.zeros(frame.types.size(0), dtype=torch.bool)
    crowded[close[1, foreign]] = True
    keep = ~crowded[ligand[index]]
    return StrainedFrame(moved, ligand[index][keep], direction[keep], compressed[keep], guard.least_push)


def edges_within(frame: Frame, cutoff: float) -> tuple[Tensor, Tensor]:
    """Edges (centre, neighbour) [2, E] and vectors [E, 3] Å of the pairs closer than ``cutoff``."""
    edge_index, offsets = frame.neighbours(cutoff)
    return edge_index, frame.positions[edge_index[1]] - frame.positions[edge_index[0]] + offsets
