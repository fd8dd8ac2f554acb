"""``python -m tests.lammps.force_style.regenerate [NAME ...]``: write the reference files anew, all or those named.

Do this after a change that is meant to change results, or a new checkpoint of a bundled model; the largest changes are
printed, to be looked at before they are committed.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from tests.lammps.force_style import reference_files
from tests.lammps.force_style.cases import CASES, REFERENCES, evaluate, export_case


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        print(f"no such model: {', '.join(unknown)}; known are {', '.join(CASES)}", file=sys.stderr)
        return 1
    versions = {name: metadata.version(name) for name in ("lammps", "torch")}
    for name in names or CASES:
        case, path = CASES[name], REFERENCES / f"{name}.yaml"
        if not case.path.is_file():
            print(f"{name}: left as it is, {case.path} is not here")
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                model = export_case(case, Path(folder) / "model.pt")
            except pytest.skip.Exception as reason:
                print(f"{name}: left as it is, {reason}")
                continue
            results = evaluate(case, model, Path(folder))
        changes = "new"
        if path.is_file():
            old = reference_files.read(path)[1]
            same = {key for key in results if key in old and old[key].shape == results[key].shape}
            found = {key: np.abs(results[key] - old[key]).max() / np.abs(results[key]).max() for key in same}
            changes = ", ".join(f"{key} {value:.1e}" for key, value in found.items())
        reference_files.write(path, case, results, versions)
        print(f"{name}: {changes}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
