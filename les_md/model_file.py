"""Writing and reading exported files: a TorchScript archive with ``les_md.json`` inside."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ase.data
import numpy as np
import torch

from les_md.compiled_packages import FUNCTIONS, load_functions, mismatch
from les_md.compiled_potential import CompiledPotential
from les_md.electrostatics.latent_layout import LatentLayout
from les_md.potential import READABLE_VERSIONS, LESPotential
from les_md.zip_archive import expands_too_far

METADATA_NAME = "les_md.json"

#: Entries of the archive with what was compiled ahead of time, by function.
PACKAGE_NAMES = {function: f"les_md_{function}.pt2" for function in FUNCTIONS}


class ModelFileError(ValueError):
    """A file is not an exported model that this version can read; the message says why."""


class ExportedModel:
    """An exported file in memory.

    Attributes
    ----------
    module : the scripted ``LESPotential`` (its methods are the contract of the file), or a ``CompiledPotential`` of it.
    device : where it is.  is_compiled : whether the network runs as it was compiled ahead of time.
    content : the bytes of the file that ``module`` was read from, whatever became of the file since.
    metadata : what ``les-export`` recorded, as ``les-md info`` prints it.
    elements : chemical symbols in type order.  cutoff : Å.  num_layers : message-passing depth.
    has_long_range : False for a short-range model.  format_version : of the file's contract.
    latent : the latent variables of every atom and their columns.
    """

    def __init__(
        self,
        path: Path,
        module: torch.jit.ScriptModule | LESPotential,
        metadata: dict,
        device: torch.device | None = None,
        content: bytes = b"",
    ) -> None:
        self.path = path
        self.content = content
        self.device = device or torch.device("cpu")
        self.module: Any = module  # type checkers do not know the methods of scripts
        self.is_compiled = isinstance(module, CompiledPotential)
        self.metadata = metadata
        self.elements: list[str] = list(metadata["elements"])
        self.cutoff = float(metadata["cutoff"])
        self.num_layers = int(metadata["num_layers"])
        self.has_long_range: bool = metadata["long_range"] is not None
        self.format_version = int(metadata["format_version"])
        self.latent = LatentLayout.from_metadata(metadata)

    def types_of(self, atomic_numbers: np.ndarray) -> np.ndarray:
        """Type index [N] int64 of each atomic number.

        Raises ValueError naming the elements that the model does not know.
        """
        index = {ase.data.atomic_numbers[symbol]: i for i, symbol in enumerate(self.elements)}
        unknown = sorted({int(z) for z in atomic_numbers} - set(index))
        if unknown:
            names = ", ".join(ase.data.chemical_symbols[z] for z in unknown)
            raise ValueError(f"{self.path.name} knows the elements {' '.join(self.elements)}, not {names}")
        return np.array([index[int(z)] for z in atomic_numbers], dtype=np.int64)


def write(
    path: str | Path, module: torch.jit.ScriptModule, metadata: dict, packages: Mapping[str, bytes] | None = None
) -> None:
    """Write an exported file so that a reader sees the whole file or none.

    ``packages`` are those of ``ahead_of_time.compile_network``, which ``metadata["compiled"]`` describes.
    """
    # By way of memory: torch puts the name of a file that it writes to into the archive, and that one is temporary.
    files: dict[str, str | bytes] = {METADATA_NAME: json.dumps(metadata, indent=1)}
    files.update((PACKAGE_NAMES[function], package) for function, package in (packages or {}).items())
    content = module.save_to_buffer(_extra_files=files)
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(descriptor)
    try:
        Path(temporary).write_bytes(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_metadata(path: str | Path) -> dict:
    """Metadata of an exported file, without loading the model.

    Raises
    ------
    FileNotFoundError : no such file.
    ModelFileError : not an exported file, or written in another format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    return _read_metadata(path, str(path))


