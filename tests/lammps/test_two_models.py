"""Two models in one hybrid: each acts on its own atoms and charges, and the results are the sums of the two alone."""

from __future__ import annotations

import dataclasses

import ase
import numpy as np
import pytest
from conftest import water, write_model

from les_md import LESCalculator
from tests.lammps.evaluations import Case, Evaluations, deviations
from tests.sharing import shared_folder

FIRST, SECOND = "2 layers", "3 layers, cutoff 3"
BAR = 1.6021765e6  # per eV/Å³, LAMMPS's own conversion


def two_waters() -> ase.Atoms:
    """Four molecules of types 1 and 2, four of types 3 and 4; helium and neon stand for hydrogen and oxygen there."""
    atoms = water()
    atoms.symbols[12:] = ["Ne", "He", "He"] * 4
    return atoms


def of_elements(atoms: ase.Atoms, first: str, second: str) -> list[np.ndarray]:
    """Indices of the atoms that each of the two models acts on."""
    symbols = np.array(atoms.get_chemical_symbols())
    return [np.flatnonzero(np.isin(symbols, names.split())) for names in (first, second)]


FOUR = ("H", "O", "He", "Ne")
#: Atoms, LAMMPS's types, elements of either model's atoms, pair commands.
SETUPS = {
    "overlay, all atoms": (
        water, ("H", "O"), ("H O", "H O"),
        "pair_style hybrid/overlay mliap/les mliap/les\n"
        f"pair_coeff * * mliap/les 1 {{{FIRST}}} H O\npair_coeff * * mliap/les 2 {{{SECOND}}} H O",
    ),
    "overlay, an element each": (
        water, ("H", "O"), ("H", "O"),
        "pair_style hybrid/overlay mliap/les mliap/les zero 4.0\n"
        f"pair_coeff * * mliap/les 1 {{{FIRST}}} H NULL\npair_coeff * * mliap/les 2 {{{SECOND}}} NULL O\n"
        "pair_coeff * * zero",
    ),
    "hybrid, an element each": (
        water, ("H", "O"), ("H", "O"),
        "pair_style hybrid mliap/les mliap/les zero 4.0\n"
        f"pair_coeff * * mliap/les 1 {{{FIRST}}} H NULL\npair_coeff * * mliap/les 2 {{{SECOND}}} NULL O\n"
        "pair_coeff 1 2 zero",
    ),
    "hybrid, half of the molecules each": (
        two_waters, FOUR, ("H O", "He Ne"),
        "pair_style hybrid mliap/les mliap/les zero 4.0\n"
        f"pair_coeff * * mliap/les 1 {{{FIRST}}} H O NULL NULL\n"
        f"pair_coeff * * mliap/les 2 {{{SECOND}}} NULL NULL H O\npair_coeff 1*2 3*4 zero",
    ),
    "overlay, one on all and one on an element": (
        water, ("H", "O"), ("H O", "O"),
        "pair_style hybrid/overlay mliap/les mliap/les kspace mesh\n"
        f"pair_coeff * * mliap/les 1 {{{FIRST}}} H O\npair_coeff * * mliap/les 2 {{{SECOND}}} NULL O",
    ),
}  # fmt: skip

# The instance is the one whose charges, and parts of the energy, are kept.
CASES = {
    f"{name}, model {number}": Case(
        make(), ("2x1x1",), FIRST, pair=pair, elements=types, instance=f"mliap/les {number}"
    )
    for name, (make, types, _elements, pair) in SETUPS.items()
    for number in (1, 2)
}


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_models")
    return {
        FIRST: write_model(folder / "first.pt", num_message_passing=1),
        SECOND: write_model(folder / "second.pt", num_message_passing=2, cutoff=3.0),
    }


@pytest.fixture(scope="module")
def evaluations(model_files, plugin, tmp_path_factory) -> Evaluations:
    return Evaluations(shared_folder(tmp_path_factory, "evaluations_of_two_models"), model_files, CASES)


