"""A small network of two layers with latent dipoles and quadrupoles, κ and α: no architecture, but one for tests."""

from __future__ import annotations

import torch

from les_md.architectures import TrainedModel
from les_md.architectures.direct_evaluation import DirectEvaluation
from les_md.electrostatics import LongRangeParameters
from les_md.electrostatics.latent_layout import LatentLayout

name = "multipoles"


class Multipoles(torch.nn.Module):
    """Features of two rounds of messages; vectors and tensors are sums over neighbours weighted with both features.

    Two channels; charges of a fixed sign for each type, or they would cancel.
    """

    num_channels = 2

    def __init__(self, layout: dict, width: int = 8, cutoff: float = 3.4) -> None:
        super().__init__()
        self.layout = LatentLayout(**layout)
        n = self.layout.num_charges
        self.n: int = n
        self.cutoff: float = cutoff
        self.dipoles: bool = self.layout.dipoles
        self.quadrupoles: bool = self.layout.quadrupoles
        self.kappas: bool = self.layout.kappas
        self.alphas: bool = self.layout.alphas
        self.embedding = torch.nn.Parameter(torch.randn(2, width))
        self.radial1 = torch.nn.Linear(6, width)
        self.radial2 = torch.nn.Linear(6, width)
        self.mixing = torch.nn.Linear(width, width)
        self.energy = torch.nn.Linear(width, 1)
        self.charge = torch.nn.Linear(width, n)
        self.positive = torch.nn.Linear(width, 2 * n)
        self.tensors = torch.nn.Linear(width, 2 * n)
        self.register_buffer("centres", torch.linspace(0.6, 3.2, 6))
        self.register_buffer("base", torch.tensor([[0.35, 0.1], [-0.6, -0.2]])[:, :n].clone())

    def forward(self, edge_vectors: torch.Tensor, edge_index: torch.Tensor, types: torch.Tensor):
        vectors = edge_vectors.to(self.centres.dtype)
        r = torch.sqrt((vectors * vectors).sum(1))
        x = torch.clamp(1.0 - r / self.cutoff, min=0.0)
        envelope = x * x * x * (1.0 + 3.0 * (1.0 - x) + 6.0 * (1.0 - x) ** 2)
        basis = torch.exp(-2.0 * (r[:, None] - self.centres) ** 2) * envelope[:, None]
        centre, neighbour = edge_index[0], edge_index[1]
        first = self.embedding[types]
        nothing = torch.zeros_like(first)
        second = first + torch.tanh(
            self.mixing(nothing.index_add(0, centre, self.radial1(basis) * envelope[:, None] * first[neighbour]))
        )
        messages = self.radial2(basis) * envelope[:, None] * second[neighbour]
        third = torch.tanh(second + nothing.index_add(0, centre, messages))
        n, count = self.n, types.size(0)
        columns = [self.base[types] + 0.2 * self.charge(third)]
        weights = self.tensors(messages * third[centre])
        directions = vectors / (1.0 + r[:, None])
        if self.dipoles:
            pairs = weights[:, :n, None] * directions[:, None, :]
            of_atoms = torch.zeros([count, n, 3], dtype=vectors.dtype, device=vectors.device)
            columns.append(0.3 * of_atoms.index_add(0, centre, pairs).reshape(count, 3 * n))
        if self.quadrupoles:
            square = (directions * directions).sum(1) / 3.0
            d = directions
            six = torch.stack(
                [
                    d[:, 0] * d[:, 0] - square, d[:, 1] * d[:, 1] - square, d[:, 2] * d[:, 2] - square,
                    d[:, 0] * d[:, 1], d[:, 0] * d[:, 2], d[:, 1] * d[:, 2],
                ],
                dim=1,
            )  # fmt: skip
            of_atoms = torch.zeros([count, n, 6], dtype=vectors.dtype, device=vectors.device)
            pairs = weights[:, n:, None] * six[:, None, :]
            columns.append(0.3 * of_atoms.index_add(0, centre, pairs).reshape(count, 6 * n))
        positive = torch.nn.functional.softplus(self.positive(third))
        if self.kappas:
            columns.append(0.01 * positive[:, :n])
        if self.alphas:
            columns.append(0.02 * positive[:, n:])
        return self.energy(third)[:, 0], torch.cat(columns, dim=1)


def checkpoint(layout: LatentLayout, seed: int = 4) -> dict:
    """With random weights."""
    torch.manual_seed(seed)
    network = Multipoles(layout.to_dict()).double()
    return {"multipoles": layout.to_dict(), "weights": network.state_dict()}


def matches(checkpoint: object) -> bool:
    return isinstance(checkpoint, dict) and "multipoles" in checkpoint


def load(checkpoint: dict, *, options) -> TrainedModel:
    layout = LatentLayout(**checkpoint["multipoles"])
    network = Multipoles(checkpoint["multipoles"]).double()
    network.load_state_dict(checkpoint["weights"])
    energies = torch.tensor([-0.5, -1.5], dtype=torch.float64)
    parameters = LongRangeParameters(epsilon_factor=1.7)
    return TrainedModel(
        architecture=name, network=network.to(options.dtype).eval(), atomic_numbers=[1, 8], cutoff=network.cutoff,
        num_layers=2, reference_energies=energies, long_range=parameters, num_charges=layout.num_charges, latent=layout,
        original=DirectEvaluation(network, [1, 8], network.cutoff, energies, parameters, layout),
        original_description="the same network, differentiated directly",
    )  # fmt: skip
