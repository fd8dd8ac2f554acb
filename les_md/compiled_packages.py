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

#: Version of the functions' arguments and results: what ``CompiledEvaluation`` expects.
INTERFACE = 1

#: The functions, and packages, of a network.
FUNCTIONS = ("values", "derivative")

#: Processors that code is compiled for, by what PyTorch calls their vector instructions; each runs those before it.
PROCESSORS = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}


class CompilationError(ValueError):
    """A network cannot be compiled; the message says why."""


def target() -> dict[str, str | int]:
    """What is compiled here is for: PyTorch's version, system, device and processor, and the version of the interface.

    Raises CompilationError on a system or processor that is not supported.
    """
    system, machine = platform.system(), platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    if (system, machine) != ("Linux", "x86_64") or capability not in PROCESSORS:
        raise CompilationError(
            f"compiled models are for Linux on x86_64 with AVX2 or AVX512, this is {system} on {machine} with "
            f"{capability}"
        )
    return {
        "interface": INTERFACE,
        "torch": torch.__version__,
        "system": system,
        "device": "cpu",
        "processor": PROCESSORS[capability],
    }


def mismatch(compiled: dict, device: torch.device) -> str:
    """Why what was compiled for the target ``compiled`` cannot run here on ``device``; empty if it can."""
    if device.type != "cpu":
        return f"it was compiled for the device cpu, not {device}"
    try:
        here = target()
    except CompilationError as error:
        return str(error)
    for key in ("interface", "torch", "system", "device"):
        if compiled.get(key) != here[key]:
            return f"it was compiled for {key} {compiled.get(key)}, this is {here[key]}"
    names = list(PROCESSORS.values())
    processor = compiled.get("processor")
    if processor not in names or names.index(processor) > names.index(str(here["processor"])):
        return f"it was compiled for a processor {processor}, this is {here['processor']}"
    return ""


def load_functions(packages: Mapping[str, bytes]) -> dict[str, Callable[..., list[torch.Tensor]]]:
    """The functions of ``ahead_of_time.compile_network``'s packages. This runs native code of theirs.

    Raises RuntimeError for packages that are damaged.
    """
    functions = {}
    with tempfile.TemporaryDirectory(prefix="les_md_") as folder:
        for name in FUNCTIONS:
            path = Path(folder) / f"{name}.pt2"
            path.write_bytes(packages[name])
            functions[name] = torch._inductor.aoti_load_package(str(path))
    return functions
