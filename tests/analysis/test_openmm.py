"""The vibrations of a water molecule in OpenMM, from LESReporter's CSV, against normal modes of the same model."""

from __future__ import annotations

import ase.build
import ase.units
import numpy as np
import pytest
from ase.optimize import BFGS

from les_md import LESCalculator, export
from les_md.analysis.infrared import CM_PER_PS
from les_md.cli import main

openmm = pytest.importorskip("openmm", reason="needs OpenMM (pip install 'les_md[openmm]')")

from openmm import app  # noqa: E402

from les_md.openmm import LESForce, LESReporter  # noqa: E402

TIMESTEP = 0.4e-3  # ps


def normal_modes(molecule: ase.Atoms) -> np.ndarray:
    """Wavenumbers (cm⁻¹) of the vibrations, from central differences of the forces."""
    step = 1e-3
    hessian = np.zeros((9, 9))
    for i in range(9):
        forces = []
        for sign in (1.0, -1.0):
            displaced = molecule.copy()
            displaced.calc = molecule.calc
            displaced.positions.flat[i] += sign * step
            forces.append(displaced.get_forces().ravel())
        hessian[i] = -(forces[0] - forces[1]) / (2.0 * step)
    weights = np.repeat(molecule.get_masses(), 3) ** -0.5
    eigenvalues = np.linalg.eigvalsh(0.5 * (hessian + hessian.T) * np.outer(weights, weights))
    per_ps = np.sqrt(eigenvalues[-3:]) * ase.units.fs * 1e3
    return per_ps / (2.0 * np.pi * CM_PER_PS)


def test_water_molecule(tmp_path, capsys):
    path = export("organics_wb97m", tmp_path / "organics.pt", dtype="float64").path
    molecule = ase.build.molecule("H2O")
    molecule.calc = LESCalculator(path)
    BFGS(molecule, logfile=None).run(fmax=1e-4)
    modes = normal_modes(molecule)

    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    system = openmm.System()
    for symbol, mass in zip(molecule.symbols, molecule.get_masses(), strict=True):
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
        system.addParticle(mass)
    force = LESForce(path, topology)
    system.addForce(force)
    simulation = app.Simulation(
        topology, system, openmm.VerletIntegrator(TIMESTEP), openmm.Platform.getPlatformByName("Reference")
    )
    # One O-H bond longer, the other and the angle left: all three modes, hardly any rotation, almost harmonic.
    positions = molecule.positions.copy()
    bond = positions[1] - positions[0]
    positions[1] += 0.005 * bond / np.linalg.norm(bond) + 0.005 * np.array([0.0, 0.0, 1.0])
    simulation.context.setPositions(positions / 10.0)
    simulation.reporters.append(LESReporter(str(tmp_path / "les.csv"), 4, force, current=True))
    simulation.step(4800)

    per_step = 2.0 * np.pi * CM_PER_PS * TIMESTEP
    expected = 2.0 / per_step * np.arcsin(0.5 * per_step * modes)
    heights = {}
    for quantity in ("dipole", "current"):
        arguments = ["spectrum", tmp_path / "les.csv", "--resolution", 40, "--blocks", 1, "--max-wavenumber", 4500]
        # The current is what is read where both are there.
        arguments += ["-o", tmp_path / "ir.csv", *(["--quantity", "dipole"] if quantity == "dipole" else [])]
        assert main([str(argument) for argument in arguments]) == 0
        output = capsys.readouterr().out
        assert f"1200 values of the {quantity}, 1.9184 ps" in output
        assert "interval            1.6 fs" in output
        printed = [float(word) for word in output.split("peaks")[1].split("cm⁻¹")[0].split(",")]
        assert printed == pytest.approx(expected, abs=3.0)
        wavenumber, intensity = np.loadtxt(tmp_path / "ir.csv", delimiter=",", skiprows=1).T
        heights[quantity] = np.interp(expected, wavenumber, intensity)
    # OpenMM's leapfrog has v(t − Δt/2) = (x(t) − x(t − Δt))/Δt: too small by sin(x)/x, x = ωΔt/2.
    x = 0.5 * per_step * expected
    assert heights["current"] / heights["dipole"] == pytest.approx((np.sin(x) / x) ** 2, rel=0.01)
