"""The compiled operators of MACE's network: against the file's own in values and derivatives, alone and in LAMMPS."""

from __future__ import annotations

import subprocess

import ase
import numpy as np
import pytest
import torch
from conftest import lmp, random_atoms, water, write_data

pytest.importorskip("mace", reason="mace-torch is not installed")

from e3nn import o3

from les_md import export
from les_md.architectures import mace_operators
from les_md.lammps import plugin_build, source_directory
from tests.architectures import test_mace
from tests.lammps.test_response import born_charges

SHIM = """
#include "network_operators.h"
#include <torch/library.h>

TORCH_LIBRARY(les_md_test, library) {
  library.def("sum_over_neighbours(Tensor hidden, Tensor weight, Tensor features, Tensor coupled, Tensor neighbour, "
              "Tensor centre_of_group, int num_centres, int[] out_dims) -> Tensor[]", &les_md::sum_over_neighbours);
  library.def("symmetric_product(Tensor x, Tensor kinds, Tensor monomials, int[] counts, Tensor coefficients, "
              "Tensor pairs, Tensor matrix, int[] rows) -> Tensor", &les_md::symmetric_product);
}
"""
ROUNDING = {torch.float64: 1e-12, torch.float32: 5e-6}


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """``network_operators.cpp`` compiled as in the plugin, as a library of its own."""
    folder = tmp_path_factory.mktemp("operators")
    (folder / "shim.cpp").write_text(SHIM)
    toolchain = plugin_build.find_toolchain()
    names = ("network_operators.cpp", "network_loops.cpp")
    sources = (folder / "shim.cpp", *(source_directory() / name for name in names))
    objects = [folder / f"{source.stem}.o" for source in sources]
    for source, target in zip(sources, objects, strict=True):
        command = toolchain.compile_command(source, target)
        subprocess.run([*command, "-I", str(source_directory())], check=True)
    library = folder / "operators.so"
    subprocess.run(toolchain.link_command(objects, library), check=True)
    torch.ops.load_library(library)
    return torch.ops.les_md_test


