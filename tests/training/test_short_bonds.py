"""Bundled models for molecular dynamics repel hydrogens that come closer than any bond of their data."""

import ase.build
import numpy as np
import pytest

from les_md import LESCalculator, export


@pytest.mark.parametrize("name", ["water_rpbe_d3", "organics_wb97m"])
def test_energy_rises_as_a_bond_is_compressed(name, tmp_path):
    """Down to 0.55 Å, 0.3 Å below the shortest O-H in the data: by more than 2 eV, and nowhere falling."""
    molecule = ase.build.molecule("H2O")
    molecule.calc = LESCalculator(export(name, tmp_path / "model.pt", dtype="float64").path)
    energies = []
    for length in np.arange(0.90, 0.54, -0.025):
        molecule.set_distance(0, 1, length, fix=0)
        energies.append(molecule.get_potential_energy())
    assert (np.diff(energies) > 0.0).all()
    assert energies[-1] - energies[0] > 2.0
