"""Where the labels of a structure are, and in which units: energy, forces, stress."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import ase.units
import numpy as np

#: What a stress label may be in, as a factor to eV/Å³; a virial in eV is divided by the volume.
STRESS_UNITS = {"eV/Å^3": 1.0, "eV/A^3": 1.0, "GPa": ase.units.GPa, "kbar": 0.1 * ase.units.GPa, "eV": None}


class FrameError(ValueError):
    """A structure or its labels cannot be trained on; the message names the frame."""


@dataclass(frozen=True)
class LabelKeys:
    """Names of the labels, among the values of the comment line, the arrays, or the results that ASE makes of them.

    Attributes
    ----------
    energy, forces : eV, eV/Å.
    stress : None if stresses are not looked at; otherwise ``stress_unit`` is a key of ``STRESS_UNITS``, and
        ``stress_sign`` says whether a positive diagonal means "tension" or "compression".
    """

    energy: str = "energy"
    forces: str = "forces"
    stress: str | None = None
    stress_unit: str | None = None
    stress_sign: str | None = None

    def find(self, atoms: ase.Atoms, key: str, what: str, where: str) -> np.ndarray:
        """The label ``key``; ``what`` says what it is for. Raises FrameError where it is not there or not finite."""
        results = atoms.calc.results if atoms.calc is not None else {}
        for place in (results, atoms.info, atoms.arrays):
            if key in place:
                try:
                    label = np.asarray(place[key], dtype=np.float64)
                except (TypeError, ValueError):
                    raise FrameError(f"{where}: label '{key}' is not made of numbers: {place[key]!r}") from None
                if not np.isfinite(label).all():
                    raise FrameError(f"{where}: label '{key}' holds a value that is not a finite number")
                return label
        present = [*results, *atoms.info, *(name for name in atoms.arrays if name not in ("numbers", "positions"))]
        raise FrameError(
            f"{where}: no label '{key}'; training needs {what} in every frame "
            f"(this one has: {', '.join(present) or 'none'})"
        )

    def find_energy(self, atoms: ase.Atoms, where: str) -> float:
        """eV."""
        label = self.find(atoms, self.energy, "energy (eV) and forces (eV/Å)", where)
        if label.size != 1:
            raise FrameError(f"{where}: label '{self.energy}' must be one number, it has {label.size}")
        return float(label.reshape(()))

    def find_forces(self, atoms: ase.Atoms, where: str) -> np.ndarray:
        """[N, 3], eV/Å."""
        label = self.find(atoms, self.forces, "energy (eV) and forces (eV/Å)", where)
        if label.shape != (len(atoms), 3):
            raise FrameError(f"{where}: label '{self.forces}' must be three numbers for each atom, it is {label.shape}")
        return label

    def find_stress(self, atoms: ase.Atoms, where: str) -> np.ndarray:
        """[3, 3] eV/Å³, positive under tension, of a periodic structure, from 6 (xx yy zz yz xz xy) or 9 numbers."""
        label = self.find(atoms, self.stress, "a stress", where)
        if label.size == 6:
            xx, yy, zz, yz, xz, xy = label.reshape(6)
            label = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        elif label.size == 9:
            label = label.reshape(3, 3)
            if np.abs(label - label.T).max() > 1e-3 * max(np.abs(label).max(), 1e-12):
                raise FrameError(f"{where}: label '{self.stress}' is not symmetric")
        else:
            raise FrameError(f"{where}: label '{self.stress}' must be 6 or 9 numbers, it has {label.size}")
        factor = STRESS_UNITS[self.stress_unit]
        if factor is None:
            factor = 1.0 / atoms.get_volume()
        return (factor if self.stress_sign == "tension" else -factor) * 0.5 * (label + label.T)
