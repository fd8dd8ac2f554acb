"""Radial symmetry functions (Behler, J. Chem. Phys. 134, 074106) and a small network per element, with a charge."""

import math

import torch

from les_md.architectures import TrainedModel
from les_md.architectures.direct_evaluation import DirectEvaluation
from les_md.electrostatics import LongRangeParameters

name = "behler"


class Behler(torch.nn.Module):
    def __init__(self, num_elements: int, cutoff: float, width: float, centres: torch.Tensor) -> None:
        super().__init__()
        self.num_elements, self.cutoff, self.width = num_elements, cutoff, width
        self.register_buffer("centres", centres)
        self.heads = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(num_elements * len(centres), 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
            )
            for _ in range(num_elements)
        )

    def forward(self, edge_vectors: torch.Tensor, edge_index: torch.Tensor, types: torch.Tensor):
        r = torch.linalg.vector_norm(edge_vectors, dim=1).to(self.centres.dtype)
        envelope = torch.where(r < self.cutoff, 0.5 + 0.5 * torch.cos(math.pi * r / self.cutoff), torch.zeros_like(r))
        functions = torch.exp(-self.width * (r[:, None] - self.centres) ** 2) * envelope[:, None]
        slots = edge_index[0] * self.num_elements + types[edge_index[1]]
        sums = torch.zeros([types.size(0) * self.num_elements, len(self.centres)], dtype=r.dtype, device=r.device)
        inputs = sums.index_add(0, slots, functions).view(types.size(0), -1)
        output = torch.zeros([types.size(0), 2], dtype=r.dtype, device=r.device)
        for element, head in enumerate(self.heads):
            output = torch.where((types == element)[:, None], head(inputs), output)
        return output[:, 0], output[:, 1:]


def matches(checkpoint: object) -> bool:
    return isinstance(checkpoint, dict) and "behler" in checkpoint


def load(checkpoint: dict, *, options) -> TrainedModel:
    settings, numbers = checkpoint["behler"], [int(z) for z in checkpoint["atomic_numbers"]]
    network = Behler(len(numbers), settings["cutoff"], settings["width"], checkpoint["weights"]["centres"])
    network.load_state_dict(checkpoint["weights"])
    energies = checkpoint["reference_energies"].double()
    original = DirectEvaluation(network, numbers, network.cutoff, energies, LongRangeParameters())
    return TrainedModel(
        architecture=name, network=network.to(options.dtype).eval(), atomic_numbers=numbers, cutoff=network.cutoff,
        num_layers=1, reference_energies=energies, long_range=LongRangeParameters(), num_charges=1,
        original=original, original_description="the same network, differentiated directly",
    )  # fmt: skip
