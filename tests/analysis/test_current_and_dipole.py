"""What the series of a LES model are worth: Σ Z* v against the change of Σ (q − q̄) r."""

from __future__ import annotations

import ase
import ase.build
import numpy as np
import pytest
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from les_md import LESCalculator, export
from les_md.check_structures import water_box


def current_and_change(atoms: ase.Atoms, calculator: LESCalculator) -> tuple[np.ndarray, np.ndarray]:
    """J = Σ Z* v, and d/dt Σ (q − q̄) r by central differences along the velocities; e Å per ASE's unit of time."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=300.0, rng=np.random.default_rng(1))
    velocities, step = atoms.get_velocities(), 0.002 * units.fs
    current = np.einsum("iab,ib->a", calculator.get_born_effective_charges(atoms), velocities)
    moments = []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        moved.positions += sign * step * velocities
        moments.append(calculator.evaluator.dipole_moment(charges_of(moved, calculator), moved.positions))
    return current, (moments[0] - moments[1]) / (2.0 * step)


def charges_of(atoms: ase.Atoms, calculator: LESCalculator) -> np.ndarray:
    calculator.calculate(atoms)
    return calculator.results["charges"].reshape(len(atoms), -1)


def test_isolated_molecules(tmp_path):
    calculator = LESCalculator(export("organics_wb97m", tmp_path / "organics.pt", dtype="float64").path)
    atoms = ase.build.molecule("CH3CONH2")
    current, change = current_and_change(atoms, calculator)
    assert np.abs(current).max() > 1e-3
    assert change == pytest.approx(current, rel=1e-6, abs=1e-8)


def test_periodic_liquid(tmp_path):
    """Charge flows between molecules: the change of Σ q r then depends on the origin, and is not the current.

    This is why docs/spectrum.md and the note of les-md ask for the current of a periodic system.
    """
    calculator = LESCalculator(export("water_rpbe_d3", tmp_path / "water.pt", dtype="float64").path)
    atoms = water_box()
    current, change = current_and_change(atoms, calculator)
    assert np.linalg.norm(change - current) > 0.3 * np.linalg.norm(current)
    # The current does not know of images: a molecule in another one leaves it as it is.
    moved = atoms.copy()
    moved.positions[:3] += atoms.cell.array[0]
    again, other_change = current_and_change(moved, calculator)
    assert again == pytest.approx(current, rel=1e-8)
    assert np.linalg.norm(other_change - change) > 0.01 * np.linalg.norm(change)
