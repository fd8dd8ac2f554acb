"""Systems in XML and as copies: the whole model travels along, and a damaged one is reported in words."""

from __future__ import annotations

import copy
import io
import pickle
import re
import shutil
import zipfile

import numpy as np
import openmm
import pytest

from les_md import load
from les_md.check_structures import water_box
from les_md.openmm import LESForce
from tests.openmm.conftest import (
    NANOMETER,
    PREPARATION,
    assert_same,
    cluster,
    evaluate,
    make_context,
    make_system,
    reference,
    run_python,
    topology_of,
)

#: Evaluates every System (NAME.xml, NAME.npy) of a folder, and writes NAME.result.npy or, of an error, NAME.error.
EVALUATE = """
import sys
from pathlib import Path
import numpy as np
import openmm
{preparation}
for xml in sorted(Path(sys.argv[1]).glob("*.xml")):
    system = openmm.XmlSerializer.deserialize(xml.read_text())
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(np.load(xml.with_suffix(".npy")))
    try:
        state = context.getState(energy=True, forces=True)
    except openmm.OpenMMException as error:
        xml.with_suffix(".error").write_text(str(error))
        continue
    forces = state.getForces(asNumpy=True)._value
    result = np.vstack([forces, [state.getPotentialEnergy()._value, 0.0, 0.0]])
    np.save(xml.with_suffix(".result.npy"), result)
"""


@pytest.fixture
def evaluate_elsewhere(backend, tmp_path):
    """Evaluate Systems, given with their configuration by name, in one new process, which has to survive.

    Returns energy and forces, or the message of the OpenMMException, by name.
    """

    def run(systems):
        for name, (system, atoms) in systems.items():
            (tmp_path / f"{name}.xml").write_text(openmm.XmlSerializer.serialize(system))
            np.save(tmp_path / f"{name}.npy", atoms.positions / NANOMETER)
        done = run_python(EVALUATE.format(preparation=PREPARATION[backend]), tmp_path)
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        results = {}
        for name in systems:
            if (tmp_path / f"{name}.error").is_file():
                results[name] = (tmp_path / f"{name}.error").read_text()
            else:
                values = np.load(tmp_path / f"{name}.result.npy")
                results[name] = values[-1, 0], values[:-1]
        return results

    return run


def assert_identical(result, expected):
    """To the last bit."""
    assert result[0] == expected[0]
    np.testing.assert_array_equal(result[1], expected[1])


SYSTEMS = {
    "periodic": (water_box, {}),
    "isolated": (cluster, {}),
    "subset": (water_box, {"atoms": [14, 3, 12, 4, 13, 5]}),
    "subset of a checked System": (water_box, {"atoms": [14, 3, 12, 4, 13, 5], "system": make_system(water_box())}),
    "options": (water_box, {"kspace": "mesh", "accuracy": 1e-3, "force_group": 4}),
}


@pytest.mark.parametrize("kind", SYSTEMS)
def test_round_trip(kind, backend, models, les_force):
    """Same energy and forces to the last bit, twice over; group and boundaries are kept."""
    make, options = SYSTEMS[kind]
    atoms = make()
    system = make_system(atoms, les_force(models["two channels"], atoms, **options))
    expected = evaluate(make_context(system, atoms))
    for _ in range(2):
        system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
        assert_identical(evaluate(make_context(system, atoms)), expected)
    force = system.getForce(0)
    assert force.usesPeriodicBoundaryConditions() == bool(atoms.pbc.all())
    assert system.usesPeriodicBoundaryConditions() == bool(atoms.pbc.all())
    assert force.getForceGroup() == options.get("force_group", 0)
    if backend == "python" and hasattr(openmm.PythonForce, "setParticles"):  # OpenMM 8.5, openmm-torch: not written
        assert force.getName() == "LESForce"


def test_in_a_new_process_without_the_file(models, les_force, evaluate_elsewhere, tmp_path):
    """Every kind of System, and one with two forces."""
    path = shutil.copy(models["two channels"], tmp_path / "model.pt")
    systems = {}
    for name, (make, options) in SYSTEMS.items():
        atoms = make()
        systems[name] = make_system(atoms, les_force(path, atoms, **options)), atoms
    atoms = water_box()
    parts = [
        les_force(models[name], atoms, atoms=part)
        for name, part in (("one channel", range(12)), ("short range", range(12, 24)))
    ]
    systems["two forces"] = make_system(atoms, *parts), atoms
    expected = {name: evaluate(make_context(system, atoms)) for name, (system, atoms) in systems.items()}
    path.unlink()
    results = evaluate_elsewhere(systems)
    for name in systems:
        assert_identical(results[name], expected[name])


