r"""The window with which charges are spread on the mesh, its Fourier transform, and the error it makes.

A charge at distance x (in mesh spacings) from a mesh point contributes φ(x) along each axis, the product over the three
axes in all. With y = 2x/p for a window of p points (``order``),

    φ(y) = (1 − y²) I₂(β √(1 − y²)) / I₂(β)   for |y| < 1, else 0

with the modified Bessel function I₂. It is the smooth relative (continuous slope, so forces on the mesh are
continuous) of the Kaiser–Bessel window I₀(β √(1 − y²)) of non-uniform Fourier transforms (Barnett, Magland, af
Klinteberg, SIAM J. Sci. Comput. 41, C479 (2019)), whose error falls exponentially with the order. By Sonine's
integral its transform is closed:

    φ̂(ξ) = ∫ φ(x) exp(2πi ξ x) dx = p β²/I₂(β) · i₂(z)/z²,   z² = β² − (π p ξ)²

with the modified spherical Bessel function i₂ (for z² < 0: −j₂(|z|)/z²).

Everything here is evaluated once, when a model is built, in NumPy. What MD needs of it (polynomials, shape β, expected
error) is kept in tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.polynomial import chebyshev, legendre
from scipy.special import iv

#: Window orders that can be chosen, and mesh points per shortest half wave of the sum (oversampling).
ORDERS = (4, 5, 6, 7, 8, 9, 10)
OVERSAMPLINGS = (1.05, 1.15, 1.25, 1.35, 1.45, 1.5, 1.6, 1.8, 2.0, 2.3, 2.6)
#: Number density (1/Å³) the error estimate assumes: half of that of water's atoms.
DENSITY = 0.05
#: 1/Å; below this wave number the charges of a liquid of neutral molecules screen each other.
SCREENING = 2.8
#: Å; edge of the largest cell of uncorrelated charges the estimate serves.
LONGEST = 100.0


def window(x: np.ndarray, order: int, shape: float) -> np.ndarray:
    """φ at distance ``x`` in mesh spacings; ``shape`` is β."""
    t = np.clip(1.0 - (2.0 * np.asarray(x) / order) ** 2, 0.0, None)
    return t * iv(2, shape * np.sqrt(t)) / iv(2, shape)


def window_transform(frequency: np.ndarray, order: int, shape: float) -> np.ndarray:
    """φ̂ at ``frequency`` ξ in cycles per mesh spacing."""
    z_squared = shape**2 - (math.pi * order * np.asarray(frequency, dtype=float)) ** 2
    near = np.abs(z_squared) < 1e-2
    z = np.sqrt(np.where(near, 1.0, np.abs(z_squared)))
    inside = ((z**2 + 3.0) * np.sinh(np.where(z_squared > 0.0, z, 0.0)) - 3.0 * z * np.cosh(z)) / z**5
    outside = ((3.0 - z**2) * np.sin(z) - 3.0 * z * np.cos(z)) / z**5
    series = (1.0 + z_squared / 14.0 + z_squared**2 / 504.0) / 15.0
    return order * shape**2 / iv(2, shape) * np.where(near, series, np.where(z_squared > 0.0, inside, outside))


def polynomial_degree(order: int) -> int:
    """Degree of the polynomials that represent a window: their error is below 1e-9 of its height (tested)."""
    return max(13, order + 7)


def window_polynomials(order: int, shape: float) -> np.ndarray:
    """The window and its slope as polynomials, [degree + 1, 2 order].

    Of the ``order`` mesh points around a charge, point j is at the distance x_j = τ/2 − j + (order − 1)/2 with
    τ in [−1, 1): column j holds the coefficients of φ(x_j) in powers of τ, column order + j those of dφ/dx at x_j, the
    exact derivative of the former.
    """
    nodes, interpolate = _chebyshev_interpolation(polynomial_degree(order))
    distances = 0.5 * nodes[:, None] - np.arange(order) + 0.5 * (order - 1)
    value = interpolate @ _window_series(distances, order, shape)
    slope = np.zeros_like(value)
    slope[:-1] = 2.0 * np.arange(1, len(value))[:, None] * value[1:]  # dx = dτ/2
    return np.concatenate([value, slope], axis=1).astype(np.float64)


def _window_series(x: np.ndarray, order: int, shape: float) -> np.ndarray:
    """``window`` by its power series in extended precision.

    Coefficients of powers magnify errors of the values 2^degree times: in double precision the polynomials of
    neighbouring mesh points would meet to 1e-9 only.
    """
    t = 1.0 - (2.0 * x / order) ** 2
    quarter = np.longdouble(shape) ** 2 / 4.0

    def series(t: np.ndarray) -> np.ndarray:  # t I₂(β√t) = Σ_m (β²/4)^{m+1} t^{m+2} / (m! (m+2)!)
        term = quarter * t**2 / 2.0
        total = term.copy()
        for m in range(1, 80):
            term = term * quarter * t / (m * (m + 2.0))
            total = total + term
        return total

    return series(t) / series(np.ones_like(t[:1, :1]))


@cache
def _chebyshev_interpolation(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Chebyshev nodes, and the matrix from values there to coefficients of powers, in extended precision."""
    pi = np.longdouble("3.14159265358979323846264338327950288")
    angles = pi * (np.arange(degree + 1) + np.longdouble(0.5)) / (degree + 1)
    to_chebyshev = 2.0 / np.longdouble(degree + 1) * np.cos(np.arange(degree + 1)[:, None] * angles)
    to_chebyshev[0] *= 0.5
    to_power = np.zeros((degree + 1, degree + 1), dtype=np.longdouble)
    for n in range(degree + 1):
        to_power[: n + 1, n] = chebyshev.cheb2poly(np.eye(n + 1)[n])  # integers
    return np.cos(angles), to_power @ to_chebyshev


