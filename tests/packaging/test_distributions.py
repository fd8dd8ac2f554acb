"""Wheel and source distribution: built without a compiler, complete, and enough to run from outside the checkout."""

from __future__ import annotations

import configparser
import importlib.util
import json
import sys
import tarfile
import zipfile

from les_md.lammps import plugin_build
from les_md.models import bundled_models
from tests.packaging.conftest import ROOT, build, run


def test_contents_of_the_wheel(distributions):
    wheel, _ = distributions
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        points = configparser.ConfigParser()
        points.read_string(archive.read(entry_points).decode())
    expected = [f"les_md/lammps/{name}" for name in (*plugin_build.SOURCES, *plugin_build.HEADERS, "CMakeLists.txt")]
    expected += [f"les_md/models/{name}.{kind}" for name in bundled_models() for kind in ("pth", "md")]
    expected += ["les_md/training/template.yaml", "les_md/openmm/les_force.py", "les_md/doctor_evaluations.py"]
    # Twins without charges share the card of their model.
    missing = [name for name in expected if name not in names and not name.endswith("_short_range.md")]
    assert missing == []
    modules = {f"les_md/{path.relative_to(ROOT / 'les_md')}" for path in (ROOT / "les_md").rglob("*.py")}
    assert modules <= set(names)
    assert not [name for name in names if name.split("/")[0] not in ("les_md",) and ".dist-info/" not in name]
    assert set(points["console_scripts"]) >= {"les-export", "les-md", "les-train"}
    assert points["lammps.plugins"]["les_md"] == "les_md.lammps:plugin_path"


def test_contents_of_the_source_distribution(distributions):
    _, archive = distributions
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "lammps_plugin/CMakeLists.txt", "lammps_plugin/les_model.h"}
    assert wanted <= names


def test_wheel_of_the_source_distribution(distributions, tmp_path):
    """The same files as in the wheel of the checkout, byte for byte but for the list of hashes."""
    wheel, archive = distributions
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    (tmp_path / "dist").mkdir()
    (tmp_path / "empty").mkdir()
    rebuilt = build(source, "wheel", tmp_path / "dist", tmp_path / "empty")
    contents = []
    for path in (wheel, rebuilt):
        with zipfile.ZipFile(path) as opened:
            contents.append({name: opened.read(name) for name in opened.namelist() if not name.endswith("/RECORD")})
    assert contents[0] == contents[1]


def test_runs_from_outside_the_checkout(distributions, tmp_path):
    """Unpacked by pip without the checkout on the path: a box of water in every engine."""
    wheel, _ = distributions
    site = tmp_path / "site"
    done = run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    script = (
        "import sys, les_md, les_md.lammps, les_md.cli\n"
        "assert les_md.__file__.startswith(sys.argv[1]) and les_md.lammps.__file__.startswith(sys.argv[1])\n"
        "sys.exit(les_md.cli.main(['doctor', '--json']))"
    )
    done = run([sys.executable, "-c", script, str(site)], tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    findings = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert findings["ASE"]["status"] == "ok"
    for engine in ("lammps", "openmm"):
        if importlib.util.find_spec(engine):
            assert findings[{"lammps": "LAMMPS", "openmm": "OpenMM"}[engine]]["status"] == "ok"
