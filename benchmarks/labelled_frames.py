"""Frames with reference values for ``paper_tables.py``: which ones, and with which labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import numpy as np


@dataclass(frozen=True)
class Selection:
    """Which frames of a file: by number, by their ``subset``, and only those of ``elements`` (each None: all)."""

    numbers: str | None = None
    subsets: tuple[str, ...] = ()
    elements: frozenset[str] | None = None


@dataclass(frozen=True, eq=False)
class LabelledFrames:
    """Frames in the order of the file, with their numbers there; ``sha256`` of the file."""

    path: Path
    sha256: str
    numbers: list[int]
    frames: list[ase.Atoms]

    def where(self, i: int) -> str:
        """Name of the i-th of these frames in messages."""
        return f"{self.path}, frame {self.numbers[i]}"


def frame_numbers(text: str, count: int) -> list[int]:
    """Frame numbers from such as ``5,15,16`` or ``0:10,22`` (last one excluded), ascending.

    Raises ValueError for what is no number or range, given twice, or outside a file of ``count`` frames.
    """
    chosen: list[int] = []
    for item in text.split(","):
        try:
            bounds = [int(word) for word in item.split(":")]
        except ValueError:
            bounds = []
        if not 1 <= len(bounds) <= 2 or min(bounds) < 0:
            raise ValueError(f"--frames: {item!r} is neither a frame number nor a range such as 0:10")
        chosen.extend(range(*bounds) if len(bounds) == 2 else bounds)
    if not chosen:
        raise ValueError(f"--frames {text} selects no frame")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--frames {text} names a frame twice")
    if max(chosen) >= count:
        raise ValueError(f"--frames: there is no frame {max(chosen)}, the file holds {count} (0 to {count - 1})")
    return sorted(chosen)


def read_labelled(path: Path, selection: Selection, labels: Iterable[str]) -> LabelledFrames:
    """Frames of an extended XYZ file (eV, Å, e) that carry the ``labels``: "energy", "forces" or "bec".

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : not extended XYZ, frames out of range, none left, or a label missing or not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    try:
        every = ase.io.read(path, ":", format="extxyz")
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ValueError(f"{path} cannot be read as extended XYZ: {error}") from error
    numbers = list(range(len(every))) if selection.numbers is None else frame_numbers(selection.numbers, len(every))
    if selection.subsets:
        known = {str(atoms.info.get("subset")) for atoms in every}
        missing = sorted(set(selection.subsets) - known)
        if missing:
            raise ValueError(f"{path} holds no subset {', '.join(missing)}; its subsets: {', '.join(sorted(known))}")
        numbers = [i for i in numbers if every[i].info.get("subset") in selection.subsets]
    if selection.elements is not None:
        numbers = [i for i in numbers if set(every[i].symbols) <= selection.elements]
    if not numbers:
        raise ValueError(f"{path}: no frame is left of the selection")
    chosen = LabelledFrames(path, hashlib.sha256(path.read_bytes()).hexdigest(), numbers, [every[i] for i in numbers])
    for i, atoms in enumerate(chosen.frames):
        for label in labels:
            _check_label(atoms, label, chosen.where(i))
    return chosen


def _check_label(atoms: ase.Atoms, label: str, where: str) -> None:
    results = atoms.calc.results if atoms.calc is not None else {}
    value = atoms.arrays.get("bec") if label == "bec" else results.get(label)
    if value is None:
        raise ValueError(f"{where}: no label '{label}'")
    if not np.isfinite(value).all():
        raise ValueError(f"{where}: label '{label}' holds a value that is not a finite number")
    if label == "bec" and value.shape != (len(atoms), 9):
        raise ValueError(f"{where}: 'bec' has {value.shape[1:]} values an atom, not the 9 of a tensor")
