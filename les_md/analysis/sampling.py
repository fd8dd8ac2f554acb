"""How many independent values correlated series hold, and errors of means and variances that stand when they are few.

Series of one process (the same variance and correlation function, each with a mean of its own) are taken together:
from one short series neither can be told. The covariance c(t) is averaged over all series and components, with the
part put back that the subtraction of each mean takes away: c(t) + σ² 2τ/T, solved together with

    τ = ½ + Σ_t c(t)/σ²        (up to the first lag above 5 τ; Sokal, Functional Integration (1997), p. 131)

A series of length T holds n = T/(2τ) independent values; its mean has the standard error σ/√n, times Student's t of
the degrees of freedom that σ² is known with, Σ (n − 1) over all series and components, for an interval that holds the
truth in 68 % of the cases. A series shorter than a few correlation times does not show how long they are: its τ is a
lower bound, and ``is_long`` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from les_md.analysis.infrared import autocorrelation

# Probability of one standard deviation of a normal distribution, from one side.
_ONE_SIGMA = 0.8413447460685429
# Part of the variance that may be put back for the means at most: with more, nothing is known.
_LARGEST_CORRECTION = 0.7
# Of the equations for c and τ. Long series are done after three; with short ones the solution runs away, and with this
# many the intervals hold the truth as often as they say, for series from three correlation times on (a test).
_PASSES = 8


@dataclass(frozen=True)
class Sampling:
    """What a set of series of one process tells of its variance and its correlation.

    ``correlation_time`` (intervals), ``variance`` (of one component), ``independent`` [K]: how many independent values
    each series holds; ``freedom``: degrees of freedom of the variance.
    """

    correlation_time: float
    variance: float
    independent: np.ndarray
    freedom: float

    @property
    def is_long(self) -> bool:
        """Whether every series is at least twenty correlation times long."""
        return bool((self.independent >= 10.0).all())

    def error_of_mean(self, series: int) -> float:
        """Half of the interval about the mean of a component of this series that holds the truth in 68 of 100 cases.

        Infinite where no series is longer than two correlation times.
        """
        return self.student * float(np.sqrt(self.variance / self.independent[series]))

    @property
    def variance_error(self) -> float:
        """Standard error of the variance; on the safe side, since squares lose their correlation sooner."""
        return self.variance * float(np.sqrt(2.0 / self.freedom)) if self.freedom > 0.0 else float("inf")

    @property
    def student(self) -> float:
        """Student's t for the interval: 1 for many independent values."""
        return float(stats.t.ppf(_ONE_SIGMA, self.freedom)) if self.freedom > 0.0 else float("inf")


def sampling(series: list[np.ndarray]) -> Sampling:
    """Take series [N_k, d] of one process together; intervals and d are the same for all.

    Raises ValueError for no series, fewer than four values in one, or values that do not change.
    """
    if not series or any(values.ndim != 2 or len(values) < 4 for values in series):
        raise ValueError("correlated series need at least four values each")
    components = series[0].shape[1]
    lags = max(len(values) for values in series) // 2
    sums, counts = np.zeros(lags + 1), np.zeros(lags + 1)
    for values in series:
        mine = len(values) // 2 + 1
        numbers = components * (len(values) - np.arange(mine))
        sums[:mine] += numbers * autocorrelation(values - values.mean(0), mine - 1)
        counts[:mine] += numbers
    covariance = sums / counts
    if not covariance[0] > 0.0:
        raise ValueError("the values do not change")
    lengths = np.array([len(values) for values in series], dtype=float)
    mean_length = float(lengths.mean())
    correlation = covariance / covariance[0]
    time, missing = _integral(correlation), 0.0
    for _ in range(_PASSES):
        missing = min(2.0 * time / mean_length, _LARGEST_CORRECTION)
        time = _integral((1.0 - missing) * correlation + missing)
    correlation = (1.0 - missing) * correlation + missing
    independent = np.minimum(lengths / (2.0 * time), lengths)
    freedom = float(components * np.maximum(independent - 1.0, 0.0).sum())
    return Sampling(
        correlation_time=time,
        variance=float(covariance[0] / (1.0 - missing)),
        independent=independent,
        freedom=freedom,
    )


def _integral(correlation: np.ndarray) -> float:
    sums = np.cumsum(correlation) - 0.5
    end = np.flatnonzero(np.arange(len(sums)) >= 5.0 * sums)
    return max(0.5, float(sums[end[0] if len(end) else -1]))
