"""LAMMPS data file from the last state of an OpenMM run, to go on in LAMMPS with ``in.alanine``.

python to_lammps.py output/final.xml -o alanine.data
"""

import argparse
from pathlib import Path

import ase
import ase.io
import openmm
from ase.units import fs
from openmm import app, unit

HERE = Path(__file__).resolve().parent
#: In the order of the atom types in ``in.alanine``.
ELEMENTS = ("H", "C", "N", "O")


def atoms_of(state: openmm.State, topology: app.Topology) -> ase.Atoms:
    """Positions, velocities and box of a State of OpenMM."""
    angstrom = unit.angstrom
    atoms = ase.Atoms(
        [atom.element.symbol for atom in topology.atoms()],
        positions=state.getPositions(asNumpy=True).value_in_unit(angstrom),
        cell=state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(angstrom),
        pbc=True,
    )
    # The masses of OpenMM's elements, so that both engines move the same atoms.
    atoms.set_masses([atom.element.mass.value_in_unit(unit.dalton) for atom in topology.atoms()])
    atoms.set_velocities(state.getVelocities(asNumpy=True).value_in_unit(angstrom / unit.femtosecond) / fs)
    return atoms


def main() -> None:
    parser = argparse.ArgumentParser(description="LAMMPS data file from the last state of an OpenMM run.")
    parser.add_argument("state", type=Path, help="State as XML, such as final.xml or checkpoint.xml")
    parser.add_argument("--start", type=Path, default=HERE / "solvated.pdb", help="box that the run started from")
    parser.add_argument("-o", "--output", type=Path, default=Path("alanine.data"))
    options = parser.parse_args()
    state = openmm.XmlSerializer.deserialize(options.state.read_text(encoding="utf-8"))
    atoms = atoms_of(state, app.PDBFile(str(options.start)).topology)
    ase.io.write(
        options.output,
        atoms,
        format="lammps-data",
        specorder=list(ELEMENTS),
        masses=True,
        velocities=True,
        units="metal",
    )
    print(f"{options.output}: {len(atoms)} atoms, types {' '.join(ELEMENTS)}")


if __name__ == "__main__":
    main()
