"""The infrared spectrum against oscillators whose spectrum is known, sum rules, and finite correlation functions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.constants as si
import scipy.integrate

from les_md.analysis.infrared import (
    CM_PER_PS,
    absorption_prefactor,
    autocorrelation,
    cosine_transform,
    infrared_spectrum,
    peaks,
)
from les_md.analysis.quantum_corrections import QUANTUM_CORRECTIONS, relative_to_harmonic
from les_md.analysis.series import DipoleSeries
from les_md.analysis.windows import WINDOWS, lag_window, resolution_times_length
from tests.analysis.oscillators import Line, gas

VOLUME, TEMPERATURE = 1500.0, 300.0
LINES = [Line(700.0, 6.0, 0.5, 2.0), Line(1650.0, 8.0, 0.8, 3.0), Line(3400.0, 12.0, 1.0, 1.0)]


@pytest.fixture(scope="module")
def three_lines():
    """Dipole moment and current of three kinds of oscillators, 200 ps."""
    return gas(LINES, temperature=TEMPERATURE, volume=VOLUME, length=100_000)


def expected_spectrum(spectrum, interval):
    """What the estimate must give on average: the transform of the exact correlation function under the window."""
    num_lags = round(resolution_times_length(spectrum.window) / (CM_PER_PS * spectrum.resolution * interval))
    time = interval * np.arange(num_lags + 1)
    exact = sum(line.charge**2 * line.velocity_correlation(time, TEMPERATURE) for line in LINES)
    weighted = exact * lag_window(spectrum.window, num_lags) * np.where(time > 0.0, 2.0, 1.0)
    angular = 2.0 * np.pi * CM_PER_PS * spectrum.wavenumber
    # SI by hand, not by the product's factor.
    density = interval * np.cos(np.outer(angular, time)) @ weighted * si.e**2 * 1e-8
    return 1e-2 * density / (2.0 * si.epsilon_0 * si.c * VOLUME * 1e-30 * si.k * TEMPERATURE)


@pytest.mark.parametrize("window", ["hann", "gaussian", "parzen"])
def test_absolute_spectrum_within_its_error_bars(window, three_lines):
    """Unbiased, and with errors of the right size: deviations have the standard deviation of Student's t."""
    _, current = three_lines
    spectrum = infrared_spectrum(current, resolution=25.0, blocks=20, window=window)
    assert spectrum.absolute
    deviation = (spectrum.intensity - expected_spectrum(spectrum, current.interval)) / spectrum.error
    assert 0.85 < np.sqrt(np.mean(deviation**2)) < 1.25
    assert abs(deviation.mean()) < 0.25


@pytest.mark.parametrize("route", [0, 1], ids=["dipole", "current"])
def test_positions_widths_and_heights(route, three_lines):
    spectrum = infrared_spectrum(three_lines[route], resolution=12.0, blocks=5)
    assert peaks(spectrum) == pytest.approx([line.wavenumber for line in LINES], abs=6.0)
    for line in LINES:
        # A Lorentzian of full width γ/(2πc) holds 1/π · 2 arctan(2) of its area within twice that width.
        width = line.damping / (2.0 * np.pi * CM_PER_PS)
        near = np.abs(spectrum.wavenumber - line.wavenumber) <= width
        area = scipy.integrate.trapezoid(spectrum.intensity[near], spectrum.wavenumber[near])
        total = strength(line.charge**2 / line.mass)
        assert area / total == pytest.approx(2.0 / np.pi * np.arctan(2.0), rel=0.08)


def strength(charge_squared_by_mass: float) -> float:
    """∫ n α dν̃ in cm⁻² of Σ q²/m = ``charge_squared_by_mass`` e² mol/g in VOLUME: the sum rule, in SI."""
    by_mass = si.e**2 * charge_squared_by_mass / (1e-3 / si.N_A)
    per_angular = np.pi / 2.0 * by_mass / (si.epsilon_0 * si.c * VOLUME * 1e-30)  # rad/s/m
    return per_angular / (2.0 * np.pi * si.c) * 1e-4


def test_sum_rule(three_lines):
    """∫ n α dω = π/(2 ε₀ c V) Σ q²/m: exactly for the ⟨J²⟩ of the series, and within sampling for equipartition."""
    _, current = three_lines
    spectrum = infrared_spectrum(current, resolution=20.0, blocks=4, max_wavenumber=0.5 / CM_PER_PS / current.interval)
    area = scipy.integrate.trapezoid(spectrum.intensity, spectrum.wavenumber)
    expected = strength(sum(line.charge**2 / line.mass for line in LINES))
    assert area == pytest.approx(expected, rel=0.02)
    equipartition = sum(line.charge**2 * line.mean_square_velocity(TEMPERATURE) for line in LINES)
    assert area == pytest.approx(expected * (current.values**2).mean() / equipartition, rel=1e-10)