@dataclass(frozen=True)
class WindowTable:
    """What can be chosen for a model: arrays over ``ORDERS`` × ``OVERSAMPLINGS``."""

    error: np.ndarray  # expected relative force error
    shape: np.ndarray  # β
    amplitude: np.ndarray  # p β²/I₂(β)
    potential: float  # ∫ w(k)² d³k of uncorrelated charges, Å; what the error assumes
    polynomials: np.ndarray  # [orders, oversamplings, max degree + 1, 2 max order], zeros beyond what an order needs


@lru_cache(maxsize=16)
def window_table(sigma: float, dl: float) -> WindowTable:
    """Best shape and its expected error for every order and oversampling; ``sigma`` and ``dl`` of the model in Å."""
    estimate = AliasingError(sigma, dl)
    counts = (len(ORDERS), len(OVERSAMPLINGS))
    error, shape, amplitude = np.zeros(counts), np.zeros(counts), np.zeros(counts)
    polynomials = np.zeros((*counts, polynomial_degree(ORDERS[-1]) + 1, 2 * ORDERS[-1]))
    for i, order in enumerate(ORDERS):
        for j, oversampling in enumerate(OVERSAMPLINGS):
            natural = math.pi * order * (1.0 - 0.5 / oversampling)
            candidates = natural * np.arange(0.92, 1.31, 0.03)
            errors = [estimate.force_error(order, oversampling, beta) for beta in candidates]
            best = int(np.argmin(errors))
            error[i, j], shape[i, j] = errors[best], candidates[best]
            amplitude[i, j] = order * shape[i, j] ** 2 / iv(2, shape[i, j])
            columns = window_polynomials(order, shape[i, j])
            polynomials[i, j, : len(columns), : 2 * order] = columns
        # A finer mesh is never worse: the estimate may wiggle, the choice must not.
        error[i] = np.maximum.accumulate(error[i, ::-1])[::-1]
    return WindowTable(error, shape, amplitude, float(estimate.whole_potential["uncorrelated"]), polynomials)


