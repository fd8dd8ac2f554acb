"""The parameters of a model's long-range energy: part of the trained model, never a user's free choice."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

#: 1/(2 eps0) in eV Å/e², the constant of models trained since 2026-04.
NORM_FACTOR_2026 = 90.4756
#: The constant compiled into the LES code with which all earlier models were trained.
NORM_FACTOR_BEFORE_2026 = 90.0474


@dataclass(frozen=True)
class LongRangeParameters:
    """Parameters of the Latent Ewald Summation (Cheng, npj Comput. Mater. 11, 80 (2025)).

    Attributes
    ----------
    sigma : width of the Gaussian charges, Å.
    dl : resolution of the reciprocal sum, Å; wave vectors up to 2π/dl are summed.
    norm_factor : the constant C in eV Å/e², see ``docs/theory.md``.
    remove_self_interaction : whether the interaction of each Gaussian with itself is subtracted.
    remove_mean : whether the mean charge is subtracted in the polarisation.
    epsilon_factor : the polarisation is multiplied by the square root of this.

    Raises
    ------
    ValueError : a parameter is not finite, or a length or the constant is not positive.
    """

    sigma: float = 1.0
    dl: float = 2.0
    norm_factor: float = NORM_FACTOR_2026
    remove_self_interaction: bool = True
    remove_mean: bool = True
    epsilon_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sigma", "dl", "norm_factor", "epsilon_factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"long-range parameter {name} must be a positive number, got {value!r}")

    def to_dict(self) -> dict:
        return asdict(self)
