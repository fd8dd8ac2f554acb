"""Windows on a correlation function, and the resolution that they leave."""

from __future__ import annotations

import functools

import numpy as np

# Without scipy, so that the command line can offer them at once. A Gaussian ends at four standard deviations.
WINDOWS = ("hann", "gaussian", "blackman", "parzen", "boxcar")


def lag_window(name: str, num_lags: int) -> np.ndarray:
    """Weights [num_lags + 1] of the lags 0, 1, … num_lags: the falling half of ``scipy.signal.get_window``.

    Raises ValueError for a name that is not in ``WINDOWS``.
    """
    from scipy.signal import get_window

    if name not in WINDOWS:
        raise ValueError(f"the window must be one of {', '.join(WINDOWS)}, not {name!r}")
    shape = ("gaussian", num_lags / 4.0) if name == "gaussian" else name
    return get_window(shape, 2 * num_lags + 1, fftbins=False)[num_lags:]


@functools.cache
def resolution_times_length(name: str) -> float:
    """Full width at half maximum of the window's Fourier transform, times the longest lag; no unit.

    A line that is infinitely sharp has, in the spectrum, this width divided by the longest lag. hann: 1.
    """
    from scipy.optimize import brentq

    num_lags = 2000
    weights = lag_window(name, num_lags)
    weights[1:] *= 2.0
    lags = np.arange(num_lags + 1) / num_lags

    def above_half(frequency: float) -> float:
        return float(weights @ np.cos(2.0 * np.pi * frequency * lags) / weights.sum() - 0.5)

    return 2.0 * brentq(above_half, 0.0, 1.0)
