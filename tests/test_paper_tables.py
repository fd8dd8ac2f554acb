"""The script of the paper tables: errors that are known beforehand, and what it refuses."""

import csv
import json
import sys
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from les_md import LESCalculator, export

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import paper_tables  # noqa: E402
from labelled_frames import Selection, frame_numbers, read_labelled  # noqa: E402

NAME = "water_rpbe_d3"
ROTATION = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return export(NAME, tmp_path_factory.mktemp("paper_tables") / "water.pt", dtype="float64").path


def molecules(count: int, seed: int) -> ase.Atoms:
    generator = np.random.default_rng(seed)
    atoms = ase.Atoms()
    for i in range(count):
        molecule = ase.build.molecule("H2O")
        molecule.rattle(0.03, seed=seed + i)
        molecule.rotate(float(generator.uniform(0, 360)), "xyz")
        molecule.translate((3.1 * i, 0, 0))
        atoms += molecule
    return atoms


def write_frames(path: Path, model: Path, energies: list[float], force_error: float) -> None:
    """Frames whose labels are the model's results plus these energies (eV), and forces off by a known amount."""
    calculator = LESCalculator(model)
    frames = []
    for i, energy in enumerate(energies):
        atoms = molecules(2 + i % 2, seed=10 * i)
        calculator.calculate(atoms, ["energy", "forces"])
        # Alternating signs, so that the root mean square is the number itself.
        off = force_error * np.where(np.arange(3 * len(atoms)) % 2, 1.0, -1.0).reshape(-1, 3)
        born = calculator.get_born_effective_charges(atoms)
        atoms.arrays["bec"] = (born + 0.02).transpose(0, 2, 1).reshape(-1, 9)  # displacement first, as in SPICE
        atoms.info["subset"] = "odd" if i % 2 else "even"
        atoms.calc = SinglePointCalculator(
            atoms, energy=calculator.results["energy"] + energy * len(atoms), forces=calculator.results["forces"] + off
        )
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


def table_of(arguments: list, out: Path) -> list[dict]:
    """Rows of the first table, from its JSON file."""
    assert paper_tables.main([*map(str, arguments), "--out", str(out)]) == 0
    return json.loads(out.read_text())["tables"][0]["rows"]


def test_errors_are_those_put_in(tmp_path, model, capsys):
    """Energies off by 3 and 5 meV/atom about one constant: own references see all, fitted ones the spread alone."""
    data = tmp_path / "frames.xyz"
    write_frames(data, model, [0.003, 0.003, 0.005, 0.005], 0.02)
    (row,) = table_of(["water", "--data", data, "--model", f"mine={model}"], tmp_path / "out.json")
    assert row["model"] == "mine"
    assert row["forces_with_les"] == pytest.approx(20.0, rel=1e-6)
    assert row["energy_own_with_les"] == pytest.approx(np.sqrt(17.0), rel=1e-5)
    # H and O come 2 to 1 in every frame: one constant, 4 meV/atom, is fitted.
    assert row["energy_fitted_with_les"] == pytest.approx(1.0, rel=1e-4)
    assert row["forces_without_les"] is None
    printed = capsys.readouterr().out
    assert "| mine | cace, 4.5 Å, 1 layer(s), float64 | 20.0 | – | 1.000 |" in printed
    assert "References fitted: 1 constant(s)" in printed


def test_with_and_without(tmp_path, model):
    """A row of two models; the twin alone has its own errors, against the same labels."""
    data = tmp_path / "frames.xyz"
    write_frames(data, model, [0.0, 0.0], 0.0)
    out = tmp_path / "out.csv"
    arguments = ["water", "--data", data, "--model", f"pair={NAME}", "--short-range", f"pair={NAME}_short_range"]
    assert paper_tables.main([*map(str, arguments), "--out", str(out)]) == 0
    with out.open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["forces_with_les"]) == pytest.approx(0.0, abs=1e-3)  # the file has eight digits
    assert float(row["forces_without_les"]) > 1.0


