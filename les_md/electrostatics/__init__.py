"""Electrostatics of latent charges: every formula of the long-range energy lives here."""

from les_md.electrostatics.latent_ewald import LatentEwald
from les_md.electrostatics.parameters import (
    NORM_FACTOR_2026,
    NORM_FACTOR_BEFORE_2026,
    LongRangeParameters,
)

__all__ = [
    "NORM_FACTOR_2026",
    "NORM_FACTOR_BEFORE_2026",
    "LatentEwald",
    "LongRangeParameters",
]
