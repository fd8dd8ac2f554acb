"""A box of water in ASE, LAMMPS and OpenMM, as a user of an installed les_md runs it; knows nothing of the checkout.

    python water_box.py FOLDER

Exports the bundled model into FOLDER and runs ten steps of 0.5 fs from rest (velocity Verlet) in every engine. Prints
one line of JSON: for every engine the potential energies (eV) at the start and at the end, and where les_md is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import ase.units
import openmm
from ase.md.verlet import VelocityVerlet

import les_md
from les_md.check_structures import water_box

STEPS, TIMESTEP = 10, 0.5  # fs

#: of one eV, by the SI of 2019; those of ase.units are older, and 8e-9 apart.
KJ_PER_MOL = 96.48533212331001

INPUT = f"""units metal
read_data water.data
pair_style mliap/les
pair_coeff * * water.pt O H
fix 1 all nve
timestep {TIMESTEP / 1000}
thermo_modify norm no
run 0
print "$(pe:%.17g)" file energies
run {STEPS}
print "$(pe:%.17g)" append energies
"""


def program(name: str) -> str:
    """A program of this environment, whatever else is on the path."""
    return str(Path(sys.executable).with_name(name))


def in_ase(model: Path) -> list[float]:
    atoms = water_box()
    atoms.calc = les_md.LESCalculator(model)
    energies = [float(atoms.get_potential_energy())]
    VelocityVerlet(atoms, TIMESTEP * ase.units.fs).run(STEPS)
    return [*energies, float(atoms.get_potential_energy())]


def in_lammps(folder: Path, ranks: int) -> list[float]:
    command = [program("lmp"), "-in", "in.water", "-nocite", "-log", f"log.{ranks}"]
    if ranks > 1:
        command = [program("mpiexec"), "-n", str(ranks), *command]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    assert f"by {ranks} MPI processor grid" in (folder / f"log.{ranks}").read_text(), "not as many ranks as asked for"
    return [float(line) for line in (folder / "energies").read_text().split()]


def in_openmm(model: Path) -> list[float]:
    atoms = water_box()
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.setDefaultPeriodicBoxVectors(*(0.1 * atoms.cell.array))
    system.addForce(les_md.LESForce(model, atoms.numbers.tolist(), periodic=True, backend="python"))
    # OpenMM's own VerletIntegrator is a leapfrog, whose velocities at rest are those half a step before.
    integrator = openmm.CustomIntegrator(TIMESTEP / 1000)
    integrator.addComputePerDof("v", "v + 0.5*dt*f/m")
    integrator.addComputePerDof("x", "x + dt*v")
    integrator.addComputePerDof("v", "v + 0.5*dt*f/m")
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(0.1 * atoms.positions)
    energies = []
    for steps in (0, STEPS):
        integrator.step(steps)
        energy = context.getState(energy=True).getPotentialEnergy()
        energies.append(energy.value_in_unit(openmm.unit.kilojoule_per_mole) / KJ_PER_MOL)
    return energies


def main(folder: Path) -> None:
    subprocess.run(
        [program("les-export"), "water_rpbe_d3", "-o", "water.pt", "--dtype", "float64"], cwd=folder, check=True,
        stdout=sys.stderr,
    )  # fmt: skip
    model = folder / "water.pt"
    ase.io.write(folder / "water.data", water_box(), format="lammps-data", specorder=["O", "H"], masses=True)
    (folder / "in.water").write_text(INPUT)
    energies = {"ASE": in_ase(model), "OpenMM": in_openmm(model)}
    energies.update({f"LAMMPS, ranks: {ranks}": in_lammps(folder, ranks) for ranks in (1, 2)})
    print(json.dumps({"energies": energies, "les_md": os.path.dirname(les_md.__file__)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
