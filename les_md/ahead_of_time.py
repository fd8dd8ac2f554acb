"""Compiling a network ahead of time by PyTorch's AOTInductor, and loading what was compiled.

A package is native code for one version of PyTorch and one kind of processor. Loading one runs it, so that this is
done only where it was asked for (``model_file.load``), and only for packages of exported files.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from les_md.architectures.cace_blocks import BlockDerivative, BlockValues
from les_md.architectures.cace_evaluation import CACEEvaluation

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


def compile_network(evaluation: torch.nn.Module | None) -> dict[str, bytes]:
    """Packages of ``FUNCTIONS`` by name, for any numbers of atoms and neighbours. Needs a C++ compiler; takes minutes.

    Parameters: ``evaluation``, what ``TrainedModel.evaluation`` makes of a network, in its final dtype.

    Raises CompilationError for networks that have no compiled form, and where the compiler fails.
    """
    if not isinstance(evaluation, CACEEvaluation) or len(evaluation.messages) > 0:
        raise CompilationError(
            "only CACE models without message passing and without latent variables beyond charges can be compiled"
        )
    processor = target()["processor"]
    values, derivative = BlockValues(evaluation).eval(), BlockDerivative(evaluation).eval()
    inputs = _example(evaluation)
    with torch.no_grad():
        _values, *kept = values(*inputs)
    cotangent = torch.ones_like(_values)
    any_size = torch.export.Dim.DYNAMIC
    table, scales, of_atoms = {0: any_size, 2: any_size}, {2: any_size}, {1: any_size}
    of_kept = ({4: any_size}, table, table, (of_atoms,) * evaluation.num_hidden)
    options = {
        "cpp.march": processor,
        "cpp.simdlen": 512 if processor == PROCESSORS["AVX512"] else 256,
        "cpp.dynamic_threads": True,  # of the process that runs it
    }
    packages = {}
    try:
        for name, module, arguments, shapes in (
            ("values", values, inputs, (table, scales)),
            ("derivative", derivative, (*inputs, cotangent, *kept), (table, scales, of_atoms, *of_kept)),
        ):
            packages[name] = _package(module, arguments, shapes, options)
    except Exception as error:  # of torch.export, Inductor or the compiler, which have no common class
        raise CompilationError(f"the network could not be compiled: {type(error).__name__}: {error}") from error
    return packages


def _package(module: torch.nn.Module, arguments: tuple, shapes: tuple, options: dict) -> bytes:
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="les_md_") as folder:
        program = torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder) / "network.pt2"), inductor_configs=options
        )
        return Path(path).read_bytes()


def _example(evaluation: CACEEvaluation) -> tuple[torch.Tensor, torch.Tensor]:
    """A table of two blocks' usual size and its scales; the compiler looks at their shapes only."""
    num_atoms, width = 192, 40
    types = torch.arange(num_atoms) % evaluation.scales.size(2)
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(num_atoms, 3, width, generator=generator, dtype=torch.float64)
    embedding = evaluation.neighbour_embedding.index_select(0, torch.arange(width) % evaluation.scales.size(2))
    embedding = embedding.t().unsqueeze(0).expand(num_atoms, -1, -1)
    table = torch.cat([vectors.to(evaluation.dtype), embedding], 1).contiguous()
    return table, evaluation.scales.index_select(2, types)


def load_functions(packages: dict[str, bytes]) -> dict[str, Callable[..., list[torch.Tensor]]]:
    """The functions of ``compile_network``'s packages. This runs native code of theirs.

    Raises RuntimeError for packages that are damaged.
    """
    functions = {}
    with tempfile.TemporaryDirectory(prefix="les_md_") as folder:
        for name in FUNCTIONS:
            path = Path(folder) / f"{name}.pt2"
            path.write_bytes(packages[name])
            functions[name] = torch._inductor.aoti_load_package(str(path))
    return functions
