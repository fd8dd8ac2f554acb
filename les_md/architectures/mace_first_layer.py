"""Messages of MACE's first layer, where the features of a neighbour depend on its species alone.

With features h[z], radial networks R = V · hidden(r) and a linear map L after the sum, all of them constants but the
edges, the message of atom i is

    Σ_z Σ_k ( Σ_{j of species z} Y_lm(r_ij) hidden_k(r_ij) ) W_l[z, k, :] ,   W_l[z, k, c'] = Σ_c V_lkc h_zc L_lcc' .

The sum over neighbours has no channels, and all the rest is one matrix product for each atom instead of one for each
edge. The result is that of ``mace_layers.Messages`` to rounding.
"""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor

from les_md.architectures.mace_layers import Edges, Messages
from les_md.architectures.registry import UnsupportedModelError

#: Where neighbours are of more species, the sums over edges are cheaper in the usual order.
MOST_SPECIES = 8


class FirstMessages(torch.nn.Module):
    """``Messages`` of the first layer, made of its own and the features of each species.

    Parameters: ``messages``, made of the interaction's ``tensor_product`` and ``linear``; ``features`` [species, F] of
    the species before the layer.
    """

    def __init__(
        self, messages: Messages, tensor_product: o3.TensorProduct, linear: o3.Linear, features: Tensor
    ) -> None:
        super().__init__()
        self.usual = messages
        self.group_size: int = messages.group_size
        harmonics, sums = tensor_product.irreps_in2, tensor_product.irreps_out
        inputs = tensor_product.irreps_in1
        if any(mul_ir.ir != o3.Irrep(0, 1) for mul_ir in inputs):
            raise UnsupportedModelError("a MACE model whose first layer starts from features that are not scalars")
        if linear.bias_numel > 0:
            raise UnsupportedModelError("a MACE convolution with a bias after the sum over neighbours")
        features = messages.linear_up(features)
        weights = messages.neighbor_sum.path_weights()
        of_species = []  # per path: [species, hidden, channels]
        for path, weight in zip(tensor_product.instructions, weights, strict=True):
            degree = harmonics[path.i_in2].ir.l
            coupling = path.path_weight * o3.wigner_3j(0, degree, degree, dtype=torch.float64)[0]
            own = features[:, inputs.slices()[path.i_in1]] * coupling[0, 0]
            of_species.append(own[:, None, :] * weight)
        self.starts: list[int] = []
        self.dims: list[int] = []
        folded = []
        for number, (mul, ir) in enumerate(linear.irreps_out):
            total = torch.zeros([len(features), weights[0].size(0), mul], dtype=torch.float64)
            for _, instruction, matrix in linear.weight_views(yield_instruction=True):
                if instruction.i_out == number:
                    total += of_species[instruction.i_in] @ (instruction.path_weight * matrix.detach())
            # There is one harmonic of each degree, so a sum's own irrep says which it is of.
            [slot] = [i for i, (_, harmonic) in enumerate(harmonics) if harmonic == ir]
            self.starts.append(harmonics.slices()[slot].start)
            self.dims.append(ir.dim)
            folded.append(total)
        if any(path.i_out != number for number, path in enumerate(tensor_product.instructions)) or len(sums) != len(
            of_species
        ):
            raise UnsupportedModelError("a MACE convolution in which several paths share an output")
        self.channels: list[int] = [weight.size(2) for weight in folded]
        self.register_buffer("weight", torch.cat(folded, dim=2))

    def forward(self, features: Tensor, num_centres: int, edges: Edges) -> Tensor:
        """Parameters and result of ``Messages``; edges grouped by centre alone are summed in the usual order."""
        num_species = edges.species.size(0)
        if num_species == 0:
            return self.usual(features, num_centres, edges)
        hidden = self.usual.neighbor_sum.hidden(edges)
        num_harmonics, num_hidden = edges.harmonics.size(1), hidden.size(1)
        of_group = torch.bmm(
            edges.harmonics.view(-1, self.group_size, num_harmonics).transpose(1, 2),
            hidden.view(-1, self.group_size, num_hidden),
        ).flatten(1)
        sums = torch.zeros(
            [num_centres * num_species, num_harmonics * num_hidden], dtype=hidden.dtype, device=hidden.device
        ).index_add(0, edges.key_of_group, of_group)
        sums = sums.view(num_centres, num_species, num_harmonics, num_hidden).transpose(1, 2)
        weights = self.weight.index_select(0, edges.species).flatten(0, 1).split(self.channels, dim=1)
        outputs: list[Tensor] = []
        for i, weight in enumerate(weights):
            start, dim = self.starts[i], self.dims[i]
            own = sums[:, start : start + dim].reshape(num_centres * dim, num_species * num_hidden)
            output = torch.matmul(own, weight).view(num_centres, dim, -1)
            outputs.append(output)
        return torch.cat(outputs, dim=1)
