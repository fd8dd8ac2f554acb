"""Monte Carlo barostats: the box of every trial move is the one that LESForce sees."""

from __future__ import annotations

import ase
import numpy as np
import openmm
import pytest

from les_md.check_structures import water_box
from tests.openmm.conftest import (
    GAS_CONSTANT,
    NANOMETER,
    assert_same,
    configuration_of,
    cubic_water,
    evaluate,
    langevin,
    make_context,
    make_system,
    reference,
    topology_of,
)

BAR = 1e5 * 1e-27 * 6.02214076e23 / 1000.0  # kJ/mol/nm³


def bonds_of(atoms):
    """Bonds without energy, which tell the barostats what the molecules are."""
    bonds = openmm.HarmonicBondForce()
    for bond in topology_of(atoms).bonds():
        bonds.addBond(bond.atom1.index, bond.atom2.index, 0.1, 0.0)
    return bonds


def isotropic(pressure, temperature, frequency):
    return openmm.MonteCarloBarostat(pressure, temperature, frequency)


def anisotropic(pressure, temperature, frequency):
    return openmm.MonteCarloAnisotropicBarostat([pressure] * 3, temperature, True, True, True, frequency)


def flexible(pressure, temperature, frequency):
    return openmm.MonteCarloFlexibleBarostat(pressure, temperature, frequency)


def box_of(context):
    return context.getState().getPeriodicBoxVectors(asNumpy=True)._value


@pytest.mark.parametrize("molecules", [True, False], ids=["molecules", "atoms"])
@pytest.mark.parametrize("make", [cubic_water, water_box])
@pytest.mark.parametrize("barostat", [isotropic, anisotropic, flexible])
def test_energy_is_that_of_the_box(barostat, make, molecules, models, les_force):
    """After trial moves at every step, accepted and refused, the energy is the calculator's at positions and box."""
    atoms = make()
    moves = barostat(1.0, 3000.0, 1)
    moves.setRandomNumberSeed(3)
    system = make_system(atoms, les_force(models["one channel"], atoms), moves)
    if molecules:
        system.addForce(bonds_of(atoms))
    context = make_context(system, atoms, langevin(0.0001))
    volumes = set()
    for _ in range(12):
        context.getIntegrator().step(1)
        now = configuration_of(context, atoms)
        volumes.add(now.get_volume())
        assert_same(evaluate(context), reference(models["one channel"], now))
    assert len(volumes) > 1


@pytest.mark.parametrize("make", [cubic_water])
def test_fixed_wave_vectors(make, models, les_force):
    """With ``kset="fixed"`` the barostat sees no jumps: small strains change the energy by stress times strain."""
    atoms = make()
    atoms.set_cell(6.0 * np.eye(3), scale_atoms=True)  # three times dl: with "follow", wave vectors leave here
    jumps = {}
    for kset in ("follow", "fixed"):
        force = les_force(models["one channel"], atoms, kset=kset, system=make_system(atoms))
        context = make_context(make_system(atoms, force), atoms)
        energies = []
        for scale in (1.0 - 1e-6, 1.0 + 1e-6):
            context.setPeriodicBoxVectors(*(scale * atoms.cell.array / NANOMETER))
            context.setPositions(scale * atoms.positions / NANOMETER)
            energies.append(evaluate(context)[0])
        jumps[kset] = abs(energies[1] - energies[0])
    assert jumps["fixed"] < 0.1 < jumps["follow"]


def along_z(pressure, temperature, frequency):
    return openmm.MonteCarloAnisotropicBarostat([pressure] * 3, temperature, False, False, True, frequency)


@pytest.mark.parametrize("barostat", [isotropic, along_z])
def test_ideal_gas(barostat, models, les_force):
    """The mean volume of N atoms that do not see each other is (N + 1) kT/P."""
    temperature, expected = 300.0, 150.0  # K, nm³
    sites = np.array([[x, y, 0.5] for x in (0.125, 0.375, 0.625, 0.875) for y in (0.2, 0.5, 0.8)])
    pressure = (len(sites) + 1) * GAS_CONSTANT * temperature / expected / BAR
    atoms = ase.Atoms("OHH" * 4, sites @ (53.0 * np.eye(3)), cell=53.0 * np.eye(3), pbc=True)
    moves = barostat(pressure, temperature, 1)
    moves.setRandomNumberSeed(1)
    system = make_system(atoms, les_force(models["short range"], atoms), moves)
    for index in range(len(atoms)):
        system.setParticleMass(index, 0.0)  # moved by the barostat only, so that they never meet
    context = make_context(system, atoms, openmm.VerletIntegrator(0.001))
    energy = evaluate(context)[0]
    context.getIntegrator().step(200)  # the barostat adapts its steps
    volumes = []
    for _ in range(2500):
        context.getIntegrator().step(1)
        volumes.append(np.linalg.det(box_of(context)))
    assert evaluate(context)[0] == pytest.approx(energy, rel=1e-12)
    assert np.std(volumes) == pytest.approx(expected / np.sqrt(len(atoms) + 1), rel=0.15)
    blocks = np.mean(np.reshape(volumes, (25, 100)), axis=1)
    error = np.std(blocks, ddof=1) / np.sqrt(len(blocks))
    assert error < 0.03 * expected  # N and N + 1 differ by 8 %
    assert abs(np.mean(volumes) - expected) < 3.0 * error


def test_pressure_compresses(models, les_force):
    """A barostat at a high pressure makes the box smaller, at a negative one larger, than it was."""
    volumes = {}
    for pressure in (50000.0, -20000.0):
        atoms = cubic_water()
        moves = isotropic(pressure, 300.0, 1)
        moves.setRandomNumberSeed(3)
        system = make_system(atoms, les_force(models["liquid water"], atoms), moves, bonds_of(atoms))
        context = make_context(system, atoms, langevin())
        context.setVelocitiesToTemperature(300.0, 1)
        context.getIntegrator().step(100)
        volumes[pressure] = np.linalg.det(box_of(context)) / (atoms.get_volume() / NANOMETER**3)
    assert volumes[50000.0] < 0.95 < 1.0 < volumes[-20000.0]


def test_box_of_one_context_only(models, les_force):
    """A barostat in one Context does not change what another Context of the System sees."""
    atoms = cubic_water()
    moves = isotropic(1.0, 3000.0, 1)
    moves.setRandomNumberSeed(3)
    system = make_system(atoms, les_force(models["one channel"], atoms), moves)
    still, moving = make_context(system, atoms), make_context(system, atoms, langevin(0.0001))
    expected = reference(models["one channel"], atoms)
    for _ in range(5):
        moving.getIntegrator().step(2)
        assert_same(evaluate(still), expected)
        assert_same(evaluate(moving), reference(models["one channel"], configuration_of(moving, atoms)))
    assert not np.array_equal(box_of(still), box_of(moving))
