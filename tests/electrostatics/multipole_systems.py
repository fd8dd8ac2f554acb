"""Random latent variables beyond charges, and the same sources as clouds of charges, for the tests."""

from __future__ import annotations

import numpy as np
import torch

from les_md.electrostatics import LatentEwald
from les_md.electrostatics.latent_layout import QUADRUPOLE_COMPONENTS, LatentLayout

ALL = LatentLayout(2, dipoles=True, quadrupoles=True, kappas=True, alphas=True)
PERMANENT = LatentLayout(2, dipoles=True, quadrupoles=True)

#: Every kind of latent variable with and without the others.
LAYOUTS = {
    "dipoles": LatentLayout(2, dipoles=True),
    "quadrupoles": LatentLayout(2, quadrupoles=True),
    "both": PERMANENT,
    "kappas": LatentLayout(2, kappas=True),
    "alphas": LatentLayout(2, alphas=True),
    "quadrupoles and alphas": LatentLayout(2, quadrupoles=True, alphas=True),
    "dipoles and kappas": LatentLayout(2, dipoles=True, kappas=True),
    "all": ALL,
}


def tensors(components: np.ndarray) -> np.ndarray:
    """[..., 6] → [..., 3, 3]."""
    result = np.zeros((*components.shape[:-1], 3, 3))
    for m, (a, b) in enumerate(QUADRUPOLE_COMPONENTS):
        result[..., a, b] = result[..., b, a] = components[..., m]
    return result


def components(tensor: np.ndarray) -> np.ndarray:
    """[..., 3, 3] → [..., 6]."""
    return np.stack([tensor[..., a, b] for a, b in QUADRUPOLE_COMPONENTS], axis=-1)


def random_latent(num_atoms: int, layout: LatentLayout, seed: int = 1) -> torch.Tensor:
    """[N, num_columns]: charges, dipoles, traceless quadrupoles of order 1, κ and α such that the response is small."""
    generator = np.random.default_rng(seed)
    n = layout.num_charges
    tensor = generator.normal(size=(num_atoms, n, 3, 3))
    tensor = 0.5 * (tensor + tensor.swapaxes(2, 3))
    tensor -= np.trace(tensor, axis1=2, axis2=3)[..., None, None] / 3.0 * np.eye(3)
    parts = [generator.normal(size=(num_atoms, n)), generator.normal(size=(num_atoms, 3 * n))]
    parts.append(components(tensor).reshape(num_atoms, 6 * n))
    parts += [generator.uniform(0.0, 0.01, (num_atoms, n)), generator.uniform(0.0, 0.02, (num_atoms, n))]
    wanted = (True, layout.dipoles, layout.quadrupoles, layout.kappas, layout.alphas)
    return torch.tensor(np.concatenate([part for part, keep in zip(parts, wanted, strict=True) if keep], axis=1))


def split(latent: np.ndarray, layout: LatentLayout) -> tuple[np.ndarray, ...]:
    """Charges [N, n], dipoles [N, n, 3], quadrupoles [N, n, 3, 3], κ and α [N, n], zero where there are none."""
    n, count = layout.num_charges, len(latent)
    sizes = (n, 3 * n, 6 * n, n, n)
    kept = (True, layout.dipoles, layout.quadrupoles, layout.kappas, layout.alphas)
    parts, at = [], 0
    for size, keep in zip(sizes, kept, strict=True):
        parts.append(latent[:, at : at + size] if keep else np.zeros((count, size)))
        at += size if keep else 0
    q, u, quadrupoles, kappa, alpha = parts
    return q, u.reshape(count, n, 3), tensors(quadrupoles.reshape(count, n, 6)), kappa, alpha


def rotated(latent: torch.Tensor, layout: LatentLayout, rotation: np.ndarray) -> torch.Tensor:
    """Latent variables of a structure whose positions are turned, r → r @ rotation."""
    q, u, quadrupoles, kappa, alpha = split(latent.numpy(), layout)
    turned = components(np.einsum("xa,ncxy,yb->ncab", rotation, quadrupoles, rotation))
    parts = (q, (u @ rotation).reshape(len(q), -1), turned.reshape(len(q), -1), kappa, alpha)
    kept = (True, layout.dipoles, layout.quadrupoles, layout.kappas, layout.alphas)
    return torch.tensor(np.concatenate([part for part, keep in zip(parts, kept, strict=True) if keep], axis=1))


def as_charges(positions: torch.Tensor, latent: torch.Tensor, layout: LatentLayout, step: float):
    """Positions and charges, finite differences of steps ``step`` Å, with the same multipoles of one channel."""
    q, u, quadrupoles, _kappa, _alpha = (part[:, 0] for part in split(latent.numpy(), layout))
    places, charges = [positions.numpy()], [q.copy()]
    for a in range(3):
        shift = step * np.eye(3)[a]
        for sign in (-1.0, 1.0):
            places.append(positions.numpy() + sign * shift)
            charges.append(sign * u[:, a] / (2.0 * step) + 0.5 * quadrupoles[:, a, a] / step**2)
        charges[0] -= quadrupoles[:, a, a] / step**2
    for a, b in QUADRUPOLE_COMPONENTS[3:]:
        for first, second in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):
            places.append(positions.numpy() + step * (first * np.eye(3)[a] + second * np.eye(3)[b]))
            charges.append(first * second * quadrupoles[:, a, b] / (4.0 * step**2))
    return torch.tensor(np.concatenate(places)), torch.tensor(np.concatenate(charges))[:, None]


def energy_of_charges(parameters, positions, latent, layout, cell, slab: bool = False) -> float:
    """The energy of ``as_charges`` by the charges' own sum, self-interaction kept, extrapolated to steps of zero."""
    module = LatentEwald(parameters)
    energies = []
    for step in (0.02, 0.04):
        places, charges = as_charges(positions, latent, layout, step)
        kspace = module.plan(cell, cell, torch.zeros(2, 3).double(), len(places), "ewald", 1e-5, slab)
        energies.append(float(module(places, charges, kspace)[0].sum()))
    return (4.0 * energies[0] - energies[1]) / 3.0