def is_exported(path: str | Path) -> bool:
    """Whether ``les-export`` wrote this file, in whatever format; a checkpoint or anything else is not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"/extra/{METADATA_NAME}") for name in archive.namelist())
    except OSError:
        raise
    except Exception:  # Anything may fail in zipfile on what is no archive, or a damaged one.
        return False


def _read_metadata(file: str | Path | BinaryIO, path: str) -> dict:
    try:
        with zipfile.ZipFile(file) as archive:
            if expands_too_far(archive):
                raise zipfile.BadZipFile("the members of the archive are larger than the file can hold")
            names = archive.namelist()
            entries = [name for name in names if name.endswith(f"/extra/{METADATA_NAME}")]
            if len(entries) > 1:  # torch may take another of them than we
                raise zipfile.BadZipFile("the archive has several members with metadata")
            scripted = any(name.endswith("/constants.pkl") for name in names)
            text = archive.read(entries[0]).decode() if entries else None
            # torch would take changed weights as they are.
            damaged = archive.testzip() if entries else None
    except Exception as error:  # A damaged archive can fail anywhere in zipfile.
        raise ModelFileError(
            f"{path} is truncated or no model file ({error}). Export the trained checkpoint with: les-export CHECKPOINT"
        ) from error
    if damaged is not None:
        raise ModelFileError(f"{path} is damaged (checksum of {damaged}): copy or export it again")
    if text is None:
        kind = "a TorchScript file that les-export did not write" if scripted else "a checkpoint, not an exported model"
        raise ModelFileError(f"{path} is {kind}. Export the trained checkpoint with: les-export CHECKPOINT")
    try:
        metadata = json.loads(text)
        version = int(metadata["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{path}: its metadata cannot be read ({error!r}); export the checkpoint again") from error
    if version not in READABLE_VERSIONS:
        age = "update les_md, or " if version > max(READABLE_VERSIONS) else ""
        readable = f"{', '.join(map(str, READABLE_VERSIONS[:-1]))} and {READABLE_VERSIONS[-1]}"
        raise ModelFileError(
            f"{path} is in format {version}, this les_md reads formats {readable}: {age}export the checkpoint again "
            "with this version"
        )
    missing = {"elements", "cutoff", "num_layers", "long_range"} - set(metadata)
    if missing:
        raise ModelFileError(f"{path}: its metadata lacks {', '.join(sorted(missing))}; export the checkpoint again")
    wrong = _wrong_metadata(metadata)
    if wrong:
        raise ModelFileError(f"{path}: its metadata are damaged ({wrong}); export the checkpoint again")
    return metadata


def _wrong_metadata(metadata: dict) -> str:
    """Which of the entries that every reader needs is not what les-export writes, or nothing."""
    elements, cutoff, layers = (metadata[key] for key in ("elements", "cutoff", "num_layers"))
    known = isinstance(elements, list) and all(
        isinstance(name, str) and name in ase.data.atomic_numbers for name in elements
    )
    if not known or not elements or len(set(elements)) != len(elements):
        return "elements"
    # JSON has numbers of any length: integers beyond float64, and more layers than the plugin's int can hold.
    if type(cutoff) not in (int, float) or not 0.0 < cutoff <= sys.float_info.max:
        return "cutoff"
    if type(layers) is not int or not 1 <= layers <= 1000:
        return "num_layers"
    if not isinstance(metadata["long_range"], (dict, type(None))):
        return "long_range"
    return ""


def load(path: str | Path, device: str | torch.device | None = "cpu", compiled: bool = False) -> ExportedModel:
    """Load a file written by ``les-export``.

    Parameters
    ----------
    path : of the file.
    device : to put it on (None: "cuda" where there is one, else "cpu").
    compiled : run the network as ``les-export --compile`` compiled it, where that was for this version of PyTorch, this
        device and this processor; elsewhere a UserWarning says why TorchScript runs. **What was compiled is native
        code: ask for it only with files from people you trust.**

    Raises: as ``read_metadata``, and ValueError for a device that cannot be used.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    return load_bytes(Path(path).read_bytes(), str(path), device, compiled)


def load_bytes(
    content: bytes, name: str, device: str | torch.device | None = "cpu", compiled: bool = False
) -> ExportedModel:
    """Load the ``content`` of a file written by ``les-export``; ``name`` is for messages, the others as of ``load``.

    Raises: as ``load``.
    """
    metadata = _read_metadata(io.BytesIO(content), name)
    device = usable_device(device)
    try:
        module = torch.jit.load(io.BytesIO(content), map_location=device)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{name} is damaged: {error}") from error
    module = module.eval()
    if compiled:
        reason = _not_compiled(metadata, device)
        if reason:
            warnings.warn(f"{name} runs in TorchScript: {reason}", stacklevel=3)
        else:
            module = CompiledPotential(module, load_functions(_packages(content, name)))
    return ExportedModel(Path(name), module, metadata, device, content)


def _not_compiled(metadata: dict, device: torch.device) -> str:
    """Why nothing that was compiled can run on ``device``; empty if it can."""
    target = metadata.get("compiled")
    if not isinstance(target, dict):
        return "no network was compiled into it (les-export --compile)"
    reason = mismatch(target, device)
    return f"{reason}. Export it here with les-export --compile" if reason else ""


def _packages(content: bytes, name: str) -> dict[str, bytes]:
    packages = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for function, package in PACKAGE_NAMES.items():
            entries = [entry for entry in archive.namelist() if entry.endswith(f"/extra/{package}")]
            if not entries:
                raise ModelFileError(f"{name} is damaged: its metadata speak of a compiled network that it lacks")
            packages[function] = archive.read(entries[0])
    return packages


def usable_device(device: str | torch.device | None) -> torch.device:
    """The torch device of this name; for None "cuda" where there is one, else "cpu".

    Raises ValueError if torch does not know it or cannot use it here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise ValueError(f"the device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return torch.device(device)
