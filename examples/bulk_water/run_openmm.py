"""Bulk water from a trained model in OpenMM: export, NVT (or NPT), radial distribution functions.

python run_openmm.py [--steps 20000] [--pressure 1.0] [--output output_openmm]
"""

import argparse
from pathlib import Path

import ase.io
import mdtraj
import numpy as np
import openmm
from analysis import broken_bonds, first_peak, plot, radial_distributions, write_distributions
from openmm import app, unit
from tqdm import tqdm

from les_md import LESForce, export
from les_md.openmm import LESReporter

HERE = Path(__file__).resolve().parent


def read_water(data: Path) -> tuple[app.Topology, np.ndarray]:
    """Topology with molecules and box, and positions [N, 3] nm, of a LAMMPS data file (type 1 O, type 2 H)."""
    atoms = ase.io.read(data, format="lammps-data", atom_style="atomic", sort_by_id=True)
    distances = atoms.get_all_distances(mic=True)
    oxygens, hydrogens = np.flatnonzero(atoms.numbers == 8), np.flatnonzero(atoms.numbers == 1)
    owner = oxygens[distances[np.ix_(hydrogens, oxygens)].argmin(1)]
    topology = app.Topology()
    chain = topology.addChain()
    residues = {oxygen: topology.addResidue("HOH", chain) for oxygen in oxygens}
    particles = {}
    order = []
    for oxygen in oxygens:
        molecule = [oxygen, *hydrogens[owner == oxygen]]
        for index, name in zip(molecule, ("O", "H1", "H2"), strict=True):
            element = app.element.Element.getByAtomicNumber(int(atoms.numbers[index]))
            particles[index] = topology.addAtom(name, element, residues[oxygen])
        for hydrogen in molecule[1:]:
            topology.addBond(particles[oxygen], particles[hydrogen])
            # Whole molecules, not cut by the box.
            atoms.positions[hydrogen] = atoms.positions[oxygen] + atoms.get_distance(
                oxygen, hydrogen, mic=True, vector=True
            )
        order += molecule
    topology.setPeriodicBoxVectors(atoms.cell.array / 10.0 * unit.nanometer)
    return topology, atoms.positions[order] / 10.0


def create_system(topology: app.Topology) -> openmm.System:
    """A System with masses and box and no forces yet."""
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    return system


def create_simulation(
    topology: app.Topology, model: Path, pressure: float | None, **options
) -> tuple[app.Simulation, LESForce]:
    """A Simulation at 300 K, and at ``pressure`` (bar) if one is given; ``options`` go to LESForce."""
    system = create_system(topology)
    force = LESForce(model, topology, system=system, **options)
    system.addForce(force)
    if pressure is not None:
        # Bonds that do nothing but tell the barostat what the molecules are.
        molecules = openmm.CustomBondForce("0")
        for bond in topology.bonds():
            molecules.addBond(bond.atom1.index, bond.atom2.index)
        system.addForce(molecules)
        system.addForce(openmm.MonteCarloBarostat(pressure * unit.bar, 300.0 * unit.kelvin))
    integrator = openmm.LangevinMiddleIntegrator(300.0 * unit.kelvin, 1.0 / unit.picosecond, 0.5 * unit.femtosecond)
    return app.Simulation(topology, system, integrator), force


def summarise(folder: Path) -> str:
    """Write ``rdf.png`` and ``rdf.csv`` into the folder; returns the text of the summary."""
    trajectory = mdtraj.load_dcd(str(folder / "trajectory.dcd"), top=str(folder / "start.pdb"))
    equilibrated = trajectory[len(trajectory) // 5 :]
    r, distributions = radial_distributions(equilibrated)
    plot(r, distributions, folder / "rdf.png")
    write_distributions(r, distributions, folder / "rdf.csv")
    log = np.genfromtxt(folder / "log.csv", delimiter=",", names=True, deletechars="")
    les = np.genfromtxt(folder / "les.csv", delimiter=",", names=True, deletechars="")
    tail = slice(len(log) // 5, None)
    temperature, density = log["Temperature_(K)"][tail], log["Density_(g/mL)"][tail]
    long_range = les["Long-range_energy_(kJ/mol)"][tail].mean() / (trajectory.n_atoms // 3)
    peak, height = first_peak(r, distributions["OO"])
    return "\n".join(
        [
            f"simulated         {log['Time_(ps)'][-1]:.1f} ps, {trajectory.n_atoms} atoms, {len(trajectory)} frames",
            f"temperature       {temperature.mean():.1f} ± {temperature.std():.1f} K",
            f"density           {density.mean():.3f} g/cm³",
            f"long-range energy {long_range:.2f} kJ/mol per molecule",
            f"g_OO first peak   {peak:.2f} Å, height {height:.2f}",
            f"broken O-H bonds  {broken_bonds(trajectory)}",
            f"figure            {folder / 'rdf.png'}",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Bulk water from a trained model in OpenMM.")
    parser.add_argument("--steps", type=int, default=20_000, help="MD steps of 0.5 fs (default: 20000, 10 ps)")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model (default: water_rpbe_d3)")
    parser.add_argument(
        "--data", type=Path, default=HERE / "water.data", help="LAMMPS data file (default: 64 molecules)"
    )
    parser.add_argument("--pressure", type=float, help="bar; without it, the volume is constant")
    parser.add_argument("--output", type=Path, default=HERE / "output_openmm", help="folder for results")
    options = parser.parse_args()
    if options.steps < 1000:
        parser.error("--steps must be at least 1000: fewer give no meaningful distribution function")
    options.output.mkdir(parents=True, exist_ok=True)
    print("exporting", options.model)
    model = export(options.model, options.output / "water.pt").path
    topology, positions = read_water(options.data)
    simulation, force = create_simulation(topology, model, options.pressure)
    print(force.describe_backend())
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300.0 * unit.kelvin, 4711)
    with open(options.output / "start.pdb", "w", encoding="utf-8") as file:
        app.PDBFile.writeFile(topology, positions * unit.nanometer, file)
    simulation.reporters += [
        app.DCDReporter(str(options.output / "trajectory.dcd"), 20, enforcePeriodicBox=False),
        app.StateDataReporter(
            str(options.output / "log.csv"), 100,
            step=True, time=True, potentialEnergy=True, totalEnergy=True, temperature=True, density=True,
        ),
        LESReporter(options.output / "les.csv", 100, force),
    ]  # fmt: skip
    with tqdm(total=options.steps, unit="step", desc="OpenMM") as bar:
        while bar.n < options.steps:
            chunk = min(100, options.steps - bar.n)
            simulation.step(chunk)
            bar.update(chunk)
    simulation.saveState(str(options.output / "final.xml"))
    print(summarise(options.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
