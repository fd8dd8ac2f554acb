"""SPICE energies and forces (ωB97M-D3(BJ)/def2-TZVPPD) of two published sets, on one energy scale.

``spice_bec.xyz`` holds absolute energies, ``spice_dipeptides_dipolar.xyz`` the same less a sum of atomic energies.
Frames of both are handed out with energies relative to isolated atoms, of neutral systems of H, C, N and O only.

SPICE: Eastman et al., Sci. Data 10, 11 (2023).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import numpy as np

from les_md.training.dataset import Frame, checked_frame

ATOMIC_NUMBERS = (1, 6, 7, 8)

#: Energies of isolated atoms at the level of theory, eV: what the dipeptide set was shifted by.
ISOLATED_ATOMS = {
    1: -13.571964772646918,
    6: -1030.5671648271828,
    7: -1486.3750255780376,
    8: -2043.933693071156,
}
#: Energies per atom relative to isolated atoms that bound molecules of these elements can have, eV.
BOUND = (-8.0, -1.0)
#: Name of the frames of the set that states no subsets.
DIPOLAR = "dipeptides_dipolar"


@dataclass(frozen=True, eq=False)
class Sample:
    """A frame of the data with its origin.

    Attributes
    ----------
    frame : energy relative to isolated atoms, eV.
    atoms : the structure as it was read, all labels included.
    subset : the part of SPICE it comes from.
    composition : its elements in Hill order, as C6H12N2O2: what tells molecules (and clusters) apart.
    source : file and number of the frame.
    """

    frame: Frame
    atoms: ase.Atoms
    subset: str
    composition: str
    source: str


def read_absolute(path: Path) -> list[Sample]:
    """Neutral frames of H, C, N and O of ``spice_bec.xyz``: absolute energies, subsets named.

    A frame without ``total_charge`` is taken as neutral if its Born effective charges sum up to less than 0.1 e.
    Raises what ``read`` raises.
    """
    return read(path, shifted=False)


def read_dipolar(path: Path) -> list[Sample]:
    """Frames of ``spice_dipeptides_dipolar.xyz``: neutral, energies less those of isolated atoms."""
    return read(path, shifted=True)


def read(path: Path, shifted: bool) -> list[Sample]:
    """Neutral frames of H, C, N and O; ``shifted``: whether energies are already relative to isolated atoms.

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : labels missing or not finite, no subset or charge in a set of absolute energies, or an energy per
        atom that no bound molecule has relative to isolated atoms, which means the other kind of energies.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    samples = []
    for i, atoms in enumerate(ase.io.read(path, ":")):
        where = f"{path.name}, frame {i}"
        if not set(atoms.numbers.tolist()) <= set(ATOMIC_NUMBERS):
            continue
        if not shifted and total_charge(atoms, where) != 0:
            continue
        frame = checked_frame(relative_to_atoms(atoms, where, shifted), where, ATOMIC_NUMBERS)
        subset = DIPOLAR if shifted else atoms.info.get("subset")
        if subset is None:
            raise ValueError(f"{where}: no 'subset' is stated")
        samples.append(Sample(frame, atoms, subset, atoms.get_chemical_formula(mode="hill"), where))
    if not samples:
        raise ValueError(f"{path} holds no neutral frames of H, C, N and O")
    return samples


def born_effective_charges(atoms: ase.Atoms) -> np.ndarray:
    """Born effective charges [N, 3, 3] in e of a frame of ``spice_bec.xyz``, polarisation index first.

    The file has the index of the displacement first: only so do its tensors turn the dipole with the molecule,
    Σ_i Z*_i (ω × r_i) = ω × μ.
    """
    return atoms.arrays["bec"].reshape(-1, 3, 3).transpose(0, 2, 1)


def total_charge(atoms: ase.Atoms, where: str) -> int:
    """Total charge in e, as stated or else from the sum rule Σ Z* = Q 1 of its Born effective charges.

    Raises ValueError where neither is there.
    """
    stated = atoms.info.get("total_charge")
    if stated is not None:
        return int(stated)
    if "bec" not in atoms.arrays:
        raise ValueError(f"{where}: neither a total charge nor Born effective charges")
    return round(float(np.trace(atoms.arrays["bec"].reshape(-1, 3, 3).sum(0)) / 3.0))


def relative_to_atoms(atoms: ase.Atoms, where: str, shifted: bool) -> ase.Atoms:
    """A copy whose energy is relative to isolated atoms; see ``read`` for the error."""
    if atoms.calc is None or "energy" not in atoms.calc.results:
        return atoms  # the check of labels says so
    shift = 0.0 if shifted else sum(ISOLATED_ATOMS[z] * count for z, count in Counter(atoms.numbers.tolist()).items())
    energy = float(atoms.calc.results["energy"]) - shift
    if not BOUND[0] < energy / len(atoms) < BOUND[1]:
        raise ValueError(
            f"{where}: {energy / len(atoms):.2f} eV/atom relative to isolated atoms; are its energies "
            f"{'absolute instead of relative' if shifted else 'relative instead of absolute'}?"
        )
    copy = atoms.copy()
    copy.calc = type(atoms.calc)(copy, **{**atoms.calc.results, "energy": energy})
    return copy