def test_atomic_energies_and_frames(tmp_path, model):
    data = tmp_path / "frames.xyz"
    write_frames(data, model, [0.0, 0.1, 0.1, 0.1], 0.0)
    energies = "mine=H:0.1,O:0.1"
    arguments = ["water", "--data", data, "--model", f"mine={model}", "--atomic-energies", energies]
    (row,) = table_of([*arguments, "--frames", "1:4"], tmp_path / "out.json")
    assert row["energy_own_with_les"] == pytest.approx(0.0, abs=1e-4)
    (row,) = table_of([*arguments, "--subset", "even"], tmp_path / "out.json")
    assert row["energy_own_with_les"] == pytest.approx(100.0 / np.sqrt(2.0), rel=1e-5)


def test_born_charges(tmp_path, model):
    """Tensors off by 0.02 e everywhere; read the other way round, the off-diagonal parts are wrong."""
    data = tmp_path / "frames.xyz"
    write_frames(data, model, [0.0, 0.0], 0.0)
    arguments = ["bec", "--data", data, "--model", f"mine={model}"]
    (row,) = table_of(arguments, tmp_path / "out.json")
    for part in ("all", "diagonal", "off_diagonal"):
        assert row[f"rmse_{part}"] == pytest.approx(0.02, rel=1e-5)
    assert row["slope_all"] == pytest.approx(1.0, abs=1e-6)
    (turned,) = table_of([*arguments, "--bec-index", "polarisation"], tmp_path / "out.json")
    assert turned["rmse_diagonal"] == pytest.approx(0.02, rel=1e-5)
    assert turned["rmse_off_diagonal"] > 0.021


def test_reference_file(tmp_path, model):
    """Born charges of another program in an .npz, in the sign of the checkpoint."""
    atoms = molecules(2, 3)
    loaded = LESCalculator(model)
    sign = paper_tables.load(model).metadata["long_range"]["charge_sign"]
    contents = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc}
    contents["bec"] = sign * loaded.get_born_effective_charges(atoms)
    np.savez(tmp_path / "ref.npz", **{f"0/{key}": value for key, value in contents.items()})
    arguments = ["bec", "--model", f"mine={model}", "--reference", f"mine={tmp_path / 'ref.npz'}"]
    (row,) = table_of(arguments, tmp_path / "out.json")
    assert row["rmse_all"] < 1e-12
    del contents["pbc"]
    np.savez(tmp_path / "ref.npz", **{f"0/{key}": value for key, value in contents.items()})
    assert paper_tables.main(arguments) == 1


