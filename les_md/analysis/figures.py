"""Figures of a spectrum and of the convergence of a dielectric constant."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from les_md.analysis.dielectric import DielectricConstant
from les_md.analysis.infrared import InfraredSpectrum


def plot_spectrum(spectrum: InfraredSpectrum, path: str | Path) -> None:
    """Spectrum with a band of one standard error; the format follows the file's suffix."""
    figure, axis = _axes()
    axis.plot(spectrum.wavenumber, spectrum.intensity, color="tab:red", linewidth=1.2)
    if spectrum.error is not None:
        lower, upper = spectrum.intensity - spectrum.error, spectrum.intensity + spectrum.error
        axis.fill_between(spectrum.wavenumber, lower, upper, color="tab:red", alpha=0.3, linewidth=0.0)
    axis.set_xlim(0.0, spectrum.wavenumber[-1])
    axis.set_ylim(bottom=min(0.0, float(spectrum.intensity.min())))
    axis.set_xlabel("wavenumber / cm⁻¹")
    axis.set_ylabel("n α / cm⁻¹" if spectrum.absolute else "spectral density of dM/dt / e² Å² ps⁻¹")
    axis.set_title(f"resolution {spectrum.resolution:.3g} cm⁻¹, {spectrum.blocks} block(s)", fontsize="medium")
    figure.savefig(path, dpi=150)


def plot_convergence(result: DielectricConstant, path: str | Path) -> None:
    """Running estimate of the dielectric constant, with the final value and its standard error."""
    figure, axis = _axes()
    axis.plot(result.running_time, result.running, color="tab:blue", linewidth=1.2)
    axis.axhspan(result.value - result.error, result.value + result.error, color="tab:blue", alpha=0.2, linewidth=0.0)
    axis.axhline(result.value, color="tab:blue", linewidth=0.6)
    axis.set_xlabel("time / ps")
    axis.set_ylabel("dielectric constant")
    axis.set_title(f"{result.value:.4g} ± {result.error:.2g}", fontsize="medium")
    figure.savefig(path, dpi=150)


def _axes():
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)  # no display, whatever the user's matplotlib prefers
    return figure, figure.add_subplot()