def alone(atoms: ase.Atoms, indices: np.ndarray, model, **options) -> dict:
    """LESCalculator's results of one model on its atoms; arrays of all atoms, zero for the others."""
    part = atoms[indices]
    part.symbols = ["H" if symbol in ("H", "He") else "O" for symbol in part.get_chemical_symbols()]
    calculator = LESCalculator(model, **options)
    calculator.calculate(part)
    results = dict(calculator.results)
    for key, shape in (("forces", (3,)), ("energies", ()), ("charges", ())):
        whole = np.zeros((len(atoms), *shape))
        whole[indices] = results[key]
        results[key] = whole
    return results


@pytest.mark.parametrize("name", SETUPS)
def test_results_are_the_sums_of_both(name, model_files, evaluations):
    make, _types, elements, pair = SETUPS[name]
    atoms = make()
    options = [{}, {"kspace": "mesh"} if "mesh" in pair else {}]
    parts = [
        alone(atoms, indices, model_files[model], **option)
        for indices, model, option in zip(of_elements(atoms, *elements), (FIRST, SECOND), options, strict=True)
    ]
    for number, part in enumerate(parts, 1):
        assert abs(part["long_range_energy"]) > 1e-3
        result = evaluations(f"{name}, model {number}", "1x1x1")
        expected = dataclasses.replace(
            result,
            energy=sum(p["energy"] for p in parts),
            split=np.array([part["energy"], part["short_range_energy"], part["long_range_energy"]]),
            forces=sum(p["forces"] for p in parts),
            energies=sum(p["energies"] for p in parts),
            virial=-BAR * sum(p["stress"] for p in parts)[[0, 1, 2, 5, 4, 3]],
            charges=part["charges"][:, None],
        )
        found = deviations(result, expected)
        assert max(found.values()) < 1e-10, found


@pytest.mark.parametrize("name", CASES)
def test_two_ranks(name, evaluations):
    found = deviations(evaluations(name, "2x1x1"), evaluations(name, "1x1x1"))
    assert max(found.values()) < 1e-10, found


def test_nothing_acts_between_the_two(model_files, lammps_of):
    """Plain hybrid refuses: the atoms of one model would not feel those of the other without a word."""
    session = lammps_of(water()).run(
        f"pair_style hybrid mliap/les mliap/les\npair_coeff * * mliap/les 1 {model_files[FIRST]} H NULL\n"
        f"pair_coeff * * mliap/les 2 {model_files[SECOND]} NULL O"
    )
    with pytest.raises(Exception, match="All pair coeffs are not set"):
        session.run("run 0")


def test_charges_of_both(model_files, lammps_of):
    """Each writes those of its atoms; two that would write to the same atoms are refused."""
    styles = "pair_style hybrid/overlay mliap/les charges yes mliap/les charges yes zero 4.0\npair_coeff * * zero\n"
    atoms = water()
    session = lammps_of(atoms, atom_style="charge").run(
        f"{styles}pair_coeff * * mliap/les 1 {model_files[FIRST]} H NULL\n"
        f"pair_coeff * * mliap/les 2 {model_files[SECOND]} NULL O\nrun 0"
    )
    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)])
    charges = np.array(session.lmp.numpy.extract_atom("q")[: len(atoms)])[order]
    first, second = of_elements(atoms, "H", "O")
    expected = alone(atoms, first, model_files[FIRST])["charges"] + alone(atoms, second, model_files[SECOND])["charges"]
    np.testing.assert_allclose(charges, expected, rtol=0, atol=1e-12)
    session = lammps_of(atoms, atom_style="charge").run(
        f"{styles}pair_coeff * * mliap/les 1 {model_files[FIRST]} H O\n"
        f"pair_coeff * * mliap/les 2 {model_files[SECOND]} NULL O"
    )
    with pytest.raises(Exception, match=r"two models with charges yes act on atom type 2.*read the other's charges by"):
        session.run("run 0")
