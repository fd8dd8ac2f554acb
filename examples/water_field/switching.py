"""Response of water to fields switched on, against fluctuations without one: what ``switch_on.py`` has run.

python switching.py output

A field E along z that is switched on at t = 0, where the liquid was in equilibrium without one, polarises it by

    ⟨M(t) − M(0)⟩_E = ⟨(M(t) − M(0))²⟩_0 E/(2 k_B T) + O(E²)

(linear response: R. Kubo, Rep. Prog. Phys. 29, 255 (1966); for a step, the integral over the correlation of M and dM/dt
is what that of M and M has lost). Both sides rise to that of the static dielectric constant, and are equal at all times
on the way. Half the difference of runs in E and −E from one start holds no even powers of E, and little noise: what
the liquid would have done without a field is in both.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from analysis import COLUMNS, EPSILON_0, Mean, _plain, mean_cosines
from scipy import stats
from scipy.integrate import cumulative_trapezoid

from les_md.analysis.dielectric import susceptibility_prefactor
from les_md.analysis.series_files import read_dipole_series

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: Parts of the run without a field, for the error of its fluctuations by leaving one out at a time.
BLOCKS = 10


@dataclass(frozen=True, eq=False)
class Course:
    """(ε − ε_∞)/ε_∞ that is reached at each ``time`` [N] (ps) after switching: ``value`` [N] ± ``error`` [N]."""

    time: np.ndarray
    value: np.ndarray
    error: np.ndarray

    def at(self, time: float) -> Mean:
        k = int(np.argmin(np.abs(self.time - time)))
        return Mean(float(self.value[k]), float(self.error[k]))


def moment_of(log: Path, end: float | None = None) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Times [N] from the first on (ps), M(t) − M(0) [N, 3] (e Å), volume and mean temperature of one run's log."""
    series = read_dipole_series(log, COLUMNS, "current", end=end)
    moment = cumulative_trapezoid(series.values, dx=series.interval, axis=0, initial=0.0)
    return series.interval * np.arange(len(moment)), moment, series.volume, series.temperature


def response(up: np.ndarray, down: np.ndarray, field: float, volume: float) -> tuple[np.ndarray, np.ndarray]:
    """Susceptibility [N] and its error [N] from M_z(t) − M_z(0) [S, N] of S starts in ``field`` and −``field``.

    The error is that of a mean of S independent values, times Student's t.
    """
    return half_difference(up / (field * volume * EPSILON_0), down / (field * volume * EPSILON_0))


