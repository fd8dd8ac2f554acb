"""The folder of what is made once on a machine: compiled plugins, results of tests of other packages."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """LES_MD_CACHE if set, else les_md in XDG_CACHE_HOME or ~/.cache; need not exist."""
    if os.environ.get("LES_MD_CACHE"):
        return Path(os.environ["LES_MD_CACHE"]).expanduser().resolve()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser().resolve() / "les_md"
