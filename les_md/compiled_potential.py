"""An exported model whose network was compiled ahead of time, for engines in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from les_md.compiled_evaluation import CompiledEvaluation
from les_md.potential import LESPotential


class CompiledPotential(LESPotential):
    """As the scripted ``LESPotential`` of a file, with its network compiled.

    Everything else, the long-range sum above all, is still what the file holds.

    Parameters
    ----------
    scripted : the module of the file.
    functions : what ``compiled_packages.load_functions`` made of the file's packages.
    """

    def __init__(self, scripted: torch.jit.ScriptModule, functions: Mapping[str, Callable]) -> None:
        torch.nn.Module.__init__(self)  # the parts are those of the file
        self.network = scripted.network
        self.evaluation = CompiledEvaluation(scripted.evaluation, **functions)
        self.register_buffer("reference_energies", scripted.reference_energies)
        self.has_long_range: bool = scripted.has_long_range
        self.long_range = scripted.long_range
        self.num_charges: int = scripted.num_charges
        self.charge_sign: float = scripted.charge_sign
        self.is_local: bool = scripted.is_local
        self.eval()
