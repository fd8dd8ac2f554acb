"""Functions of a distance as splines: what a radial network costs then no longer depends on its layers.

The functions are interpolated by splines of fifth degree with four continuous derivatives, which go to zero at the
cutoff with their first two derivatives, as MACE's cutoff does. An evaluation reads the six coefficients of an interval.
The derivative is that of the spline itself, so that energy is conserved whatever the error of the interpolation.

Source: de Boor, A Practical Guide to Splines (2001); the spline is scipy's ``make_interp_spline``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import BSpline, make_interp_spline
from torch import Tensor

_DEGREE = 5
#: Where the tables start, as a part of the cutoff: most radial bases divide by the distance.
_START = 1e-3

#: Intervals that are tried, one after the other.
INTERVALS = (256, 512, 1024, 2048, 4096)

#: Largest error that is accepted, of values and derivatives, relative to the largest value and derivative.
LARGEST_ERROR = 1e-6


class RadialSplineError(ValueError):
    """No spline comes close enough to the radial functions."""


@dataclass(frozen=True)
class SplineError:
    """Largest error of splines and of their derivatives, relative to the largest value and derivative."""

    value: float
    derivative: float
    intervals: int


class RadialSpline(torch.nn.Module):
    """K functions of a distance for each of several classes of edges.

    Parameters: ``function(distances [M, 1] float64, kind) -> [M, K]`` smooth up to ``cutoff`` (Å), where values and two
    derivatives vanish; ``num_kinds``, the number of classes; ``intervals``.
    """

    def __init__(
        self, function: Callable[[Tensor, int], Tensor], cutoff: float, num_kinds: int, intervals: int
    ) -> None:
        super().__init__()
        self.intervals: int = intervals
        self.start: float = _START * cutoff
        step = (cutoff - self.start) / intervals
        self.inverse_step: float = 1.0 / step
        nodes = self.start + step * torch.arange(intervals + 1, dtype=torch.float64)
        tables = []
        for kind in range(num_kinds):
            values = function(nodes[:, None], kind).detach().numpy().copy()
            values[-1] = 0.0
            spline = _interpolate(nodes.numpy(), values)
            # Coefficients in t = 0 ... 1 of each interval; after the last one a row of zeros, for larger distances.
            coefficients = np.stack(
                [spline.derivative(p)(nodes[:-1]) * step**p / math.factorial(p) for p in range(_DEGREE + 1)], axis=1
            )
            tables.append(np.concatenate([coefficients, np.zeros_like(coefficients[:1])]))
        self.num_functions: int = tables[0].shape[2]
        self.register_buffer("table", torch.tensor(np.concatenate(tables)).flatten(1))

    def forward(self, distances: Tensor, kinds: Tensor) -> Tensor:
        """[P, K] from ``distances`` [P, 1] Å and ``kinds`` [P] int64, the class of each (empty if there is one)."""
        # In single precision t would lose the digits of the interval's number.
        x = (distances[:, 0].double() - self.start) * self.inverse_step
        interval = x.detach().floor().clamp(0, self.intervals)
        t = (x - interval).to(self.table.dtype)
        row = interval.to(torch.int64)
        if kinds.size(0) > 0:
            row = row + kinds * (self.intervals + 1)
        coefficients = self.table.index_select(0, row).view(-1, 6, self.num_functions)
        square = t * t
        powers = torch.stack([torch.ones_like(t), t, square, square * t, square * square, square * square * t], dim=1)
        # Not a batched product, which torch does without vector instructions at this size.
        return (powers.unsqueeze(2) * coefficients).sum(1)


def _interpolate(nodes: np.ndarray, values: np.ndarray) -> BSpline:
    """Spline through ``values`` [n, K], flat at the last node, with one polynomial in the first three intervals."""
    knots = np.concatenate([[nodes[0]] * 6, nodes[3:-1], [nodes[-1]] * 6])
    zeros = np.zeros(values.shape[1])
    return make_interp_spline(nodes, values, k=_DEGREE, t=knots, bc_type=(None, [(1, zeros), (2, zeros)]))


def radial_spline(
    function: Callable[[Tensor, int], Tensor],
    combine: Callable[[Tensor], Tensor],
    cutoff: float,
    num_kinds: int,
    *,
    target: float,
) -> tuple[RadialSpline, SplineError]:
    """A spline with as few intervals as reach an error of ``target``, and its error.

    Parameters: those of ``RadialSpline``; ``combine([M, K]) -> [M, F]``, the functions whose error counts; errors of
    values and derivatives are relative to the largest value and derivative of each.

    Raises RadialSplineError if the error is beyond ``LARGEST_ERROR`` with the most intervals.
    """
    for intervals in INTERVALS:
        spline = RadialSpline(function, cutoff, num_kinds, intervals)
        error = _measure(spline, function, combine, cutoff, num_kinds)
        if max(error.value, error.derivative) <= target:
            return spline, error
    if not max(error.value, error.derivative) <= LARGEST_ERROR:
        raise RadialSplineError(
            f"splines of {intervals} intervals differ from the radial functions of the model by {error.value:.1g} of "
            f"their values and {error.derivative:.1g} of their derivatives: export it with --radial exact"
        )
    return spline, error


def _measure(
    spline: RadialSpline,
    function: Callable[[Tensor, int], Tensor],
    combine: Callable[[Tensor], Tensor],
    cutoff: float,
    num_kinds: int,
) -> SplineError:
    """Between the nodes, at three points of each interval; derivatives of both by the same central differences."""
    points = spline.start + (torch.arange(3 * spline.intervals, dtype=torch.float64) + 0.55) / (
        3.0 * spline.inverse_step
    )
    step = 0.02 / spline.inverse_step
    worst = [0.0, 0.0]
    for kind in range(num_kinds):
        kinds = torch.full([len(points)], kind)

        def exact(distances: Tensor, kind: int = kind) -> Tensor:
            return combine(function(distances[:, None], kind).detach())

        def ours(distances: Tensor, kinds: Tensor = kinds) -> Tensor:
            return combine(spline(distances[:, None], kinds))

        def slopes(of: Callable[[Tensor], Tensor]) -> Tensor:
            return (of(points + step) - of(points - step)) / (2.0 * step)

        for i, (want, got) in enumerate(((exact(points), ours(points)), (slopes(exact), slopes(ours)))):
            size = want.abs().amax(0).clamp_min(1e-3 * float(want.abs().max()))
            worst[i] = max(worst[i], float(((got - want).abs().amax(0) / size).max()))
    return SplineError(worst[0], worst[1], spline.intervals)
