"""A first guess of latent charges, from which training starts.

Energies hold charges only as products, so zero charges are a stationary point of the loss, and small ones grow slowly.
A network may therefore start from charges of the usual sign and size: every bond moves charge to the more
electronegative atom. Training is free to change them, and no labels enter.
"""

from __future__ import annotations

import torch
from ase.data import chemical_symbols
from torch import Tensor

from les_md.architectures.cace_network import CACENetwork
from les_md.electronegativity import ELECTRONEGATIVITY
from les_md.training.bonds import bond_matrix
from les_md.training.dataset import Frame

#: Charge moved along a bond per unit of electronegativity, e: −0.6 e on the oxygen of water.
INCREMENT = 0.25


def bond_increment_charges(frame: Frame, atomic_numbers: tuple[int, ...]) -> Tensor:
    """Charges [N] in e of sum zero: formal charges, and INCREMENT Σ_j b_ij (χ_j − χ_i) over bonded neighbours j.

    χ is the electronegativity; b_ij = 2 for bonds to a heavy atom that has no other neighbour (as in C=O), else 1.

    Raises ValueError for an element without a tabulated electronegativity.
    """
    symbols = [chemical_symbols[z] for z in atomic_numbers]
    missing = [symbol for symbol in symbols if symbol not in ELECTRONEGATIVITY]
    if missing:
        raise ValueError(f"no electronegativity is known for {', '.join(missing)}")
    numbers = torch.tensor(atomic_numbers)[frame.types]
    affinity = torch.tensor([ELECTRONEGATIVITY[symbol] for symbol in symbols], dtype=torch.float64)[frame.types]
    bonds = bond_matrix(frame, numbers)
    terminal = (numbers > 1) & (bonds.sum(1) == 1)
    order = bonds * (1.0 + (terminal[:, None] | terminal[None, :]).double())
    increments = INCREMENT * (order * (affinity[None, :] - affinity[:, None])).sum(1)
    return increments + formal_charges(numbers, bonds)


def formal_charges(numbers: Tensor, bonds: Tensor) -> Tensor:
    """Formal charges [N] of zwitterions, from bonds alone; zeros where those found do not add up to zero.

    −1/2 on each oxygen of a carboxylate; +1 on a nitrogen of four bonds; +1 on the carbon of a guanidinium, amidinium
    or imidazolium: three neighbours, two or three of them nitrogens of three bonds each, no terminal oxygen.
    """
    count = bonds.sum(1)
    oxygen = (numbers == 8) & (count == 1)
    carbon = (numbers == 6) & (count == 3)
    oxygens = bonds @ oxygen.double()
    nitrogens = bonds @ (numbers == 7).double()
    saturated = bonds @ ((numbers == 7) & (count == 3)).double()
    carboxylate = carbon & (oxygens == 2)
    cation = carbon & (saturated >= 2) & (saturated == nitrogens) & (oxygens == 0)
    charges = -0.5 * (oxygen & (bonds @ carboxylate.double() > 0)).double()
    charges += (cation | ((numbers == 7) & (count == 4))).double()
    return charges if float(charges.sum()) == 0.0 else torch.zeros_like(charges)


@torch.no_grad()
def start_from_guess(network: CACENetwork, frames: list[Frame], atomic_numbers: tuple[int, ...]) -> None:
    """Set the linear part of the charge readout to the least-squares fit of the guess on ``frames``.

    The other part of the readout keeps its (small) initial weights. Of several charge channels all start alike.
    """
    captured: list[Tensor] = []
    hook = network.charge_readout.register_forward_pre_hook(lambda _module, inputs: captured.append(inputs[0]))
    guesses = []
    for frame in frames:
        edge_index, offsets = frame.neighbours(network.cutoff)
        vectors = frame.positions[edge_index[1]] - frame.positions[edge_index[0]] + offsets
        network(vectors, edge_index, frame.types)
        guesses.append(bond_increment_charges(frame, atomic_numbers))
    hook.remove()
    features = torch.cat(captured).double()
    mean, deviation = features.mean(0), features.std(0) + 1e-3 * features.std()
    standard = (features - mean) / deviation
    target = torch.cat(guesses)
    offset = target.mean()
    # A ridge: features are many and nearly dependent, and large weights would have to be unlearned.
    normal = standard.T @ standard + 1e-2 * standard.size(0) * torch.eye(standard.size(1), dtype=torch.float64)
    weight = torch.linalg.solve(normal, standard.T @ (target - offset)) / deviation / network.charge_scale
    linear = network.charge_readout.linear
    linear.weight.copy_(weight.to(linear.weight.dtype).expand_as(linear.weight))
    linear.bias.fill_(float(offset / network.charge_scale - (weight * mean).sum()))