class AliasingError:
    r"""Expected relative root-mean-square force error, from integrals over the sphere of wave vectors.

    A mesh of spacing h cannot tell k from k + G_m, G_m = 2π m/h. To first order in the amplitudes c_m(k) = φ̂(k +
    G_m)/φ̂(k), the mesh adds to the force on atom i

        2C/V q_i Σ_j q_j Σ_k w(k) Σ_m c_m [k exp(iG_m r_j) + (k + G_m) exp(−iG_m r_i)] exp(ik(r_j − r_i)),

    to be compared with 2C/V q_i Σ_j q_j Σ_k w(k) k exp(ik(r_j − r_i)). With the structure factor of the charges
    Z(k) = ⟨|Σ q exp(ikr)|²⟩/Σ q², the squares are Σ_k w² Σ_m c_m² [k² + (k + G_m)² Z(k)] (Z is 1 at k + G_m) and
    Σ_k w² k² Z(k). j = i adds the force of the mesh on the atom itself, −2C/V q_i² Σ_m G_m sin(G_m r_i) Σ_k w(k)
    c_m(k).

    The estimate is the larger of two: for uncorrelated charges, Z = 1, whose potential grows with the cell
    (``LONGEST``), and for a liquid of neutral molecules, Z = (k/k₀)⁴/(1 + (k/k₀)⁴) with k₀ = 2.8/Å, fitted to
    water. Forces in a liquid are much weaker than those of uncorrelated charges while the error is not.
    """

    def __init__(self, sigma: float, dl: float, density: float = DENSITY) -> None:
        k_max = 2.0 * math.pi / dl
        # One component of k matters to c_m; the two others are integrated here.
        nodes, weights = legendre.leggauss(48)
        across, across_weights = legendre.leggauss(32)
        self.dl = dl
        self.component = k_max * nodes
        limit = k_max**2 - self.component**2  # of the square of the two other components
        measure = 0.5 * math.pi * limit[:, None] * across_weights * (k_max * weights)[:, None]
        k_squared = self.component[:, None] ** 2 + 0.5 * limit[:, None] * (1.0 + across)
        w = np.exp(-0.5 * sigma**2 * k_squared) / k_squared
        ratio = (k_squared / SCREENING**2) ** 2
        screened = ratio / (1.0 + ratio)
        self.w = (measure * w).sum(1)
        self.force = {"uncorrelated": (measure * w**2 * k_squared).sum(1)}
        self.force["liquid"] = (measure * w**2 * k_squared * screened).sum(1)
        self.potential = {"uncorrelated": (measure * w**2).sum(1), "liquid": (measure * w**2 * screened).sum(1)}
        # ∫ w² d³k of uncorrelated charges comes from small k, where the nodes above are too few.
        k = np.geomspace(2.0 * math.pi / LONGEST, k_max, 400)
        self.whole_potential = {
            "uncorrelated": np.trapezoid(4.0 * math.pi * np.exp(-((sigma * k) ** 2)) / k**2, k),
            "liquid": self.potential["liquid"].sum(),
        }
        self.atoms_per_wave_vector = (2.0 * math.pi) ** 3 * density

    def force_error(self, order: int, oversampling: float, shape: float) -> float:
        """Error of a window on a mesh of spacing dl/(2 ``oversampling``) in every direction."""
        return max(self.force_error_of(kind, order, oversampling, shape) for kind in self.force)

    def force_error_of(self, kind: str, order: int, oversampling: float, shape: float) -> float:
        """The same for one ``kind`` of system, "uncorrelated" or "liquid"."""
        spacing = 0.5 * self.dl / oversampling
        frequency = self.component * spacing / (2.0 * math.pi)
        transform = window_transform(frequency, order, shape)
        at_zero = window_transform(np.zeros(1), order, shape)[0]
        force, potential = self.force[kind], self.potential[kind]
        others, itself = 0.0, 0.0
        for m in (1, 2):  # −m mirrors m; three axes
            wave = 2.0 * math.pi * m / spacing
            squared = (_transform_envelope(frequency + m, order, shape) / transform) ** 2
            squared_at_zero = (_transform_envelope(np.array([float(m)]), order, shape)[0] / at_zero) ** 2
            others += 6.0 * (squared * (self.force["uncorrelated"] + force)).sum()
            others += 6.0 * (squared * 2.0 * self.component * wave * potential).sum()
            others += 6.0 * wave**2 * (squared * potential).sum()
            others += 6.0 * wave**2 * squared_at_zero * max(0.0, self.whole_potential[kind] - potential.sum())
            signed = window_transform(frequency + m, order, shape) / transform
            itself += 6.0 * (wave * (self.w * signed).sum()) ** 2
        return math.sqrt((others + itself / self.atoms_per_wave_vector) / force.sum())


def _transform_envelope(frequency: np.ndarray, order: int, shape: float) -> np.ndarray:
    """Root mean square of φ̂ over its oscillation: where exactly its zeros fall must not decide about an error."""
    z_squared = shape**2 - (math.pi * order * frequency) ** 2
    z = np.sqrt(np.clip(-z_squared, 1e-4, None))
    modulus = np.sqrt(1.0 + 3.0 / z**2 + 9.0 / z**4) / z**3  # √(j₂² + y₂²)/z²
    envelope = order * shape**2 / iv(2, shape) * np.minimum(1.0 / 15.0, modulus / math.sqrt(2.0))
    return np.where(z_squared > 0.0, window_transform(frequency, order, shape), envelope)
