"""The compiled operators of the mesh: against the file's own in values and forces, alone and in LAMMPS."""

from __future__ import annotations

import ctypes
import re
import subprocess

import numpy as np
import pytest
import torch
from conftest import TILTED, random_atoms, water, write_network

from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.electrostatics.mesh import gather_from_mesh, spread_on_mesh
from les_md.electrostatics.mesh_window import window_polynomials
from les_md.lammps import plugin_build, source_directory
from les_md.potential import LESPotential
from tests.lammps.evaluations import cluster

SHIM = """
#include "mesh_operators.h"
extern "C" bool spread(const double *polynomials, int64_t degree, int64_t order, const int64_t *shape, int64_t atoms,
                       int64_t channels, const double *at, const double *charges, double *mesh, int threads) {
  return les_md::spread_on_mesh({polynomials, degree, order}, {shape[0], shape[1], shape[2]}, atoms, channels, at,
                                charges, mesh, threads);
}
extern "C" bool gather(const double *polynomials, int64_t degree, int64_t order, const int64_t *shape, int64_t atoms,
                       int64_t channels, const double *at, const double *mesh, double *values, double *derivatives,
                       int threads) {
  return les_md::gather_from_mesh({polynomials, degree, order}, {shape[0], shape[1], shape[2]}, atoms, channels, at,
                                  mesh, values, derivatives, threads);
}
"""


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """``mesh_operators.cpp`` compiled as in the plugin, as a library of its own."""
    folder = tmp_path_factory.mktemp("operators")
    (folder / "shim.cpp").write_text(SHIM)
    toolchain = plugin_build.find_toolchain()
    sources = (folder / "shim.cpp", source_directory() / "mesh_operators.cpp")
    objects = [folder / f"{source.stem}.o" for source in sources]
    for source, target in zip(sources, objects, strict=True):
        command = toolchain.compile_command(source, target)
        subprocess.run([*command, "-I", str(source_directory())], check=True)
    library = folder / "operators.so"
    options = toolchain.thread_options()
    subprocess.run([*toolchain.compiler, *options, "-shared", "-o", library, *objects], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.spread.restype = loaded.gather.restype = ctypes.c_bool
    return loaded


class Charges:
    """Two channels of charges on a mesh, the first at the edge of where it may be; a potential on the same mesh."""

    def __init__(self, order: int) -> None:
        rng = np.random.default_rng(order)
        self.order, self.shape = order, [order + 9, order + 14, order + 11]
        self.polynomials = torch.from_numpy(np.ascontiguousarray(window_polynomials(order, 0.6 * np.pi * order)))
        coordinates = rng.uniform(0.5 * order, np.array(self.shape) - 1.0 - 0.5 * order, (700, 3))
        coordinates[0] = 0.5 * order
        self.coordinates = torch.from_numpy(coordinates)
        self.charges = torch.from_numpy(rng.normal(size=(700, 2)))
        self.potential = torch.from_numpy(rng.normal(size=(2, *self.shape)))

    def arguments(self, coordinates: torch.Tensor) -> list:
        sizes = [ctypes.c_int64(n) for n in (len(self.polynomials) - 1, self.order)]
        shape = (ctypes.c_int64 * 3)(*self.shape)
        counts = [ctypes.c_int64(n) for n in self.charges.shape]
        return [pointer(self.polynomials), *sizes, shape, *counts, pointer(coordinates)]

    def spread(self, operators, threads: int, coordinates: torch.Tensor) -> tuple[bool, torch.Tensor]:
        mesh = torch.zeros(2, *self.shape, dtype=torch.float64)
        inside = operators.spread(*self.arguments(coordinates), pointer(self.charges), pointer(mesh), threads)
        return inside, mesh

    def gather(self, operators, threads: int, coordinates: torch.Tensor) -> tuple[bool, torch.Tensor, torch.Tensor]:
        values, derivatives = torch.zeros_like(self.charges), torch.zeros(700, 2, 3, dtype=torch.float64)
        arguments = (*self.arguments(coordinates), pointer(self.potential), pointer(values), pointer(derivatives))
        return operators.gather(*arguments, threads), values, derivatives


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def relative(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("order", [3, 4, 5, 6, 7, 8, 9, 10, 16])
def test_operators_alone(order, operators):
    """All orders of files, and others, are the file's operators to rounding, and the same on any number of threads."""
    case = Charges(order)
    inside, mesh = case.spread(operators, 1, case.coordinates)
    assert inside
    assert relative(mesh, spread_on_mesh(case.coordinates, case.charges, case.shape, case.polynomials)) < 1e-12
    inside, values, derivatives = case.gather(operators, 1, case.coordinates)
    assert inside
    expected = gather_from_mesh(case.potential, case.coordinates, case.polynomials)
    assert relative(values, expected[0]) < 1e-12
    assert relative(derivatives, expected[1]) < 1e-12
    for threads in (2, 3):
        assert torch.equal(case.spread(operators, threads, case.coordinates)[1], mesh)
        assert torch.equal(case.gather(operators, threads, case.coordinates)[1], values)
        assert torch.equal(case.gather(operators, threads, case.coordinates)[2], derivatives)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("coordinate", [np.nan, np.inf, -np.inf, 1e300, 2.9, 18.0])
def test_charge_outside_the_mesh(coordinate, threads, operators):
    case = Charges(8)
    coordinates = case.coordinates.clone()
    coordinates[690, 1] = coordinate
    assert case.spread(operators, threads, coordinates)[0] is False
    assert case.gather(operators, threads, coordinates)[0] is False


SYSTEMS = {
    "water": (water(), "p p p", "water", ""),
    "water, coarse": (water(), "p p p", "water", "accuracy 0.1"),
    "water, fine": (water(), "p p p", "water", "accuracy 1e-7"),
    "tilted, 2 charges": (random_atoms(TILTED, True, "HHOOHHOHOH"), "p p p", "two charges", "accuracy 1e-3"),
    "slab": (
        random_atoms([[6, 0, 0], [0, 6.5, 0], [0, 0, 14.0]], (True, True, False), "HOHOHOHO"),
        "p p f",
        "two charges",
        "slab yes",
    ),
    "isolated": (cluster(), "f f f", "two charges", "accuracy 1e-4"),
}


@pytest.mark.parametrize("kspace", ["mesh", "ewald"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_same_as_the_file(name, kspace, models, lammps_of):
    atoms, boundary, model, keywords = SYSTEMS[name]
    results = {}
    for operators in ("file", "compiled", "compiled threads 2"):
        session = lammps_of(atoms, boundary=boundary)
        session.potential(models[model], f"kspace {kspace} {keywords} operators {operators}")
        results[operators] = session.evaluate()
    for operators in ("compiled", "compiled threads 2"):
        for kind in ("forces", "virial", "energies"):
            result, reference = getattr(results[operators], kind), getattr(results["file"], kind)
            assert np.abs(result - reference).max() < 1e-12 * np.abs(reference).max(), kind
        assert results[operators].long_range == pytest.approx(results["file"].long_range, rel=1e-12)


def test_self_interaction_left_in(tmp_path, lammps_of):
    """A model trained with the interaction of every charge with itself: compiled mesh, the file's own, and ewald."""
    torch.manual_seed(7)
    configuration = CACEConfiguration(atomic_numbers=(1, 8), cutoff=4.0, num_embedding=2, num_radial=4)
    network = CACENetwork(configuration).double()
    model = write_network(tmp_path / "with.pt", network, "cace", 1, 1, remove_self_interaction=False)
    without = write_network(tmp_path / "without.pt", network, "cace", 1, 1)

    def long_range(path, keywords):
        return lammps_of(water()).potential(path, f"kspace {keywords}").evaluate().long_range

    energy = long_range(model, "mesh accuracy 1e-7 operators compiled")
    assert energy == pytest.approx(long_range(model, "mesh accuracy 1e-7 operators file"), rel=1e-12)
    assert energy == pytest.approx(long_range(model, "ewald"), rel=1e-6)
    assert energy > 1.5 * long_range(without, "ewald")


def test_forces_are_derivatives(models, lammps_of):
    """Central differences of the energy, on a coarse mesh, whose own energy the forces belong to."""
    atoms = water()
    session = lammps_of(atoms).potential(models["water"], "kspace mesh accuracy 1e-2 operators compiled")
    forces = session.evaluate().forces
    for atom, axis in ((0, 0), (10, 1), (23, 2)):
        energies = []
        for step in (1e-4, -1e-4):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            other = lammps_of(moved).potential(models["water"], "kspace mesh accuracy 1e-2 operators compiled")
            energies.append(other.evaluate().energy)
        assert (energies[1] - energies[0]) / 2e-4 == pytest.approx(forces[atom, axis], abs=1e-6 * np.abs(forces).max())


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ("kspace mesh", r"mesh \d+ x \d+ x \d+, order \d+, compiled operators"),
        ("kspace mesh operators file", r"mesh \d+ x \d+ x \d+, order \d+"),
        ("kspace ewald", r"ewald, \d+ wave vectors, compiled operators"),
        ("kspace ewald operators file", r"ewald, \d+ wave vectors"),
    ],
)
def test_log(keywords, expected, models, lammps_of):
    session = lammps_of(water()).potential(models["water"], keywords)
    session.evaluate()
    session.close()
    assert re.search(rf"long-range sum by {expected}\n", (session.folder / "log.lammps").read_text())


class EarlierPotential(LESPotential):
    """Of a file that was written before engines could have operators of their own."""

    def mesh_coordinates(self, positions, plan):
        raise NotImplementedError


def test_file_without_the_parts(tmp_path, lammps_of, monkeypatch):
    """Such a file is evaluated with its own operators."""
    monkeypatch.setattr("conftest.LESPotential", EarlierPotential)
    torch.manual_seed(7)
    network = CACENetwork(CACEConfiguration(atomic_numbers=(1, 8), cutoff=4.0, num_embedding=2, num_radial=4)).double()
    model = write_network(tmp_path / "earlier.pt", network, "cace", 1, 1)
    session = lammps_of(water()).potential(model, "kspace mesh operators compiled")
    assert np.isfinite(session.evaluate().forces).all()
    session.close()
    log = (session.folder / "log.lammps").read_text()
    assert re.search(r"long-range sum by mesh \d+ x \d+ x \d+, order \d+\n", log)
