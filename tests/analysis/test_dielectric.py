"""The dielectric constant against dipoles of known variance and against mdtraj."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.constants as si

from les_md.analysis.dielectric import correlation_time, dielectric_constant, susceptibility_prefactor
from les_md.analysis.series import DipoleSeries
from tests.analysis.oscillators import relaxing_dipole

VOLUME, TEMPERATURE = 1900.0, 300.0
KNOWN = {"volume": VOLUME, "temperature": TEMPERATURE}


def series_of(moment: np.ndarray, interval: float = 0.05, quantity: str = "dipole") -> DipoleSeries:
    return DipoleSeries(quantity, moment, interval, **KNOWN)


def exact(variance: float) -> float:
    """1 + ⟨M²⟩/(3 ε₀ V k T) in SI, for the variance of one component in e² Å²."""
    return 1.0 + 3.0 * variance * (si.e * 1e-10) ** 2 / (3.0 * si.epsilon_0 * VOLUME * 1e-30 * si.k * TEMPERATURE)


def test_relaxing_dipole():
    moment = relaxing_dipole(25.0, 2.0, interval=0.05, length=400_000)
    result = dielectric_constant(series_of(moment + 100.0))
    assert exact(25.0) == pytest.approx(93.1, abs=0.1)  # the size of water's
    assert result.error < 0.01 * result.value
    assert abs(result.value - exact(25.0)) < 3.0 * result.error
    assert result.correlation_time == pytest.approx(2.0, rel=0.05)
    assert result.is_converged
    assert result.block_length == pytest.approx(2000.0)
    assert result.running[-1] == pytest.approx(result.value, rel=1e-12)
    assert result.running_time[-1] == pytest.approx(0.05 * 399_999)
    half = dielectric_constant(series_of(moment[:200_000])).value
    middle = np.argmin(np.abs(result.running_time - 0.05 * 199_999))
    assert result.running[middle] == pytest.approx(half, rel=0.01)


def test_error_bars():
    """Over 60 independent series, deviations have the size of the errors."""
    deviations = []
    for seed in range(60):
        moment = relaxing_dipole(4.0, 1.0, interval=0.2, length=4000, seed=seed)
        result = dielectric_constant(series_of(moment, 0.2), blocks=20)
        deviations.append((result.value - exact(4.0)) / result.error)
    assert 0.8 < np.sqrt(np.mean(np.square(deviations))) < 1.3


def test_against_mdtraj():
    """Two charges on a moving bar: the same trajectory through mdtraj's static_dielectric."""
    mdtraj = pytest.importorskip("mdtraj", reason="the reference is mdtraj (pip install 'les_md[examples]')")
    bar = relaxing_dipole(0.01, 1.0, interval=0.1, length=5000)  # nm; always shorter than half the box
    topology = mdtraj.Topology()
    residue = topology.add_residue("BAR", topology.add_chain())
    for _ in range(2):
        topology.add_atom("X", mdtraj.element.carbon, residue)
    positions = np.stack([np.zeros_like(bar), bar], axis=1)
    edge = (VOLUME * 1e-3) ** (1.0 / 3.0)
    trajectory = mdtraj.Trajectory(
        positions, topology, unitcell_lengths=np.full((5000, 3), edge), unitcell_angles=np.full((5000, 3), 90.0)
    )
    reference = mdtraj.geometry.static_dielectric(trajectory, [-5.0, 5.0], TEMPERATURE)
    moment = 5.0 * 10.0 * np.asarray(trajectory.xyz[:, 1], dtype=float)
    assert dielectric_constant(series_of(moment, 0.1)).value == pytest.approx(reference, rel=1e-3)


def test_current_is_integrated():
    """The variance from the current is that of the dipole times the trapezoids' own factor, (x/tan x)², x = ωΔ/2."""
    frequency, interval = 2.0 * np.pi / 0.3, 0.02
    phase = frequency * interval * np.arange(30_001)[:, None] + [0.3, 1.1, 2.0]
    moment = dielectric_constant(series_of(5.0 * np.sin(phase), interval))
    current = dielectric_constant(series_of(5.0 * frequency * np.cos(phase), interval, "current"))
    x = 0.5 * frequency * interval
    assert moment.value == pytest.approx(exact(12.5), rel=1e-3)
    assert (current.value - 1.0) / (moment.value - 1.0) == pytest.approx((x / np.tan(x)) ** 2, rel=1e-6)


def test_electronic_part_is_added():
    series = series_of(relaxing_dipole(1.0, 1.0, interval=0.05, length=1000))
    plain, shifted = dielectric_constant(series), dielectric_constant(series, electronic=1.8)
    assert shifted.value - plain.value == pytest.approx(0.8)
    assert shifted.running - plain.running == pytest.approx(0.8)


def test_components():
    """Of two components, the mean of their variances: an in-plane constant."""
    moment = relaxing_dipole(1.0, 1.0, interval=0.05, length=2000) * [1.0, 2.0, 5.0]
    value = dielectric_constant(series_of(moment[:, :2])).value
    assert value - 1.0 == pytest.approx(susceptibility_prefactor(VOLUME, TEMPERATURE) * moment[:, :2].var(0).mean())


def test_short_series_is_not_converged():
    result = dielectric_constant(series_of(relaxing_dipole(1.0, 50.0, interval=0.05, length=4000)))
    assert not result.is_converged


def test_correlation_time_of_noise_and_of_a_constant():
    assert correlation_time(np.random.default_rng(1).normal(size=(20_000, 3))) == pytest.approx(0.5, abs=0.05)
    assert correlation_time(np.zeros((100, 3))) == 0.0


@pytest.mark.parametrize(
    ("options", "known", "message"),
    [
        ({}, {"volume": 1.0}, r"needs the temperature \(--temperature\)"),
        ({}, {"temperature": 1.0}, r"needs the volume \(--volume\)"),
        ({"blocks": 1}, KNOWN, "at least 2"),
        ({"blocks": 50}, KNOWN, "300 values are too few for 50 blocks: at least 500"),
        ({"electronic": 0.5}, KNOWN, "ε_∞ must be at least 1"),
    ],
)
def test_mistakes(options, known, message):
    series = DipoleSeries("dipole", np.random.default_rng(1).normal(size=(300, 3)), 0.1, **known)
    with pytest.raises(ValueError, match=message):
        dielectric_constant(series, **options)
