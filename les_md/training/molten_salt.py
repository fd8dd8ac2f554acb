"""A model molten salt with known charges, through OpenMM: labels that a model with latent charges must explain.

Ions repel each other by Born–Mayer terms and interact by Coulomb's law, summed by Ewald's method:

    E = Σ_{i<j} [ q_i q_j / (4π ε0 r) + B exp((s_i + s_j − r)/ρ) ]

The charges are +1 (Na), +2 (Mg) and −1 (Cl), so that both a sign and a ratio can be told. It is no accurate model of
the real salt NaMgCl₃. Disordered structures come from molecular dynamics far above melting. Needs OpenMM.
"""

from __future__ import annotations

from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

#: Charges in e, and radii s in Å.
CHARGES = {"Na": 1.0, "Mg": 2.0, "Cl": -1.0}
RADII = {"Na": 1.10, "Mg": 1.00, "Cl": 1.60}
#: B in eV, ρ in Å.
STRENGTH, LENGTH = 0.20, 0.30

#: Of a structure: 12 formula units in a cell of about 12.5 Å.
FORMULA_UNITS = 12
EDGE = 12.5
TEMPERATURE = 1800.0

#: Seeds and numbers of frames of the trajectories of each part; each trajectory has a cell, and a density, of its own.
PARTS = {
    "train": tuple((seed, 8) for seed in range(1, 9)),
    "validation": ((9, 4), (10, 4)),
    "test": ((11, 4), (12, 4)),
}

_KJ_PER_MOL = 96.48533212331  # in an eV
#: Beyond this the repulsion is below 1e-5 eV; Ewald's method adapts to it. Å
_CUTOFF = 6.0


class ForceField:
    """The force field for a structure's elements; ``evaluate`` and ``run`` take its positions and cell.

    Parameters: chemical ``symbols``; ``cell`` [3, 3] Å, at least 12 Å wide.
    """

    def __init__(self, symbols: list[str], cell: np.ndarray, temperature: float = TEMPERATURE, seed: int = 1) -> None:
        import openmm
        from openmm import unit

        self._unit = unit
        system = openmm.System()
        coulomb = openmm.NonbondedForce()
        coulomb.setNonbondedMethod(openmm.NonbondedForce.Ewald)
        coulomb.setEwaldErrorTolerance(1e-7)
        repulsion = openmm.CustomNonbondedForce("strength*exp((s1+s2-r)/length)")
        repulsion.addPerParticleParameter("s")
        repulsion.addGlobalParameter("strength", STRENGTH * _KJ_PER_MOL)
        repulsion.addGlobalParameter("length", 0.1 * LENGTH)
        repulsion.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
        for force in (coulomb, repulsion):
            force.setCutoffDistance(0.1 * _CUTOFF)
            system.addForce(force)
        masses = ase.Atoms(symbols).get_masses()
        for symbol, mass in zip(symbols, masses, strict=True):
            system.addParticle(mass)
            coulomb.addParticle(CHARGES[symbol], 1.0, 0.0)
            repulsion.addParticle([0.1 * RADII[symbol]])
        system.setDefaultPeriodicBoxVectors(*(0.1 * np.asarray(cell)))
        integrator = openmm.LangevinMiddleIntegrator(temperature, 5.0, 0.001)
        integrator.setRandomNumberSeed(seed)
        # Everything in double precision.
        self._context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
        self._minimise = openmm.LocalEnergyMinimizer.minimize

    def evaluate(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy in eV and forces [N, 3] in eV/Å of ``positions`` [N, 3] in Å."""
        self._context.setPositions(0.1 * np.asarray(positions))
        return self._labels()[1:]

    def run(self, positions: np.ndarray, equilibration: int, frames: int, interval: int):
        """Positions, energy and forces after every ``interval`` femtoseconds, from a relaxed start."""
        self._context.setPositions(0.1 * np.asarray(positions))
        self._minimise(self._context, 100.0)
        self._context.setVelocitiesToTemperature(TEMPERATURE, 1)
        self._context.getIntegrator().step(equilibration)
        for _ in range(frames):
            self._context.getIntegrator().step(interval)
            yield self._labels()

    def _labels(self) -> tuple[np.ndarray, float, np.ndarray]:
        unit = self._unit
        state = self._context.getState(positions=True, energy=True, forces=True)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) / _KJ_PER_MOL
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom) / _KJ_PER_MOL
        return state.getPositions(asNumpy=True).value_in_unit(unit.angstrom), energy, np.array(forces)


def labelled(atoms: ase.Atoms) -> ase.Atoms:
    """A copy of a structure with energy and forces of the force field."""
    energy, forces = ForceField(atoms.get_chemical_symbols(), atoms.cell.array).evaluate(atoms.positions)
    return _with_labels(atoms, energy, forces)


def trajectory(seed: int, frames: int, equilibration: int = 3000, interval: int = 400) -> list[ase.Atoms]:
    """Labelled structures of a melt, from molecular dynamics that starts at random.

    Parameters: ``seed`` of the ions' places, of the cell (its edges vary by a few per cent) and of the thermostat;
    ``equilibration`` and ``interval`` in femtoseconds.
    """
    generator = np.random.default_rng(seed)
    cell = np.diag(EDGE * generator.uniform(0.98, 1.03, 3))
    symbols = generator.permutation(["Na", "Mg", "Cl", "Cl", "Cl"] * FORMULA_UNITS).tolist()
    sites = generator.permutation(np.array(list(np.ndindex(4, 4, 4))))[: len(symbols)]
    start = ase.Atoms(symbols, ((sites + 0.5) / 4.0) @ cell, cell=cell, pbc=True)
    field = ForceField(symbols, cell, seed=seed + 1)
    structures = []
    for positions, energy, forces in field.run(start.positions, equilibration, frames, interval):
        atoms = start.copy()
        atoms.positions = positions
        structures.append(_with_labels(atoms, energy, forces))
    return structures


def _with_labels(atoms: ase.Atoms, energy: float, forces: np.ndarray) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def structures(part: str) -> list[ase.Atoms]:
    """Labelled structures of one of ``PARTS``, the same at every call."""
    return [atoms for seed, frames in PARTS[part] for atoms in trajectory(seed, frames)]


def write_parts(out: Path) -> None:
    """Make the structures and their labels and write ``train.xyz``, ``validation.xyz`` and ``test.xyz``."""
    for part in PARTS:
        ase.io.write(out / f"{part}.xyz", structures(part), format="extxyz")
