"""``les-md spectrum`` and ``les-md dielectric``."""

from __future__ import annotations

import argparse
from pathlib import Path

from les_md.analysis.quantum_corrections import QUANTUM_CORRECTIONS
from les_md.analysis.series_files import UNITS, read_dipole_series
from les_md.analysis.windows import WINDOWS


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add both commands to those of ``les-md``."""
    spectrum = commands.add_parser(
        "spectrum", help="infrared spectrum from a series of the dipole moment or its derivative"
    )
    _add_series_options(spectrum)
    spectrum.add_argument(
        "--resolution",
        type=float,
        default=20.0,
        metavar="CM-1",
        help="full width at half maximum of a sharp line, cm^-1 (default: 20)",
    )
    spectrum.add_argument("--blocks", type=int, default=5, help="parts of the series for the error bars (default: 5)")
    spectrum.add_argument(
        "--window", choices=WINDOWS, default="hann", help="window on the correlation function (default: hann)"
    )
    spectrum.add_argument(
        "--quantum-correction",
        choices=QUANTUM_CORRECTIONS,
        default="harmonic",
        help="harmonic (default) is the classical response; the others need the temperature",
    )
    spectrum.add_argument(
        "--max-wavenumber",
        type=float,
        metavar="CM-1",
        help="where the spectrum ends, cm^-1 (default: 4000, or the Nyquist wavenumber of the series)",
    )
    spectrum.add_argument("-o", "--output", default="spectrum.csv", help="CSV file to write (default: spectrum.csv)")
    spectrum.add_argument("--figure", metavar="FILE.png", help="figure to write")
    spectrum.set_defaults(function=_spectrum)

    dielectric = commands.add_parser(
        "dielectric", help="dielectric constant from the fluctuations of the dipole moment"
    )
    _add_series_options(dielectric)
    dielectric.add_argument("--blocks", type=int, default=10, help="parts of the series for the error (default: 10)")
    dielectric.add_argument(
        "--electronic",
        type=float,
        default=1.0,
        metavar="EPS_INF",
        help="dielectric constant of the electrons at fixed nuclei (default: 1)",
    )
    dielectric.add_argument(
        "-o", "--output", default="dielectric.csv", help="CSV file of the running estimate (default: dielectric.csv)"
    )
    dielectric.add_argument("--figure", metavar="FILE.png", help="figure of the running estimate to write")
    dielectric.set_defaults(function=_dielectric)


def _add_series_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="LAMMPS log, output of fix ave/time or fix print, CSV of LESReporter, or columns")
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="COLUMN",
        help="one to three Cartesian components, by name or number from 1 (default: those of LESReporter's CSV)",
    )
    parser.add_argument(
        "--quantity", choices=("current", "dipole"), help="what the columns are, where the headings do not say it"
    )
    parser.add_argument(
        "--units",
        choices=tuple(UNITS),
        help="metal: e Å, e Å/ps, ps; real: e Å, e Å/fs, fs; openmm: e nm, e nm/ps, ps (default: what the file says)",
    )
    parser.add_argument("--step-column", metavar="COLUMN", help="column of the step (default: Step or TimeStep)")
    parser.add_argument("--time-column", metavar="COLUMN", help="column of the time (default: Time)")
    parser.add_argument(
        "--timestep", type=float, metavar="FS", help="time step of the simulation, fs, where the file has no times"
    )
    parser.add_argument("--start", type=float, metavar="PS", help="leave out what is before this time, ps")
    parser.add_argument("--end", type=float, metavar="PS", help="leave out what is after this time, ps")
    parser.add_argument(
        "--volume",
        type=_number_or_column,
        metavar="A3",
        help="volume, Å³, or the column to average (default: the column Volume)",
    )
    parser.add_argument(
        "--temperature",
        type=_number_or_column,
        metavar="K",
        help="temperature, K, or the column to average (default: the column Temp)",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the dipole moment or current (default: 1)")
    parser.add_argument(
        "--allow-jumps", action="store_true", help="accept a dipole moment that jumps as if molecules were wrapped"
    )


def _number_or_column(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _read(options: argparse.Namespace):
    if options.timestep is not None and not options.timestep > 0.0:
        raise ValueError(f"the time step must be above 0 fs, got {options.timestep:g}")
    series = read_dipole_series(
        options.file,
        options.columns,
        options.quantity,
        options.units,
        step_column=options.step_column,
        time_column=options.time_column,
        timestep=None if options.timestep is None else 1e-3 * options.timestep,
        start=options.start,
        end=options.end,
        volume=options.volume,
        temperature=options.temperature,
        scale=options.scale,
        allow_jumps=options.allow_jumps,
    )
    rows = [("series", f"{len(series.values)} values of the {series.quantity}, {series.duration:.6g} ps")]
    rows.append(("interval", f"{1e3 * series.interval:.6g} fs"))
    if series.volume is not None:
        rows.append(("volume", f"{series.volume:.6g} Å³"))
    if series.temperature is not None:
        rows.append(("temperature", f"{series.temperature:.6g} K"))
    notes = list(series.notes)
    if series.quantity == "dipole" and series.volume is not None:
        notes.append(
            "in a periodic system Σ q r of a LES model is not the polarisation where charge flows between molecules: "
            "use the current there (docs/spectrum.md)"
        )
    return series, rows + [("note", note) for note in notes]


def _spectrum(options: argparse.Namespace) -> None:
    from les_md.analysis.infrared import infrared_spectrum, peaks

    series, rows = _read(options)
    spectrum = infrared_spectrum(
        series,
        resolution=options.resolution,
        blocks=options.blocks,
        window=options.window,
        quantum_correction=options.quantum_correction,
        max_wavenumber=options.max_wavenumber,
    )
    rows.append(("Nyquist", f"{spectrum.nyquist:.0f} cm⁻¹; what vibrates faster appears at a wrong, lower wavenumber"))
    rows.append(("resolution", f"{spectrum.resolution:.3g} cm⁻¹ ({spectrum.window}), {spectrum.blocks} block(s)"))
    rows.append(("quantum correction", spectrum.quantum_correction))
    unit = "n α in cm⁻¹" if spectrum.absolute else "e² Å²/ps: volume and temperature, which n α needs, are not known"
    rows.append(("intensities", unit))
    found = ", ".join(f"{peak:.0f}" for peak in peaks(spectrum))
    rows.append(("peaks", f"{found} cm⁻¹" if found else "none stands out"))
    _write_csv(
        options.output,
        {
            "wavenumber_per_cm": spectrum.wavenumber,
            "n_alpha_per_cm" if spectrum.absolute else "spectral_density_e2A2_per_ps": spectrum.intensity,
            "standard_error": spectrum.error,
        },
    )
    rows.append(("data", options.output))
    if options.figure:
        from les_md.analysis.figures import plot_spectrum

        plot_spectrum(spectrum, options.figure)
        rows.append(("figure", options.figure))
    _print(rows)


def _dielectric(options: argparse.Namespace) -> None:
    from les_md.analysis.dielectric import dielectric_constant

    series, rows = _read(options)
    result = dielectric_constant(series, blocks=options.blocks, electronic=options.electronic)
    rows.append(("dielectric constant", f"{result.value:.5g} ± {result.error:.2g} (ε_∞ {options.electronic:g})"))
    rows.append(("correlation time", f"{result.correlation_time:.4g} ps"))
    rows.append(("blocks", f"{result.blocks} of {result.block_length:.4g} ps"))
    if not result.is_converged:
        rows.append(
            (
                "note",
                "not converged: blocks are shorter than five correlation times, value and error are too low "
                f"(a series of {5.0 * result.blocks * result.correlation_time:.3g} ps or more is needed)",
            )
        )
    _write_csv(options.output, {"time_ps": result.running_time, "dielectric_constant": result.running})
    rows.append(("data", options.output))
    if options.figure:
        from les_md.analysis.figures import plot_convergence

        plot_convergence(result, options.figure)
        rows.append(("figure", options.figure))
    _print(rows)


def _write_csv(path: str | Path, columns: dict) -> None:
    import numpy as np

    present = {name: values for name, values in columns.items() if values is not None}
    np.savetxt(
        path,
        np.column_stack(list(present.values())),
        delimiter=",",
        header=",".join(present),
        comments="",
        fmt="%.8g",
    )


def _print(rows: list[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        print(f"{label:{width}s}  {text}")
