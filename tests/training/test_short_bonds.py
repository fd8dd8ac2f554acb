"""Bundled models for molecular dynamics repel hydrogens that come closer than any bond of their data."""

from __future__ import annotations

from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest

from les_md import LESCalculator, export


def calculator_of(name: str, folder: Path) -> LESCalculator:
    short_range = name.endswith("short_range")
    return LESCalculator(export(name, folder / "model.pt", dtype="float64", short_range=short_range).path)


def energies_along(atoms: ase.Atoms, centre: int, hydrogen: int, lengths: np.ndarray) -> np.ndarray:
    """Energies [L] eV as a hydrogen is moved along its bond, to ``lengths`` [L] Å."""
    direction = atoms.get_distance(centre, hydrogen, mic=True, vector=True)
    direction /= np.linalg.norm(direction)
    energies = []
    for length in lengths:
        atoms.positions[hydrogen] = atoms.positions[centre] + length * direction
        energies.append(atoms.get_potential_energy())
    return np.array(energies)


@pytest.mark.parametrize(
    "name, molecule, longest",
    [
        ("water_rpbe_d3", "H2O", 0.90),
        ("water_rpbe_d3_short_range", "H2O", 0.90),
        ("organics_wb97m", "H2O", 0.90),
        ("organics_wb97m", "NH3", 0.95),
        ("organics_wb97m", "CH4", 1.00),
    ],
)
def test_energy_rises_as_a_bond_is_compressed(name, molecule, longest, tmp_path):
    """Down to 0.45 Å below the shortest bond in the data: by more than 2 eV, and nowhere falling."""
    atoms = ase.build.molecule(molecule)
    atoms.calc = calculator_of(name, tmp_path)
    energies = energies_along(atoms, 0, 1, np.arange(longest, longest - 0.46, -0.025))
    assert (np.diff(energies) > 0.0).all()
    assert energies[-1] - energies[0] > 2.0


@pytest.mark.parametrize("name", ["water_rpbe_d3", "water_rpbe_d3_short_range"])
def test_energy_rises_in_the_liquid(name, shared, tmp_path):
    """The same for bonds of molecules in the liquid, where other hydrogens are near, in a frame never trained on."""
    frame = ase.io.read(shared / "data" / "water_rpbe_d3.xyz", index=5)
    calculator = calculator_of(name, tmp_path)
    hydrogens = np.flatnonzero(frame.numbers == 1)
    for centre in np.flatnonzero(frame.numbers == 8)[::16]:
        atoms = frame.copy()
        atoms.calc = calculator
        hydrogen = hydrogens[atoms.get_distances(centre, hydrogens, mic=True).argmin()]
        energies = energies_along(atoms, centre, hydrogen, np.arange(0.88, 0.43, -0.04))
        assert (np.diff(energies) > 0.0).all()
        assert energies[-1] - energies[0] > 2.0
