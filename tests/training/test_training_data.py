"""Frames of a training: units and signs of labels, the split, and errors that list what is wrong."""

from __future__ import annotations

import dataclasses

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from les_md.training.configuration import ConfigurationError, DataSection
from les_md.training.dataset import checked_frame
from les_md.training.labels import FrameError, LabelKeys
from les_md.training.split import held_out
from les_md.training.training_data import average_neighbours, describe, read_training_data
from tests.training.ionic_crystals import ATOMIC_ENERGIES, crystal, energy_forces_stress, write_crystals

CUTOFF = 4.0
NUMBERS = (11, 17)
#: GPa and kbar of 1 eV/Å³, of the elementary charge in the SI.
GPA = 160.2176634


@pytest.fixture
def file(tmp_path):
    return write_crystals(tmp_path / "data.xyz", 12)


def section(**values) -> DataSection:
    return DataSection(**({"train": ("data.xyz",), "validation": 0.25} | values))


def read(file, **values):
    return read_training_data(section(**values), file.parent, CUTOFF)


def test_force_field_of_the_tests_is_a_derivative():
    atoms = crystal(1)
    _, forces, stress = energy_forces_stress(atoms)
    step = 1e-4
    moved = [atoms.copy(), atoms.copy()]
    for each, sign in zip(moved, (1, -1), strict=True):
        each.positions[3, 1] += sign * step
    energies = [energy_forces_stress(each)[0] for each in moved]
    assert forces[3, 1] == pytest.approx((energies[1] - energies[0]) / (2 * step), rel=1e-5)
    for each, sign in zip(moved, (1, -1), strict=True):
        deformation = np.eye(3)
        deformation[0, 0] += sign * step
        each.positions = atoms.positions @ deformation
        each.cell = atoms.cell.array @ deformation
    energies = [energy_forces_stress(each)[0] for each in moved]
    slope = (energies[0] - energies[1]) / (2 * step)
    assert stress[0, 0] == pytest.approx(slope / atoms.get_volume(), rel=1e-5)


