"""The perceptron with which a CACE network reads energies, charges and other latent variables off its invariants."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


class Readout(torch.nn.Module):
    """Multilayer perceptron with SiLU, plus a linear map of its input."""

    def __init__(self, num_inputs: int, hidden: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        widths = [num_inputs, *hidden]
        self.hidden = torch.nn.ModuleList(
            torch.nn.Linear(first, second) for first, second in itertools.pairwise(widths)
        )
        self.output = torch.nn.Linear(widths[-1], num_outputs)
        self.linear = torch.nn.Linear(num_inputs, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for layer in self.hidden:
            x = torch.nn.functional.silu(layer(x))
        return self.output(x) + self.linear(features)
