"""Fixed charges of the elements, to which latent charges are added."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from ase.data import atomic_numbers as number_of
from torch import Tensor


class FixedAtomicCharges(torch.nn.Module):
    """Adds the charge of its element to each atom's.

    Parameters: ``charges`` in e, by atomic number or symbol; ``scaling_factor``, all are multiplied by this.

    Raises
    ------
    ValueError : an unknown element, one given twice, or a charge that is not a finite number.
    """

    def __init__(self, charges: Mapping[int | str, float], scaling_factor: float = 1.0) -> None:
        super().__init__()
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
                raise ValueError(
                    f"fixed_atomic_charges: the charge of {element!r} must be a finite number, got {charge!r}"
                )
            table[number] = scaling_factor * float(charge)
        self.register_buffer("table", table, persistent=False)

    def forward(self, charges: Tensor, atomic_numbers: Tensor) -> Tensor:
        """Charges [N, 1] with those of the elements.

        Raises ValueError for several channels, numbers that do not fit, or an element without a charge.
        """
        if atomic_numbers.dim() != 1 or atomic_numbers.size(0) != charges.size(0):
            raise ValueError(f"atomic_numbers must be [{charges.size(0)}], not {list(atomic_numbers.shape)}")
        if charges.size(1) != 1:
            raise ValueError(f"fixed atomic charges need one charge channel, not {charges.size(1)}")
        numbers = atomic_numbers.to(torch.int64)
        if bool(((numbers < 1) | (numbers > 118)).any().item()):
            raise ValueError("atomic_numbers must be between 1 and 118")
        fixed = self.table.index_select(0, numbers)
        if bool(torch.isnan(fixed).any().item()):
            missing = numbers.index_select(0, torch.isnan(fixed).nonzero()[:, 0])
            raise ValueError(f"fixed_atomic_charges holds no charge for atomic number {int(missing[0].item())}")
        return charges + fixed.to(charges.dtype)[:, None]
