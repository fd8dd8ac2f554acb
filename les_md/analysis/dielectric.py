r"""Static dielectric constant from the fluctuations of the dipole moment.

For a periodic system whose Ewald sum has conducting surroundings ("tin foil": the term k = 0 is left out, as in
every LES model), in SI units (de Leeuw, Perram, Smith, Proc. R. Soc. A 373, 27 (1980); Neumann, Mol. Phys. 50, 841
(1983)):

    ε = ε_∞ + (⟨M²⟩ − ⟨M⟩²)/(3 ε₀ V k_B T)

With fewer than three components, the mean variance of those given takes the place of the third of the whole. ε_∞ is
the response of the electrons at fixed nuclei, which is not in the trajectory: 1 unless given (water: 1.8).

A current is integrated (trapezoids) to M(t) − M(0), whose variance is that of M. M must be continuous: molecules are
not wrapped. With mobile ions M diffuses, and what comes out grows with the length of the series: it is no dielectric
constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.constants
from scipy.integrate import cumulative_trapezoid

from les_md.analysis.infrared import autocorrelation
from les_md.analysis.series import DipoleSeries


@dataclass(frozen=True)
class DielectricConstant:
    """``value`` and its standard ``error`` by leaving one of ``blocks`` out at a time (jackknife).

    ``running_time`` [K] (ps, from the start of the series) and ``running`` [K]: the value from the series up to that
    time. ``correlation_time`` (ps): integral of the normalised autocorrelation function of M. The variance of a
    series of length T is too low by the fraction 2 ``correlation_time``/T, and the error is meaningful where a block
    is several correlation times long.
    """

    value: float
    error: float
    blocks: int
    block_length: float
    correlation_time: float
    running_time: np.ndarray
    running: np.ndarray

    @property
    def is_converged(self) -> bool:
        """Whether each block is at least five correlation times long."""
        return self.block_length >= 5.0 * self.correlation_time


def dielectric_constant(
    series: DipoleSeries, *, blocks: int = 10, electronic: float = 1.0, num_running: int = 1000
) -> DielectricConstant:
    """Dielectric constant from a series of dipole moment or current, which must know volume and temperature.

    Parameters
    ----------
    blocks : number of blocks for the error, at least 2.  electronic : ε_∞.
    num_running : about how many points the running estimate has.

    Raises ValueError where volume or temperature are not known, or the series has fewer than ten values per block.
    """
    for name in ("volume", "temperature"):
        if getattr(series, name) is None:
            raise ValueError(f"a dielectric constant needs the {name} (--{name})")
    if blocks < 2:
        raise ValueError(f"the number of blocks must be at least 2, got {blocks}")
    if not (np.isfinite(electronic) and electronic >= 1.0):
        raise ValueError(f"ε_∞ must be at least 1, got {electronic}")
    if len(series.values) < 10 * blocks:
        raise ValueError(
            f"{len(series.values)} values are too few for {blocks} blocks: at least {10 * blocks} are needed"
        )
    moment = series.values
    if series.quantity == "current":
        moment = cumulative_trapezoid(moment, dx=series.interval, axis=0, initial=0.0)
    moment = moment - moment.mean(0)  # for the digits; variances do not change
    factor = susceptibility_prefactor(series.volume, series.temperature)

    count = np.arange(1, len(moment) + 1)[:, None]
    variance = np.cumsum(moment**2, axis=0) / count - (np.cumsum(moment, axis=0) / count) ** 2
    shown = np.unique(np.linspace(1, len(moment) - 1, min(num_running, len(moment) - 1)).round().astype(int))

    size = len(moment) // blocks
    parts = moment[len(moment) - blocks * size :].reshape(blocks, size, -1)
    sums, squares = parts.sum(1), (parts**2).sum(1)
    rest = (blocks - 1) * size
    left_out = ((squares.sum(0) - squares) / rest - ((sums.sum(0) - sums) / rest) ** 2).mean(1) * factor
    return DielectricConstant(
        value=float(electronic + factor * variance[-1].mean()),
        error=float(np.sqrt((blocks - 1) * left_out.var())),
        blocks=blocks,
        block_length=size * series.interval,
        correlation_time=correlation_time(moment) * series.interval,
        running_time=series.start + series.interval * shown,
        running=electronic + factor * variance[shown].mean(1),
    )


def susceptibility_prefactor(volume: float, temperature: float) -> float:
    """ε − ε_∞ for one e² Å² of the variance of a component of M, a volume in Å³ and a temperature in K."""
    return (
        (scipy.constants.e * 1e-10) ** 2
        / (scipy.constants.epsilon_0 * volume * 1e-30 * scipy.constants.k * temperature)
    )  # fmt: skip


def correlation_time(moment: np.ndarray) -> float:
    """Integrated correlation time of ``moment`` [N, d] (mean 0), in intervals.

    The sum ½ + Σ ρ(t) ends at the first lag above five times its value (Sokal, Functional Integration (1997), p. 131),
    where noise begins to outweigh what is left of ρ. 0 for a constant, and where vibrations cancel it.
    """
    correlation = autocorrelation(moment, len(moment) // 2)
    if correlation[0] <= 0.0:
        return 0.0
    sums = np.cumsum(correlation / correlation[0]) - 0.5
    end = np.flatnonzero(np.arange(len(sums)) >= 5.0 * sums)
    return max(0.0, float(sums[end[0] if len(end) else -1]))
