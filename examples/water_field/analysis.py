"""Response of water to the fields of ``run.py``: polarisation, orientation, and the dielectric constant in two ways.

python analysis.py output --fields 0.01 0.02
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import ase.io
import matplotlib
import mdtraj
import numpy as np
import scipy.constants
from scipy.integrate import cumulative_trapezoid

from les_md.analysis.dielectric import correlation_time, dielectric_constant
from les_md.analysis.series import DipoleSeries
from les_md.analysis.series_files import read_dipole_series

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLUMNS = ["c_les[3]", "c_les[4]", "c_les[5]"]
#: ε₀ in e/(V Å).
EPSILON_0 = scipy.constants.epsilon_0 / scipy.constants.e * 1e-10
#: ps between two frames of the trajectory.
FRAME_INTERVAL = 80 * 0.00075


@dataclass(frozen=True)
class Mean:
    """Average of a correlated series and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Response:
    """What a run in one field gave.

    ``time`` (ps) and ``moment`` (e Å), M_z(t) − M_z(0); ``frame_time`` (ps) and ``orientation``, the cosine between
    the molecules' axes and the field, averaged over molecules; ``mean_moment`` and ``mean_orientation`` after settling.
    """

    field: float
    series: DipoleSeries
    time: np.ndarray
    moment: np.ndarray
    frame_time: np.ndarray
    orientation: np.ndarray
    mean_moment: Mean
    mean_orientation: Mean


def folder_of(field: float) -> str:
    """Name of the folder of one run."""
    return f"field_{field:g}"


def mean(values: np.ndarray) -> Mean:
    """With the error √(2 τ σ²/N) of a series with the correlation time τ (in intervals)."""
    deviation = values - values.mean()
    time = max(0.5, correlation_time(deviation[:, None]))
    return Mean(float(values.mean()), float(np.sqrt(2.0 * time * deviation.var() / len(values))))


def read(folder: Path, field: float, settle: float) -> Response:
    """One run; raises ValueError if it is not longer than ``settle`` (ps)."""
    series = read_dipole_series(folder / "log.lammps", COLUMNS, "current")
    if series.duration <= settle:
        raise ValueError(f"{folder}: the run of {series.duration:.2f} ps is not longer than --settle {settle:g}")
    time = series.interval * np.arange(len(series.values))
    moment = cumulative_trapezoid(series.values[:, 2], dx=series.interval, initial=0.0)
    orientation = mean_cosine(folder)
    frame_time = FRAME_INTERVAL * np.arange(len(orientation))
    return Response(
        field, series, time, moment, frame_time, orientation,
        mean(moment[time >= settle]), mean(orientation[frame_time >= settle]),
    )  # fmt: skip


def mean_cosine(folder: Path) -> np.ndarray:
    """Cosine between z and the axis of a molecule, from oxygen to between its hydrogens, averaged, for each frame."""
    atoms = ase.io.read(folder / "end.data", format="lammps-data", atom_style="atomic", sort_by_id=True)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for symbol in atoms.get_chemical_symbols():
        topology.add_atom(symbol, mdtraj.element.get_by_symbol(symbol), topology.add_residue("WAT", chain))
    trajectory = mdtraj.load_dcd(str(folder / "trajectory.dcd"), top=topology)
    oxygens, hydrogens = np.flatnonzero(atoms.numbers == 8), np.flatnonzero(atoms.numbers == 1)
    distances = atoms.get_all_distances(mic=True)[np.ix_(oxygens, hydrogens)]
    bonds = np.argsort(distances, axis=1)[:, :2]
    if len(np.unique(bonds)) != len(hydrogens):
        raise ValueError(f"{folder}: not every hydrogen belongs to one molecule: the water has dissociated")
    pairs = np.stack([np.repeat(oxygens, 2), hydrogens[bonds].ravel()], axis=1)
    vectors = mdtraj.compute_displacements(trajectory, pairs)  # the nearest image
    axes = vectors.reshape(trajectory.n_frames, len(oxygens), 2, 3).sum(2)
    return (axes[:, :, 2] / np.linalg.norm(axes, axis=2)).mean(1)


def susceptibility(responses: list[Response]) -> tuple[Mean, Mean]:
    """dP/dE/ε₀ of a straight line through all fields; its zero, P of no field, e/Å²."""
    fields = np.array([r.field for r in responses])
    volumes = np.array([r.series.volume for r in responses])
    polarisation = np.array([r.mean_moment.value for r in responses]) / volumes
    errors = np.array([r.mean_moment.error for r in responses]) / volumes
    (slope, zero), covariance = np.polyfit(fields, polarisation, 1, w=1.0 / errors, cov="unscaled")
    slope_error, zero_error = np.sqrt(np.diag(covariance))
    return Mean(slope / EPSILON_0, slope_error / EPSILON_0), Mean(zero, zero_error)


