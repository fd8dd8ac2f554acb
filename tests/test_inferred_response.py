"""benchmarks/inferred_response.py on few frames: its numbers, its baselines, its environments, its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import ase.build
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import inferred_response  # noqa: E402
from bonding_environments import environments  # noqa: E402


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, BENCHMARKS / "inferred_response.py", *map(str, arguments)],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("molecule", "expected"),
    [
        ("H2O", {"O": {"O water"}, "H": {"H water"}}),
        ("CH3OH", {"O": {"O hydroxyl"}, "C": {"C sp3, by N or O"}, "H": {"H on O", "H on C"}}),
        ("HCOOH", {"O": {"O carboxyl OH", "O carbonyl"}, "C": {"C carbonyl"}}),
        ("CH3CONH2", {"N": {"N amide"}, "O": {"O carbonyl"}, "C": {"C carbonyl", "C sp3, by C and H"}}),
        ("H3CNH2", {"N": {"N amine"}, "H": {"H on N", "H on C"}}),
        ("CH3CN", {"N": {"N nitrile"}, "C": {"C nitrile, alkyne", "C sp3, by C and H"}}),
        ("C6H6", {"C": {"C three neighbours"}}),
        ("CH3OCH3", {"O": {"O ether, ester"}}),
        ("C5H5N", {"N": {"N two neighbours"}}),
        ("SiH4", {"Si": {"Si"}}),
    ],
)
def test_environments(molecule, expected):
    atoms = ase.build.molecule(molecule)
    names = np.array(environments(atoms))
    for element, kinds in expected.items():
        assert set(names[atoms.symbols == element]) == kinds


def test_hydrogen_bonds_are_no_bonds():
    """A shared hydrogen, 1.1 and 1.3 Å from two oxygens, belongs to the nearer one."""
    atoms = ase.Atoms(
        "OHHOHH", [[0, 0, 0], [1.1, 0, 0], [-0.3, 0.92, 0], [2.4, 0, 0], [2.7, 0.9, 0], [2.7, -0.45, 0.8]]
    )
    assert environments(atoms) == ["O water", "H water", "H water"] * 2


def frame(generator, exact: bool) -> inferred_response.Frame:
    """Ten atoms of each element, whose Born charges the model has exactly or not at all."""
    symbols = np.repeat(list("HCNO"), 10)
    born = generator.normal(size=(40, 3, 3))
    dipole = generator.normal(size=3)
    return inferred_response.Frame(
        symbols, [f"{symbol} x" for symbol in symbols], "a", generator.normal(size=40), dipole,
        dipole if exact else np.zeros(3), born, born if exact else np.zeros_like(born), np.zeros(3),
    )  # fmt: skip


@pytest.mark.parametrize("exact", [True, False])
def test_statistics(exact):
    frames = [frame(np.random.default_rng(seed), exact) for seed in range(4)]
    means = dict.fromkeys("HCNO", 0.0)
    for row in inferred_response.born_rows(frames, means):
        assert row["atoms"] == (160 if row["element"] == "all" else 40)
        assert row["rmse_zero"] == pytest.approx(1.0, abs=0.1)
        assert row["rmse_means"] == row["rmse_zero"]  # their means are zero here
        assert row["rmse_model"] == (0.0 if exact else row["rmse_zero"])
        assert row["r2_model"] == pytest.approx(1.0 if exact else 0.0, abs=0.01)
    everything = inferred_response.dipole_rows(frames)[-1]
    assert everything["frames"] == 4
    assert everything["rmse_model"] == (0.0 if exact else everything["rmse_zero"])


def test_organics(shared, tmp_path):
    """One held-out frame of each subset: what the module prints is what the record and the model say."""
    done = run("organics", "--data", shared / "data", "--out", tmp_path, "--frames", 1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "organics_wb97m, 8 frames, never trained on" in done.stdout
    results = json.loads((tmp_path / "organics.json").read_text())
    assert len(results["frames"]) == 8
    assert {row["element"] for row in results["born"]} == {"H", "C", "N", "O", "all"}
    of_all = results["born"][-1]
    assert of_all["rmse_model"] < of_all["rmse_means"] < of_all["rmse_zero"]
    assert of_all["r2_model"] > 0.5
    assert results["dipoles"][-1]["r2_model"] > 0.5
    for name in ("inferred_born.png", "inferred_dipoles.png", "inferred_charges.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_model_without_a_record(shared, tmp_path):
    """Another's checkpoint does not tell its training frames: they are not taken for held out."""
    model = shared / "models" / "caceles_dipeptide_r4_nl2_nu2.pth"
    done = run("organics", "--data", shared / "data", "--out", tmp_path, "--model", f"CACE-LES={model}")
    assert done.returncode == 1
    assert "does not say on which frames it was trained: pass --all-frames" in done.stderr


def test_salt(tmp_path):
    """One frame: the charges of the force field, which were no labels, within 6 %."""
    pytest.importorskip("openmm", reason="the salt's force field needs OpenMM")
    done = run("salt", "--out", tmp_path, "--frames", 1)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "salt.json").read_text())["salt"]
    assert [row["species"] for row in rows] == ["Na", "Mg", "Cl"]
    for row in rows:
        assert row["ratio"] == pytest.approx(1.0, abs=0.06)
        assert row["deviation"] < 0.02
    assert (tmp_path / "inferred_salt.png").stat().st_size > 10_000


def test_wrong_input(tmp_path):
    assert "--frames must be at least 1" in run("salt", "--out", tmp_path, "--frames", 0).stderr
    done = run("organics", "--data", tmp_path, "--out", tmp_path)
    assert done.returncode == 1
    assert "no such data file" in done.stderr
