"""``les-md spectrum`` and ``les-md dielectric`` as a user calls them."""

from __future__ import annotations

import numpy as np
import pytest

from les_md.analysis.infrared import infrared_spectrum, peaks
from les_md.analysis.series_files import read_dipole_series
from les_md.cli import main
from tests.analysis.oscillators import Line, gas, relaxing_dipole

OPTIONS = ["--columns", "Jx", "Jy", "Jz", "--quantity", "current", "--units", "metal"]


def write_columns(path, values: np.ndarray, interval: float, names: str) -> None:
    time = interval * np.arange(len(values))
    np.savetxt(path, np.column_stack([time, values]), header=f"time {names}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``current.txt``, ``dipole.txt`` (one line at 1650 cm⁻¹, 40 ps) and ``relaxing.txt``."""
    folder = tmp_path_factory.mktemp("series")
    moment, current = gas([Line(1650.0, 5.0)], interval=0.004, length=10_000)
    write_columns(folder / "current.txt", current.values, 0.004, "Jx Jy Jz")
    write_columns(folder / "dipole.txt", moment.values, 0.004, "Mx My Mz")
    write_columns(folder / "relaxing.txt", relaxing_dipole(4.0, 1.0, interval=0.1, length=20_000), 0.1, "Mx My Mz")
    return folder


def called(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, output and errors."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def rows(path, names: str) -> np.ndarray:
    assert path.read_text().splitlines()[0] == names
    return np.loadtxt(path, delimiter=",", skiprows=1).T


def test_spectrum(folder, tmp_path, capsys):
    output, figure = tmp_path / "ir.csv", tmp_path / "ir.png"
    status, printed, errors = called(
        capsys, "spectrum", folder / "current.txt", *OPTIONS, "--volume", 1000, "--temperature", 300, "-o", output,
        "--figure", figure,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    wavenumber, intensity, error = rows(output, "wavenumber_per_cm,n_alpha_per_cm,standard_error")
    expected = infrared_spectrum(
        read_dipole_series(
            folder / "current.txt", ["Jx", "Jy", "Jz"], "current", "metal", volume=1000.0, temperature=300.0
        )
    )
    assert wavenumber == pytest.approx(expected.wavenumber, rel=1e-6)
    assert intensity == pytest.approx(expected.intensity, rel=1e-6)
    assert error == pytest.approx(expected.error, rel=1e-6)
    (peak,) = peaks(expected)
    assert f"peaks               {peak:.0f} cm⁻¹" in printed
    for text in (
        "10000 values of the current, 39.996 ps",
        "4 fs",
        "1000 Å³",
        "300 K",
        "4170 cm⁻¹",
        "20 cm⁻¹ (hann), 5",
    ):
        assert text in printed
    assert "note" not in printed
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_every_option_of_spectrum_has_an_effect(folder, tmp_path, capsys):
    """Compared with the defaults, none is parsed and ignored."""
    base = ["spectrum", folder / "current.txt", *OPTIONS, "--volume", 1000, "--temperature", 300]
    tables = {}
    for change in (
        (),
        ("--resolution", 30),
        ("--blocks", 3),
        ("--window", "blackman", "--resolution", 25),
        ("--window", "parzen", "--resolution", 25),
        ("--quantum-correction", "standard"),
        ("--max-wavenumber", 2000),
        ("--scale", 1.3),
        ("--start", 3),
        ("--end", 36),
        ("--volume", 900),
        ("--temperature", 290),
    ):
        output = tmp_path / "ir.csv"
        status, _, errors = called(capsys, *base, *change, "-o", output)
        assert (status, errors) == (0, "")
        tables[change] = output.read_text()
    assert len(set(tables.values())) == len(tables)


def test_spectrum_from_dipole_without_volume(folder, tmp_path, capsys):
    output = tmp_path / "ir.csv"
    status, printed, _ = called(
        capsys, "spectrum", folder / "dipole.txt", "--columns", 2, 3, 4, "--time-column", 1, "--quantity", "dipole",
        "--units", "metal", "--blocks", 1, "-o", output,
    )  # fmt: skip
    assert status == 0
    wavenumber, density = rows(output, "wavenumber_per_cm,spectral_density_e2A2_per_ps")
    assert wavenumber[np.argmax(density)] == pytest.approx(1650.0, abs=15.0)
    assert "volume and temperature, which n α needs, are not known" in printed


def test_dielectric(folder, tmp_path, capsys):
    output, figure = tmp_path / "eps.csv", tmp_path / "eps.pdf"
    status, printed, errors = called(
        capsys, "dielectric", folder / "relaxing.txt", "--columns", "Mx", "My", "Mz", "--quantity", "dipole", "--units",
        "metal", "--volume", 1000, "--temperature", 300, "--electronic", 1.8, "-o", output, "--figure", figure,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    time, running = rows(output, "time_ps,dielectric_constant")
    assert time[-1] == pytest.approx(1999.9)
    value, error = (float(word) for word in printed.split("dielectric constant  ")[1].split(" (")[0].split(" ± "))
    assert running[-1] == pytest.approx(value, rel=1e-4)
    assert abs(value - 29.8) < 3.0 * error
    assert "(ε_∞ 1.8)" in printed
    assert "Σ q r of a LES model is not the polarisation where charge flows between molecules" in printed
    assert "10 of 200 ps" in printed
    assert "not converged" not in printed
    assert figure.read_bytes().startswith(b"%PDF")


def test_dielectric_that_is_not_converged(folder, tmp_path, capsys):
    status, printed, _ = called(
        capsys, "dielectric", folder / "relaxing.txt", "--columns", "Mx", "My", "Mz", "--quantity", "dipole", "--units",
        "metal", "--volume", 1000, "--temperature", 300, "--end", 20, "--blocks", 20, "-o", tmp_path / "eps.csv",
    )  # fmt: skip
    assert status == 0
    assert "not converged: blocks are shorter than five correlation times" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spectrum", "missing.txt", *OPTIONS], "No such file or directory: 'missing.txt'"),
        (["spectrum", "current.txt"], "name the columns (--columns): time, Jx, Jy, Jz"),
        (["spectrum", "current.txt", *OPTIONS[:4]], "is column Jx the dipole moment or its derivative?"),
        (["spectrum", "current.txt", *OPTIONS[:-2]], "are not known: give --units"),
        (["spectrum", "current.txt", *OPTIONS, "--columns", "Jw"], "no column 'Jw'; its columns are: time, Jx, Jy, Jz"),
        (["spectrum", "current.txt", *OPTIONS, "--resolution", "1"], "the shortest is 333.6 ps"),
        (["spectrum", "current.txt", *OPTIONS, "--resolution", "-1"], "resolution must be above 0"),
        (["spectrum", "current.txt", *OPTIONS, "--max-wavenumber", "5000"], "at most 4170 cm⁻¹ (Nyquist), got 5000"),
        (["spectrum", "current.txt", *OPTIONS, "--blocks", "0"], "blocks must be at least 1"),
        (["spectrum", "current.txt", *OPTIONS, "--quantum-correction", "none"], "'none' needs the temperature"),
        (["spectrum", "current.txt", *OPTIONS, "--timestep", "0"], "time step must be above 0 fs"),
        (["spectrum", "current.txt", *OPTIONS, "--timestep", "1"], "no column of steps to use it with"),
        (["spectrum", "current.txt", *OPTIONS, "--volume", "-5"], "volume must be a positive number of Å³"),
        (["spectrum", "current.txt", *OPTIONS, "--volume", "vol"], "no column 'vol'"),
        (["spectrum", "current.txt", *OPTIONS, "--temperature", "nan"], "temperature must be a positive number of K"),
        (["spectrum", "current.txt", *OPTIONS, "--start", "50"], "0 row(s) of data are left"),
        (["spectrum", "current.txt", *OPTIONS, "--scale", "0"], "the values do not change"),
        (["spectrum", "current.txt", *OPTIONS, "--time-column", "t"], "no column 't'"),
        (["spectrum", "current.txt", *OPTIONS, "--step-column", "time"], "does not hold whole numbers"),
        (["spectrum", "current.txt", *OPTIONS, "-o", "no/ir.csv"], "no/ir.csv"),
        (["spectrum", "current.txt", *OPTIONS, "--figure", "ir.doc"], "Format 'doc' is not supported"),
        (["dielectric", "current.txt", *OPTIONS], "needs the volume (--volume)"),
        (["dielectric", "current.txt", *OPTIONS, "--volume", "1000"], "needs the temperature (--temperature)"),
        (
            ["dielectric", "current.txt", *OPTIONS, "--volume", "9", "--temperature", "9", "--blocks", "1"],
            "blocks must be at least 2",
        ),
        (
            ["dielectric", "current.txt", *OPTIONS, "--volume", "9", "--temperature", "9", "--electronic", "0"],
            "ε_∞ must be at least 1",
        ),
    ],
)
def test_mistakes(folder, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    status, _, errors = called(capsys, *arguments)
    assert status == 1
    assert errors.startswith("error: ")
    assert message in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spectrum"], "the following arguments are required: file"),
        (["spectrum", "a", "--window", "tukey"], "invalid choice: 'tukey'"),
        (["spectrum", "a", "--quantity", "velocity"], "invalid choice: 'velocity'"),
        (["dielectric", "a", "--units", "lj"], "invalid choice: 'lj'"),
        (["dielectric", "a", "--blocks", "many"], "invalid int value: 'many'"),
    ],
)
def test_mistakes_of_the_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
