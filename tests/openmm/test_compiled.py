"""Networks compiled ahead of time in OpenMM: the same as TorchScript's, in Contexts and from XML."""

from __future__ import annotations

import numpy as np
import openmm
import pytest

from les_md import load
from les_md.check_structures import water_box
from les_md.openmm import LESForce
from tests.openmm.conftest import cluster, cubic_water, evaluate, make_context, make_system


def close(ours, theirs, dtype):
    tolerance = {"float64": 1e-10, "float32": 1e-5}[dtype]
    np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("make", [cubic_water, cluster])
def test_same_as_torchscript(compiled_model, make):
    atoms = make()
    results = []
    for compiled in (True, False):
        force = LESForce(compiled_model, atoms.numbers, periodic=bool(atoms.pbc.all()), compiled=compiled)
        assert ("compiled" in force.describe_backend()) == compiled
        context = make_context(make_system(atoms, force), atoms)
        results.append((*evaluate(context), force.getCharges(context), force.getBornEffectiveCharges(context)))
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs, load(compiled_model).metadata["dtype"])


def test_from_xml(compiled_model, monkeypatch):
    """A copy runs compiled as well, or says why it does not."""
    atoms = cubic_water()
    force = LESForce(load(compiled_model, compiled=True), atoms.numbers, periodic=True, backend="python")
    assert force.model.is_compiled
    system = make_system(atoms, force)
    energy, forces = evaluate(make_context(system, atoms))
    xml = openmm.XmlSerializer.serialize(system)
    copied = evaluate(make_context(openmm.XmlSerializer.deserialize(xml), atoms))
    assert copied[0] == energy
    np.testing.assert_array_equal(copied[1], forces)
    monkeypatch.setattr("les_md.compiled_packages.INTERFACE", 2)
    with pytest.warns(UserWarning, match="runs in TorchScript: it was compiled for interface 1, this is 2"):
        elsewhere = evaluate(make_context(openmm.XmlSerializer.deserialize(xml), atoms))
    close(elsewhere[1], forces, force.model.metadata["dtype"])


def test_torchforce_runs_torchscript(compiled_model):
    atoms = water_box()
    with pytest.raises(ValueError, match="compiled=True needs backend 'python'"):
        LESForce(compiled_model, atoms.numbers, periodic=True, backend="torchforce", compiled=True)
