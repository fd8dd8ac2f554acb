"""The frames of a training: read, checked all at once, divided into parts, and described."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.units
import numpy as np
import torch
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols

from les_md.training.configuration import ConfigurationError, DataSection
from les_md.training.dataset import Frame, checked_frame, read_structures, reference_energies
from les_md.training.labels import FrameError
from les_md.training.split import held_out

#: How many frames of a kind an error lists.
LISTED = 20
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Source:
    """Where a frame comes from: file as in the configuration, number in it (from 0), group or None."""

    file: str
    index: int
    group: str | None = None


@dataclass(frozen=True)
class TrainingData:
    """Frames by part ("train", "validation", "test"; the last may be empty).

    Attributes: ``atomic_numbers`` in type order; ``frames`` and ``sources`` by part; ``digests``, SHA-256 by file;
    ``reference_energies`` [types] eV; ``notes`` for the user; ``repeats``, how often an epoch goes through the training
    frames of a file.
    """

    atomic_numbers: tuple[int, ...]
    frames: dict[str, list[Frame]]
    sources: dict[str, list[Source]]
    digests: dict[str, str]
    reference_energies: torch.Tensor
    notes: tuple[str, ...]
    repeats: dict[str, int]

    def epoch(self) -> list[int]:
        """Numbers of the training frames that an epoch goes through, some perhaps several times."""
        sources = self.sources["train"]
        return [i for i, source in enumerate(sources) for _ in range(self.repeats.get(source.file, 1))]

    def split(self) -> dict:
        """Frames of each part by file and number, with the files' digests, for JSON."""
        return {
            "files_sha256": self.digests,
            "frames": {
                part: [
                    {"file": s.file, "index": s.index} | ({} if s.group is None else {"group": s.group})
                    for s in sources
                ]
                for part, sources in self.sources.items()
            },
        }

    def fingerprint(self) -> str:
        """SHA-256 over the files' contents in order and the split, whatever the files are called."""
        files = list(self.digests)
        frames = {part: [(files.index(s.file), s.index) for s in each] for part, each in self.sources.items()}
        return hashlib.sha256(json.dumps([list(self.digests.values()), frames]).encode()).hexdigest()


