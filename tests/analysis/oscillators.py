"""Series of charged Langevin oscillators and of relaxing dipoles, sampled from their exact distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.constants
import scipy.linalg
import scipy.signal

from les_md.analysis.infrared import CM_PER_PS
from les_md.analysis.series import DipoleSeries

# k_B T/m in Å²/ps² for a mass in g/mol.
THERMAL = scipy.constants.k * scipy.constants.N_A * 1e3 * 1e-4


@dataclass(frozen=True)
class Line:
    """One oscillator in each direction: wavenumber cm⁻¹, damping 1/ps, charge e, mass g/mol."""

    wavenumber: float
    damping: float
    charge: float = 1.0
    mass: float = 1.0

    @property
    def frequency(self) -> float:
        return 2.0 * np.pi * CM_PER_PS * self.wavenumber

    def mean_square_velocity(self, temperature: float) -> float:
        return THERMAL * temperature / self.mass

    def velocity_correlation(self, time: np.ndarray, temperature: float) -> np.ndarray:
        """⟨v(0) v(t)⟩ in Å²/ps² of the damped oscillator (underdamped)."""
        slow = np.sqrt(self.frequency**2 - 0.25 * self.damping**2)
        envelope = np.exp(-0.5 * self.damping * time)
        shape = np.cos(slow * time) - 0.5 * self.damping / slow * np.sin(slow * time)
        return self.mean_square_velocity(temperature) * envelope * shape

    def spectral_density(self, wavenumber: np.ndarray, temperature: float) -> np.ndarray:
        """∫⟨v(0) v(t)⟩ cos(ωt) dt over both signs of t, Å²/ps."""
        w = 2.0 * np.pi * CM_PER_PS * wavenumber
        shape = 2.0 * self.damping * w**2 / ((self.frequency**2 - w**2) ** 2 + (self.damping * w) ** 2)
        return self.mean_square_velocity(temperature) * shape


def trajectory(
    line: Line, temperature: float, interval: float, length: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (Å) and velocities (Å/ps) [length, 3] of the Langevin equation, exact at any interval."""
    rng = np.random.default_rng(seed)
    square = line.mean_square_velocity(temperature)
    stationary = np.diag([square / line.frequency**2, square])
    drift = scipy.linalg.expm(np.array([[0.0, 1.0], [-(line.frequency**2), -line.damping]]) * interval)
    noise = np.linalg.cholesky(stationary - drift @ stationary @ drift.T)
    state = np.empty((length, 2, 3))
    state[0] = np.linalg.cholesky(stationary) @ rng.normal(size=(2, 3))
    kicks = noise @ rng.normal(size=(length, 2, 3))
    for i in range(1, length):
        state[i] = drift @ state[i - 1] + kicks[i]
    return state[:, 0], state[:, 1]


def gas(
    lines: list[Line], *, temperature=300.0, interval=0.002, length=40_000, volume=None, seed=1
) -> tuple[DipoleSeries, DipoleSeries]:
    """Dipole moment and current of independent oscillators."""
    moment, current = np.zeros((length, 3)), np.zeros((length, 3))
    for number, line in enumerate(lines):
        position, velocity = trajectory(line, temperature, interval, length, seed + number)
        moment += line.charge * position
        current += line.charge * velocity
    known = {"interval": interval, "volume": volume, "temperature": None if volume is None else temperature}
    return DipoleSeries("dipole", moment + 5.0, **known), DipoleSeries("current", current, **known)


def relaxing_dipole(variance: float, relaxation: float, *, interval: float, length: int, seed=1) -> np.ndarray:
    """M(t) [length, 3] with ⟨M_a(0) M_a(t)⟩ = variance exp(−t/relaxation) (Ornstein–Uhlenbeck), exact."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-interval / relaxation)
    noise = np.sqrt(variance) * rng.normal(size=(length, 3))
    noise[1:] *= np.sqrt(1.0 - decay**2)
    return scipy.signal.lfilter([1.0], [1.0, -decay], noise, axis=0)
