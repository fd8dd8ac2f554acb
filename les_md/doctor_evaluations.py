"""A box of water by the bundled model, in the engines that run inside Python; ``doctor.py`` starts this as a program.

    python -m les_md.doctor_evaluations {reference,openmm} FOLDER

``reference`` exports the model to ``FOLDER/water.pt``, evaluates it in ASE, checks the forces against finite
differences of the energy, and writes ``FOLDER/reference.npz`` and what LAMMPS needs (``water.data``, ``in.water``).
``openmm`` evaluates the same file in OpenMM. Each ends with one line of JSON: what to tell the user.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ase.io
import numpy as np

from les_md.check_structures import water_box

#: Largest accepted difference between two engines in double precision, relative to the largest value.
TOLERANCE = 1e-9

MODEL = "water_rpbe_d3"
ELEMENTS = ("O", "H")

_INPUT = """units metal
boundary p p p
read_data water.data
pair_style mliap/les
pair_coeff * * water.pt {elements}
dump d all custom 1 lammps.atoms id fx fy fz
dump_modify d sort id format float %.17g
thermo_modify norm no
run 0
print "$(pe:%.17g)" file lammps.energy
"""


def deviation(energy: float, forces: np.ndarray, reference: dict[str, np.ndarray]) -> float:
    """Largest relative difference from the reference, of energy (eV) and forces [N, 3] (eV/Å)."""
    size = np.abs(reference["forces"]).max()
    of_energy = abs(energy - float(reference["energy"])) / abs(float(reference["energy"]))
    return max(of_energy, float(np.abs(forces - reference["forces"]).max() / size))


def evaluate_reference(folder: Path) -> str:
    """Export, evaluate in ASE, compare with finite differences; files for the other engines."""
    from les_md import LESCalculator, export

    report = export(MODEL, folder / "water.pt", dtype="float64")
    atoms = water_box()
    atoms.calc = LESCalculator(report.path)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    direction = np.random.default_rng(1).normal(size=forces.shape)
    direction /= np.linalg.norm(direction)
    step, energies = 1e-4, []
    for sign in (-1.0, 1.0):
        moved = atoms.copy()
        moved.positions += sign * step * direction
        moved.calc = atoms.calc
        energies.append(moved.get_potential_energy())
    slope = -(energies[1] - energies[0]) / (2.0 * step)
    difference = abs(slope - float((forces * direction).sum())) / float(np.abs(forces).max())
    if not difference < 1e-5:
        raise RuntimeError(f"forces differ from finite differences of the energy by {difference:.1e} of the largest")
    np.savez(folder / "reference.npz", energy=energy, forces=forces)
    ase.io.write(folder / "water.data", atoms, format="lammps-data", specorder=list(ELEMENTS), masses=True)
    (folder / "in.water").write_text(_INPUT.format(elements=" ".join(ELEMENTS)))
    return f"{MODEL}, {len(atoms)} atoms, {energy:.6f} eV; forces and finite differences: {difference:.1e}"


def evaluate_openmm(folder: Path) -> str:
    """The same box in OpenMM, on the platform that a simulation would take."""
    import openmm

    from les_md import LESForce

    atoms = water_box()
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.setDefaultPeriodicBoxVectors(*(0.1 * atoms.cell.array))
    system.addForce(LESForce(folder / "water.pt", atoms.numbers.tolist(), periodic=True, backend="python"))
    context = openmm.Context(system, openmm.VerletIntegrator(0.0001))
    context.setPositions(0.1 * atoms.positions)
    state = context.getState(energy=True, forces=True)
    kilojoule = 96.48533212331001
    energy = state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoule_per_mole) / kilojoule
    forces = state.getForces(asNumpy=True).value_in_unit(openmm.unit.kilojoule_per_mole / openmm.unit.angstrom)
    platform = context.getPlatform().getName()
    with np.load(folder / "reference.npz") as reference:
        difference = deviation(energy, forces / kilojoule, dict(reference))
    # Platforms of a GPU keep positions and forces in single precision.
    tolerance = TOLERANCE if platform in ("Reference", "CPU") else 1e-5
    if not difference < tolerance:
        raise RuntimeError(f"platform {platform}: differs from ASE by {difference:.1e}, relative")
    return f"platform {platform}, differs from ASE by {difference:.1e}"


if __name__ == "__main__":
    evaluation, where = {"reference": evaluate_reference, "openmm": evaluate_openmm}[sys.argv[1]], Path(sys.argv[2])
    print(json.dumps(evaluation(where)))