def test_parseval():
    """The power spectrum of the whole correlation function integrates to ⟨x²⟩, at any zero padding."""
    values = np.random.default_rng(2).normal(size=(300, 3))
    correlation = autocorrelation(values, 299)
    for length in (600, 1024):
        power = cosine_transform(correlation, 0.5, length)
        both_signs = np.concatenate([power, power[1:-1]])
        assert both_signs.sum() / (0.5 * length) == pytest.approx((values**2).mean(), rel=1e-12)


def test_correlation_function_pair_by_pair():
    values = np.random.default_rng(3).normal(size=(57, 2)) + 1.0
    direct = [np.mean([values[i] * values[i + lag] for i in range(57 - lag)]) for lag in range(21)]
    assert autocorrelation(values, 20) == pytest.approx(np.array(direct), rel=1e-12)


def test_dipole_and_current_agree():
    """Of a hundred vibrations that fade in and out together, so that both series are zero at their ends."""
    rng = np.random.default_rng(4)
    time, duration = 0.002 * np.arange(25_001)[:, None], 50.0
    fade, fade_rate = np.sin(np.pi * time / duration) ** 2, np.pi / duration * np.sin(2.0 * np.pi * time / duration)
    moment, current = np.zeros((25_001, 3)), np.zeros((25_001, 3))
    for wavenumber in rng.uniform(50.0, 3900.0, 100):
        frequency, phase = 2.0 * np.pi * CM_PER_PS * wavenumber, rng.uniform(0.0, 2.0 * np.pi, 3)
        wave, rate = np.sin(frequency * time + phase) / frequency, np.cos(frequency * time + phase)
        moment += fade * wave
        current += fade * rate + fade_rate * wave
    from_moment = infrared_spectrum(DipoleSeries("dipole", moment + 5.0, 0.002), resolution=10.0, blocks=1)
    from_current = infrared_spectrum(DipoleSeries("current", current, 0.002), resolution=10.0, blocks=1)
    difference = np.abs(from_moment.intensity - from_current.intensity).max()
    assert difference < 3e-4 * from_current.intensity.max()


def test_slow_dipole_does_not_leak():
    """A slow dipole a thousand times larger than the vibration leaves the vibration's line as it is."""
    moment, _ = gas([Line(3400.0, 5.0, 1.0, 1.0)], length=20_000)
    time = moment.interval * np.arange(20_000)
    slow = 1e3 * moment.values.std() * np.sin(2.0 * np.pi * time[:, None] / 29.0 + np.arange(3))
    both = DipoleSeries("dipole", moment.values + slow, moment.interval)
    alone, disturbed = (infrared_spectrum(series, resolution=20.0) for series in (moment, both))
    band = alone.wavenumber > 3000.0
    difference = np.abs(alone.intensity - disturbed.intensity)[band].max()
    assert difference < 1e-3 * alone.intensity.max()


@pytest.mark.parametrize("window", WINDOWS)
def test_resolution_is_the_width_of_a_sharp_line(window):
    time = 0.002 * np.arange(40_000)
    wave = np.cos(2.0 * np.pi * CM_PER_PS * 1000.0 * time)[:, None]
    spectrum = infrared_spectrum(DipoleSeries("current", wave, 0.002), resolution=15.0, blocks=1, window=window)
    half = spectrum.intensity.max() / 2.0
    above = np.flatnonzero(spectrum.intensity > half)
    grid, values = spectrum.wavenumber, spectrum.intensity

    def crossing(inside, outside):
        return grid[inside] + (values[inside] - half) / (values[inside] - values[outside]) * (
            grid[outside] - grid[inside]
        )

    width = crossing(above[-1], above[-1] + 1) - crossing(above[0], above[0] - 1)
    assert spectrum.error is None
    assert width == pytest.approx(15.0, rel=0.03)
    assert spectrum.resolution == pytest.approx(15.0, rel=0.01)
    assert peaks(spectrum)[np.argmax(values[np.searchsorted(grid, peaks(spectrum))])] == pytest.approx(1000.0, abs=0.5)


def test_window_widths_known_in_closed_form():
    """FWHM times L: hann 1; parzen, sinc⁴(x/2) = ½, and boxcar, sinc(2x) = ½."""
    assert resolution_times_length("hann") == pytest.approx(1.0, rel=1e-6)
    assert np.sinc(resolution_times_length("parzen") / 4.0) ** 4 == pytest.approx(0.5, rel=1e-3)
    assert np.sinc(resolution_times_length("boxcar")) == pytest.approx(0.5, rel=1e-3)


