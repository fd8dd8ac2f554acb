"""Is a structure a minimum? Second derivatives over the gold atoms, and the stationary point next to a structure."""

from __future__ import annotations

import ase
import numpy as np
from ase.calculators.calculator import Calculator
from relaxation import gold


def curvatures(calculator: Calculator, atoms: ase.Atoms, step: float = 1e-3) -> np.ndarray:
    """Eigenvalues in eV/Å², ascending, of the energy's second derivatives over the coordinates of the gold atoms.

    All positive: a minimum (the substrate is frozen); each negative one is a direction downhill. By central
    differences of the forces, ``step`` in Å.
    """
    return np.linalg.eigvalsh(_second_derivatives(calculator, atoms, step))


def stationary_point(calculator: Calculator, atoms: ase.Atoms, force_tolerance: float = 1e-6) -> ase.Atoms:
    """The point without forces on gold next to ``atoms``, be it a minimum or a saddle point, by Newton's method.

    Raises RuntimeError if the first steps lead away (by more than 0.3 Å) or it is not reached in ten.
    """
    moved, mobile = atoms.copy(), gold(atoms)
    for _ in range(10):
        forces = calculator.get_property("forces", moved)[mobile].ravel()
        if np.abs(forces).max() <= force_tolerance:
            return moved
        displacement = np.linalg.solve(_second_derivatives(calculator, moved), forces)
        moved.positions[mobile] += displacement.reshape(-1, 3)
        if np.abs(moved.positions - atoms.positions).max() > 0.3:
            break
    raise RuntimeError(f"there is no stationary point within 0.3 Å of {atoms.info.get('simulation_info', atoms)}")


def _second_derivatives(calculator: Calculator, atoms: ase.Atoms, step: float = 1e-3) -> np.ndarray:
    """Symmetric matrix [3n, 3n] in eV/Å² over the coordinates of the n gold atoms."""
    mobile = gold(atoms)
    rows = []
    for i in mobile:
        for axis in range(3):
            forces = []
            for sign in (-1.0, 1.0):
                displaced = atoms.copy()
                displaced.positions[i, axis] += sign * step
                forces.append(calculator.get_property("forces", displaced)[mobile].ravel())
            rows.append((forces[0] - forces[1]) / (2.0 * step))
    matrix = np.stack(rows)
    return 0.5 * (matrix + matrix.T)