def plot(responses: list[Response], slope: Mean, zero: Mean, fluctuations: float, path: Path) -> None:
    """Polarisation and orientation in time, and the polarisation against the field."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for i, response in enumerate(responses):
        axes[0].plot(response.time, response.moment, f"C{i}", linewidth=0.8, label=f"{response.field:g} V/Å")
        axes[1].plot(response.frame_time, response.orientation, f"C{i}", linewidth=0.8)
        volume = response.series.volume
        axes[2].errorbar(
            response.field, response.mean_moment.value / volume, response.mean_moment.error / volume, fmt="o",
            color=f"C{i}", capsize=3,
        )  # fmt: skip
    axes[0].set(xlabel="time / ps", ylabel="$M_z(t) - M_z(0)$ / e Å")
    axes[0].legend()
    axes[1].set(xlabel="time / ps", ylabel="mean cosine of the molecules' axes to the field")
    fields = [r.field for r in responses]
    line = np.array([min(fields), max(fields)])
    axes[2].plot(line, zero.value + EPSILON_0 * slope.value * line, "k-", label="straight line")
    axes[2].plot(
        line, zero.value + EPSILON_0 * fluctuations * line, "k--", label="slope from fluctuations without field"
    )
    axes[2].set(xlabel="field / V/Å", ylabel="polarisation / e/Å²")
    axes[2].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def summarise(folder: Path, fields: list[float], settle: float, electronic: float) -> str:
    """Write ``field.png`` and ``results.json`` to the folder; returns the text of the summary."""
    responses = [read(folder / folder_of(field), field, settle) for field in (0.0, *fields)]
    without = responses[0]
    slope, zero = susceptibility(responses)
    settled = without.time >= settle
    still = DipoleSeries(
        "current", without.series.values[settled], without.series.interval,
        volume=without.series.volume, temperature=without.series.temperature,
    )  # fmt: skip
    # Latent Born charges are the true ones divided by √ε_∞, and the field of given forces is multiplied by it.
    found = dielectric_constant(still, blocks=5, electronic=1.0)
    fluctuations = Mean(found.value - 1.0, found.error)
    plot(responses, slope, zero, fluctuations.value, folder / "field.png")
    lines = [f"{'field, V/Å':>12s} {'M_z, e Å':>16s} {'chi':>14s} {'mean cosine':>18s} {'cosine per field':>20s}"]
    rows = []
    for r in responses:
        moment, cosine = r.mean_moment, r.mean_orientation
        text = f"{r.field:12g} {moment.value:8.2f} ± {moment.error:5.2f} "
        row = {"field": r.field, "moment": asdict(moment), "orientation": asdict(cosine)}
        chi = per_field = None
        if r is not without:
            chi = _difference(moment, without.mean_moment, r.field * r.series.volume * EPSILON_0)
            per_field = _difference(cosine, without.mean_orientation, r.field)
            row |= {"susceptibility": asdict(chi), "orientation_per_field": asdict(per_field)}
        text += f"{chi.value:7.1f} ± {chi.error:4.1f} " if chi else " " * 15
        text += f"{cosine.value:9.4f} ± {cosine.error:6.4f}"
        lines.append(text + (f"{per_field.value:12.2f} ± {per_field.error:5.2f}" if per_field else ""))
        rows.append(row)
    for name, chi in (("slope", slope), ("fluctuations", fluctuations)):
        lines.append(
            f"dielectric constant from the {name:12s} {electronic * (1.0 + chi.value):5.1f} ± "
            f"{electronic * chi.error:.1f}"
        )
    if not found.is_converged:
        lines.append(
            f"(the fluctuations are not converged: blocks of {found.block_length:.1f} ps, correlation time "
            f"{found.correlation_time:.1f} ps)"
        )
    lines.append(f"figure {folder / 'field.png'}")
    results = {
        "rows": rows, "slope": asdict(slope), "fluctuations": asdict(fluctuations), "electronic": electronic,
        "temperature": without.series.temperature, "duration": without.series.duration, "settle": settle,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    return "\n".join(lines)


def _difference(one: Mean, other: Mean, divisor: float) -> Mean:
    return Mean((one.value - other.value) / divisor, float(np.hypot(one.error, other.error)) / abs(divisor))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the analysis, the same in ``run.py``."""
    parser.add_argument("--fields", type=float, nargs="+", default=[0.01, 0.02], help="V/Å (default: 0.01 0.02)")
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
