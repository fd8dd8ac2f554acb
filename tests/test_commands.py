"""Commands of pages and READMEs that no test runs as they stand: programs, options, files and names in them exist.

Those in the blocks of ``tests/pages.py`` are run; others are shown with names of the reader's own files, or are long.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from les_md.cli import export_parser, main_parser
from les_md.training.command import argument_parser as train_parser
from tests.pages import DOCS, ROOT, blocks

PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "les_md" / "models").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "openmm_plugin/README.md")),
]
PARSERS = {"les-export": export_parser, "les-md": main_parser, "les-train": train_parser}
PROGRAMS = (*PARSERS, "lmp", "mpiexec", "python", "make", "pip")


def commands(page: Path) -> list[str]:
    """Lines of a page's blocks, fenced or indented, and pieces of code in its text that begin with a program."""
    text = page.read_text(encoding="utf-8")
    # A line that ends with a backslash goes on in the next.
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [line.strip() for line in lines if line.startswith("    ")]
    fenced = "\n".join(block.content for block in blocks(page) if block.language == "bash")
    found += re.sub(r"\\\n\s*", "", fenced).splitlines()
    found += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    starts = tuple(f"{program} " for program in PROGRAMS)
    return [line.removeprefix(".venv/bin/") for line in found if line.removeprefix(".venv/bin/").startswith(starts)]


def words_of(command: str) -> list[str]:
    """Words of a command without comment and redirection."""
    words = shlex.split(command.split(" # ")[0].split("   ")[0], comments=True)
    return words[: words.index(">")] if ">" in words else words


def options_of(parser) -> set[str]:
    """All options of a parser and of the commands within."""
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        for command in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            found |= options_of(command)
    return found


def python_sources(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))


def check_python(words: list[str], page: Path) -> None:
    if words[1] == "-c":
        return
    if words[1] == "-m":
        if words[2].split(".")[0] not in ("les_md", "tests"):
            return
        words, path = words[1:], ROOT / Path(*words[2].split(".")).with_suffix(".py")
    else:
        name = words[1].replace("$LES_MD/", "")
        candidates = [folder / name for folder in (page.parent, ROOT, *(ROOT / "examples").iterdir())]
        existing = [path for path in candidates if path.is_file()]
        if page.parent.name == "tutorials" and not existing:
            assert name in {block.file for block in blocks(page)}, f"{page.name}: {name}"
            return
        assert existing, f"{page.name}: no {name}"
        path = existing[0]
    assert path.is_file(), f"{page.name}: no {path}"
    sources = python_sources(path.parent)
    for word in words[2:]:
        if word.startswith("--"):
            assert f'"{word}"' in sources, f"{page.name}: {path.name} has no {word}"


def check_lammps(words: list[str], page: Path) -> None:
    (name,) = [words[i + 1] for i, word in enumerate(words) if word == "-in"]
    shown = {block.file: block.content for block in blocks(page) if block.file}
    inputs = [shown[name]] if name in shown else [path.read_text() for path in (ROOT / "examples").glob(f"*/{name}")]
    assert inputs, f"{page.name}: no {name}"
    for variable in (words[i + 1] for i, word in enumerate(words) if word == "-var"):
        assert any(re.search(rf"^variable +{variable} ", text, re.M) for text in inputs), f"{name}: {variable}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands(page):
    makefile = (ROOT / "Makefile").read_text()
    extras = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    for command in commands(page):
        words = words_of(command)
        program = words[0]
        if program == "mpiexec":
            words, program = words[words.index("lmp") if "lmp" in words else 0 :], "lmp" if "lmp" in words else ""
        if program in PARSERS:
            known = options_of(PARSERS[program]())
            unknown = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} - known
            assert not unknown, f"{page.name}: {command}: {unknown}"
        elif program == "python" and len(words) > 1:
            check_python(words, page)
        elif program == "lmp" and "-in" in words:
            check_lammps(words, page)
        elif program == "make":
            for target in (word for word in words[1:] if "=" not in word and not word.startswith("-")):
                assert re.search(rf"^{target}:", makefile, re.M), f"{page.name}: make {target}"
        elif program == "pip":
            for extra in re.findall(r"les[_-]md\[([\w,-]+)\]", command):
                assert set(extra.split(",")) <= extras, f"{page.name}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks(page):
    """Blocks of Python, run or not, can be parsed, and what they import of les_md exists."""
    for block in blocks(page):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.content)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "les_md":
                source = source_of(node.module)
                for alias in node.names:
                    known = re.search(rf"\b{alias.name}\b", source.read_text()) or source_of(
                        f"{node.module}.{alias.name}"
                    )
                    assert known, f"{page.name}: {node.module} has no {alias.name}"


def source_of(module: str) -> Path | None:
    """The file of a module of les_md."""
    folders = {"les_md.openmm": "openmm_plugin", "les_md.lammps": "lammps_plugin"}
    name = ".".join(module.split(".")[:2])
    path = ROOT / Path(*module.replace(name, folders.get(name, name.replace(".", "/")), 1).replace("/", ".").split("."))
    if path.is_dir():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None