def read_training_data(
    section: DataSection,
    folder: Path,
    cutoff: float,
    elements: tuple[str, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingData:
    """Read and check all frames, divide them, and find the neighbours of every atom once.

    Parameters: ``folder`` to which paths are relative; ``cutoff`` Å; ``elements`` of the model, None for those of the
    training frames; ``progress`` is called with the number of frames that are ready and their total.

    Raises
    ------
    FileNotFoundError : a file is not there.
    ConfigurationError : a file is in two parts, a fraction leaves no frames, an energy of an element is missing.
    FrameError : frames cannot be used; the message lists them by what is wrong.
    """
    files = {"train": section.train}
    for part in ("validation", "test"):
        value = getattr(section, part)
        files[part] = value if isinstance(value, tuple) else ()
    structures, sources, digests = _read_files(files, folder, section.group_key)
    fractions = [part if isinstance(part, float) else 0.0 for part in (section.validation, section.test)]
    if any(fractions):
        groups = [i if s.group is None else s.group for i, s in enumerate(sources["train"])]
        chosen = held_out(groups, *fractions, section.split_seed)
        for part, indices in reversed(list(zip(PARTS, chosen, strict=True))):
            if part == "train" or indices:
                structures[part], sources[part] = (
                    [values["train"][i] for i in indices] for values in (structures, sources)
                )
    numbers = _atomic_numbers(structures, elements)
    frames = _checked(structures, sources, numbers, section, cutoff, progress)
    if section.stress_key is not None and all(frame.stress is None for frame in frames["train"]):
        raise ConfigurationError("data.stress_key: all training frames are isolated systems, which have no stress")
    if isinstance(section.atomic_energies, dict):
        energies = _given_energies(section.atomic_energies, numbers)
    else:
        energies = reference_energies(frames["train"], len(numbers))
    notes = _notes(frames, sources, section)
    return TrainingData(numbers, frames, sources, digests, energies, notes, section.repeat or {})


def _read_files(
    files: dict[str, tuple[str, ...]], folder: Path, group_key: str | None
) -> tuple[dict[str, list[ase.Atoms]], dict[str, list[Source]], dict[str, str]]:
    structures: dict[str, list[ase.Atoms]] = {part: [] for part in PARTS}
    sources: dict[str, list[Source]] = {part: [] for part in PARTS}
    digests: dict[str, str] = {}
    without_group: list[str] = []
    for part, names in files.items():
        for name in names:
            path = folder / name
            if name in digests:
                raise ConfigurationError(f"data: the file {name} is named twice")
            atoms_of_file = read_structures(path)
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            for i, atoms in enumerate(atoms_of_file):
                group = None
                if part == "train" and group_key is not None:
                    if group_key not in atoms.info:
                        without_group.append(f"{name}, frame {i}")
                    group = str(atoms.info.get(group_key))
                structures[part].append(atoms)
                sources[part].append(Source(name, i, group))
    if without_group:
        raise FrameError(f"frames without the group key '{group_key}':\n{_listed(without_group)}")
    return structures, sources, digests


def _atomic_numbers(structures: dict[str, list[ase.Atoms]], elements: tuple[str, ...] | None) -> tuple[int, ...]:
    seen = sorted({z for atoms in structures["train"] for z in atoms.numbers.tolist()})
    if elements is None:
        return tuple(seen)
    missing = [symbol for symbol in elements if number_of[symbol] not in seen]
    if missing:
        raise ConfigurationError(f"model.elements: no training frame holds {', '.join(missing)}")
    return tuple(number_of[symbol] for symbol in elements)


def _checked(
    structures: dict[str, list[ase.Atoms]],
    sources: dict[str, list[Source]],
    numbers: tuple[int, ...],
    section: DataSection,
    cutoff: float,
    progress: Callable[[int, int], None] | None,
) -> dict[str, list[Frame]]:
    labels = section.labels()
    total, done = sum(map(len, structures.values())), 0
    wrong: list[tuple[int, int, str]] = []
    files = list(dict.fromkeys(source.file for part in PARTS for source in sources[part]))
    frames: dict[str, list[Frame]] = {part: [] for part in PARTS}
    for part in PARTS:
        for atoms, source in zip(structures[part], sources[part], strict=True):
            where = f"{source.file}, frame {source.index}"
            try:
                frame = checked_frame(atoms, where, numbers, labels)
                _check_size(frame, where, section, cutoff)
                frames[part].append(frame)
            except FrameError as error:
                wrong.append((files.index(source.file), source.index, str(error)))
            done += 1
            if progress is not None:
                progress(done, total)
    if wrong:
        raise FrameError(
            f"{len(wrong)} of {total} frames cannot be used:\n{_listed([line for *_, line in sorted(wrong)])}"
        )
    return frames


def _check_size(frame: Frame, where: str, section: DataSection, cutoff: float) -> None:
    """Raise FrameError for absurd forces and for atoms on top of each other."""
    largest = float(torch.linalg.norm(frame.forces, dim=1).max())
    if largest > section.largest_force:
        atom = int(torch.linalg.norm(frame.forces, dim=1).argmax())
        raise FrameError(
            f"{where}: a force of {largest:.4g} eV/Å on atom {atom}, more than data.largest_force "
            f"({section.largest_force:g}): a calculation that did not converge, or other units"
        )
    distance = shortest_distance(frame, cutoff)
    if distance < section.shortest_distance:
        raise FrameError(
            f"{where}: two atoms are {distance:.3f} Å apart, less than data.shortest_distance "
            f"({section.shortest_distance:g})"
        )


def shortest_distance(frame: Frame, cutoff: float) -> float:
    """Å; infinite where no two atoms are within the cutoff."""
    (centre, neighbour), offsets = frame.neighbours(cutoff)
    vectors = frame.positions[neighbour] - frame.positions[centre] + offsets
    return float(torch.linalg.norm(vectors, dim=1).min()) if len(centre) else float("inf")


def _given_energies(given: dict[str, float], numbers: tuple[int, ...]) -> torch.Tensor:
    symbols = [chemical_symbols[z] for z in numbers]
    missing = [symbol for symbol in symbols if symbol not in given]
    if missing:
        raise ConfigurationError(f"data.atomic_energies: the energy of {', '.join(missing)} is missing")
    unused = [symbol for symbol in given if symbol not in symbols]
    if unused:
        raise ConfigurationError(f"data.atomic_energies: {', '.join(unused)} does not occur in the model")
    return torch.tensor([given[symbol] for symbol in symbols], dtype=torch.float64)


def _notes(frames: dict[str, list[Frame]], sources: dict[str, list[Source]], section: DataSection) -> tuple[str, ...]:
    notes = []
    seen = {_geometry(frame) for frame in frames["train"]}
    for part in ("validation", "test"):
        again = [s for f, s in zip(frames[part], sources[part], strict=True) if _geometry(f) in seen]
        if again:
            listed = ", ".join(f"{s.file} {s.index}" for s in again[:LISTED])
            notes.append(
                f"{len(again)} {part} frames are also training frames ({listed}): their errors say nothing about others"
            )
    if section.stress_key is not None:
        isolated = sum(frame.stress is None for frame in frames["train"])
        if isolated:
            notes.append(f"{isolated} training frames are isolated systems, which have no stress")
    return tuple(notes)


def _geometry(frame: Frame) -> bytes:
    digest = hashlib.sha256()
    for values in (frame.types, frame.positions, frame.cell):
        digest.update(np.ascontiguousarray(values.numpy()).tobytes())
    return digest.digest()


def _listed(lines: list[str]) -> str:
    shown = [f"  {line}" for line in lines[:LISTED]]
    if len(lines) > LISTED:
        shown.append(f"  … and {len(lines) - LISTED} more")
    return "\n".join(shown)


def describe(data: TrainingData, cutoff: float) -> str:
    """What the data hold, as lines for people."""
    symbols = [chemical_symbols[z] for z in data.atomic_numbers]
    energies = ", ".join(f"{s} {e:.4f}" for s, e in zip(symbols, data.reference_energies.tolist(), strict=True))
    lines = [f"elements         {' '.join(symbols)}", f"atomic energies  {energies} eV"]
    for part, frames in data.frames.items():
        if frames:
            lines += ["", f"{part}: {len(frames)} frames", *_describe_part(frames, symbols, data, cutoff)]
    return "\n".join(lines + [f"note: {note}" for note in data.notes])


def _describe_part(frames: list[Frame], symbols: list[str], data: TrainingData, cutoff: float) -> list[str]:
    sizes = [len(frame.types) for frame in frames]
    counts = sum(torch.bincount(frame.types, minlength=len(symbols)) for frame in frames).tolist()
    binding = [float((f.energy - data.reference_energies[f.types].sum()) / len(f.types)) for f in frames]
    forces = torch.cat([frame.forces for frame in frames])
    periodic = [frame for frame in frames if bool((frame.cell != 0.0).any())]
    edges = sum(frame.neighbours(cutoff)[0].size(1) for frame in frames)
    lines = [
        f"  atoms          {min(sizes)} to {max(sizes)} a frame; "
        + ", ".join(f"{count} {symbol}" for symbol, count in zip(symbols, counts, strict=True)),
        f"  periodic       {len(periodic)} frames, {len(frames) - len(periodic)} isolated",
        f"  energy         {min(binding):.4f} to {max(binding):.4f} eV/atom above the atomic energies",
        f"  forces         {float(forces.square().mean().sqrt()):.4f} eV/Å root mean square of a component, "
        f"largest {float(torch.linalg.norm(forces, dim=1).max()):.4f}",
        f"  neighbours     {edges / sum(sizes):.1f} an atom within {cutoff:g} Å, shortest distance "
        f"{min(shortest_distance(frame, cutoff) for frame in frames):.3f} Å",
    ]
    if periodic:
        volumes = [float(torch.linalg.det(f.cell).abs()) / len(f.types) for f in periodic]
        lines.append(f"  volume         {min(volumes):.3f} to {max(volumes):.3f} Å³ an atom")
    stresses = [frame.stress for frame in frames if frame.stress is not None]
    if stresses:
        pressures = [-float(stress.trace()) / 3.0 / ase.units.GPa for stress in stresses]
        lines.append(f"  pressure       {min(pressures):.4f} to {max(pressures):.4f} GPa, without the kinetic part")
    return lines


def average_neighbours(data: TrainingData, cutoff: float) -> float:
    """Neighbours of an atom of the training frames within the cutoff (Å)."""
    edges = sum(frame.neighbours(cutoff)[0].size(1) for frame in data.frames["train"])
    return edges / sum(len(frame.types) for frame in data.frames["train"])
