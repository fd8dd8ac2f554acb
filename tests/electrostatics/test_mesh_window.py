"""The window of the mesh: its transform, the polynomials that stand for it, and the table it is chosen from."""

import math

import numpy as np
import pytest
from numpy.polynomial import legendre

from les_md.electrostatics.mesh_window import (
    ORDERS,
    OVERSAMPLINGS,
    polynomial_degree,
    window,
    window_polynomials,
    window_table,
    window_transform,
)

#: Shapes relative to π order, over the range that is chosen from 0.7 Å ≤ σ ≤ 2 Å and 1 Å ≤ dl ≤ 3 Å (test_table).
RELATIVE_SHAPES = (0.48, 0.60, 0.80, 1.05)


def quadrature_transform(frequency: np.ndarray, order: int, shape: float) -> np.ndarray:
    nodes, weights = legendre.leggauss(200)
    x = 0.5 * order * nodes
    return 0.5 * order * np.cos(2.0 * math.pi * np.outer(frequency, x)) @ (weights * window(x, order, shape))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("relative_shape", RELATIVE_SHAPES)
def test_transform_against_quadrature(order, relative_shape):
    """Inside (z² > 0) and outside (z² < 0), to rounding of the integral."""
    shape = relative_shape * math.pi * order
    frequency = np.linspace(0.0, 3.0, 601)
    z_squared = shape**2 - (math.pi * order * frequency) ** 2
    assert (z_squared > 1.0).sum() > 50
    assert (z_squared < -1.0).sum() > 50
    exact = quadrature_transform(frequency, order, shape)
    np.testing.assert_allclose(window_transform(frequency, order, shape), exact, rtol=1e-12, atol=1e-14 * order)


@pytest.mark.parametrize("order", [ORDERS[0], ORDERS[-1]])
def test_transform_between_its_regimes(order):
    """Near z² = 0, where the closed forms lose digits and a series takes over."""
    shape = 0.7 * math.pi * order
    z_squared = np.concatenate([sign * np.geomspace(1e-8, 1.0, 200) for sign in (-1.0, 1.0)] + [[0.0]])
    frequency = np.sqrt(shape**2 - z_squared) / (math.pi * order)
    exact = quadrature_transform(frequency, order, shape)
    np.testing.assert_allclose(window_transform(frequency, order, shape), exact, rtol=1e-9, atol=1e-15 * order)


@pytest.mark.parametrize("order", ORDERS)
def test_window_and_its_slope_vanish_at_the_edge(order):
    """Continuous slope: forces on the mesh are continuous."""
    for relative_shape in RELATIVE_SHAPES:
        shape = relative_shape * math.pi * order
        edge = 0.5 * order
        assert float(window(0.0, order, shape)) == pytest.approx(1.0, rel=1e-14)
        assert float(window(edge, order, shape)) == 0.0
        assert float(window(edge + 0.3, order, shape)) == 0.0
        # Quadratic in the distance from the edge
        near, nearer = float(window(edge - 1e-4, order, shape)), float(window(edge - 1e-5, order, shape))
        assert 0.0 < near < 1e-4
        assert near / nearer == pytest.approx(100.0, rel=1e-2)


@pytest.mark.parametrize("order", ORDERS)
def test_polynomials_against_the_window(order):
    """Value to 1e-9 of the height at every distance; slope likewise, but for orders that reach no 1e-3 anyway."""
    slope_tolerance = 1e-9 if order >= 6 else 2e-6
    tau = np.linspace(-1.0, 1.0, 401)
    distances = 0.5 * tau[:, None] - np.arange(order) + 0.5 * (order - 1)
    powers = tau[:, None] ** np.arange(polynomial_degree(order) + 1)
    for relative_shape in RELATIVE_SHAPES:
        shape = relative_shape * math.pi * order
        columns = window_polynomials(order, shape)
        assert columns.shape == (polynomial_degree(order) + 1, 2 * order)
        represented = powers @ columns
        np.testing.assert_allclose(represented[:, :order], window(distances, order, shape), rtol=0.0, atol=1e-9)
        # The window is smooth within its range only: differences are taken inside
        step = 1e-3
        inside = np.abs(distances) < 0.5 * order - 2.5 * step
        f = [window(distances + multiple * step, order, shape) for multiple in (-2, -1, 1, 2)]
        slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)
        np.testing.assert_allclose(represented[:, order:][inside], slope[inside], rtol=0.0, atol=slope_tolerance)


@pytest.mark.parametrize("order", ORDERS)
def test_slopes_are_the_exact_derivatives_of_the_values(order):
    """Energy is conserved to rounding only if they are: dx = dτ/2."""
    columns = window_polynomials(order, 2.3 * order)
    derivative = 2.0 * np.polynomial.polynomial.polyder(columns[:, :order], axis=0)
    np.testing.assert_allclose(columns[:-1, order:], derivative, rtol=1e-15, atol=0.0)
    assert (columns[-1, order:] == 0.0).all()


def test_windows_of_all_points_are_even_and_join():
    """Points at opposite distances have mirrored polynomials; what point j sees at τ = 1, j + 1 sees at τ = −1."""
    for order in ORDERS:
        columns = window_polynomials(order, 2.3 * order)
        signs = (-1.0) ** np.arange(len(columns))[:, None]
        np.testing.assert_allclose(columns[:, :order], signs * columns[:, order - 1 :: -1], rtol=0.0, atol=1e-9)
        right, left = columns.sum(0), (signs * columns).sum(0)
        np.testing.assert_allclose(left[: order - 1], right[1:order], rtol=0.0, atol=2e-8)


@pytest.mark.parametrize(("sigma", "dl"), [(1.0, 2.0), (0.7, 3.0), (2.0, 1.0), (1.0, 2.0 * math.pi / 5.5)])
def test_table(sigma, dl):
    """Higher orders and finer meshes are better; the entries belong together."""
    table = window_table(sigma, dl)
    assert table.error.shape == (len(ORDERS), len(OVERSAMPLINGS))
    assert (np.diff(table.error, axis=0) < 0.0).all()
    assert (np.diff(table.error, axis=1) <= 0.0).all()
    # The finest mesh of the highest order is far better than the coarsest of the lowest
    assert table.error[-1, -1] < 2e-7 * table.error[0, 0]
    for i, order in enumerate(ORDERS):
        for j, oversampling in enumerate(OVERSAMPLINGS):
            shape = table.shape[i, j]
            # All frequencies of the sum lie where the transform has no zeros
            assert shape > math.pi * order * 0.5 / oversampling
            assert RELATIVE_SHAPES[0] < shape / (math.pi * order) < RELATIVE_SHAPES[-1]
            transform = window_transform(np.zeros(1), order, shape)[0]
            closed = ((shape**2 + 3.0) * math.sinh(shape) - 3.0 * shape * math.cosh(shape)) / shape**5
            assert transform == pytest.approx(table.amplitude[i, j] * closed, rel=1e-13)
            columns = window_polynomials(order, shape)
            stored = table.polynomials[i, j]
            assert (stored[: len(columns), : 2 * order] == columns).all()
            assert (stored[len(columns) :] == 0.0).all()
            assert (stored[:, 2 * order :] == 0.0).all()
