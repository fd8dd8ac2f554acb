"""Data of the bundled organics model: what is in its two sets, and which frames train, choose and test.

Elements H, C, N, O; energies and forces at one level of theory, ωB97M-D3(BJ)/def2-TZVPPD, from two published parts of
SPICE (see ``spice.py``): neutral monomers, dimers, peptides, drug-like molecules, water clusters and solvated amino
acids. There is no bulk liquid in the data.

The split follows compositions: all frames of one composition, whichever set they come from, are in one part, so no
test molecule was trained on in another conformation. The exception are the five dipeptides of the second set that
are trained on, of which every twelfth conformer helps to choose the epoch. A dimer or a solvated molecule has its own
composition, its parts may occur in training.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ase
import ase.io
from ase.calculators.singlepoint import SinglePointCalculator

from les_md.training.spice import DIPOLAR, Sample, read_absolute, read_dipolar

ABSOLUTE_FILE, DIPOLAR_FILE = "spice_bec.xyz", "spice_dipeptides_dipolar.xyz"

#: Compositions held out by hand where there are few: clusters of 4 and 10 waters, solvated Asp, Thr and Gln, and one of
#: the six dipeptides of the second set (test); clusters of 9 waters and solvated Glu (validation).
TEST = ("H8O4", "H20O10", "C7H52N2O24", "C7H54N2O23", "C8H55N3O23", "C14H26N6O5")
VALIDATION = ("H18O9", "C8H54N2O24")
#: Of the other subsets, in Hill order of the compositions: every eighth to the test, every sixteenth to validation.
BY_RANK = ("des370k_dimers", "des370k_monomers", "dipeptides", "pubchem", "qmugs")
#: Every so manyth conformer of the dipeptides of the second set is for validation.
VALIDATION_CONFORMER = 12


def split(samples: list[Sample]) -> dict[str, list[int]]:
    """Indices of the training, validation and test frames."""
    trained = {s.composition for s in samples if s.subset == DIPOLAR} - set(TEST)
    part_of = dict.fromkeys(VALIDATION, "validation") | dict.fromkeys(TEST, "test")
    for subset in BY_RANK:
        compositions = sorted({s.composition for s in samples if s.subset == subset} - trained)
        for rank, composition in enumerate(compositions):
            if rank % 8 == 3:
                part_of.setdefault(composition, "test")
            elif rank % 16 == 7:
                part_of.setdefault(composition, "validation")
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    conformers: Counter[str] = Counter()
    for i, sample in enumerate(samples):
        part = part_of.get(sample.composition, "train")
        if sample.subset == DIPOLAR and part == "train":
            conformers[sample.composition] += 1
            if conformers[sample.composition] % VALIDATION_CONFORMER == 0:
                part = "validation"
        parts[part].append(i)
    return parts


def read(data: Path) -> list[Sample]:
    """All samples of the two files in the folder ``data``."""
    return read_absolute(data / ABSOLUTE_FILE) + read_dipolar(data / DIPOLAR_FILE)


def write_parts(data: Path, out: Path) -> None:
    """Write a file for each subset of each part, ``train_water.xyz`` and so on; ``data`` is the folder of both sets.

    Energies are relative to isolated atoms. Composition and source are in the comment lines.
    """
    samples = read(data)
    files: dict[str, list[ase.Atoms]] = {}
    for part, chosen in split(samples).items():
        for i in chosen:
            files.setdefault(f"{part}_{samples[i].subset}.xyz", []).append(labelled(samples[i]))
    for name, structures in files.items():
        ase.io.write(out / name, structures, format="extxyz")


def labelled(sample: Sample) -> ase.Atoms:
    """The structure of a sample with its energy, relative to isolated atoms, and forces, as ASE writes it."""
    atoms = ase.Atoms(sample.atoms.numbers, sample.atoms.positions)
    atoms.info = {"subset": sample.subset, "composition": sample.composition, "source": sample.source}
    frame = sample.frame
    atoms.calc = SinglePointCalculator(atoms, energy=float(frame.energy), forces=frame.forces.numpy())
    return atoms
