"""Errors of means and variances of correlated series, few and many correlation times long, by their coverage."""

import numpy as np
import pytest
from scipy.signal import lfilter

from les_md.analysis.sampling import sampling

TAU = 40.0  # of an exponential correlation function, in intervals
VARIANCE = 2.5


def series(generator, count: int, length: int, components: int = 1) -> list[np.ndarray]:
    """First-order autoregressions of mean 0."""
    decay = np.exp(-1.0 / TAU)
    noise = generator.normal(size=(count, length + 500, components))
    values = lfilter([np.sqrt(VARIANCE * (1.0 - decay**2))], [1.0, -decay], noise, axis=1)
    return list(values[:, 500:])


@pytest.mark.parametrize(
    ("times", "count", "low", "high"),
    # A series of a few correlation times shows too little of them: the error must then be on the safe side.
    [
        (3, 3, 0.66, 1.0),
        (5, 3, 0.66, 1.0),
        (5, 9, 0.66, 1.0),
        (10, 3, 0.64, 0.84),
        (20, 9, 0.64, 0.78),
        (50, 3, 0.63, 0.75),
    ],
)
def test_coverage(times, count, low, high):
    """The true mean lies within the stated error in 68 of 100 cases."""
    generator = np.random.default_rng(5)
    hits, counts, long = [], [], []
    for _ in range(300):
        values = series(generator, count, int(times * TAU))
        found = sampling(values)
        hits += [abs(values[k].mean()) < found.error_of_mean(k) for k in range(count)]
        counts.append(found.independent[0])
        long.append(found.is_long)
    assert low < np.mean(hits) < high
    if times <= 5:
        assert np.mean(long) < 0.1
    else:
        assert np.median(counts) == pytest.approx(times / 2.0, rel=0.5)


def test_variance():
    """Without the bias of short series, and with an error that is the spread, or a little more."""
    generator = np.random.default_rng(6)
    variances, errors, times = [], [], []
    for _ in range(300):
        found = sampling(series(generator, 3, int(20 * TAU), 3))
        variances.append(found.variance)
        errors.append(found.variance_error)
        times.append(found.correlation_time)
    assert np.mean(variances) == pytest.approx(VARIANCE, rel=0.08)
    assert 0.8 * np.std(variances) < np.median(errors) < 1.5 * np.std(variances)
    assert np.median(times) == pytest.approx(TAU, rel=0.1)


def test_long_and_short():
    generator = np.random.default_rng(7)
    assert sampling(series(generator, 2, int(60 * TAU))).is_long
    short = sampling(series(generator, 3, int(4 * TAU), 3))
    assert not short.is_long
    assert short.student > 1.0
    assert sampling(series(generator, 20, int(60 * TAU))).student == pytest.approx(1.0, abs=0.01)


def test_of_different_lengths():
    """Each mean has the error of its own length; the variance is that of all."""
    generator = np.random.default_rng(8)
    long, short = series(generator, 1, int(400 * TAU))[0], series(generator, 1, int(100 * TAU))[0] + 50.0
    found = sampling([long, short])
    assert found.independent[0] / found.independent[1] == pytest.approx(4.0)
    assert found.error_of_mean(1) / found.error_of_mean(0) == pytest.approx(2.0)
    assert found.variance == pytest.approx(VARIANCE, rel=0.2)


def test_nothing_to_be_told():
    """A drift all through: no error rather than a small one."""
    found = sampling([np.linspace(0.0, 1.0, 200)[:, None]])
    assert found.independent[0] < 3.0
    assert not found.is_long
    for wrong, message in (([], "at least four"), ([np.zeros((3, 1))], "at least four"), ([np.ones((9, 1))], "change")):
        with pytest.raises(ValueError, match=message):
            sampling(wrong)
