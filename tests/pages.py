"""Pages of the documentation: their blocks, and running them as a reader does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<content>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, content, the ``file`` that its first line names, why it is not run."""

    language: str
    content: str
    file: str | None
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page. A first line that is a comment with nothing but a name makes it a file."""
    found = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        content = match["content"]
        # A script says which program runs it before that.
        name = re.match(r"(?:#!.*\n)?# (in\.\w+|\w+\.\w+)\n", content)
        found.append(Block(match["language"], content, name and name[1], match["reason"]))
    return found


def environment() -> dict[str, str]:
    """Of a reader: programs of this Python on the path, one thread, ``LES_MD`` the folder of the sources."""
    kept = {key: value for key, value in os.environ.items() if key != "LAMMPS_PLUGIN_PATH"}
    programs = str(Path(sys.executable).parent)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    threads = {"OMP_NUM_THREADS": "1", "OPENMM_CPU_THREADS": "1"}
    return {**kept, **threads, "PATH": path, "LES_MD": str(ROOT)}


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run a command as a reader does, with more environment ``variables``."""
    return subprocess.run(
        command, cwd=folder, env={**environment(), **variables}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def run_page(page: Path, folder: Path, shorter: dict[str, str] | None = None, **variables: str) -> str:
    """Run every block of a page in one folder, in order, or write it to the file that it names; what was printed.

    ``shorter`` replaces values of options by smaller ones; each must occur on the page.
    """
    printed, unused = "", set(shorter or {})
    for block in blocks(page):
        if block.not_run:
            continue
        content = block.content
        for value, replacement in (shorter or {}).items():
            if value in content:
                unused.discard(value)
                content = content.replace(value, replacement)
        if block.file:
            (folder / block.file).write_text(content, encoding="utf-8")
            continue
        command = {"bash": ["bash", "-euc", content], "python": [sys.executable, "-c", content]}[block.language]
        done = run(command, folder, **variables)
        assert done.returncode == 0, f"{content}\n{(done.stdout + done.stderr)[-3000:]}"
        printed += done.stdout
    assert not unused, f"{page.name} does not have {unused}"
    return printed


def thermo(log: Path) -> np.ndarray:
    """Rows of the thermodynamic output of a LAMMPS log, of all its runs."""
    rows = re.findall(r"^ +(\d+(?: +[-+.\deE]+)+) *$", log.read_text(encoding="utf-8"), re.M)
    return np.array([[float(word) for word in row.split()] for row in rows])
