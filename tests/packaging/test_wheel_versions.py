"""The wheel in an empty environment outside the checkout, with the oldest and the newest versions of what it needs.

A box of water runs there in ASE, LAMMPS and OpenMM. Environments are downloaded, and up to 7 GB each, so the ordinary
run of the tests leaves them out. `make test-wheel` makes "lowest" and "highest"; "newest" is what an index offers.

    LES_MD_TEST_WHEEL="lowest highest newest" .venv/bin/python -m pytest tests/packaging

LES_MD_TEST_WHEEL_PYTHON names another Python than that of the tests for these environments.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.packaging.conftest import ROOT, run

#: Files with the versions to install; none: the newest that are offered.
CONSTRAINTS = {"lowest": "constraints-lowest.txt", "highest": "constraints.txt", "newest": None}

#: Extras that every engine of the box of water and `les-train` need.
EXTRAS = ("lammps", "openmm", "train")

TOLERANCE = 1e-6  # eV


@pytest.fixture(scope="module")
def requirements() -> dict[str, list[Requirement]]:
    """Those of pyproject.toml: of the package itself under "", and of every extra."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


def pins(name: str) -> dict[str, Version]:
    """Versions that a file of constraints names for the Python of the tests, by package."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                (specifier,) = requirement.specifier
                assert specifier.operator == "==", line
                found[requirement.name.lower()] = Version(specifier.version)
    return found


def test_every_dependency_has_a_lower_bound(requirements):
    assert len(requirements) > 5
    for requirement in (requirement for group in requirements.values() for requirement in group):
        assert {specifier.operator for specifier in requirement.specifier} & {">=", "=="}, str(requirement)


def test_lowest_versions_are_the_lower_bounds(requirements):
    lowest = pins("constraints-lowest.txt")
    needed = [requirement for extra in ("", *EXTRAS) for requirement in requirements[extra]]
    assert sorted(lowest) == sorted({requirement.name.lower() for requirement in needed})
    for requirement in needed:
        (bound,) = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
        pinned = lowest[requirement.name.lower()]
        assert pinned >= bound
        # Where a Python has no wheel of the oldest version, the file has the oldest that has one.
        if sys.version_info < (3, 13):
            assert pinned.release[: len(bound.release)] == bound.release


def installer(folder: Path, *arguments: str, python: Path | None = None):
    """The pip of this environment, for another one, without compiling anything."""
    other = ["--python", str(python)] if python else []
    return run([sys.executable, "-m", "pip", *other, *arguments], folder)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> None:
    """A package index, or a skip."""
    folder = tmp_path_factory.mktemp("index")
    wanted = ["download", "-q", "--no-deps", "--no-cache-dir", "--retries", "1", "--timeout", "20", "packaging==20.0"]
    done = installer(folder, *wanted)
    if done.returncode != 0:
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")


def water_box(python: str | Path, folder: Path, **environment: str) -> dict:
    """What ``water_box.py`` finds with this Python; copied, so that the checkout is nowhere on the path."""
    folder.mkdir(exist_ok=True)
    script = Path(shutil.copy(Path(__file__).with_name("water_box.py"), folder))
    done = run([str(python), script.name, str(folder)], folder, LES_MD_CACHE=str(folder / "cache"), **environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def energies_here(tmp_path_factory) -> dict[str, list[float]]:
    """Of the checkout, in the environment of the tests."""
    return water_box(sys.executable, tmp_path_factory.mktemp("here"), PYTHONPATH=str(ROOT))["energies"]


@pytest.mark.parametrize("versions", CONSTRAINTS)
def test_water_box(versions, distributions, request, tmp_path):
    if versions not in os.environ.get("LES_MD_TEST_WHEEL", "").split():
        pytest.skip(f"LES_MD_TEST_WHEEL does not name {versions!r} (make test-wheel does: it installs gigabytes)")
    request.getfixturevalue("index")
    wheel, _ = distributions
    environment = tmp_path / "environment"
    try:
        base = os.environ.get("LES_MD_TEST_WHEEL_PYTHON", sys.executable)
        done = run([base, "-m", "venv", "--without-pip", str(environment)], tmp_path)
        assert done.returncode == 0, done.stderr
        python = environment / "bin" / "python"
        wanted = ["install", "-q", "--no-compile", "--only-binary", ":all:", f"{wheel}[{','.join(EXTRAS)}]"]
        if CONSTRAINTS[versions]:
            wanted += ["--constraint", str(ROOT / CONSTRAINTS[versions])]
        done = installer(tmp_path, *wanted, python=python)
        assert done.returncode == 0, done.stderr[-4000:]
        listed = json.loads(installer(tmp_path, "list", "--format", "json", python=python).stdout)
        print(versions, *(f"{entry['name']} {entry['version']}" for entry in listed), sep="\n")

        there = water_box(python, tmp_path / "there")
        assert Path(there["les_md"]).is_relative_to(environment)
        reference = request.getfixturevalue("energies_here")
        for engine, energies in there["energies"].items():
            for values in (reference["ASE"], reference[engine]):
                assert energies == pytest.approx(values, abs=TOLERANCE, rel=0.0), engine
        program = str(environment / "bin" / "les-md")
        doctor = run([program, "doctor"], tmp_path, LES_MD_CACHE=str(tmp_path / "there" / "cache"))
        assert doctor.returncode == 0, doctor.stdout
    finally:
        shutil.rmtree(environment, ignore_errors=True)  # gigabytes, which pytest would keep for its next three runs
