"""Networks that were compiled ahead of time: what they are compiled for, and loading them.

A package is native code for one version of PyTorch and one kind of processor. Loading one runs it, so that this is
done only where it was asked for (``model_file.load``), and only for packages of exported files.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

#: Version of the functions' arguments and results: what ``CompiledEvaluation`` expects.
INTERFACE = 1

#: The functions, and packages, of a network.
FUNCTIONS = ("values", "derivative")

#: Processors that code is compiled for: those with AVX2. PyTorch's names of the instructions of those that run it.
PROCESSOR = "x86-64-v3"
CAPABILITIES = ("AVX2", "AVX512")


class CompilationError(ValueError):
    """A network cannot be compiled; the message says why."""


def target() -> dict[str, str | int]:
    """What is compiled here is for: PyTorch's version, system, device and processor, and the version of the interface.

    Raises CompilationError on a system or processor that is not supported.
    """
    system, machine = platform.system(), platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    if (system, machine) != ("Linux", "x86_64") or capability not in CAPABILITIES:
        raise CompilationError(
            f"compiled networks are for Linux on x86_64 with AVX2, this is {system} on {machine} with {capability}"
        )
    return {
        "interface": INTERFACE,
        "torch": torch.__version__.split("+")[0],  # without "+cpu", which C++ does not know
        "system": system,
        "device": "cpu",
        "processor": PROCESSOR,
    }


def mismatch(compiled: dict, device: torch.device) -> str:
    """Why what was compiled for the target ``compiled`` cannot run here on ``device``; empty if it can."""
    if device.type != "cpu":
        return f"it was compiled for the device cpu, not {device}"
    try:
        here = target()
    except CompilationError as error:
        return str(error)
    for key, value in here.items():
        if compiled.get(key) != value:
            return f"it was compiled for {key} {compiled.get(key)}, this is {value}"
    return ""


def load_functions(packages: Mapping[str, bytes]) -> dict[str, Callable[..., list[Tensor]]]:
    """The functions of ``ahead_of_time.compile_network``'s packages. This runs native code of theirs.

    Raises RuntimeError for packages that are damaged.
    """
    functions = {}
    with tempfile.TemporaryDirectory(prefix="les_md_") as folder:
        for name in FUNCTIONS:
            path = Path(folder) / f"{name}.pt2"
            path.write_bytes(packages[name])
            functions[name] = _Function(path)
    return functions


class _Function:
    """A package as a function of tensors that returns a list of tensors.

    By the loader that C++ has. ``torch._inductor.aoti_load_package`` calls it too, after it has compiled a test program
    to learn about the processor, which an installation without a compiler cannot.
    """

    def __init__(self, path: Path) -> None:
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)

    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        return self._loader.run(list(arguments))
