"""Data of the bundled water model: which of the 40 frames of ``water_rpbe_d3.xyz`` train, choose and test.

The 40 frames of 64 molecules come from six separate trajectories, whose own frames may differ by as little as 0.1 Å per
atom. The split follows the trajectories: test frames belong to two trajectories of which training and the choice of the
model see nothing.
"""

from __future__ import annotations

from pathlib import Path

import ase.io

from les_md.training.dataset import read_structures

#: Frames that neither training nor the choice of the model sees: two whole trajectories.
TEST = (5, 15, 16, 22, 28)
#: Frames on which the best epoch is chosen: one whole trajectory, and the most distant frame of another.
VALIDATION = (2, 23, 39)


def split(count: int) -> dict[str, list[int]]:
    """Indices of the training, validation and test frames. Raises ValueError if ``count``, of frames, is not 40."""
    if count != 40:
        raise ValueError(f"the split belongs to the 40 frames of water_rpbe_d3.xyz; this file holds {count}")
    training = [i for i in range(count) if i not in TEST and i not in VALIDATION]
    return {"train": training, "validation": list(VALIDATION), "test": list(TEST)}


def write_parts(data: Path, out: Path) -> None:
    """Write ``train.xyz``, ``validation.xyz`` and ``test.xyz``; ``data`` is the file of all frames."""
    frames = read_structures(data)
    for part, indices in split(len(frames)).items():
        ase.io.write(out / f"{part}.xyz", [frames[i] for i in indices], format="extxyz")
