r"""Latent variables beyond charges of a CACE network: dipoles, quadrupoles, softness κ and polarisability α.

    v_p = Σ_c W_pc A_c^(1),   u = s Σ_p g_p(B) v_p           and the same of the traceless A_c^(2) for Q
    κ, α = s' log(1 + exp g(B)) ≥ 0

A_c^(l) is the A-basis of degree l of all channels, radial functions and layers: a vector for l = 1, a symmetric tensor
for l = 2; B are the invariants, g perceptrons. Rotations act on u and Q as they do on A, and reflections too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from les_md.architectures.cace_readout import Readout

#: Vectors or tensors v_p that a channel's dipole or quadrupole is made of.
NUM_MIXED = 16


class TensorReadout(torch.nn.Module):
    """Σ_p g_p(B) Σ_c W_pc A_c for each of ``num_channels`` channels.

    Parameters: ``num_invariants`` and ``num_tensors``, lengths of B and c; ``hidden``, widths of the perceptron g.
    """

    def __init__(self, num_invariants: int, num_tensors: int, hidden: tuple[int, ...], num_channels: int) -> None:
        super().__init__()
        self.num_channels: int = num_channels
        self.mixing = torch.nn.Parameter(torch.randn(num_tensors, NUM_MIXED) / math.sqrt(num_tensors))
        self.gates = Readout(num_invariants, hidden, num_channels * NUM_MIXED)

    def forward(self, invariants: Tensor, tensors: Tensor) -> Tensor:
        """B [N, F] and A [N, m, c] → [N, n_q, m]"""
        gates = self.gates(invariants).reshape(invariants.size(0), self.num_channels, -1)
        return torch.matmul(gates, torch.matmul(tensors, self.mixing).transpose(1, 2))


class LatentReadout(torch.nn.Module):
    """The columns of latent variables that follow the charges, in the order of ``LatentLayout``.

    Parameters
    ----------
    num_invariants : length of B.
    num_tensors : channels c of the A-basis.
    hidden : widths of the perceptrons.
    num_channels : charge channels n_q.
    dipoles, quadrupoles, kappas, alphas : which there are.
    scale : s, as of the charges.  response_scale : s', in e²/eV for κ and e² Å²/eV for α.
    """

    def __init__(
        self,
        num_invariants: int,
        num_tensors: int,
        hidden: tuple[int, ...],
        num_channels: int,
        dipoles: bool,
        quadrupoles: bool,
        kappas: bool,
        alphas: bool,
        scale: float,
        response_scale: float,
    ) -> None:
        super().__init__()
        self.scale: float = scale
        self.response_scale: float = response_scale

        def tensor_readout(wanted: bool) -> TensorReadout | None:
            return TensorReadout(num_invariants, num_tensors, hidden, num_channels) if wanted else None

        self.dipole = tensor_readout(dipoles)
        self.quadrupole = tensor_readout(quadrupoles)
        self.kappa = Readout(num_invariants, hidden, num_channels) if kappas else None
        self.alpha = Readout(num_invariants, hidden, num_channels) if alphas else None

    def forward(self, invariants: Tensor, vectors: Tensor, tensors: Tensor) -> Tensor:
        """Columns [N, ...] after the charges.

        Parameters: ``invariants`` [N, F]; ``vectors`` [N, 3, c]; ``tensors`` [N, 6, c], monomials xx, xy, xz, yy, yz,
        zz; of degree 2 only where there are quadrupoles.
        """
        columns: list[Tensor] = []
        if self.dipole is not None:
            columns.append((self.scale * self.dipole(invariants, vectors)).flatten(1))
        if self.quadrupole is not None:
            symmetric = self.scale * self.quadrupole(invariants, tensors)
            xx, xy, xz, yy, yz, zz = symmetric.unbind(2)
            third = (xx + yy + zz) / 3.0
            columns.append(torch.stack([xx - third, yy - third, zz - third, xy, xz, yz], dim=2).flatten(1))
        if self.kappa is not None:
            columns.append(self.response_scale * torch.nn.functional.softplus(self.kappa(invariants)))
        if self.alpha is not None:
            columns.append(self.response_scale * torch.nn.functional.softplus(self.alpha(invariants)))
        return torch.cat(columns, dim=1)

    @torch.no_grad()
    def standardise(self, vectors: Tensor, tensors: Tensor) -> None:
        """Scale the mixing to A of root mean square 1; ``vectors`` [N, 3, c], ``tensors`` [N, 6, c] are of N atoms."""
        for readout, values in ((self.dipole, vectors), (self.quadrupole, tensors)):
            if readout is not None:
                deviation = values.square().mean((0, 1)).sqrt()
                readout.mixing.div_((deviation + 1e-3 * deviation.square().mean().sqrt())[:, None])

    def perceptrons(self) -> list[Readout]:
        """All perceptrons of invariants."""
        gates = [each.gates for each in (self.dipole, self.quadrupole) if each is not None]
        return [*gates, *(each for each in (self.kappa, self.alpha) if each is not None)]
