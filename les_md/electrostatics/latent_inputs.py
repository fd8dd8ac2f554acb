"""Latent variables as callers give them, checked and brought to one shape with the channels of the charges."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from ase.data import atomic_numbers as number_of
from torch import Tensor

from les_md.electrostatics.smeared_multipoles import traceless_symmetric


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


def fixed_charge_table(charges: Mapping[int | str, float], scaling_factor: float) -> Tensor:
    """Charge [119] of each atomic number, e; NaN where none is given.

    Parameters: ``charges`` by atomic number or symbol; ``scaling_factor``, all are multiplied by this.

    Raises
    ------
    ValueError : an unknown element, one named twice, or a charge that is not a finite number.
    """
    if not math.isfinite(scaling_factor):
        raise ValueError(f"fixed_atomic_charges_scaling_factor must be a finite number, got {scaling_factor!r}")
    table = torch.full((119,), math.nan, dtype=torch.float64)
    for element, charge in charges.items():
        number = number_of.get(element, 0) if isinstance(element, str) else int(element)
        if not 1 <= number <= 118:
            raise ValueError(f"fixed_atomic_charges: {element!r} is not an element")
        if not math.isnan(float(table[number])):
            raise ValueError(f"fixed_atomic_charges: {element!r} is given twice")
        if isinstance(charge, bool) or not isinstance(charge, (int, float)) or not math.isfinite(charge):
            raise ValueError(f"fixed_atomic_charges: the charge of {element!r} must be a finite number, got {charge!r}")
        table[number] = scaling_factor * float(charge)
    return table


def fixed_charges_of(atomic_numbers: Tensor, table: Tensor, charges: Tensor) -> Tensor:
    """Fixed charges [N, 1] of atoms, from ``fixed_charge_table``; ``charges`` [N, n_q] say type and number."""
    if atomic_numbers.dim() != 1 or atomic_numbers.size(0) != charges.size(0):
        raise ValueError(f"atomic_numbers must be [{charges.size(0)}], not {list(atomic_numbers.shape)}")
    if charges.size(1) != 1:
        raise ValueError(f"fixed atomic charges need one charge channel, not {charges.size(1)}")
    numbers = atomic_numbers.to(torch.int64)
    if bool(((numbers < 1) | (numbers > 118)).any().item()):
        raise ValueError("atomic_numbers must be between 1 and 118")
    fixed = table.index_select(0, numbers)
    if bool(torch.isnan(fixed).any().item()):
        missing = numbers.index_select(0, torch.isnan(fixed).nonzero()[:, 0])
        raise ValueError(f"fixed_atomic_charges holds no charge for atomic number {int(missing[0].item())}")
    return fixed.to(charges.dtype)[:, None]
