"""Wheel and source distribution of this checkout, built once, and processes that know nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Variables by which a process would find the checkout, its environment, or a plugin that was built elsewhere.
_OF_THIS_ENVIRONMENT = ("LAMMPS_PLUGIN_PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")


def run(command: list, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in ``folder`` with one thread and more ``environment`` variables."""
    inherited = {key: value for key, value in os.environ.items() if key not in _OF_THIS_ENVIRONMENT}
    return subprocess.run(
        command, cwd=folder, env={**inherited, "OMP_NUM_THREADS": "1", **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def build(source: Path, kind: str, folder: Path, empty: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` of the tree ``source`` into ``folder``, with no program on the path."""
    script = "import sys; from setuptools import build_meta as b; print(b.build_{0}(sys.argv[1]))"
    command = [sys.executable, "-c", script.format(kind), str(folder)]
    done = run(command, source, PATH=str(empty), CXX="/nonexistent/c++", CC="/nonexistent/cc")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """Wheel and source distribution, by the back end of pyproject.toml, with no compiler on the path."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools 77 or newer (pip install 'les_md[dev]')")
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source")
    # A copy of what git knows: the back end writes into the folder that it builds.
    files = run(["git", "ls-files", "-z"], ROOT).stdout.split("\0")
    if not any(files):
        pytest.skip("needs a checkout of git")
    for name in filter(None, files):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    empty = tmp_path_factory.mktemp("empty")
    return build(source, "wheel", folder, empty), build(source, "sdist", folder, empty)
