"""Reading and writing the reference files: YAML, numbers with all their digits as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from tests.lammps.force_style.cases import Case


class _Block(str):
    """Text that is written line by line."""


yaml.SafeDumper.add_representer(
    _Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)


def write(path: Path, case: Case, results: dict[str, np.ndarray], versions: dict[str, str]) -> None:
    """``results`` of ``cases.evaluate``."""
    content = {
        "checkpoint": case.checkpoint,
        "sha256": case.digest,
        "versions": versions,
        "elements": " ".join(case.elements),
        "structure": case.structure,
        "boundary": case.boundary,
        "natoms": len(case.atoms()),
    }
    for name, values in results.items():
        rows = values if values.ndim == 2 else values.reshape(1, -1) if "energy" in name else values.reshape(-1, 1)
        content[name.replace(" ", "_")] = _Block("".join(" ".join(f"{x:.16e}" for x in row) + "\n" for row in rows))
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What the file says of its origin, and its results in the shapes of ``cases.evaluate``."""
    content = yaml.safe_load(path.read_text())
    results = {}
    for key in [key for key in content if key.startswith(("init_", "run_"))]:
        stage, quantity = key.split("_")
        table = np.array([line.split() for line in content.pop(key).splitlines()], dtype=float)
        results[f"{stage} {quantity}"] = table if quantity == "forces" else table.ravel()
    return content, results
