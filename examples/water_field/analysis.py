"""Response of water to the fields of ``run.py``: polarisation, orientation, and the dielectric constant in two ways.

python analysis.py output --fields -0.02 0.02
"""

import argparse
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import ase.io
import matplotlib
import mdtraj
import numpy as np
import scipy.constants
from scipy.integrate import cumulative_trapezoid

from les_md.analysis.dielectric import susceptibility_prefactor
from les_md.analysis.sampling import Sampling, sampling
from les_md.analysis.series import DipoleSeries
from les_md.analysis.series_files import read_dipole_series

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLUMNS = ["c_les[3]", "c_les[4]", "c_les[5]"]
#: ε₀ in e/(V Å).
EPSILON_0 = scipy.constants.epsilon_0 / scipy.constants.e * 1e-10
#: Steps, and ps, between two frames of the trajectory.
FRAME_EVERY = 80
FRAME_INTERVAL = FRAME_EVERY * 0.00075


#: Independent values that the longest correlation leaves in each run, below which a dielectric constant is no result.
ENOUGH = 10.0


@dataclass(frozen=True)
class Mean:
    """A value and its error: an interval of 68 %, infinite where nothing is known of it."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Run:
    """What a run in one field gave.

    ``time`` [N] (ps) and ``moment`` [N, 3] (e Å), M(t) − M(0); ``frame_time`` [F] (ps) and ``orientation`` [F, 3], the
    cosines between the molecules' axes and x, y, z, averaged over molecules.
    """

    field: float
    volume: float
    temperature: float
    time: np.ndarray
    moment: np.ndarray
    frame_time: np.ndarray
    orientation: np.ndarray

    @property
    def duration(self) -> float:
        return float(self.time[-1])


@dataclass(frozen=True)
class Averages:
    """Means along the field [K] after settling, of runs that share variance and correlation; ``sampling`` of them."""

    means: list[Mean]
    sampling: Sampling


def folder_of(field: float) -> str:
    """Name of the folder of one run."""
    return f"field_{field:g}"


def parts_of(folder: Path) -> list[int]:
    """First steps of the parts of a run, ascending: log_FIRST.lammps, trajectory_FIRST.dcd."""
    firsts = sorted(int(path.stem.split("_")[1]) for path in folder.glob("log_*.lammps"))
    if not firsts:
        raise FileNotFoundError(f"{folder} holds no log_FIRST.lammps of run.py")
    return firsts


def joined(parts: list[DipoleSeries], folder: Path) -> np.ndarray:
    """Values [N, 3] of a run from those of its parts, each of which begins with the last row of the one before."""
    values = parts[0].values
    for before, after in itertools.pairwise(parts):
        if abs(after.start - before.start - before.duration) > 0.01 * before.interval:
            raise ValueError(
                f"{folder}: a part ends at {before.start + before.duration:.4f} ps, the next begins at "
                f"{after.start:.4f} ps"
            )
        values = np.concatenate([values, after.values[1:]])
    return values


def read(folder: Path, field: float, settle: float) -> Run:
    """One run; raises ValueError if it is not longer than ``settle`` (ps)."""
    firsts = parts_of(folder)
    parts = [read_dipole_series(folder / f"log_{first}.lammps", COLUMNS, "current") for first in firsts]
    values, interval = joined(parts, folder), parts[0].interval
    lengths = [len(part.values) for part in parts]
    time = interval * np.arange(len(values))
    if time[-1] <= settle:
        raise ValueError(f"{folder}: the run of {time[-1]:.2f} ps is not longer than --settle {settle:g}")
    moment = cumulative_trapezoid(values, dx=interval, axis=0, initial=0.0)
    orientation = mean_cosines(folder, firsts)
    return Run(
        field, parts[0].volume, float(np.average([part.temperature for part in parts], weights=lengths)),
        time, moment, FRAME_INTERVAL * np.arange(len(orientation)), orientation,
    )  # fmt: skip


def averages(runs: list[Run], quantity: str, settle: float) -> Averages:
    """Of ``moment`` or ``orientation`` along the field.

    All runs and all three directions together tell variance and correlation: a single short run may happen to stay
    in one place, and would then seem to be known well.
    """
    series = []
    for run in runs:
        times = run.time if quantity == "moment" else run.frame_time
        series.append(getattr(run, quantity)[times >= settle])
    found = sampling(series)
    means = [Mean(float(values[:, 2].mean()), found.error_of_mean(k)) for k, values in enumerate(series)]
    return Averages(means, found)


def fluctuations(runs: list[Run], settle: float) -> Mean:
    """χ from the fluctuations across the fields, and from those in all directions without one.

    In a field along z the liquid is invariant under rotations about z, and ⟨M_x²⟩ = ⟨M_z⟩ k_B T/E exactly, whatever
    the field: turning the field a little turns the mean. (The box of a simulation breaks this slightly.)
    """
    series = []
    for run in runs:
        settled = run.moment[run.time >= settle]
        series += [settled[:, k : k + 1] for k in range(3 if run.field == 0.0 else 2)]
    found = sampling(series)
    factor = susceptibility_prefactor(
        float(np.mean([run.volume for run in runs])), float(np.mean([run.temperature for run in runs]))
    )
    return Mean(factor * found.variance, factor * found.variance_error)


def mean_cosines(folder: Path, firsts: list[int]) -> np.ndarray:
    """[F, 3] for each frame: the axis of a molecule, from oxygen to between its hydrogens, averaged over molecules."""
    atoms = ase.io.read(  # the types of in.water_field: masses may be heavy ones
        folder / "end.data", format="lammps-data", atom_style="atomic", sort_by_id=True, Z_of_type={1: 8, 2: 1}
    )
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for symbol in atoms.get_chemical_symbols():
        topology.add_atom(symbol, mdtraj.element.get_by_symbol(symbol), topology.add_residue("WAT", chain))
    parts = [mdtraj.load_dcd(str(folder / f"trajectory_{first}.dcd"), top=topology) for first in firsts]
    # A part begins with the last frame of the one before.
    trajectory = mdtraj.join([parts[0], *(part[1:] for part in parts[1:])]) if len(parts) > 1 else parts[0]
    oxygens, hydrogens = np.flatnonzero(atoms.numbers == 8), np.flatnonzero(atoms.numbers == 1)
    distances = atoms.get_all_distances(mic=True)[np.ix_(oxygens, hydrogens)]
    bonds = np.argsort(distances, axis=1)[:, :2]
    if len(np.unique(bonds)) != len(hydrogens):
        raise ValueError(f"{folder}: not every hydrogen belongs to one molecule: the water has dissociated")
    pairs = np.stack([np.repeat(oxygens, 2), hydrogens[bonds].ravel()], axis=1)
    vectors = mdtraj.compute_displacements(trajectory, pairs)  # the nearest image
    axes = vectors.reshape(trajectory.n_frames, len(oxygens), 2, 3).sum(2)
    return (axes / np.linalg.norm(axes, axis=2, keepdims=True)).mean(1)


def susceptibility(runs: list[Run], moments: Averages) -> tuple[Mean, Mean]:
    """dP/dE/ε₀ of a straight line through all fields; its zero, P of no field, e/Å²."""
    fields = np.array([run.field for run in runs])
    volumes = np.array([run.volume for run in runs])
    polarisation = np.array([mean.value for mean in moments.means]) / volumes
    weights = volumes * np.sqrt(moments.sampling.independent)  # relative ones: the errors may be infinite
    (slope, zero), covariance = np.polyfit(fields, polarisation, 1, w=weights, cov="unscaled")
    errors = moments.sampling.student * np.sqrt(moments.sampling.variance) * np.sqrt(np.diag(covariance))
    return Mean(slope / EPSILON_0, float(errors[0]) / EPSILON_0), Mean(zero, float(errors[1]))


def plot(runs: list[Run], moments: Averages, slope: Mean, zero: Mean, chi: float, path: Path) -> None:
    """Polarisation and orientation in time, and the polarisation against the field."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for i, (run, mean) in enumerate(zip(runs, moments.means, strict=True)):
        axes[0].plot(run.time, run.moment[:, 2], f"C{i}", linewidth=0.8, label=f"{run.field:g} V/Å")
        axes[1].plot(run.frame_time, run.orientation[:, 2], f"C{i}", linewidth=0.8)
        error = mean.error / run.volume if np.isfinite(mean.error) else None
        axes[2].errorbar(run.field, mean.value / run.volume, error, fmt="o", color=f"C{i}", capsize=3)
    axes[0].set(xlabel="time / ps", ylabel="$M_z(t) - M_z(0)$ / e Å")
    axes[0].legend()
    axes[1].set(xlabel="time / ps", ylabel="mean cosine of the molecules' axes to z")
    line = np.array([min(run.field for run in runs), max(run.field for run in runs)])
    axes[2].plot(line, zero.value + EPSILON_0 * slope.value * line, "k-", label="straight line")
    axes[2].plot(line, zero.value + EPSILON_0 * chi * line, "k--", label="slope from fluctuations")
    axes[2].set(xlabel="field / V/Å", ylabel="polarisation / e/Å²")
    axes[2].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def summarise(folder: Path, fields: list[float], settle: float, electronic: float) -> str:
    """Write ``field.png`` and ``results.json`` to the folder; returns the text of the summary."""
    fields = [0.0, *(field for field in fields if field != 0.0)]
    runs = [read(folder / folder_of(field), field, settle) for field in fields]
    moments, cosines = averages(runs, "moment", settle), averages(runs, "orientation", settle)
    slope, zero = susceptibility(runs, moments)
    # Latent Born charges are the true ones divided by √ε_∞, and the field of given forces is multiplied by it.
    still = fluctuations(runs, settle)
    plot(runs, moments, slope, zero, still.value, folder / "field.png")
    without = runs[0]
    lines = [
        f"{'field, V/Å':>12s} {'ps':>6s} {'independent':>12s} {'M_z, e Å':>16s} {'chi':>14s} {'mean cosine':>18s} "
        f"{'cosine per field':>20s}"
    ]
    rows = []
    for k, run in enumerate(runs):
        moment, cosine, count = moments.means[k], cosines.means[k], float(moments.sampling.independent[k])
        text = f"{run.field:12g} {run.duration:6.1f} {count:12.1f} {moment.value:8.2f} ± {moment.error:5.2f} "
        row = {
            "field": run.field, "duration": run.duration, "independent": count, "moment": _plain(moment),
            "orientation": _plain(cosine),
        }  # fmt: skip
        chi = per_field = None
        if run is not without:
            chi = _difference(moment, moments.means[0], run.field * run.volume * EPSILON_0)
            per_field = _difference(cosine, cosines.means[0], run.field)
            row |= {"susceptibility": _plain(chi), "orientation_per_field": _plain(per_field)}
        text += f"{chi.value:7.1f} ± {chi.error:4.1f} " if chi else " " * 15
        text += f"{cosine.value:9.4f} ± {cosine.error:6.4f}"
        lines.append(text + (f"{per_field.value:12.2f} ± {per_field.error:5.2f}" if per_field else ""))
        rows.append(row)
    for name, chi in (("slope", slope), ("fluctuations", still)):
        lines.append(
            f"dielectric constant from the {name:12s} {electronic * (1.0 + chi.value):5.1f} ± "
            f"{electronic * chi.error:.1f}"
        )
    interval = without.time[1] - without.time[0]
    correlation = moments.sampling.correlation_time * interval
    enough = bool((moments.sampling.independent >= ENOUGH).all())
    lines.append(f"M has a correlation time of {correlation:.2f} ps: one independent value in {2 * correlation:.2f} ps")
    if not enough:
        lines.append(
            f"NOT A RESULT: fewer than {ENOUGH:g} independent values in each run after the first {settle:g} ps. The "
            "correlation time is then a lower bound, and the errors are rough. Go on (run.py --go-on) until every run "
            f"has {2 * ENOUGH:g} correlation times, {settle + 2 * ENOUGH * correlation:.0f} ps or more"
        )
    lines.append(f"figure {folder / 'field.png'}")
    results = {
        "rows": rows, "slope": _plain(slope), "fluctuations": _plain(still), "electronic": electronic,
        "temperature": without.temperature, "settle": settle, "correlation_time": correlation, "enough": enough,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    return "\n".join(lines)


def _plain(mean: Mean) -> dict[str, float | None]:
    """For JSON, which has no infinity."""
    return {key: value if np.isfinite(value) else None for key, value in asdict(mean).items()}


def _difference(one: Mean, other: Mean, divisor: float) -> Mean:
    return Mean((one.value - other.value) / divisor, float(np.hypot(one.error, other.error)) / abs(divisor))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the analysis, the same in ``run.py``."""
    parser.add_argument(
        "--fields", type=float, nargs="+", default=[-0.02, -0.01, 0.01, 0.02], help="V/Å (default: %(default)s)"
    )
    parser.add_argument("--settle", type=float, default=10.0, help="ps that are left out of averages (default: 10)")
    parser.add_argument("--electronic", type=float, default=1.78, help="ε_∞ (default: 1.78, of water)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Response of water to electric fields.")
    parser.add_argument("folder", type=Path, help="output folder of run.py")
    add_options(parser)
    options = parser.parse_args()
    print(summarise(options.folder, options.fields, options.settle, options.electronic))


if __name__ == "__main__":
    main()
