r"""Infrared absorption from the autocorrelation function of the current J = dM/dt.

Linear response (Gordon, Adv. Magn. Reson. 3, 1 (1968); McQuarrie, Statistical Mechanics, chapter 21) of a classical
isotropic system of volume V, in SI units:

    n(ω) α(ω) = 1/(6 ε₀ c V k_B T) ∫_{−∞}^{∞} ⟨J(0)·J(t)⟩ exp(−iωt) dt

α is the absorption coefficient of the intensity, I = I₀ exp(−α x), n the refractive index, which this
theory does not separate from α. The field that acts is the macroscopic one, so the Ewald sum must have conducting
surroundings. The integral over ω from 0 to ∞ of the one over t is π ⟨J²⟩, so the area of the spectrum is a sum rule:
for particles with fixed charges q and masses m

    ∫₀^∞ n α dω = π/(2 ε₀ c V) Σ q²/m.

With fewer than three components, the mean of ⟨J_a J_a⟩ over those given takes the place of ⟨J·J⟩/3.
``quantum_corrections.py`` has the factors for quantum nuclei.

Estimate
--------
Wiener–Khinchin: the correlation function is the Fourier transform of the power spectrum of the zero-padded
series. Each block of the series gives ⟨J(0)·J(t)⟩ for lags t ≤ L (divided by the number of pairs, so without
bias), which is multiplied with a window that falls to zero at L, and transformed. The result is the mean over the
blocks, its error their standard deviation over √(number of blocks). The window folds the spectrum with its own
transform, whose full width at half maximum is the resolution: K/(c L), K = 1 for ``hann`` (``windows.py``). A block
is at least 2 L long.

Of a dipole moment, differences of neighbouring values are taken, and the exact response of differences,
S_J(ω) = ω² S_M(ω) = S_ΔM(ω) (ω/2)²/sin²(ωΔ/2) with Δ the interval, makes the spectrum of J of theirs. This is the
multiplication with ω² of the spectrum of M − ⟨M⟩, but a window on ⟨M M⟩ would leak the slow part of M, which is by far
its largest, into high frequencies where ω² blows it up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.constants
import scipy.fft
import scipy.signal

from les_md.analysis.quantum_corrections import QUANTUM_CORRECTIONS, relative_to_harmonic
from les_md.analysis.series import DipoleSeries
from les_md.analysis.windows import lag_window, resolution_times_length

CM_PER_PS = scipy.constants.c * 1e2 * 1e-12


@dataclass(frozen=True)
class InfraredSpectrum:
    """n(ω)α(ω) at ``wavenumber`` [K] in cm⁻¹, from 0 on.

    ``intensity`` [K] is in cm⁻¹ where ``absolute``, else, if volume or temperature were not known, it is the power
    spectrum of the current, ∫⟨J_a(0) J_a(t)⟩ cos(ωt) dt averaged over components, times the quantum correction, in
    e² Å²/ps. ``error`` [K]: standard error of the mean over ``blocks``, None for one block. ``resolution``
    and ``nyquist`` in cm⁻¹.
    """

    wavenumber: np.ndarray
    intensity: np.ndarray
    error: np.ndarray | None
    absolute: bool
    resolution: float
    nyquist: float
    blocks: int
    window: str
    quantum_correction: str


def infrared_spectrum(
    series: DipoleSeries,
    *,
    resolution: float = 20.0,
    blocks: int = 5,
    window: str = "hann",
    quantum_correction: str = "harmonic",
    max_wavenumber: float | None = None,
) -> InfraredSpectrum:
    """Infrared spectrum of a series of dipole moment or current; the module's docstring has the theory.

    Parameters
    ----------
    series : volume and temperature of the series give absolute intensities.
    resolution : full width at half maximum, cm⁻¹, of a sharp line.
    blocks : number of parts of the series for the error bars.
    window : one of ``windows.WINDOWS``.
    quantum_correction : one of ``QUANTUM_CORRECTIONS``; ``harmonic`` is the formula above, the others need the
        temperature.
    max_wavenumber : where the result ends, cm⁻¹; default 4000 or, if that is lower, the Nyquist wavenumber
        1/(2 c interval), above which the series knows nothing.

    Raises ValueError where the series is too short for resolution and blocks (with the shortest length), or its
    interval too long for ``max_wavenumber``.
    """
    if quantum_correction not in QUANTUM_CORRECTIONS:
        raise ValueError(
            f"the quantum correction must be one of {', '.join(QUANTUM_CORRECTIONS)}, not {quantum_correction!r}"
        )
    if quantum_correction != "harmonic" and series.temperature is None:
        raise ValueError(f"the quantum correction {quantum_correction!r} needs the temperature")
    interval = series.interval
    nyquist = 0.5 / (CM_PER_PS * interval)
    num_lags = _number_of_lags(series, resolution, blocks, window, nyquist)
    if max_wavenumber is None:
        max_wavenumber = min(4000.0, nyquist)
    elif not 0.0 < max_wavenumber <= nyquist:
        raise ValueError(
            f"the highest wavenumber must be above 0 and, for values every {1e3 * interval:g} fs, at most "
            f"{nyquist:.0f} cm⁻¹ (Nyquist), got {max_wavenumber:g}. For more, record the series more often: at least "
            f"every {1e3 * 0.5 / (CM_PER_PS * abs(max_wavenumber) or np.inf):.3g} fs"
        )
    values = series.values if series.quantity == "current" else np.diff(series.values, axis=0) / interval
    weights = lag_window(window, num_lags)
    correlations = [autocorrelation(block, num_lags) for block in _equal_blocks(values, blocks)]
    # A grid at least five times finer than the resolution, so that plots show the lines as they are.
    # Even, so that the Nyquist wavenumber is on it.
    length = 2 * scipy.fft.next_fast_len(max(num_lags + 1, int(np.ceil(5.0 * nyquist / resolution))))
    power = np.array([cosine_transform(weights * correlation, interval, length) for correlation in correlations])
    wavenumber = scipy.fft.rfftfreq(length, interval) / CM_PER_PS
    shown = wavenumber <= max_wavenumber * (1.0 + 1e-12)
    wavenumber, power = wavenumber[shown], power[:, shown]
    angular = 2.0 * np.pi * CM_PER_PS * wavenumber  # 1/ps
    if series.quantity == "dipole":
        power = power / np.sinc(angular * interval / (2.0 * np.pi)) ** 2
    absolute = series.volume is not None and series.temperature is not None
    factor = absorption_prefactor(series.volume, series.temperature) if absolute else 1.0
    if quantum_correction != "harmonic":
        factor = factor * relative_to_harmonic(quantum_correction, angular, series.temperature)
    power = power * factor
    return InfraredSpectrum(
        wavenumber=wavenumber,
        intensity=power.mean(0),
        error=power.std(0, ddof=1) / np.sqrt(blocks) if blocks > 1 else None,
        absolute=absolute,
        resolution=resolution_times_length(window) / (CM_PER_PS * num_lags * interval),
        nyquist=nyquist,
        blocks=blocks,
        window=window,
        quantum_correction=quantum_correction,
    )


def peaks(spectrum: InfraredSpectrum, prominence: float = 0.05) -> np.ndarray:
    """Wavenumbers of the maxima that stand out by ``prominence`` of the highest intensity, ascending, cm⁻¹.

    Between grid points, the position is that of the parabola through the three highest ones.
    """
    y = spectrum.intensity
    found, _ = scipy.signal.find_peaks(y, prominence=prominence * y.max())
    left, middle, right = y[found - 1], y[found], y[found + 1]
    offset = 0.5 * (left - right) / (left - 2.0 * middle + right)
    return spectrum.wavenumber[found] + offset * (spectrum.wavenumber[1] - spectrum.wavenumber[0])


def autocorrelation(values: np.ndarray, num_lags: int) -> np.ndarray:
    """⟨x_a(0) x_a(t)⟩ [num_lags + 1] of ``values`` [N, d], averaged over pairs and components, by FFT.

    The mean is not taken away.
    """
    length = scipy.fft.next_fast_len(len(values) + num_lags, real=True)
    power = np.abs(scipy.fft.rfft(values, length, axis=0)) ** 2
    sums = scipy.fft.irfft(power.mean(1), length)[: num_lags + 1]
    return sums / (len(values) - np.arange(num_lags + 1))


def cosine_transform(correlation: np.ndarray, interval: float, length: int) -> np.ndarray:
    """∫ C(t) exp(−iωt) dt, for both signs of t, [length // 2 + 1] of ``correlation`` at lags 0, 1, …; zero-padded."""
    even = np.zeros(length)
    even[: len(correlation)] = correlation
    even[length - len(correlation) + 1 :] = correlation[:0:-1]
    return scipy.fft.rfft(even).real * interval


def absorption_prefactor(volume: float, temperature: float) -> float:
    """n α in cm⁻¹ for one e² Å²/ps of ∫⟨J_a(0) J_a(t)⟩ cos(ωt) dt, a volume in Å³ and a temperature in K."""
    spectral_density = scipy.constants.e**2 * (1e-10 / 1e-12) ** 2 * 1e-12  # SI
    thermal = scipy.constants.k * temperature * volume * 1e-30
    return 1e-2 * spectral_density / (2.0 * scipy.constants.epsilon_0 * scipy.constants.c * thermal)


def _equal_blocks(values: np.ndarray, blocks: int) -> np.ndarray:
    """[blocks, N // blocks, d]; of the remainder, the first values are left out."""
    size = len(values) // blocks
    return values[len(values) - blocks * size :].reshape(blocks, size, -1)


def _number_of_lags(series: DipoleSeries, resolution: float, blocks: int, window: str, nyquist: float) -> int:
    if blocks < 1:
        raise ValueError(f"the number of blocks must be at least 1, got {blocks}")
    if not 0.0 < resolution <= nyquist / 4.0:
        raise ValueError(
            f"the resolution must be above 0 and at most a quarter of the Nyquist wavenumber, {nyquist / 4.0:.0f} cm⁻¹ "
            f"for values every {1e3 * series.interval:g} fs, got {resolution:g}"
        )
    constant = resolution_times_length(window) / CM_PER_PS  # ps cm⁻¹
    num_lags = int(np.ceil(constant / (resolution * series.interval) - 1e-9))
    available = len(series.values) - (series.quantity == "dipole")
    if available // blocks < 2 * num_lags:
        needed = blocks * 2 * num_lags * series.interval
        finest = constant / (available // blocks // 2 * series.interval) if available >= 2 * blocks else np.inf
        fewer = available // (2 * num_lags)
        raise ValueError(
            f"a series of {series.duration:.4g} ps is too short for a resolution of {resolution:g} cm⁻¹ in {blocks} "
            f"block(s): the shortest is {needed:.4g} ps. With this series {blocks} block(s) allow "
            f"{1.005 * finest:.3g} cm⁻¹"
            + (f", {fewer} block(s) allow {resolution:g} cm⁻¹" if fewer else "")
            + " (--resolution, --blocks)"
        )
    return num_lags