def test_components_are_averaged(three_lines):
    _, current = three_lines
    one_by_one = [
        infrared_spectrum(
            DipoleSeries("current", current.values[:, [axis]], current.interval, 0.0, VOLUME, TEMPERATURE)
        ).intensity
        for axis in range(3)
    ]
    assert np.mean(one_by_one, axis=0) == pytest.approx(infrared_spectrum(current).intensity, rel=1e-10, abs=1e-8)


def test_quantum_corrections(three_lines):
    """n α ∝ ω (1 − exp(−x)) Q with the Q of each correction, against the classical ω x."""
    _, current = three_lines
    x = 1.4387769 * 1000.0 / TEMPERATURE  # hc/k = 1.4387769 cm K, at 1000 cm⁻¹
    angular = np.array([0.0, 2.0 * np.pi * CM_PER_PS * 1000.0])
    factors = {
        "harmonic": x / (1 - np.exp(-x)),
        "standard": 2 / (1 + np.exp(-x)),
        "schofield": np.exp(x / 2),
        "none": 1,
    }
    classical = infrared_spectrum(current)
    assert set(factors) == set(QUANTUM_CORRECTIONS)
    for name, q in factors.items():
        expected = (1.0 - np.exp(-x)) * q / x
        assert relative_to_harmonic(name, angular, TEMPERATURE) == pytest.approx([1.0, expected], rel=1e-6)
        corrected = infrared_spectrum(current, quantum_correction=name)
        at = np.argmin(np.abs(classical.wavenumber - 1000.0))
        exact = relative_to_harmonic(name, 2.0 * np.pi * CM_PER_PS * classical.wavenumber[[at]], TEMPERATURE)[0]
        assert corrected.intensity[at] / classical.intensity[at] == pytest.approx(exact, rel=1e-12)


def test_without_volume_or_temperature(three_lines):
    """The spectral density itself, in e² Å²/ps."""
    _, current = three_lines
    bare = infrared_spectrum(DipoleSeries("current", current.values, current.interval))
    absolute = infrared_spectrum(current)
    assert not bare.absolute
    assert bare.intensity * absorption_prefactor(VOLUME, TEMPERATURE) == pytest.approx(absolute.intensity, rel=1e-12)


@pytest.mark.parametrize("quantity", ["dipole", "current"])
def test_shortest_series(quantity):
    """The length that the message names is enough, and one value less is not; the other offers hold as well."""
    lags = int(np.ceil(1.0 / (CM_PER_PS * 40.0 * 0.004)))
    size = 3 * 2 * lags + (quantity == "dipole")
    values = np.random.default_rng(1).normal(size=(size, 3))
    infrared_spectrum(DipoleSeries(quantity, values, 0.004), resolution=40.0, blocks=3)
    short = DipoleSeries(quantity, values[1:], 0.004)
    needed = f"the shortest is {3 * 2 * lags * 0.004:.4g} ps"
    with pytest.raises(ValueError, match=rf"too short for a resolution of 40 cm⁻¹ in 3 block\(s\): {needed}") as error:
        infrared_spectrum(short, resolution=40.0, blocks=3)
    offered = float(str(error.value).split("allow ")[1].split(" cm")[0])
    infrared_spectrum(short, resolution=offered, blocks=3)
    assert "2 block(s) allow 40 cm⁻¹" in str(error.value)
    infrared_spectrum(short, resolution=40.0, blocks=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_wavenumber": 5000.0}, r"at most 4170 cm⁻¹ \(Nyquist\), got 5000.*at least every 3.34 fs"),
        ({"max_wavenumber": 0.0}, "must be above 0"),
        ({"resolution": 0.0}, "resolution must be above 0"),
        ({"resolution": float("nan")}, "resolution must be above 0"),
        ({"resolution": 1100.0}, "a quarter of the Nyquist wavenumber, 1042 cm⁻¹"),
        ({"blocks": 0}, "number of blocks must be at least 1"),
        ({"window": "tukey"}, "window must be one of hann"),
        ({"quantum_correction": "egelstaff"}, "quantum correction must be one of harmonic"),
        ({"quantum_correction": "standard"}, "'standard' needs the temperature"),
    ],
)
def test_mistakes(options, message):
    series = DipoleSeries("current", np.random.default_rng(1).normal(size=(5000, 3)), 0.004)
    with pytest.raises(ValueError, match=message):
        infrared_spectrum(series, **options)
