"""What both layouts of CHGNet share: perceptrons, radial functions, and the pairs of bonds that make angles."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


class ShiftedSoftplus(torch.nn.Module):
    """ln(1 + eˣ) − ln 2."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.softplus(x) - 0.6931471805599453


#: Activation functions by the names that checkpoints use.
ACTIVATIONS = {
    "swish": torch.nn.SiLU,
    "silu": torch.nn.SiLU,
    "relu": torch.nn.ReLU,
    "gelu": torch.nn.GELU,
    "sigmoid": torch.nn.Sigmoid,
    "tanh": torch.nn.Tanh,
    "softplus": torch.nn.Softplus,
    "softplus2": ShiftedSoftplus,
}


class Perceptron(torch.nn.Module):
    """Multilayer perceptron, with layer normalisation on request.

    Parameters: ``widths`` of input, hidden layers and output; ``normalise_last`` and ``normalise_hidden`` put a layer
    normalisation between the linear map of the last, the hidden layers and its activation.
    """

    def __init__(
        self,
        widths: list[int],
        activation: str,
        activate_last: bool,
        bias_last: bool = True,
        normalise_last: bool = False,
        normalise_hidden: bool = False,
    ) -> None:
        super().__init__()
        self.depth: int = len(widths) - 1
        self.activate_last: bool = activate_last
        self.activation = ACTIVATIONS[activation]()
        self.layers = torch.nn.ModuleList()
        self.norms = torch.nn.ModuleList()
        for i, (first, second) in enumerate(itertools.pairwise(widths)):
            is_last = i == self.depth - 1
            self.layers.append(torch.nn.Linear(first, second, bias=bias_last or not is_last))
            normalise = normalise_last if is_last else normalise_hidden
            self.norms.append(torch.nn.LayerNorm(second) if normalise else torch.nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms)):  # noqa: B905  (TorchScript has no strict)
            x = norm(layer(x))
            if i < self.depth - 1 or self.activate_last:
                x = self.activation(x)
        return x


class GatedPerceptron(torch.nn.Module):
    """A perceptron times the sigmoid of another one; arguments as of ``Perceptron``."""

    def __init__(
        self,
        widths: list[int],
        activation: str,
        activate_last: bool = True,
        normalise_last: bool = False,
        normalise_hidden: bool = False,
    ) -> None:
        super().__init__()
        self.value = Perceptron(widths, activation, activate_last, True, normalise_last, normalise_hidden)
        self.gate = Perceptron(widths, activation, False, True, normalise_last, normalise_hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * torch.sigmoid(self.gate(x))


class RadialBasis(torch.nn.Module):
    """Spherical Bessel functions √(2/c) sin(f_n r/c)/r with trained frequencies f, times a polynomial envelope.

    Parameters: number of functions, ``cutoff`` c in Å, ``exponent`` p of the envelope. With ``of_value`` the envelope
    is taken of the function's value instead of the distance, as MatGL does: then only the zero of the function itself
    takes it to zero at the cutoff.
    """

    def __init__(self, number: int, cutoff: float, exponent: int, of_value: bool) -> None:
        super().__init__()
        self.cutoff: float = float(cutoff)
        self.exponent: int = int(exponent)
        self.of_value: bool = of_value
        self.frequencies = torch.nn.Parameter(torch.pi * torch.arange(1, number + 1))

    def forward(self, lengths: Tensor) -> Tensor:
        """[E, n] from ``lengths`` [E] in Å, both float64 whatever the dtype of the frequencies."""
        r = lengths[:, None]
        values = (2.0 / self.cutoff) ** 0.5 * torch.sin(self.frequencies.to(r.dtype) * (r / self.cutoff)) / r
        return self._envelope(values if self.of_value else r) * values

    def _envelope(self, x: Tensor) -> Tensor:
        p = self.exponent
        x = x / self.cutoff
        polynomial = 1.0 + x**p * (-0.5 * (p + 1) * (p + 2) + x * (float(p * (p + 2)) - 0.5 * p * (p + 1) * x))
        return torch.where(x <= 1.0, polynomial, torch.zeros_like(polynomial))


def pairs_from(centre: Tensor, start: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """All pairs (b, a) of a bond b and a bond a that starts where b says.

    Parameters: ``centre`` [B], where each bond starts; ``start`` [B], where those paired with each bond shall start.
    Returns: positions b, a [P], in the order of b.
    """
    order = torch.argsort(centre, stable=True)
    count = torch.bincount(centre, minlength=num_nodes)
    first = torch.cumsum(count, 0) - count
    of_bond = count.index_select(0, start)
    b = torch.repeat_interleave(torch.arange(start.size(0), device=start.device), of_bond)
    within = torch.arange(b.size(0), device=b.device) - (torch.cumsum(of_bond, 0) - of_bond).index_select(0, b)
    a = order.index_select(0, first.index_select(0, start.index_select(0, b)) + within)
    return b, a


def are_reverse(
    b: Tensor, a: Tensor, vectors: Tensor, centre: Tensor, neighbour: Tensor, tolerance: float = 1e-3
) -> Tensor:
    """Whether bond a, which starts where b ends, is b in the other direction [P]; the images of an atom are told apart.

    Parameters: pairs b, a [P] as ``pairs_from`` returns them; of all bonds ``vectors`` [B, 3], ``centre``,
    ``neighbour`` [B]; vectors of the two directions cancel to ``tolerance`` (Å), and no two images of an atom are as
    close as that.
    """
    sums = vectors.index_select(0, a) + vectors.index_select(0, b)
    same = torch.linalg.vector_norm(sums, dim=1) < tolerance
    return same & (neighbour.index_select(0, a) == centre.index_select(0, b))


def check_reverses(
    found: Tensor, lengths: Tensor, neighbour: Tensor, has_edges: Tensor, cutoff: float, margin: float = 1e-6
) -> None:
    """Raise unless every bond was found in the other direction once.

    A node without any edge is at the rim of a part of a system: its features matter to no atom of this part, and its
    bonds are known in one direction only. At a node with edges, all of them must be there.

    Parameters: ``found`` [B], how often the other direction of each bond was found; ``lengths`` [B] Å, ``neighbour``
    [B]; ``has_edges`` [N] bool; ``cutoff`` of these bonds, Å. A bond within the ``margin`` (Å) of it may be found in
    one direction only, by rounding; its weight vanishes there.
    """
    expected = has_edges.index_select(0, neighbour) & (lengths < cutoff - margin)
    missing = int((expected & (found == 0)).sum().item())
    if missing > 0:
        raise RuntimeError(
            f"the edges are no full neighbour list: {missing} bonds shorter than {cutoff} Å are given in one direction "
            "only, and CHGNet needs both"
        )
    repeated = int((found > 1).sum().item())
    if repeated > 0:
        raise RuntimeError(f"the edges hold {repeated} bonds more than once: give each edge once")
