"""Reading checkpoints: the files of ``torch.save`` and the folders of matgl, without running anything in them.

``restricted_unpickler.py`` says what a pickle may name and do, and why.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from typing import Any

from les_md.checkpoint_errors import CheckpointError
from les_md.restricted_unpickler import RestrictedUnpickler
from les_md.unpickled_values import shortened
from les_md.zip_archive import expands_too_far


@dataclass(frozen=True)
class SavedFolder:
    """A folder as matgl's ``save`` writes it: arguments of a constructor, weights, and a description as JSON."""

    arguments: dict
    state: dict
    description: dict

    @property
    def class_path(self) -> str:
        """What is saved, as ``module.Class``, and the class of the model in it."""
        model = self.arguments.get("model")
        inner = f" of a {model.get('@class')}" if isinstance(model, dict) else ""
        return f"{self.description.get('@module')}.{self.description.get('@class')}{inner}"


#: The files of a ``SavedFolder``.
FOLDER_FILES = ("model.pt", "state.pt", "model.json")


def read_checkpoint(path: str | os.PathLike) -> Any:
    """The object in a file written by ``torch.save``, tensors on the CPU; a ``SavedFolder`` for a folder of matgl.

    Raises
    ------
    UnsafeCheckpointError : it asks for something outside the tables of ``restricted_unpickler.py``; nothing was run.
    CheckpointError : it is missing, damaged, TorchScript, in torch's format before 1.6, or no torch file at all.
    MemoryError : there is not enough for what the file holds.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file")
    if os.path.isdir(path):
        return _read_folder(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"{path} is not a file")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: {_describe_foreign(path)}")
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if not pickled:
                raise CheckpointError(f"{path} is a zip archive but not one written by torch.save")
            root = pickled[0].removesuffix("data.pkl")
            if root + "constants.pkl" in archive.namelist():
                raise CheckpointError(
                    f"{path} is TorchScript, not a checkpoint: perhaps it is already exported? "
                    "An exported model is used as it is; les-export needs the file that training wrote."
                )
            if len(pickled) > 1 or len(set(archive.namelist())) != len(archive.namelist()):
                raise CheckpointError(f"{path} is damaged: several members of its archive have the same role")
            if expands_too_far(archive):
                raise CheckpointError(
                    f"{path} is damaged: the members of its archive are larger than the file can hold"
                )
            return RestrictedUnpickler(archive, root).load()
    except CheckpointError as error:
        if path in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error.__cause__
    except MemoryError:
        raise
    except Exception as error:  # A damaged pickle can fail anywhere in the interpreter.
        raise CheckpointError(f"{path} is damaged: {_summary(error)}") from error


def _summary(error: Exception) -> str:
    """An exception in a line, without objects of the file, whose text may be endless."""
    printable = isinstance(error, (OSError, UnicodeError)) or all(type(part) is str for part in error.args)
    text = shortened(str(error).splitlines()[0]) if printable and str(error) else "somewhere in its pickle"
    return f"{type(error).__name__}: {text}"


def _read_folder(path: str) -> SavedFolder:
    """The three files of a folder that matgl wrote."""
    missing = [name for name in FOLDER_FILES if not os.path.isfile(os.path.join(path, name))]
    if missing:
        raise CheckpointError(
            f"{path} is a folder, but not one that matgl's save wrote: it lacks {', '.join(missing)}. Give the "
            "checkpoint file itself"
        )
    try:
        with open(os.path.join(path, "model.json"), encoding="utf-8") as file:
            description = json.load(file)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{os.path.join(path, 'model.json')} is damaged: {error}") from error
    arguments, state = (read_checkpoint(os.path.join(path, name)) for name in FOLDER_FILES[:2])
    for name, content in zip(FOLDER_FILES, (arguments, state, description), strict=True):
        if not isinstance(content, dict):
            raise CheckpointError(f"{os.path.join(path, name)} holds no dictionary but a {type(content).__name__}")
    return SavedFolder(dict(arguments), dict(state), description)


def _describe_foreign(path: str) -> str:
    """What a file that is no zip archive may be, in words."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "the file is empty"
    if start[:4] == b"PK\x03\x04":
        return "the file is truncated: it starts as torch.save writes it, but its end is missing"
    if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in start:
        return (
            "the file is in torch's format before 1.6, which is not read here; load it with the program that wrote it, "
            "and save it again with a newer torch"
        )
    return "not a file written by torch.save"
