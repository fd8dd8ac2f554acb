"""Every bundled and published model against its reference file, and against LESCalculator.

``python -m tests.lammps.force_style.regenerate`` writes the files.
"""

from __future__ import annotations

import numpy as np
import pytest

from les_md import LESCalculator
from les_md.models import bundled_models
from tests.lammps.force_style import reference_files
from tests.lammps.force_style.cases import CASES, REFERENCES, Case, evaluate, export_case
from tests.lammps.force_style.regenerate import main

#: Relative to the largest value of the kind; double precision, a few steps.
TOLERANCE = 1e-9


def available(name: str) -> Case:
    case = CASES[name]
    if not case.path.is_file():
        pytest.skip(f"needs ../shared/models/{case.checkpoint}, a published model that is not part of this repository")
    return case


def test_every_bundled_model_has_a_file():
    assert set(bundled_models()) <= set(CASES)
    assert {path.stem for path in REFERENCES.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_model(name, tmp_path, plugin):
    case = available(name)
    origin, expected = reference_files.read(REFERENCES / f"{name}.yaml")
    assert origin["sha256"] == case.digest, (
        f"{REFERENCES / name}.yaml is of another checkpoint: python -m tests.lammps.force_style.regenerate {name}"
    )
    model = export_case(case, tmp_path / "model.pt")
    results = evaluate(case, model, tmp_path)
    assert set(results) == set(expected)
    for quantity, values in expected.items():
        size = np.abs(values).max()
        np.testing.assert_allclose(results[quantity], values, rtol=0, atol=TOLERANCE * size, err_msg=quantity)
    assert np.abs(expected["run forces"] - expected["init forces"]).max() > 1e-4
    for stage in ("init", "run"):
        energy = results[f"{stage} energy"].sum()
        assert results[f"{stage} energies"].sum() == pytest.approx(energy, rel=1e-12)

    atoms = case.atoms()
    atoms.pbc = case.boundary == "p p p"
    atoms.calc = LESCalculator(model)
    scale = max(1.0, abs(results["init energy"].sum()))
    assert results["init energy"].sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-10 * scale)
    forces = atoms.get_forces()
    np.testing.assert_allclose(results["init forces"], forces, rtol=0, atol=1e-10 * np.abs(forces).max())


def test_regenerate_names_what_it_does_not_know(capsys):
    assert main(["nonsense"]) == 1
    assert "no such model: nonsense; known are water_rpbe_d3, " in capsys.readouterr().err
