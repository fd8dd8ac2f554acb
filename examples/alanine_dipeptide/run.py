"""Alanine dipeptide in water with a LES model in OpenMM: export, NVT dynamics, analysis.

python run.py [--steps 100000] [--output output]
python run.py --continue-from output/checkpoint.xml --steps 50000 --output output_2
"""

import argparse
from pathlib import Path

import openmm
from analysis import summarise
from openmm import app, unit
from tqdm import tqdm

from les_md import LESForce, export
from les_md.allocator import keep_freed_memory
from les_md.openmm import LESReporter

HERE = Path(__file__).resolve().parent
TEMPERATURE = 300.0 * unit.kelvin


def create_simulation(start: app.PDBFile, model: Path) -> tuple[app.Simulation, LESForce]:
    """NVT at 300 K with 0.5 fs, the whole box by the model."""
    topology = start.topology
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    force = LESForce(model, topology, system=system)
    system.addForce(force)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0 / unit.picosecond, 0.5 * unit.femtosecond)
    integrator.setRandomNumberSeed(4711)
    return app.Simulation(topology, system, integrator), force


def relax(simulation: app.Simulation, start: app.PDBFile, steps: int) -> None:
    """Bring the start, made by another force field, to equilibrium with the model, by dynamics with strong friction.

    This stays near the configurations that the model was trained on; a minimiser need not.
    """
    simulation.context.setPositions(start.positions)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 4711)
    simulation.integrator.setFriction(20.0 / unit.picosecond)
    step(simulation, steps, "warming up")
    simulation.integrator.setFriction(1.0 / unit.picosecond)
    simulation.currentStep = 0
    simulation.context.setTime(0.0)


def step(simulation: app.Simulation, steps: int, description: str) -> None:
    """Advance with a progress bar, which tells the time left."""
    with tqdm(total=steps, unit="step", desc=description) as bar:
        while bar.n < steps:
            chunk = min(50, steps - bar.n)
            simulation.step(chunk)
            bar.update(chunk)


def main() -> int:
    parser = argparse.ArgumentParser(description="Alanine dipeptide in water with a LES model in OpenMM.")
    parser.add_argument("--steps", type=int, default=100_000, help="MD steps of 0.5 fs (default: 100000, 50 ps)")
    parser.add_argument("--warm-up", type=int, default=2000, help="steps before the run (default: 2000, 1 ps)")
    parser.add_argument("--model", default="organics_wb97m", help="checkpoint or bundled model")
    parser.add_argument("--start", type=Path, default=HERE / "solvated.pdb", help="box made by build.py")
    parser.add_argument("--continue-from", type=Path, help="State of an earlier run: its checkpoint.xml or final.xml")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="folder for results (default: output)")
    options = parser.parse_args()
    if options.steps < 500:
        parser.error("--steps must be at least 500: fewer give nothing to analyse")
    keep_freed_memory()  # the large arrays of a step need not be mapped afresh
    options.output.mkdir(parents=True, exist_ok=True)
    print("exporting", options.model)
    model = export(options.model, options.output / "organics.pt").path
    start = app.PDBFile(str(options.start))
    simulation, force = create_simulation(start, model)
    print(force.describe_backend())
    if options.continue_from is not None:
        simulation.loadState(str(options.continue_from))
    else:
        relax(simulation, start, options.warm_up)
    simulation.reporters += [
        app.XTCReporter(str(options.output / "trajectory.xtc"), 50, enforcePeriodicBox=False),
        app.StateDataReporter(
            str(options.output / "log.csv"), 50,
            step=True, time=True, potentialEnergy=True, kineticEnergy=True, temperature=True, speed=True,
        ),
        LESReporter(options.output / "les.csv", 50, force, charges=options.output / "charges.csv"),
        app.CheckpointReporter(str(options.output / "checkpoint.xml"), 5000, writeState=True),
    ]  # fmt: skip
    step(simulation, options.steps, "OpenMM")
    simulation.saveState(str(options.output / "final.xml"))
    print(summarise([options.output], options.start))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