@pytest.mark.parametrize(
    ("unit", "sign", "factor"),
    [
        ("eV/Å^3", "tension", 1.0),
        ("eV/A^3", "compression", -1.0),
        ("GPa", "tension", GPA),
        ("kbar", "compression", -10.0 * GPA),
        ("eV", "compression", None),
    ],
)
@pytest.mark.parametrize("components", [6, 9])
def test_units_and_signs_of_the_stress(tmp_path, unit, sign, factor, components):
    atoms = crystal(2)
    stress = energy_forces_stress(atoms)[2]
    factor = -atoms.get_volume() if factor is None else factor
    voigt = stress[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
    atoms.info["dft_stress"] = factor * (voigt if components == 6 else stress)
    ase.io.write(tmp_path / "data.xyz", atoms)
    labels = LabelKeys(stress="dft_stress", stress_unit=unit, stress_sign=sign)
    frame = checked_frame(ase.io.read(tmp_path / "data.xyz"), "frame", NUMBERS, labels)
    assert np.allclose(frame.stress.numpy(), stress, rtol=1e-6, atol=1e-9)


def test_stress_as_ase_reads_it(file):
    data = read(file, stress_key="stress", stress_unit="eV/Å^3", stress_sign="tension")
    for part, sources in data.sources.items():
        for frame, source in zip(data.frames[part], sources, strict=True):
            stress = energy_forces_stress(crystal(source.index + 1))[2]
            assert np.allclose(frame.stress.numpy(), stress, atol=1e-7)
    assert "GPa" in describe(data, CUTOFF)


def test_labels_under_other_names(tmp_path):
    frames = [crystal(seed) for seed in (1, 2)]
    for atoms in frames:
        results = atoms.calc.results
        atoms.info["REF_energy"] = results["energy"]
        atoms.arrays["REF_forces"] = results["forces"]
        atoms.calc = None
    ase.io.write(tmp_path / "data.xyz", frames)
    data = read(tmp_path / "data.xyz", validation=0.5, energy_key="REF_energy", forces_key="REF_forces")
    (source,), (frame,) = data.sources["train"], data.frames["train"]
    assert float(frame.energy) == pytest.approx(energy_forces_stress(crystal(source.index + 1))[0], abs=1e-6)
    with pytest.raises(FrameError, match=r"2 of 2 frames .*\n.*no label 'energy'.*this one has: REF_energy"):
        read(tmp_path / "data.xyz", validation=0.5, forces_key="REF_forces")


def test_split_by_fractions(file):
    data = read(file, test=0.25)
    counts = {part: len(frames) for part, frames in data.frames.items()}
    assert counts == {"train": 6, "validation": 3, "test": 3}
    used = sorted(source.index for sources in data.sources.values() for source in sources)
    assert used == list(range(12))
    again, other = read(file, test=0.25), read(file, test=0.25, split_seed=1)
    assert data.split() == again.split() and data.fingerprint() == again.fingerprint()
    assert data.split() != other.split() and data.fingerprint() != other.fingerprint()


def test_split_by_groups(file):
    data = read(file, test=0.25, group_key="run")
    groups = {part: {source.group for source in sources} for part, sources in data.sources.items()}
    assert groups["train"] | groups["validation"] | groups["test"] == {"run0", "run1", "run2", "run3"}
    assert sum(map(len, groups.values())) == 4
    assert data.split()["frames"]["test"][0]["group"] in groups["test"]


def test_parts_are_never_empty_and_near_their_fraction():
    for seed in range(20):
        for number in (3, 4, 7, 50):
            training, validation, test = held_out(range(number), 0.1, 0.2, seed)
            assert training and validation and test
            assert sorted(training + validation + test) == list(range(number))
            if number == 50:
                assert (len(validation), len(test)) == (5, 10)
    with pytest.raises(ConfigurationError, match="2 groups or independent frames cannot be divided into 3 parts"):
        held_out("aabb", 0.1, 0.1, 0)


def test_parts_in_files_of_their_own(tmp_path):
    file = write_crystals(tmp_path / "data.xyz", 4)
    write_crystals(tmp_path / "validation.xyz", 2, first=4)
    write_crystals(tmp_path / "test.xyz", 1, first=20)
    data = read(file, validation=("validation.xyz",), test=("test.xyz",))
    assert {part: len(frames) for part, frames in data.frames.items()} == {"train": 4, "validation": 2, "test": 1}
    assert set(data.digests) == {"data.xyz", "validation.xyz", "test.xyz"}
    # Crystal 4 is in both.
    assert data.notes == (
        "1 validation frames are also training frames (validation.xyz 0): their errors say nothing about others",
    )
    with pytest.raises(ConfigurationError, match=r"the file data.xyz is named twice"):
        read(file, validation=("data.xyz",))


def test_changed_data_have_another_fingerprint(file):
    before = read(file).fingerprint()
    file.write_text(file.read_text().replace("run0", "runX"))
    assert read(file).fingerprint() != before


def test_atomic_energies(file):
    data = read(file)
    # Composition varies, so least squares finds them near those of the force field less the binding energy.
    assert [float(e) for e in data.reference_energies] == pytest.approx([-10.0, -20.0], abs=8.0)
    given = read(file, atomic_energies=ATOMIC_ENERGIES)
    assert given.reference_energies.tolist() == [-10.0, -20.0]
    with pytest.raises(ConfigurationError, match="the energy of Cl is missing"):
        read(file, atomic_energies={"Na": -10.0})
    with pytest.raises(ConfigurationError, match="K does not occur in the model"):
        read(file, atomic_energies=ATOMIC_ENERGIES | {"K": 1.0})


def test_elements(file):
    data = read_training_data(section(), file.parent, CUTOFF, elements=("Cl", "Na"))
    assert data.atomic_numbers == (17, 11)
    with pytest.raises(ConfigurationError, match=r"model.elements: no training frame holds K"):
        read_training_data(section(), file.parent, CUTOFF, elements=("Cl", "Na", "K"))
    with pytest.raises(FrameError, match=r"12 of 12 frames cannot be used:\n.*element Na is not among"):
        read_training_data(section(), file.parent, CUTOFF, elements=("Cl",))


def test_description(file):
    data = read(file, test=0.25)
    text = describe(data, CUTOFF)
    forces = torch.cat([frame.forces for frame in data.frames["train"]])
    assert "train: 6 frames" in text and "test: 3 frames" in text
    assert f"largest {float(forces.norm(dim=1).max()):.4f}" in text
    assert f"{average_neighbours(data, CUTOFF):.1f} an atom within 4 Å" in text
    assert "elements         Na Cl" in text


def spoil(number: int, atoms: ase.Atoms) -> None:
    """Make a frame wrong in one of several ways."""
    results = dict(atoms.calc.results)
    if number == 0:
        del results["energy"]
    elif number == 1:
        del results["forces"]
    elif number == 2:
        results["energy"] = float("nan")
    elif number == 3:
        results["forces"] = results["forces"] * np.nan
    elif number == 4:
        results["forces"] = 1000.0 * results["forces"]
    elif number == 5:
        atoms.positions[1] = atoms.positions[0] + 0.1
    elif number == 6:
        atoms.pbc = (True, True, False)
    elif number == 7:
        del results["stress"]
    atoms.calc = SinglePointCalculator(atoms, **results)


WRONG = (
    "no label 'energy'; training needs energy",
    "no label 'forces'; training needs energy",
    "label 'energy' holds a value that is not a finite number",
    "label 'forces' holds a value that is not a finite number",
    r"a force of \d+.\d eV/Å on atom \d, more than data.largest_force \(50\): a calculation that did not converge",
    r"two atoms are 0.173 Å apart, less than data.shortest_distance \(0.4\)",
    "periodic along some directions only",
    "no label 'stress'; training needs a stress",
)
STRESS = {"stress_key": "stress", "stress_unit": "eV/Å^3", "stress_sign": "tension"}


def test_all_wrong_frames_are_listed_at_once(tmp_path):
    frames = [crystal(seed) for seed in range(1, 2 * len(WRONG) + 1)]
    for number in range(len(WRONG)):
        spoil(number, frames[2 * number + 1])
    ase.io.write(tmp_path / "data.xyz", frames)
    with pytest.raises(FrameError) as error:
        read(tmp_path / "data.xyz", **STRESS)
    assert str(error.value).startswith("8 of 16 frames cannot be used:\n")
    for number, message in enumerate(WRONG):
        assert error.match(f"data.xyz, frame {2 * number + 1}: {message}")


def test_a_long_list_is_cut(tmp_path):
    frames = [crystal(1) for _ in range(30)]
    for atoms in frames:
        spoil(2, atoms)
    ase.io.write(tmp_path / "data.xyz", frames)
    with pytest.raises(FrameError, match=r"30 of 30 frames .*\n(  .*\n){20}  … and 10 more$"):
        read(tmp_path / "data.xyz")


@pytest.mark.parametrize(
    ("stress", "message"),
    [
        (np.arange(9.0), "label 's' is not symmetric"),
        (np.arange(4.0), "label 's' must be 6 or 9 numbers, it has 4"),
        ("high", "label 's' is not made of numbers: 'high'"),
    ],
)
def test_stress_labels_that_cannot_be_read(tmp_path, stress, message):
    frames = [crystal(1), crystal(2)]
    for atoms in frames:
        atoms.info["s"] = stress
    ase.io.write(tmp_path / "data.xyz", frames)
    with pytest.raises(FrameError, match=message):
        read(tmp_path / "data.xyz", validation=0.5, **(STRESS | {"stress_key": "s"}))


def test_isolated_systems_have_no_stress(tmp_path):
    frames = [crystal(seed) for seed in range(1, 9)]
    for atoms in frames[:6]:
        atoms.pbc = False
        atoms.cell = None
    ase.io.write(tmp_path / "data.xyz", frames)
    data = read(tmp_path / "data.xyz", **STRESS)
    isolated = [source.index < 6 for source in data.sources["train"]]
    assert [frame.stress is None for frame in data.frames["train"]] == isolated
    assert data.notes == (f"{sum(isolated)} training frames are isolated systems, which have no stress",)
    ase.io.write(tmp_path / "data.xyz", frames[:6])
    with pytest.raises(ConfigurationError, match="all training frames are isolated systems"):
        read(tmp_path / "data.xyz", **STRESS)


def test_group_key_and_files_that_are_missing(file):
    with pytest.raises(FrameError, match=r"frames without the group key 'walk':\n  data.xyz, frame 0\n"):
        read(file, group_key="walk")
    with pytest.raises(FileNotFoundError, match=r"no such data file: .*absent.xyz"):
        read(file, train=("absent.xyz",))
    broken = file.with_name("broken.xyz")
    broken.write_text("3\ncomment\nO 0 0 0\n")
    with pytest.raises(ValueError, match=r"broken\.xyz cannot be read"):
        read(file, train=("broken.xyz",))


def test_a_copy_on_a_device_keeps_labels_and_neighbours(file):
    frame = read(file, **STRESS).frames["train"][0]
    moved = frame.to("cpu")
    for each in dataclasses.fields(frame):
        if each.init:
            assert torch.equal(getattr(moved, each.name), getattr(frame, each.name))
    assert torch.equal(moved.neighbours(CUTOFF)[0], frame.neighbours(CUTOFF)[0])