WATER = ["water", "--data", "DATA"]
ONE = [*WATER, "--model", "a=MODEL"]
WRONG = {
    "no models": (WATER, "no models: give at least one --model"),
    "twice": ([*WATER, "--model", "a=x", "--model", "a=y"], "a is given twice"),
    "form": ([*WATER, "--model", "MODEL"], "wanted NAME=VALUE"),
    "no data": (["water", "--data", "absent.xyz", "--model", "a=MODEL"], "no such data file: absent.xyz"),
    "frames": ([*ONE, "--frames", "0:9"], "there is no frame 8"),
    "word": ([*ONE, "--frames", "all"], "neither a frame number nor a range"),
    "subset": ([*ONE, "--subset", "gas"], "its subsets: even, odd"),
    "has charges": ([*WATER, "--short-range", "a=MODEL"], "has a long-range energy: give it as --model"),
    "no charges": ([*WATER, "--model", f"a={NAME}_short_range"], "no latent charges"),
    "energies": ([*ONE, "--atomic-energies", "a=H=1"], "is not such as H:-13.6"),
    "stranger": ([*ONE, "--atomic-energies", "b=H:1"], "there is no model b"),
    "nothing": (["bec", "--model", "a=MODEL"], "nothing to compare with"),
    "twin": (["bec", "--data", "DATA", "--short-range", f"a={NAME}_short_range"], "no charges, and so no Born"),
    "out": ([*ONE, "--out", "absent/x.json"], "the folder absent of --out"),
    "gold": (["au-mgo", "--data", "DATA", "--model", "a=MODEL"], "simulation_info is None"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case, tmp_path, model, capsys):
    arguments, message = WRONG[case]
    data = tmp_path / "frames.xyz"
    write_frames(data, model, [0.0, 0.0], 0.0)
    arguments = [a.replace("DATA", str(data)).replace("MODEL", str(model)) if a != "--data" else a for a in arguments]
    assert paper_tables.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_element_that_a_model_does_not_know(tmp_path, model, capsys):
    data = tmp_path / "frames.xyz"
    write_frames(data, model, [0.0, 0.0], 0.0)
    frames = ase.io.read(data, ":", format="extxyz")
    frames[1].symbols[0] = "S"
    ase.io.write(data, frames, format="extxyz")
    arguments = ["water", "--data", str(data), "--model", f"a={model}"]
    assert paper_tables.main(arguments) == 1
    assert "frame 1: model a knows H O, not S" in capsys.readouterr().err
    (row,) = table_of([*arguments, "--known-elements-only"], tmp_path / "out.json")
    assert row["energy_fitted_with_les"] is None  # one frame, one constant


def test_labels_must_be_finite(tmp_path, model):
    data = tmp_path / "frames.xyz"
    write_frames(data, model, [0.0, 0.0], 0.0)
    frames = ase.io.read(data, ":", format="extxyz")
    frames[1].calc.results["forces"][0, 0] = np.nan
    ase.io.write(data, frames, format="extxyz")
    with pytest.raises(ValueError, match="frame 1: label 'forces' holds a value that is not a finite number"):
        read_labelled(data, Selection(), ("energy", "forces"))
    with pytest.raises(ValueError, match="names a frame twice"):
        frame_numbers("0:3,2", 5)


# ---- published models


def test_published_water_models(shared, tmp_path):
    """The errors that the authors' own evaluation has on frames 0 to 9."""
    folder = shared / "models"
    (row,) = table_of(
        ["water", "--data", shared / "data" / "water_rpbe_d3.xyz", "--frames", "0:10",
         "--model", f"r4.5={folder / 'caceles_water_r4.5_nu2.pth'}"], tmp_path / "out.json",
    )  # fmt: skip
    assert row["forces_with_les"] == pytest.approx(26.019, abs=2e-3)


def test_published_gold(shared, tmp_path):
    """Wetting energies before and after the relaxation in LAMMPS, against those the authors state."""
    model = shared / "models" / "caceles_au_mgo_r5.5_nu2.pth"
    data = shared / "data" / "au2_mgo_dft_relaxed.xyz"
    out = tmp_path / "out.json"
    dft, row = table_of(["au-mgo", "--data", data, "--model", f"CACE={model}"], out)
    assert dft["Al-doped_given"] == pytest.approx(-66.9, abs=0.05)
    assert dft["undoped_given"] == pytest.approx(934.8, abs=0.05)
    assert row["Al-doped_given"] == pytest.approx(-72.0, abs=0.5)
    assert row["undoped_given"] == pytest.approx(932.0, abs=0.5)
    assert row["Al-doped_relaxed"] == pytest.approx(-72.1, abs=0.5)
    # The DFT minimum of the lying dimer on the undoped slab is a saddle point of this model.
    assert row["undoped_stationary"] == pytest.approx(931.7, abs=0.5)
    assert row["undoped_relaxed"] == pytest.approx(885.3, abs=0.5)
    moves = json.loads(out.read_text())["tables"][1]["rows"]
    assert all(move["largest_force"] <= 1e-5 for move in moves)
    assert all(move["curvature_relaxed"] > 0.0 for move in moves)
    assert [move["structure"] for move in moves if move["curvature_start"] < 0.0] == ["3-undoped"]