def half_difference(up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over starts of (up − down)/2 [N], of values [S, N], and its error of 68 % by Student's t."""
    each = 0.5 * (up - down)
    student = float(stats.t.ppf(stats.norm.cdf(1.0), len(each) - 1))
    return each.mean(0), student * each.std(0, ddof=1) / np.sqrt(len(each))


def fluctuation(moment: np.ndarray, lags: int, volume: float, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The same [``lags``] from the mean square displacement of M [N, d], over all origins and components.

    The error is from leaving out one of ten parts of the run at a time.
    """
    factor = 0.5 * susceptibility_prefactor(volume, temperature)
    squares = np.zeros((BLOCKS, lags))
    counts = np.zeros((BLOCKS, lags))
    block = np.minimum(np.arange(len(moment)) * BLOCKS // len(moment), BLOCKS - 1)
    for lag in range(lags):
        displaced = ((moment[lag:] - moment[: len(moment) - lag]) ** 2).mean(1)
        squares[:, lag] = np.bincount(block[: len(displaced)], displaced, minlength=BLOCKS)
        counts[:, lag] = np.bincount(block[: len(displaced)], minlength=BLOCKS)
    left_out = (squares.sum(0) - squares) / (counts.sum(0) - counts)
    error = np.sqrt((BLOCKS - 1) * left_out.var(0))
    return factor * squares.sum(0) / counts.sum(0), factor * error


def runs_in(folder: Path) -> tuple[list[float], list[int]]:
    """Field strengths and numbers of starts of the runs in ``folder``; ValueError for fewer than two starts."""
    fields = sorted({float(path.name.split("_")[3]) for path in folder.glob("start_*_field_*")})
    starts = sorted({int(path.name.split("_")[1]) for path in folder.glob("start_*_field_*")})
    if len(starts) < 2:
        raise ValueError(f"{folder} holds {len(starts)} start(s) of switch_on.py: an error needs two")
    return [field for field in fields if field > 0.0], starts


def read_responses(folder: Path) -> dict[float, Course]:
    """The course of each field strength whose runs, up and down from every start, are in ``folder``."""
    fields, starts = runs_in(folder)
    courses = {}
    for field in fields:
        moments = {}
        for sign in (1, -1):
            runs = [moment_of(folder / response_folder(start, sign * field) / "log_0.lammps") for start in starts]
            moments[sign] = np.array([moment[:, 2] for _, moment, _, _ in runs])
        courses[field] = Course(runs[0][0], *response(moments[1], moments[-1], field, runs[0][2]))
    return courses


def read_orientations(folder: Path) -> dict[float, Mean]:
    """Mean cosine of the molecules' axes to each field at the end of its runs, half the difference of up and down."""
    fields, starts = runs_in(folder)
    found = {}
    for field in fields:
        up, down = (
            np.array([mean_cosines(folder / response_folder(start, sign * field), [0])[-1:, 2] for start in starts])
            for sign in (1, -1)
        )
        found[field] = Mean(*(float(values[0]) for values in half_difference(up, down)))
    return found


def response_folder(start: int, field: float) -> str:
    return f"start_{start}_field_{field:g}"


def summarise(folder: Path, electronic: float) -> str:
    """Write ``switching.png`` and ``switching.json`` to the folder; returns the text of the summary."""
    courses = read_responses(folder)
    time = next(iter(courses.values())).time
    still_time, still, volume, temperature = moment_of(folder / "field_0" / "log_0.lammps")
    if still_time[-1] < 2.0 * time[-1]:
        raise ValueError(f"the run without a field, {still_time[-1]:g} ps, is shorter than two responses")
    spontaneous = Course(time, *fluctuation(still, len(time), volume, temperature))
    plot(courses, spontaneous, folder / "switching.png")
    shown = [time[-1] * part for part in (0.1, 0.25, 0.5, 0.75, 1.0)]
    names = [f"{field:g} V/Å" for field in courses]
    lines = [f"{'ps':>6s} {'fluctuations':>16s}" + "".join(f"{name:>16s}" for name in names)]
    rows = []
    for t in shown:
        means = [spontaneous.at(t), *(course.at(t) for course in courses.values())]
        lines.append(f"{t:6.2f} " + "".join(f"{mean.value:9.1f} ± {mean.error:4.1f}" for mean in means))
        rows.append(
            {"time": t, "fluctuations": _plain(means[0])} | dict(zip(names, map(_plain, means[1:]), strict=True))
        )
    lines.append(
        f"(ε − ε_∞)/ε_∞ after the field was switched on; {still_time[-1]:.0f} ps without one, {temperature:.0f} K"
    )
    last = [course.at(time[-1]) for course in courses.values()]
    for name, mean in zip(["fluctuations", *names], [spontaneous.at(time[-1]), *last], strict=True):
        lines.append(
            f"dielectric constant {time[-1]:g} ps after switching, {name:12s} "
            f"{electronic * (1.0 + mean.value):5.1f} ± {electronic * mean.error:.1f}"
        )
    orientations = read_orientations(folder)
    for field, name in zip(courses, names, strict=True):
        cosine = orientations[field]
        lines.append(
            f"mean cosine of the molecules' axes to {name} at the end {cosine.value:7.4f} ± {cosine.error:.4f}, "
            f"per field {cosine.value / field:5.2f} ± {cosine.error / field:.2f} Å/V"
        )
    lines.append(f"figure {folder / 'switching.png'}")
    results = {
        "rows": rows, "temperature": temperature, "electronic": electronic,
        "orientation": {name: _plain(orientations[field]) for field, name in zip(courses, names, strict=True)},
    }  # fmt: skip
    (folder / "switching.json").write_text(json.dumps(results, indent=1))
    return "\n".join(lines)


def plot(courses: dict[float, Course], spontaneous: Course, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for k, (name, course) in enumerate(
        [("fluctuations, no field", spontaneous), *((f"{field:g} V/Å", course) for field, course in courses.items())]
    ):
        color = f"C{k}" if k else "black"
        axes.plot(course.time, course.value, color=color, label=name)
        axes.fill_between(
            course.time, course.value - course.error, course.value + course.error, color=color, alpha=0.25, linewidth=0
        )
    axes.set(
        xlabel="time after the field was switched on / ps", ylabel="(ε − ε$_∞$)/ε$_∞$", xlim=(0, spontaneous.time[-1])
    )
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Response of water to fields switched on.")
    parser.add_argument("folder", type=Path, help="output folder of switch_on.py")
    parser.add_argument("--electronic", type=float, default=1.78, help="ε_∞ (default: 1.78, of water)")
    options = parser.parse_args()
    print(summarise(options.folder, options.electronic))


if __name__ == "__main__":
    main()
