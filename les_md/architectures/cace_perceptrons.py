"""Several readouts of a CACE network as one perceptron, and its derivative, written out."""

from __future__ import annotations

from typing import List  # noqa: UP035  (TorchScript knows only this)

import torch
from torch import Tensor

from les_md.architectures.cace_readout import Readout


class MergedReadouts(torch.nn.Module):
    """The outputs of several ``Readout`` one after the other, with atoms as the last axis.

    First layers and linear parts are one matrix; the layers after it are block diagonal, and small.

    Parameters: ``readouts`` with hidden layers of equal number; ``scales``, a factor of the outputs of each.
    """

    def __init__(self, readouts: list[Readout], scales: list[float]) -> None:
        super().__init__()
        self.num_hidden: int = len(readouts[0].hidden)
        layers = [[readout.hidden[i] for readout in readouts] for i in range(self.num_hidden)]
        last = [readout.output for readout in readouts]
        linear_weight = torch.cat([s * r.linear.weight for r, s in zip(readouts, scales, strict=True)])
        linear_bias = torch.cat([s * r.linear.bias for r, s in zip(readouts, scales, strict=True)])
        output_bias = torch.cat([s * layer.bias for layer, s in zip(last, scales, strict=True)])
        output_weights = [s * layer.weight for layer, s in zip(last, scales, strict=True)]
        self.num_outputs: int = linear_weight.size(0)
        self.num_first: int = 0
        weights: list[Tensor] = []
        if self.num_hidden == 0:
            first_weight, first_bias = linear_weight + torch.cat(output_weights), linear_bias + output_bias
        else:
            first_weight = torch.cat([*(layer.weight for layer in layers[0]), linear_weight])
            first_bias = torch.cat([*(layer.bias for layer in layers[0]), linear_bias + output_bias])
            self.num_first = first_weight.size(0) - self.num_outputs
            weights = [torch.block_diag(*(layer.weight for layer in part)) for part in layers[1:]]
            weights.append(torch.block_diag(*output_weights))
        biases = [torch.cat([layer.bias for layer in part]) for part in layers[1:]]
        self.register_buffer("first_weight", first_weight.detach().clone())
        self.register_buffer("first_bias", first_bias.detach().clone()[:, None])
        self.layers = torch.nn.ModuleList(
            AffineMap(weight, bias) for weight, bias in zip(weights, [*biases, None], strict=False)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, List[Tensor]]:  # noqa: UP006
        """[F, N] → outputs [number, N], and what ``pull_back`` needs."""
        first = torch.addmm(self.first_bias, self.first_weight, features)
        hidden, outputs = first[: self.num_first], first[self.num_first :]
        kept: List[Tensor] = []  # noqa: UP006
        for layer in self.layers:
            kept.append(hidden)
            hidden = layer(torch.nn.functional.silu(hidden))
        return (outputs + hidden if len(kept) > 0 else outputs), kept

    @torch.jit.export
    def pull_back(self, kept: List[Tensor], cotangent: Tensor) -> Tensor:  # noqa: UP006
        """Derivative [F, N] of Σ outputs · ``cotangent`` [number, N]."""
        of_hidden = cotangent
        number = len(kept)
        for layer in self.layers[::-1]:
            number -= 1
            of_hidden = torch.ops.aten.silu_backward(layer.pull_back(of_hidden), kept[number])
        of_first = torch.cat([of_hidden, cotangent]) if len(kept) > 0 else cotangent
        return torch.mm(self.first_weight.t(), of_first)


class AffineMap(torch.nn.Module):
    """x → W x + b on columns x, with b = 0 for None, and the derivative."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        bias = weight.new_zeros(weight.size(0)) if bias is None else bias
        self.register_buffer("bias", bias.detach().clone()[:, None])

    def forward(self, values: Tensor) -> Tensor:
        return torch.addmm(self.bias, self.weight, values)

    @torch.jit.export
    def pull_back(self, cotangent: Tensor) -> Tensor:
        return torch.mm(self.weight.t(), cotangent)
