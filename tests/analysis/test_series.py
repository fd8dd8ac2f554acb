"""Time axes: repeated steps, gaps, rounded times, changed time steps; dipoles of wrapped molecules."""

from __future__ import annotations

import numpy as np
import pytest

from les_md.analysis.series import DipoleSeries, check_continuity, latest_passage, sampling_interval


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([0, 10, 20, 30], [0, 1, 2, 3]),
        ([0, 10, 20, 20, 30], [0, 1, 3, 4]),  # the next run repeats the last step
        ([0, 10, 20, 30, 40, 20, 30, 40, 50], [0, 1, 5, 6, 7, 8]),  # restart from step 20
        ([0, 10, 20, 30, 40, 30, 20, 30], [0, 1, 6, 7]),  # two restarts, the second from further back
        ([100, 200, 300, 0, 10, 20], [3, 4, 5]),  # reset_timestep
    ],
)
def test_later_passages_replace_earlier_ones(steps, kept):
    rows, replaced = latest_passage(np.array(steps, dtype=float))
    assert rows.tolist() == kept
    assert replaced == len(steps) - len(kept)


def test_interval_from_steps_and_times():
    step = np.arange(0.0, 1000.0, 10.0)
    assert sampling_interval(step, None, 0.0005) == pytest.approx(0.005)
    assert sampling_interval(step, step * 0.0005, None) == pytest.approx(0.005)
    assert sampling_interval(None, step * 0.0005, None) == pytest.approx(0.005)


def test_times_of_eight_digits():
    """A nanosecond into a run, LAMMPS prints 1000.0005: the rounding is not taken for another interval."""
    time = 1000.0 + 0.005 * np.arange(2000)
    printed = np.array([float(f"{t:.8g}") for t in time])
    assert sampling_interval(None, printed, None) == pytest.approx(0.005, rel=1e-4)
    assert sampling_interval(np.arange(2000.0), printed, None) == pytest.approx(0.005, rel=1e-4)


def gapped(values: np.ndarray) -> np.ndarray:
    return np.delete(values, [50, 51, 70])


@pytest.mark.parametrize(
    ("step", "time", "timestep", "message"),
    [
        (gapped(np.arange(100.0)), None, 0.001, r"step 49 is followed by 52 where the interval is 1 \(2 row\(s\) are"),
        (None, gapped(0.01 * np.arange(100)), None, r"time 0.49 ps is followed by 0.52 ps .*0.01 ps \(2 row\(s\)"),
        (np.r_[0:50, 50:100:2.0], None, 0.001, r"step 50 is followed by 52 .*1 row\(s\) are missing; 24 such"),
        (None, np.r_[0:5:0.1, 5:8:0.13], None, r"is followed by .*\(the interval changes; 23 such place"),
        (np.arange(100.0), np.r_[0:5:0.1, 5:30:0.5], None, "steps are equally spaced but times are not: .*one time"),
        (np.arange(100.0), None, None, r"steps but no times: give the time step .*--timestep"),
        (None, None, None, r"neither a column of steps nor one of times .*--step-column, --time-column"),
        (None, 0.1 * np.arange(100), 0.001, "no column of steps to use it with"),
        (np.arange(100.0), 0.01 * np.arange(100), 0.02, "steps are equally spaced but times are not"),
        (None, np.round(5000.0 + 0.0005 * np.arange(100), 3), None, "printed with too few digits"),
    ],
)
def test_wrong_time_axes(step, time, timestep, message):
    with pytest.raises(ValueError, match=message):
        sampling_interval(step, time, timestep)


def test_wrapped_molecules_are_noticed():
    """A water molecule's hydrogen, put back by a lattice vector of 12 Å, among the motion of 64 molecules."""
    moment = np.cumsum(np.random.default_rng(1).normal(scale=0.05, size=(5000, 3)), axis=0)
    check_continuity(DipoleSeries("dipole", moment, 0.001))
    moment[3001:, 1] -= 0.4 * 12.0
    with pytest.raises(ValueError, match=r"jumps by 4\.\d+ e Å after 3 ps, where it usually changes by 0.0494 .*wrap"):
        check_continuity(DipoleSeries("dipole", moment, 0.001))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("charge", np.eye(3), 1.0), "must be 'dipole' or 'current'"),
        (("dipole", np.arange(3.0), 1.0), "1 to 3 components"),
        (("dipole", np.ones((9, 4)), 1.0), "1 to 3 components"),
        (("dipole", np.ones((1, 3)), 1.0), "at least two values"),
        (("dipole", np.ones((5, 3)), 1.0), "do not change"),
        (("dipole", np.array([[1.0], [np.nan]]), 1.0), "value 2 of the series is not a finite"),
        (("dipole", np.eye(3), 0.0), "interval must be a positive time"),
        (("dipole", np.eye(3), 1.0, 0.0, -1.0), "volume must be a positive number of Å³"),
        (("dipole", np.eye(3), 1.0, 0.0, 1.0, 0.0), "temperature must be a positive number of K"),
    ],
)
def test_impossible_series(arguments, message):
    with pytest.raises(ValueError, match=message):
        DipoleSeries(*arguments)
