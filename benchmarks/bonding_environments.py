"""Names for the bonding environments of H, C, N and O in organic molecules, from distances alone."""

from __future__ import annotations

import ase
import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import build_neighbor_list, natural_cutoffs

#: Bonds are up to this many times the sum of covalent radii long.
TOLERANCE = 1.2


def bonded_neighbours(atoms: ase.Atoms) -> list[list[int]]:
    """Indices of the atoms bonded to each atom; a hydrogen belongs to the nearest atom alone (hydrogen bonds do not
    count)."""
    neighbours = build_neighbor_list(
        atoms, natural_cutoffs(atoms, mult=TOLERANCE), self_interaction=False, bothways=True, skin=0.0
    )  # fmt: skip
    bonded = [list(map(int, neighbours.get_neighbors(i)[0])) for i in range(len(atoms))]
    for i in np.flatnonzero(atoms.numbers == 1):
        if len(bonded[i]) > 1:
            reach = [
                atoms.get_distance(i, j, mic=atoms.pbc.any()) / (covalent_radii[1] + covalent_radii[atoms.numbers[j]])
                for j in bonded[i]
            ]
            nearest = bonded[i][int(np.argmin(reach))]
            for j in bonded[i]:
                if j != nearest:
                    bonded[j].remove(i)
            bonded[i] = [nearest]
    return bonded


def environments(atoms: ase.Atoms) -> list[str]:
    """A name for each atom: its element, and what it is part of.

    H by what carries it; O: water, hydroxyl, carboxyl OH, ether or ester, carbonyl, carboxylate, other; C: C=O (bonded
    to an oxygen without further neighbours), C≡N or other with two neighbours, with three, with four neighbours
    beside heteroatoms or not; N: nitrile, with two neighbours, amide (beside C=O), amine or aniline, ammonium. Other
    elements keep their name.
    """
    bonded = bonded_neighbours(atoms)
    symbols = atoms.get_chemical_symbols()

    def around(i: int, symbol: str) -> list[int]:
        return [j for j in bonded[i] if symbols[j] == symbol]

    terminal = [symbols[i] == "O" and len(bonded[i]) == 1 for i in range(len(atoms))]
    carbonyl = [symbols[i] == "C" and any(terminal[j] for j in bonded[i]) for i in range(len(atoms))]

    def oxygen(i: int) -> str:
        hydrogens, carbons = around(i, "H"), around(i, "C")
        if len(hydrogens) == 2 and len(bonded[i]) == 2:
            return "O water"
        if len(hydrogens) == 1 and len(carbons) == 1 and len(bonded[i]) == 2:
            return "O carboxyl OH" if carbonyl[carbons[0]] else "O hydroxyl"
        if len(carbons) == 2 and len(bonded[i]) == 2:
            return "O ether, ester"
        if len(carbons) == 1 and len(bonded[i]) == 1:
            return "O carboxylate" if sum(terminal[j] for j in bonded[carbons[0]]) == 2 else "O carbonyl"
        return "O other"

    def carbon(i: int) -> str:
        if carbonyl[i]:
            return "C carbonyl"
        count = len(bonded[i])
        if count == 2:
            return "C nitrile, alkyne"
        if count == 3:
            return "C three neighbours"
        if count == 4:
            hetero = any(symbols[j] not in ("C", "H") for j in bonded[i])
            return "C sp3, by N or O" if hetero else "C sp3, by C and H"
        return "C other"

    def nitrogen(i: int) -> str:
        count = len(bonded[i])
        if count == 1:
            return "N nitrile"
        if count == 2:
            return "N two neighbours"
        if count == 3:
            return "N amide" if any(carbonyl[j] for j in bonded[i]) else "N amine"
        return "N ammonium" if count == 4 else "N other"

    def hydrogen(i: int) -> str:
        if len(bonded[i]) != 1:
            return "H other"
        carrier = bonded[i][0]
        if symbols[carrier] == "O":
            return "H water" if oxygen(carrier) == "O water" else "H on O"
        return f"H on {symbols[carrier]}" if symbols[carrier] in ("C", "N") else "H other"

    name = {"H": hydrogen, "C": carbon, "N": nitrogen, "O": oxygen}
    return [name[symbol](i) if symbol in name else symbol for i, symbol in enumerate(symbols)]