def test_the_force_alone(models, les_force):
    atoms = water_box()
    force = les_force(models["one channel"], atoms)
    other = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(force))
    expected = evaluate(make_context(make_system(atoms, force), atoms))
    assert_identical(evaluate(make_context(make_system(atoms, other), atoms)), expected)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda thing: pickle.loads(pickle.dumps(thing))],
    ids=["deepcopy", "copy", "pickle"],
)
@pytest.mark.parametrize("of", ["system", "force"])
def test_copies(of, duplicate, backend, models, les_force):
    """Of the System, and of the force before it belongs to one."""
    atoms = water_box()
    force = les_force(models["one channel"], atoms, atoms=range(12), force_group=2)
    if of == "force":
        system = make_system(atoms, duplicate(force))
        expected = evaluate(make_context(make_system(atoms, force), atoms))
    else:
        original = make_system(atoms, force)
        system = duplicate(original)
        expected = evaluate(make_context(original, atoms))
    assert_identical(evaluate(make_context(system, atoms), groups={2}), expected)


def test_copy_still_notices_a_missing_box(models, backend):
    atoms = water_box()
    system = make_system(atoms, LESForce(models["one channel"], topology_of(atoms), backend=backend))
    other = copy.deepcopy(system)
    other.setDefaultPeriodicBoxVectors(*(2.0 * np.eye(3)))
    with pytest.raises(openmm.OpenMMException, match="the System still has OpenMM's default box"):
        evaluate(make_context(other, atoms))


def test_model_that_is_evaluated_is_the_one_that_is_written(models, backend, tmp_path):
    """A file that was overwritten after it was loaded."""
    atoms = water_box()
    path = shutil.copy(models["one channel"], tmp_path / "model.pt")
    model = load(path)
    shutil.copy(models["another seed"], path)
    system = make_system(atoms, LESForce(model, atoms.numbers, periodic=True, backend=backend))
    first = evaluate(make_context(system, atoms))
    second = evaluate(make_context(copy.deepcopy(system), atoms))
    assert_identical(second, first)
    assert_same(first, reference(models["one channel"], atoms))


def truncated(content):
    return content[: len(content) // 2]


def no_archive(content):
    return b"nothing that was ever a model"


def empty(content):
    return b""


def other_weights(content):
    """One flipped bit in the middle of each of a few tensors, which the archive stores as they are."""
    damaged = bytearray(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tensors = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    assert tensors
    for entry in tensors:
        start = entry.header_offset + 30 + int.from_bytes(content[entry.header_offset + 26 :][:2], "little")
        start += int.from_bytes(content[entry.header_offset + 28 :][:2], "little")
        damaged[start + entry.file_size // 2] ^= 1
    return bytes(damaged)


def other_code(content):
    """A few bytes of the scripted code."""
    damaged = bytearray(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith(".py") and e.file_size > 1000)
    middle = entry.header_offset + 30 + len(entry.filename) + 64 + entry.compress_size // 2
    damaged[middle : middle + 8] = b"\xff" * 8
    return bytes(damaged)


@pytest.fixture
def damaged_system(backend, models, les_force):
    """A System whose LESForce carries a damaged model."""
    if backend != "python":
        pytest.skip("TorchForce carries a module of TorchScript, not the file")

    def make(damage):
        atoms = water_box()
        computation = les_force(models["one channel"], atoms).computation
        settings = computation.__getstate__()
        computation.__setstate__({**settings, "model_bytes": damage(settings["model_bytes"])})
        force = openmm.PythonForce(computation)
        force.setUsesPeriodicBoundaryConditions(True)
        return make_system(atoms, force), atoms

    return make


def newer(content):
    """Written by a later version."""
    rewritten = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(rewritten, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("les_md.json"):
                data = data.replace(b'"format_version": 4', b'"format_version": 99')
            new.writestr(entry.filename, data)
    return rewritten.getvalue()


DAMAGES = {
    truncated: "truncated or no model file",
    no_archive: "truncated or no model file",
    empty: "truncated or no model file",
    other_weights: "damaged",
    # (What notices it first depends on the bytes: the decompression or the checksum.)
    other_code: r"truncated or no model file|damaged \(checksum",
    newer: "in format 99, this les_md reads formats 3, 4 and 5: update les_md",
}


def test_damaged_model(damaged_system, evaluate_elsewhere):
    """An OpenMMException at the first evaluation that says what is wrong; the process goes on."""
    results = evaluate_elsewhere({damage.__name__: damaged_system(damage) for damage in DAMAGES})
    for damage, what in DAMAGES.items():
        message = results[damage.__name__]
        assert isinstance(message, str), f"{damage.__name__} was not noticed"
        assert message.startswith("the model inside this serialised LESForce: one_channel.pt is "), message
        assert re.search(what, message), message
        assert "Traceback" not in message
