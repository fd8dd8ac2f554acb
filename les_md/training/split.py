"""Which frames train, which choose the weights, which judge them: a random choice of frames or of whole groups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from les_md.training.configuration import ConfigurationError


def held_out(
    groups: Sequence[Hashable], validation: float, test: float, seed: int
) -> tuple[list[int], list[int], list[int]]:
    """Indices of training, validation and test frames, each in ascending order.

    Groups are drawn at random, for the test first and then for validation, until a part has its share of the frames
    (at least one group where the fraction is not 0). A group is never divided.

    Parameters: ``groups`` the group of each frame, its own number where frames are independent; ``validation`` and
    ``test`` fractions of the frames, 0 for an empty part.

    Raises ConfigurationError where there are too few groups for all parts.
    """
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    order = [list(members.values())[k] for k in np.random.default_rng(seed).permutation(len(members))]
    parts: list[list[int]] = []
    needed = 1 + (validation > 0.0) + (test > 0.0)
    if len(order) < needed:
        raise ConfigurationError(
            f"{len(order)} groups or independent frames cannot be divided into {needed} parts: give more data, or "
            "files of their own for validation and test"
        )
    for fraction, left_for_others in ((test, 1 + (validation > 0.0)), (validation, 1)):
        part: list[int] = []
        while (
            fraction > 0.0
            and len(order) > left_for_others
            and (not part or len(part) + 0.5 * len(order[-1]) <= fraction * len(groups))
        ):
            part.extend(order.pop())
        parts.append(sorted(part))
    training = sorted(i for group in order for i in group)
    return training, parts[1], parts[0]
