"""A series of the dipole moment or its derivative at equal intervals of time, and the checks that make it one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Times are printed with few digits: how much of the interval, and of the time itself, rounding may take.
_INTERVAL_TOLERANCE = 0.05
_PRINTED_TOLERANCE = 2e-7


@dataclass(frozen=True)
class DipoleSeries:
    """Dipole moment M(t) or current J(t) = dM/dt of the whole system, equally spaced in time.

    ``quantity`` is ``dipole`` or ``current``; ``values`` [N, d], in e Å or e Å/ps, are one to three Cartesian
    components; ``interval`` in ps; ``start``, the time of the first value, in ps. ``volume`` (Å³) and
    ``temperature`` (K) are averages over the series, or None where they are not known. ``notes`` say what was done
    to the data that were read.
    """

    quantity: str
    values: np.ndarray
    interval: float
    start: float = 0.0
    volume: float | None = None
    temperature: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.quantity not in ("dipole", "current"):
            raise ValueError(f"the quantity must be 'dipole' or 'current', not {self.quantity!r}")
        if self.values.ndim != 2 or not 1 <= self.values.shape[1] <= 3:
            raise ValueError(f"values must be [N, 1 to 3 components], not {list(self.values.shape)}")
        if len(self.values) < 2:
            raise ValueError(f"a series needs at least two values, got {len(self.values)}")
        if not np.isfinite(self.values).all():
            raise ValueError(
                f"value {int(np.flatnonzero(~np.isfinite(self.values).all(1))[0]) + 1} of the series is not a finite "
                "number"
            )
        if (self.values == self.values[0]).all():
            raise ValueError("the values do not change: this is not the dipole moment or current of a simulation")
        if not (np.isfinite(self.interval) and self.interval > 0.0):
            raise ValueError(f"the interval must be a positive time in ps, got {self.interval}")
        for name, unit in (("volume", "Å³"), ("temperature", "K")):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0.0):
                raise ValueError(f"the {name} must be a positive number of {unit}, got {value}")

    @property
    def duration(self) -> float:
        """Time from the first to the last value, in ps."""
        return self.interval * (len(self.values) - 1)


def latest_passage(order: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows to keep where a simulation went back in time, as after a restart.

    A row whose ``order`` (step or time) is not above that of rows before it replaces them: they belong to a passage
    that was not continued. So the last row of one ``run`` and the first of the next, which repeats it, become one, and
    after a restart from an earlier step what is left is one trajectory. After ``reset_timestep`` only what
    follows is left.

    Returns: indices of the rows to keep, ascending in ``order``; how many were replaced.
    """
    lowest_ahead = np.append(np.minimum.accumulate(order[::-1])[::-1][1:], np.inf)
    kept = np.flatnonzero(order < lowest_ahead)
    return kept, len(order) - len(kept)


def sampling_interval(step: np.ndarray | None, time: np.ndarray | None, timestep: float | None) -> float:
    """Interval in ps between rows at the given ``step`` [N] (integers) and ``time`` [N] (ps), ascending.

    Steps, where they are known, must be exactly equally spaced, times to within the rounding of a printed number.
    ``timestep`` (ps) turns steps into times; without it, steps need times beside them, to which they must be
    proportional.

    Raises ValueError that names the first place where this is not so.
    """
    if step is not None:
        spacing = np.diff(step)
        expected = int(np.median(spacing))
        wrong = np.flatnonzero(spacing != expected)
        if len(wrong):
            raise ValueError(_gap("step", step, wrong[0], expected, len(wrong)))
        if timestep is not None:
            interval = expected * timestep
        elif time is None:
            raise ValueError("the file has steps but no times: give the time step of the simulation (--timestep, fs)")
        else:
            interval = (time[-1] - time[0]) / (len(time) - 1)
    elif time is None:
        raise ValueError("neither a column of steps nor one of times is known: name one (--step-column, --time-column)")
    else:
        if timestep is not None:
            raise ValueError("a time step was given, but there is no column of steps to use it with")
        interval = float(np.median(np.diff(time)))
    if time is not None:
        rounding = _PRINTED_TOLERANCE * np.abs(time).max()
        if interval <= 4.0 * rounding:
            raise ValueError(
                f"times near {time[-1]:g} ps are printed with too few digits for an interval of {interval:g} ps: "
                "write the step as well and give the time step (--timestep, fs)"
            )
        tolerance = _INTERVAL_TOLERANCE * interval + 2.0 * rounding
        wrong = np.flatnonzero(np.abs(np.diff(time) - interval) > tolerance)
        if len(wrong) and step is None:
            raise ValueError(_gap("time", time, wrong[0], interval, len(wrong)))
        if len(wrong):
            raise ValueError(
                f"steps are equally spaced but times are not: {time[wrong[0]]:.10g} ps is followed by "
                f"{time[wrong[0] + 1]:.10g} ps where {interval:.6g} ps is the interval. A spectrum needs one time step "
                "throughout; cut the part before the change off (--start)"
            )
        if step is None:
            # The median carries the rounding of one difference, the mean that of two times only.
            interval = (time[-1] - time[0]) / (len(time) - 1)
    return float(interval)


def check_continuity(series: DipoleSeries) -> None:
    """Raise ValueError where a dipole moment jumps by over twenty times its usual change from one value to the next.

    A molecule that is put back into the box by a lattice vector changes Σ q r at once, by what no vibration does; the
    usual change is the standard deviation that belongs to the median of the changes.
    """
    changes = np.abs(np.diff(series.values, axis=0))
    usual = np.median(changes, axis=0) / 0.6745
    jumps = (changes > 20.0 * usual) & (usual > 0.0)
    if jumps.any():
        row, component = np.argwhere(jumps)[0]
        time = series.start + row * series.interval
        raise ValueError(
            f"the dipole moment jumps by {changes[row, component]:.3g} e Å after {time:.10g} ps, where it usually "
            f"changes by {usual[component]:.3g} e Å ({int(jumps.any(1).sum())} such place(s)): molecules were wrapped "
            "into the box, or the series has a break. Use unwrapped positions or the current; if the jumps are real, "
            "--allow-jumps"
        )


def _gap(name: str, values: np.ndarray, index: int, expected: float, count: int) -> str:
    unit = " ps" if name == "time" else ""
    before, after = values[index], values[index + 1]
    missing = round(float(after - before) / float(expected)) - 1
    reason = f"{missing} row(s) are missing" if missing > 0 else "the interval changes"
    return (
        f"rows are not equally spaced in time: {name} {before:.10g}{unit} is followed by {after:.10g}{unit} where "
        f"the interval is {expected:.6g}{unit} ({reason}; {count} such place(s)). Use one unbroken part of the series "
        "(--start, --end)"
    )
