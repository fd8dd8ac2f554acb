"""Compiling a network ahead of time by PyTorch's AOTInductor."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

import torch
import torch._inductor.config

from les_md.architectures.cace_blocks import BlockDerivative, BlockValues
from les_md.architectures.cace_evaluation import CACEEvaluation
from les_md.compiled_packages import PROCESSOR, CompilationError, target

#: Of torch's Inductor.
OPTIONS = {
    "cpp.march": PROCESSOR,
    "cpp.simdlen": 256,
    "cpp.dynamic_threads": True,  # of the process that runs it
    "aot_inductor.enable_line_tables": False,  # half of the file, and paths of this machine
}


def missing_options() -> list[str]:
    """Those of ``OPTIONS`` that this PyTorch does not have: 2.9 compiles for its own processor only."""
    known = torch._inductor.config.get_config_copy()
    return [name for name in OPTIONS if name not in known]


def check_network(evaluation: torch.nn.Module) -> None:
    """Raises CompilationError for a network, a machine or a PyTorch that ``compile_network`` is not for."""
    if not isinstance(evaluation, CACEEvaluation) or len(evaluation.messages) > 0:
        raise CompilationError(
            "only CACE models without message passing and without latent variables beyond charges can be compiled; "
            "export without --compile (in LAMMPS, MACE models run compiled operators without it)"
        )
    target()
    missing = missing_options()
    if missing:
        raise CompilationError(
            f"the compiler of PyTorch {torch.__version__} has no option {', '.join(missing)}: install a newer PyTorch "
            "(2.13 has them all), or export without --compile"
        )


def compile_network(evaluation: torch.nn.Module) -> dict[str, bytes]:
    """Packages of ``FUNCTIONS`` by name, for any numbers of atoms and neighbours. Needs a C++ compiler; takes minutes.

    Parameters: ``evaluation``, what ``TrainedModel.evaluation`` makes of a network, in its final dtype.

    Raises CompilationError as ``check_network``, and where the compiler fails.
    """
    check_network(evaluation)
    values, derivative = BlockValues(evaluation).eval(), BlockDerivative(evaluation).eval()
    inputs = _example(evaluation)
    with torch.no_grad():
        _values, *kept = values(*inputs)
    cotangent = torch.ones_like(_values)
    any_size = torch.export.Dim.DYNAMIC
    table, scales, of_atoms = {0: any_size, 2: any_size}, {2: any_size}, {1: any_size}
    of_kept = ({4: any_size}, table, table, (of_atoms,) * evaluation.num_hidden)
    packages = {}
    try:
        for name, module, arguments, shapes in (
            ("values", values, inputs, (table, scales)),
            ("derivative", derivative, (*inputs, cotangent, *kept), (table, scales, of_atoms, *of_kept)),
        ):
            packages[name] = _package(module, arguments, shapes)
    except Exception as error:  # of torch.export, Inductor or the compiler, which have no common class
        raise CompilationError(f"the network could not be compiled: {type(error).__name__}: {error}") from error
    return packages


def _package(module: torch.nn.Module, arguments: tuple, shapes: tuple) -> bytes:
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="les_md_") as folder:
        program = torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder) / "network.pt2"), inductor_configs=OPTIONS
        )
        return _without_sources(Path(path).read_bytes())


def _without_sources(package: bytes) -> bytes:
    """The same without what it was compiled from, which loading does not need."""
    stripped = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as archive, zipfile.ZipFile(stripped, "w") as copy:
        for entry in archive.infolist():
            if not entry.filename.endswith(".cpp"):
                copy.writestr(entry, archive.read(entry))
    return stripped.getvalue()


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
