"""Models with latent dipoles, quadrupoles, κ and α in OpenMM: Born charges, dipole and field against ASE."""

from __future__ import annotations

import csv
import io

import numpy as np
import openmm
import openmm.app
import pytest
from openmm import unit

from les_md import LESCalculator
from les_md.openmm import LESForce, LESReporter
from tests.architectures.small_models import export_small_model
from tests.openmm.conftest import (
    KJ_PER_MOL,
    NANOMETER,
    assert_same,
    cluster,
    cubic_water,
    evaluate,
    loaded,
    make_context,
    make_system,
    topology_of,
)

FIELD = np.array([1.3, -2.4, 3.1])  # V/nm


@pytest.fixture(scope="module")
def responding(tmp_path_factory):
    return export_small_model("responding", tmp_path_factory.mktemp("multipoles") / "responding.pt")


def force_of(model, atoms, **options) -> LESForce:
    return LESForce(loaded(model), atoms.numbers, periodic=bool(atoms.pbc.all()), backend="python", **options)


@pytest.mark.parametrize("make", [cubic_water, cluster])
def test_born_charges(make, responding):
    atoms = make()
    force = force_of(responding, atoms)
    context = make_context(make_system(atoms, force), atoms)
    expected = LESCalculator(loaded(responding)).get_born_effective_charges(atoms)
    np.testing.assert_allclose(force.getBornEffectiveCharges(context), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [cubic_water, cluster])
def test_field(make, responding):
    atoms = make()
    force = force_of(responding, atoms, electric_field=FIELD * unit.volt / unit.nanometer)
    result = evaluate(make_context(make_system(atoms, force), atoms))
    calculator = LESCalculator(loaded(responding), electric_field=FIELD / NANOMETER)
    calculator.calculate(atoms)
    expected = KJ_PER_MOL * calculator.results["energy"], KJ_PER_MOL * NANOMETER * calculator.results["forces"]
    assert_same(result, expected)


def test_reported_dipole(responding):
    """With latent dipoles and what is induced."""
    atoms = cluster()
    force = force_of(responding, atoms)
    system = make_system(atoms, force)
    simulation = openmm.app.Simulation(
        topology_of(atoms), system, openmm.VerletIntegrator(0.0), openmm.Platform.getPlatformByName("Reference")
    )
    simulation.context.setPositions(atoms.positions / NANOMETER)
    table = io.StringIO()
    simulation.reporters.append(LESReporter(table, 1, force))
    simulation.step(1)
    row = next(csv.DictReader(io.StringIO(table.getvalue())))
    calculator = LESCalculator(loaded(responding))
    calculator.calculate(atoms)
    dipole = [float(row[f"Dipole {axis} (e nm)"]) for axis in "xyz"]
    np.testing.assert_allclose(dipole, calculator.results["dipole"] / NANOMETER, rtol=1e-6)
