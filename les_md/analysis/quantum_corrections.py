r"""Factors that stand for the quantum nature of the nuclei in a spectrum from classical dynamics.

Quantum mechanics has n α = ω (1 − exp(−x))/(6 ε₀ ħ c V) ∫ ⟨M(0)·M(t)⟩ exp(−iωt) dt with x = ħω/(k_B T) and the quantum
correlation function, which is replaced by Q(ω) times the classical one (Ramírez, López-Ciudad, Kumar, Marx, J. Chem.
Phys. 121, 3973 (2004)). Relative to the classical linear response of ``infrared.py``, which is that of ``harmonic``:

    harmonic    Q = x/(1 − exp(−x))       1: the classical response itself, exact for harmonic systems
    standard    Q = 2/(1 + exp(−x))       (2/x) tanh(x/2); detailed balance by symmetry in time
    schofield   Q = exp(x/2)              (2/x) sinh(x/2); Schofield, Phys. Rev. Lett. 4, 239 (1960)
    none        Q = 1                     (1 − exp(−x))/x; no detailed balance

At 300 K and 3400 cm⁻¹, x is 16: ``none`` and ``standard`` make the O-H stretch 16 and 8 times weaker, ``schofield`` 213
times stronger. ``harmonic`` is the only one that also obeys the fluctuation-dissipation theorem.
"""

from __future__ import annotations

import numpy as np
import scipy.constants

QUANTUM_CORRECTIONS = ("harmonic", "standard", "schofield", "none")


def relative_to_harmonic(name: str, angular: np.ndarray, temperature: float) -> np.ndarray:
    """Factor on the classical response at ``angular`` frequencies (1/ps) and a temperature in K; 1 at frequency 0."""
    x = scipy.constants.hbar * angular * 1e12 / (scipy.constants.k * temperature)
    small = x < 1e-6
    x = np.where(small, 1.0, x)
    if name == "harmonic":
        factor = np.ones_like(x)
    elif name == "standard":
        factor = 2.0 * np.tanh(0.5 * x) / x
    elif name == "schofield":
        factor = 2.0 * np.sinh(0.5 * x) / x
    elif name == "none":
        factor = -np.expm1(-x) / x
    else:
        raise ValueError(f"the quantum correction must be one of {', '.join(QUANTUM_CORRECTIONS)}, not {name!r}")
    return np.where(small, 1.0, factor)
