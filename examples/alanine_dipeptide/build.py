"""Alanine dipeptide in a box of water: solvated and equilibrated with a conventional force field (Amber, TIP3P).

python build.py [--waters 216] [-o solvated.pdb]

The conventional force field only makes a sensible start at the density of water; the model takes over in ``run.py``.
"""

import argparse
from pathlib import Path

import openmm
from openmm import app, unit
from tqdm import tqdm

HERE = Path(__file__).resolve().parent


def solvate(waters: int, picoseconds: float, seed: int) -> tuple[app.Topology, list]:
    """Topology with box, and positions, after NPT dynamics at 300 K and 1 bar."""
    peptide = app.PDBFile(str(HERE / "alanine_dipeptide.pdb"))
    force_field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    modeller = app.Modeller(peptide.topology, peptide.positions)
    modeller.addSolvent(force_field, model="tip3p", numAdded=waters)
    system = force_field.createSystem(
        modeller.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.8 * unit.nanometer,
        constraints=app.HBonds,
    )
    barostat = openmm.MonteCarloBarostat(1.0 * unit.bar, 300.0 * unit.kelvin)
    barostat.setRandomNumberSeed(seed)
    system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(300.0 * unit.kelvin, 1.0 / unit.picosecond, 2.0 * unit.femtosecond)
    integrator.setRandomNumberSeed(seed)
    simulation = app.Simulation(modeller.topology, system, integrator)
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300.0 * unit.kelvin, seed)
    for _ in tqdm(range(100), desc="equilibrating", unit="%"):
        simulation.step(round(picoseconds * 5.0))
    state = simulation.context.getState(positions=True, enforcePeriodicBox=True)
    modeller.topology.setPeriodicBoxVectors(state.getPeriodicBoxVectors())
    return modeller.topology, state.getPositions()


def main() -> None:
    parser = argparse.ArgumentParser(description="Alanine dipeptide in water, equilibrated with Amber and TIP3P.")
    parser.add_argument("--waters", type=int, default=216, help="number of water molecules (default: 216)")
    parser.add_argument("--picoseconds", type=float, default=100.0, help="of equilibration (default: 100)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "solvated.pdb")
    options = parser.parse_args()
    if options.waters < 150:
        parser.error("--waters must be at least 150: fewer make a box smaller than twice the conventional cutoff")
    topology, positions = solvate(options.waters, options.picoseconds, options.seed)
    with open(options.output, "w", encoding="utf-8") as file:
        app.PDBFile.writeFile(topology, positions, file)
    edge = topology.getPeriodicBoxVectors()[0][0].value_in_unit(unit.angstrom)
    print(f"{options.output}: {topology.getNumAtoms()} atoms, edge {edge:.3f} Å")


if __name__ == "__main__":
    main()
