"""Infrared spectrum of a run of ``in.water_ir`` beside the bands of liquid water.

python analysis.py output/log.lammps
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

from les_md.analysis.infrared import InfraredSpectrum, infrared_spectrum
from les_md.analysis.series_files import read_dipole_series

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Where liquid H2O absorbs at 25 °C, cm⁻¹: Bertie and Lan, Appl. Spectrosc. 50, 1047 (1996).
BANDS = {"libration": (400.0, 900.0), "bend": (1550.0, 1750.0), "stretch": (3000.0, 3700.0)}
COLUMNS = ["c_les[3]", "c_les[4]", "c_les[5]"]


def maximum(spectrum: InfraredSpectrum, low: float, high: float) -> tuple[float, float, float]:
    """Wavenumber, n α and its standard error (cm⁻¹) of the highest point between ``low`` and ``high``."""
    band = np.flatnonzero((spectrum.wavenumber >= low) & (spectrum.wavenumber <= high))
    top = band[np.argmax(spectrum.intensity[band])]
    return float(spectrum.wavenumber[top]), float(spectrum.intensity[top]), float(spectrum.error[top])


def plot(spectrum: InfraredSpectrum, path: Path) -> None:
    """Figure of the spectrum, its standard error, and the measured bands."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(spectrum.wavenumber, spectrum.intensity, color="tab:red", linewidth=1.2)
    lower, upper = spectrum.intensity - spectrum.error, spectrum.intensity + spectrum.error
    axis.fill_between(spectrum.wavenumber, lower, upper, color="tab:red", alpha=0.3, linewidth=0.0)
    for name, (low, high) in BANDS.items():
        axis.axvspan(low, high, color="tab:blue", alpha=0.12, linewidth=0.0)
        axis.text(0.5 * (low + high), 0.97, name, transform=axis.get_xaxis_transform(), ha="center", va="top")
    axis.set_xlim(0.0, 4000.0)
    axis.set_ylim(0.0, 1.25 * upper.max())
    axis.set_xlabel("wavenumber / cm⁻¹")
    axis.set_ylabel("n α / cm⁻¹")
    axis.set_title("Liquid water, 300 K (shaded: where it absorbs in experiment)", fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def summarise(log: Path, resolution: float, blocks: int, scale: float) -> str:
    """Write ``ir.png`` and ``ir.csv`` beside the log; returns the text of the summary."""
    series = read_dipole_series(log, COLUMNS, "current", scale=scale)
    spectrum = infrared_spectrum(series, resolution=resolution, blocks=blocks)
    plot(spectrum, log.with_name("ir.png"))
    np.savetxt(
        log.with_name("ir.csv"),
        np.column_stack([spectrum.wavenumber, spectrum.intensity, spectrum.error]),
        delimiter=",",
        header="wavenumber_per_cm,n_alpha_per_cm,standard_error",
        comments="",
        fmt="%.6g",
    )
    lines = [
        f"series            {series.duration:.1f} ps every {1e3 * series.interval:g} fs",
        f"temperature       {series.temperature:.1f} K",
        f"resolution        {spectrum.resolution:.0f} cm⁻¹, {blocks} blocks",
    ]
    for name, (low, high) in BANDS.items():
        # Half the band's width further out: a model may have its maximum beside the measured band.
        margin = 0.5 * (high - low)
        position, height, error = maximum(spectrum, low - margin, high + margin)
        lines.append(
            f"{name:17s} {position:.0f} cm⁻¹, n α {height:.0f} ± {error:.0f} cm⁻¹ (measured: {low:.0f} to {high:.0f})"
        )
    lines.append(f"figure            {log.with_name('ir.png')}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Infrared spectrum of a run of in.water_ir.")
    parser.add_argument("log", type=Path, help="log.lammps of the run")
    add_options(parser)
    options = parser.parse_args()
    print(summarise(options.log, options.resolution, options.blocks, options.scale))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the spectrum, the same in ``run.py``."""
    parser.add_argument("--resolution", type=float, default=40.0, help="cm⁻¹ (default: 40)")
    parser.add_argument("--blocks", type=int, default=8, help="parts of the series for the errors (default: 8)")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.334,
        help="factor on the current (default: 1.334, √ε_∞ of water, for models with epsilon_factor 1)",
    )


if __name__ == "__main__":
    main()
