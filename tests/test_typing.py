"""The public interface is annotated as mypy understands it (the files that pyproject.toml names)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_mypy(tmp_path):
    pytest.importorskip("mypy", reason="needs mypy (pip install 'les_md[dev]')")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
