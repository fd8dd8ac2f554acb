"""Latent charges from a potential's descriptors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


class LatentChargeHead(torch.nn.Module):
    """q = scale · (multilayer perceptron with SiLU (x) + linear map (x)), the charge readout of CACE-LES.

    Parameters
    ----------
    n_in : length of the descriptors.
    n_layers : linear layers of the perceptron.
    n_hidden : widths between them: ``n_layers − 1`` numbers, or one for all.
    add_linear_nn : add the linear map.
    output_scaling_factor : scale, 0.1: charges start small but not at zero, a stationary point of the energy.
    num_charges : channels.

    Raises
    ------
    ValueError : the widths do not fit the number of layers, or a size is not positive.
    """

    def __init__(
        self,
        n_in: int,
        n_layers: int = 3,
        n_hidden: int | Sequence[int] = (32, 16),
        add_linear_nn: bool = True,
        output_scaling_factor: float = 0.1,
        num_charges: int = 1,
    ) -> None:
        super().__init__()
        hidden = [n_hidden] * (n_layers - 1) if isinstance(n_hidden, int) else list(n_hidden)
        if n_layers < 1 or len(hidden) != n_layers - 1:
            raise ValueError(f"{n_layers} layers need {n_layers - 1} widths between them in n_hidden, got {n_hidden}")
        if min([n_in, num_charges, *hidden]) < 1:
            raise ValueError("n_in, n_hidden and num_charges must be positive")
        self.scale: float = float(output_scaling_factor)
        widths = [n_in, *hidden, num_charges]
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(first, second) for first, second in itertools.pairwise(widths)
        )
        self.linear: torch.nn.Linear | None = torch.nn.Linear(n_in, num_charges) if add_linear_nn else None

    def forward(self, descriptors: Tensor) -> Tensor:
        """Charges [N, num_charges] in e of descriptors [N, n_in]."""
        x = descriptors
        for i, layer in enumerate(self.layers):
            x = layer(torch.nn.functional.silu(x) if i > 0 else x)
        if self.linear is not None:
            x = x + self.linear(descriptors)
        return self.scale * x
