"""Latent variables as callers give them, checked and brought to one shape with the channels of the charges."""

from __future__ import annotations

import torch
from torch import Tensor

from les_md.electrostatics.latent_layout import QUADRUPOLE_COMPONENTS, LatentLayout
from les_md.electrostatics.smeared_multipoles import traceless_symmetric


def les_inputs(latent: Tensor, layout: LatentLayout) -> dict[str, Tensor]:
    """Arguments of ``les_md.Les`` from the columns [N, ``layout.num_columns``] that a network returns.

    Raises ValueError if the number of columns is another.
    """
    if latent.dim() != 2 or latent.size(1) != layout.num_columns:
        raise ValueError(f"latent variables must be [N, {layout.num_columns}], not {list(latent.shape)}")
    n_q = layout.num_charges
    widths = {
        "latent_charges": n_q,
        "latent_dipoles": 3 * n_q * layout.dipoles,
        "latent_quadrupoles": 6 * n_q * layout.quadrupoles,
        "latent_kappas": n_q * layout.kappas,
        "latent_alphas": n_q * layout.alphas,
    }
    parts = dict(zip(widths, torch.split(latent, list(widths.values()), dim=1), strict=True))
    inputs = {name: part for name, part in parts.items() if name == "latent_charges" or widths[name] > 0}
    if layout.dipoles:
        inputs["latent_dipoles"] = parts["latent_dipoles"].unflatten(1, (n_q, 3))
    if layout.quadrupoles:
        column = {pair: i for i, pair in enumerate(QUADRUPOLE_COMPONENTS)}
        order = [column[min(a, b), max(a, b)] for a in range(3) for b in range(3)]
        six = parts["latent_quadrupoles"].unflatten(1, (n_q, 6))
        inputs["latent_quadrupoles"] = six[:, :, order].unflatten(2, (3, 3))
    return inputs


def vectors_of_channels(dipoles: Tensor, charges: Tensor) -> Tensor:
    """Dipoles [N, 3] or [N, n_q, 3] as [N, n_q, 3]; ``charges`` [N, n_q]."""
    if dipoles.dim() == 2:
        dipoles = dipoles[:, None, :]
    if dipoles.dim() != 3 or dipoles.size(2) != 3:
        raise ValueError(f"latent_dipoles must be [N, 3] or [N, n_q, 3], not {list(dipoles.shape)}")
    check_atomic_values("latent_dipoles", dipoles, charges)
    return dipoles


def quadrupoles_of_channels(quadrupoles: Tensor, charges: Tensor) -> Tensor:
    """Symmetric traceless part [N, n_q, 3, 3] of quadrupoles [N, 3, 3] or [N, n_q, 3, 3]; ``charges`` [N, n_q]."""
    if quadrupoles.dim() == 3:
        quadrupoles = quadrupoles[:, None]
    if quadrupoles.dim() != 4 or quadrupoles.size(2) != 3 or quadrupoles.size(3) != 3:
        raise ValueError(f"latent_quadrupoles must be [N, 3, 3] or [N, n_q, 3, 3], not {list(quadrupoles.shape)}")
    check_atomic_values("latent_quadrupoles", quadrupoles, charges)
    return traceless_symmetric(quadrupoles)


def scalars_of_channels(name: str, values: Tensor, charges: Tensor) -> Tensor:
    """κ or α, [N] or [N, n_q], as [N, n_q]; ``charges`` [N, n_q]. Tensors are refused."""
    if values.dim() == 1:
        values = values[:, None]
    if values.dim() != 2:
        raise ValueError(
            f"{name} must be [N] or [N, n_q], not {list(values.shape)}: isotropic values are taken, tensors are not"
        )
    check_atomic_values(name, values, charges)
    return values


def check_atomic_values(name: str, values: Tensor, charges: Tensor) -> None:
    """Raise ValueError unless ``values`` [N, n_q, ...] has atoms, channels and type of ``charges`` [N, n_q]."""
    if values.size(0) != charges.size(0) or values.size(1) != charges.size(1):
        raise ValueError(
            f"{name} has {values.size(0)} atoms and {values.size(1)} channels, the charges have {charges.size(0)} "
            f"and {charges.size(1)}"
        )
    if values.dtype != charges.dtype:
        raise ValueError(f"{name} ({values.dtype}) must have the type of the charges ({charges.dtype})")


def field_of_configurations(field: Tensor, num_configurations: int, charges: Tensor) -> Tensor:
    """External field [3] or [B, 3] as [B, 3]."""
    if field.dim() == 1:
        field = field[None, :]
    if field.dim() != 2 or field.size(1) != 3 or (field.size(0) != 1 and field.size(0) != num_configurations):
        raise ValueError(f"external_field must be [3] or [{num_configurations}, 3], not {list(field.shape)}")
    if field.dtype != charges.dtype:
        raise ValueError(f"external_field ({field.dtype}) must have the type of the charges ({charges.dtype})")
    return field.expand(num_configurations, 3)