@pytest.fixture
def on_threads():
    """Sets the number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def values_and_derivatives(function, arguments, inputs, cotangents):
    """What a function returns, and the derivatives of its product with ``cotangents`` by its arguments ``inputs``."""
    arguments = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    own = [arguments[i].requires_grad_(True) for i in inputs]
    outputs = function(*arguments)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return [each.detach() for each in outputs] + list(torch.autograd.grad(outputs, own, cotangents))


def assert_same(ours, theirs, dtype):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype == dtype
        if other.numel() > 0:
            assert float((one - other).abs().max()) <= ROUNDING[dtype] * float(other.abs().max())


def random_sum(dim, channels, out_dims, dtype, groups=40, group_size=8, centres=9, nodes=20):
    """Arguments of ``sum_over_neighbours``, and cotangents; some centres have no edge."""
    generator = torch.Generator().manual_seed(dim + channels)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    places = groups * group_size
    arguments = [
        normal(places, 16),
        normal(16, len(out_dims) * channels) / 4,
        normal(nodes, dim, channels),
        normal(places, dim * sum(out_dims)),
        torch.randint(nodes, (places,), generator=generator),
        torch.randint(centres - 2, (groups,), generator=generator).sort().values + 1,
        centres,
        out_dims,
    ]
    return arguments, [normal(centres, out, channels) for out in out_dims]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        ((1, 128, [1, 3, 5, 7]), {"groups": 120}),  # several tiles
        ((3, 13, [3, 1, 3, 5, 9]), {}),  # more components than are summed at a time
        ((5, 3, [5, 2, 4, 6]), {"group_size": 3}),
        ((1, 8, [1, 11]), {"group_size": 1, "groups": 200}),
        ((1, 1, [1]), {"groups": 1}),
        ((2, 8, [1, 3]), {"groups": 0}),
    ],
)
def test_sums_over_neighbours(sizes, changes, dtype, operators, on_threads):
    arguments, cotangents = random_sum(*sizes, dtype, **changes)
    expected = values_and_derivatives(mace_operators.sum_over_neighbours, arguments, (0, 2, 3), cotangents)
    for threads in (1, 2, 3):
        on_threads(threads)
        ours = values_and_derivatives(operators.sum_over_neighbours, arguments, (0, 2, 3), cotangents)
        assert_same(ours, expected, dtype)
        again = values_and_derivatives(operators.sum_over_neighbours, arguments, (0, 2, 3), cotangents)
        assert all(torch.equal(*each) for each in zip(ours, again, strict=True))
        assert_same(operators.sum_over_neighbours(*arguments), expected[: len(cotangents)], dtype)  # without a tape


def polynomial(max_l, correlation, channels, irrep="1x0e + 1x1o"):
    """Those of a MACE with random weights for three elements."""
    from les_md.architectures.mace_layers import SymmetricProduct

    irreps = o3.Irreps([(channels, ir) for _, ir in o3.Irreps(irrep)])
    model = test_mace.make_model(
        max_ell=max_l,
        correlation=correlation,
        hidden_irreps=irreps,
        kind=test_mace.mace_modules.MACE,
    )
    return SymmetricProduct(model.products[0].symmetric_contractions, agnostic=False).polynomials


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("max_l", "correlation", "channels"), [(3, 3, 16), (2, 2, 5), (2, 1, 8), (1, 4, 19), (1, 3, 1)]
)
def test_symmetric_products(max_l, correlation, channels, dtype, operators, on_threads):
    generator = torch.Generator().manual_seed(4)
    for each in polynomial(max_l, correlation, channels, "1x0e"):
        constants = [
            each.monomials,
            each.counts,
            each.coefficients.to(dtype),
            each.pairs,
            each.matrix.to(dtype),
            each.rows,
        ]
        x = torch.randn(30, (max_l + 1) ** 2, channels, generator=generator, dtype=dtype)
        arguments = [x, torch.randint(3, (30,), generator=generator), *constants]
        cotangent = torch.randn(30, each.coefficients.size(1), channels, generator=generator, dtype=dtype)
        expected = values_and_derivatives(mace_operators.symmetric_product, arguments, (0,), [cotangent])
        for threads in (1, 3):
            on_threads(threads)
            ours = values_and_derivatives(operators.symmetric_product, arguments, (0,), [cotangent])
            assert_same(ours, expected, dtype)
        none = [x[:0], arguments[1][:0], *constants]
        assert operators.symmetric_product(*none).shape == mace_operators.symmetric_product(*none).shape


def test_symmetric_products_of_vectors(operators):
    scalars, vectors = polynomial(2, 3, 6)
    assert (scalars.coefficients.size(1), vectors.coefficients.size(1)) == (1, 3)
    x, kinds = torch.randn(9, 9, 6, dtype=torch.float64), torch.arange(9) % 3
    for each in (scalars, vectors):
        arguments = [x, kinds, each.monomials, each.counts, each.coefficients, each.pairs, each.matrix, each.rows]
        cotangent = torch.randn(9, each.coefficients.size(1), 6, dtype=torch.float64)
        ours, theirs = (
            values_and_derivatives(module.symmetric_product, arguments, (0,), [cotangent])
            for module in (operators, mace_operators)
        )
        assert_same(ours, theirs, torch.float64)


def test_derivatives_by_differences(operators):
    arguments, _ = random_sum(3, 5, [3, 1, 3], torch.float64, groups=6, group_size=2, centres=5, nodes=6)

    def summed(hidden, features, coupled):
        return operators.sum_over_neighbours(hidden, arguments[1], features, coupled, *arguments[4:])

    inputs = [arguments[i].requires_grad_(True) for i in (0, 2, 3)]
    assert torch.autograd.gradcheck(summed, inputs)
    each = polynomial(1, 3, 5)[1]
    constants = [each.monomials, each.counts, each.coefficients, each.pairs, each.matrix, each.rows]
    x = torch.randn(4, 4, 5, dtype=torch.float64, requires_grad=True)
    kinds = torch.tensor([2, 0, 0, 1])
    assert torch.autograd.gradcheck(lambda x: operators.symmetric_product(x, kinds, *constants), [x])


def changed(arguments, number, value):
    return [*arguments[:number], value, *arguments[number + 1 :]]


def test_what_operators_refuse(operators):
    """Indices out of range, shapes that do not match, and derivatives that they do not have: no silent nonsense."""
    arguments, _ = random_sum(1, 8, [1, 3], torch.float64, groups=4, centres=5, nodes=3)
    function = operators.sum_over_neighbours
    for number, value, message in (
        (4, torch.full((32,), 3), "neighbour must be from 0 to 2"),
        (4, torch.full((32,), -1), "neighbour must be from 0 to 2"),
        (5, torch.tensor([0, 1, 2, 5]), "centre_of_group must be from 0 to 4"),
        (5, torch.tensor([0, 2, 1, 3]), "centre_of_group must be in ascending order"),
        (0, arguments[0][:-1], "shapes of a sum over neighbours do not match"),
        (3, arguments[3][:, :-1], "shapes of a sum over neighbours do not match"),
        (7, [1, 3, 1], "shapes of a sum over neighbours do not match"),
        (7, [4, 0], "outcomes must have components"),
        (2, arguments[2].float(), "of one type of numbers"),
        (1, arguments[1].clone().requires_grad_(True), "no derivative by weights"),
    ):
        with pytest.raises(RuntimeError, match=message):
            function(*changed(arguments, number, value))
    [each] = polynomial(1, 2, 4, "1x0e")
    constants = [each.monomials, each.counts, each.coefficients, each.pairs, each.matrix, each.rows]
    x, kinds = torch.randn(3, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    for number, value, message in (
        (1, kinds + 1, "kinds must be from 0 to 2"),
        (2, each.monomials + 4, "monomials must be from 0 to 3"),
        (0, x[:, :, :3], "shapes of a symmetric product do not match"),
        (0, x.float(), "of one type of numbers"),
        (4, each.coefficients.clone().requires_grad_(True), "no derivative by weights"),
    ):
        with pytest.raises(RuntimeError, match=message):
            operators.symmetric_product(*changed([x, kinds, *constants], number, value))
    x.requires_grad_(True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(operators.symmetric_product(x, kinds, *constants).sum(), x, create_graph=True)
    hidden = arguments[0].requires_grad_(True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(function(*arguments)[0].sum(), hidden, create_graph=True)


# ---- in LAMMPS


@pytest.fixture(scope="module")
def mace_models(tmp_path_factory):
    """Exported files of variants of MACE, made when they are asked for."""
    folder = tmp_path_factory.mktemp("mace_models")

    def get(variant: str, dtype: str = "float64", **options):
        name = "_".join([*variant.replace(",", "").split(), dtype, *options])  # LAMMPS takes no spaces
        path = folder / f"{name}.pt"
        if not path.exists():
            with pytest.MonkeyPatch.context() as patch:
                test_mace.les_package.__wrapped__(patch)
                energies = [[-0.5, -1.5, -1.0]]
                changes = {**test_mace.VARIANTS[variant], "r_max": 3.2, "atomic_energies": np.array(energies)}
                checkpoint = folder / "trained.model"
                torch.save(test_mace.make_model(**changes), checkpoint)
                export(checkpoint, path, dtype=dtype, **options)
        return path

    return get


def differences(results, tolerance, names=("energies", "forces", "virial")):
    for name in names:
        ours, theirs = (getattr(each, name) for each in results)
        assert np.abs(theirs).max() > 1e-3
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), name


@pytest.mark.parametrize(
    ("variant", "dtype", "tolerance", "options"),
    [
        ("two layers, scalars", "float64", 1e-12, {}),
        ("two layers, scalars", "float64", 1e-12, {"radial": "spline"}),
        ("two layers, scalars", "float32", 2e-5, {}),
        ("three layers, rank two", "float64", 1e-12, {}),
        ("no residual in the first layer", "float64", 1e-12, {}),
        ("density", "float64", 1e-12, {}),
        ("one atomic-number-agnostic product", "float64", 1e-12, {}),
        ("products of four", "float64", 1e-12, {}),
    ],
)
@pytest.mark.parametrize("repeat", [(2, 2, 2), (5, 5, 4)], ids=["at once", "in blocks"])
def test_the_same_as_the_file(variant, dtype, tolerance, options, repeat, mace_models, lammps_of):
    model = mace_models(variant, dtype, **options)
    results = []
    for operators in ("compiled", "file"):
        session = lammps_of(water(repeat)).potential(model, f"operators {operators}")
        results.append(session.evaluate())
        session.close()
        log = (session.folder / "log.lammps").read_text()
        assert (f"(mace, {dtype}, compiled operators)" in log) == (operators == "compiled")
        assert (f"(mace, {dtype})" in log) == (operators == "file")
    differences(results, tolerance)
    assert not np.array_equal(results[0].forces, results[1].forces)  # they are at work


@pytest.mark.parametrize("keywords", ["", "efield 0.01 -0.02 0.03"])
def test_born_charges_and_fields(keywords, mace_models, lammps_of):
    results = []
    for operators in ("compiled", "file"):
        session = lammps_of(water()).potential(mace_models("two layers, scalars"), f"operators {operators} {keywords}")
        session.run("fix born all pair 1 mliap/les born 1")
        results.append((session.evaluate().forces, born_charges(session)))
    for ours, theirs in zip(*results, strict=True):
        assert np.abs(ours - theirs).max() < 1e-11 * np.abs(theirs).max()


def test_open_boundaries_and_lone_atoms(mace_models, lammps_of):
    atoms = random_atoms(np.diag([5.0, 5.0, 5.0]).tolist(), False, "HOHHOH") + ase.Atoms("O", [[30.0, 4.0, 4.0]])
    atoms.set_cell([40.0, 5.0, 5.0])
    results = []
    for operators in ("compiled", "file"):
        session = lammps_of(atoms, boundary="f f f").potential(mace_models("density"), f"operators {operators}")
        results.append(session.evaluate())
    differences(results, 1e-12)


def test_named_again(mace_models, lammps_of):
    """The choice is that of the last pair_style, also for a model that has been evaluated."""
    session = lammps_of(water()).potential(mace_models("two layers, scalars"))
    compiled = session.evaluate().forces
    session.run("pair_style mliap/les operators file")
    plain = session.evaluate().forces
    session.run("pair_style mliap/les")
    np.testing.assert_array_equal(session.evaluate().forces, compiled)
    assert 0.0 < np.abs(compiled - plain).max() < 1e-12 * np.abs(plain).max()


RUN = """
units metal
atom_style atomic
read_data system.data
pair_style mliap/les operators {operators}
pair_coeff * * {model} H O
velocity all create 300.0 1
timestep 0.0002
fix 1 all nve
thermo 1
thermo_style custom step pe pxx pyy pzz pxy
thermo_modify format float %22.16g
run 3
"""


def test_ranks(mace_models, tmp_path):
    """Two ranks, whose halo has edges of its own, against one with the file's functions."""
    write_data(tmp_path / "system.data", water((3, 2, 2)), ("H", "O"), "atomic")
    results = []
    for operators, ranks in (("compiled", 2), ("file", 1)):
        script = RUN.format(operators=operators, model=mace_models("three layers, rank two"))
        process = lmp(script, tmp_path, ranks=ranks)
        assert process.returncode == 0, process.stdout + process.stderr
        assert ("compiled operators), types" in process.stdout) == (operators == "compiled")
        rows = [
            line.split()
            for line in process.stdout.splitlines()
            if line.strip()[:1] in "0123" and len(line.split()) == 6
        ]
        results.append(np.array(rows, dtype=float))
    assert results[0].shape == (4, 6)
    np.testing.assert_allclose(results[0][:, 1], results[1][:, 1], rtol=1e-9)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6, atol=1e-3)


def test_other_models_have_none(models, lammps_of):
    session = lammps_of(water()).potential(models["water"])
    session.evaluate()
    session.close()
    assert "(cace, float64), types" in (session.folder / "log.lammps").read_text()
