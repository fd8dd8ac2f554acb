"""Training structures without labels, of which the loss asks something: all kinds, and whose turn it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from les_md.training.bond_guard import BondGuard
from les_md.training.contact_guard import ContactGuard
from les_md.training.crowd_guard import CrowdGuard
from les_md.training.dataset import Frame
from les_md.training.energy_model import EnergyModel

#: Each makes training structures without labels from labelled ones, and says what the loss asks of their forces.
Guard = BondGuard | ContactGuard | CrowdGuard


def guard_shortfalls(
    model: EnergyModel, batch: Sequence[Frame], guards: Sequence[Guard], step: int, generator: torch.Generator
) -> Iterator[tuple[Guard, Tensor]]:
    """The guards whose turn it is in a step, each with its shortfall [] in (eV/Å)², differentiable in the weights."""
    for turn, current in enumerate(guards):
        # With every = 2 and three guards, each comes every sixth step.
        if step % (current.every * len(guards)) == turn * current.every:
            # A frame may have no contact to squeeze: the first one of the batch that has is taken.
            tried = (current.disturb(frame, generator) for frame in batch)
            disturbed = next((each for each in tried if each is not None), None)
            if disturbed is not None:
                _, forces = model(disturbed.frame, differentiable=True)
                yield current, disturbed.shortfall(forces, current.least_force)
