"""Faster ways of evaluating MACE against the plain ones: splines, the first layer by species, sparse products."""

import ase
import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="mace-torch is not installed")

from e3nn import o3

from les_md import LESCalculator, export, load
from les_md.architectures import LoadOptions, mace
from les_md.architectures.mace_layers import SymmetricProduct, _common_pairs
from les_md.architectures.radial_spline import RadialSpline, RadialSplineError, radial_spline
from les_md.checkpoint import read_checkpoint
from les_md.cli import export_main, main
from les_md.layered_evaluation import LayeredEvaluation
from tests.architectures.test_mace import (
    VARIANTS,
    assert_same,
    crystal,
    evaluate,
    inputs,
    les_package,  # noqa: F401  (a fixture)
    make_model,
    saved,
    scripted,
    unoptimised_torchscript,  # noqa: F401  (a fixture)
)


def loaded(model: torch.nn.Module, tmp_path, **options):
    return mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions(dtype=torch.float64, **options))


# ---- splines in a model


@pytest.mark.parametrize("variant", ["two layers, scalars", "three layers, rank two", "Agnesi", "Soft", "density"])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-8), (torch.float32, 1e-6)])
def test_splines_agree_with_the_networks(variant, dtype, relative, tmp_path):
    model = make_model(**VARIANTS[variant])
    exact = loaded(model, tmp_path)
    splines = loaded(model, tmp_path, radial="spline", spline_error=1e-9 if dtype is torch.float64 else 1e-7)
    assert exact.radial == {"kind": "exact"}
    assert splines.radial["kind"] == "spline"
    assert splines.radial["value_error"] <= splines.radial["derivative_error"] <= relative
    arguments = inputs(exact, crystal())
    module = scripted(splines, dtype)
    want, got = evaluate(scripted(exact), arguments), evaluate(module, arguments)
    # Of the short-range energy of each atom alone, which holds all there is to compare.
    offset = want["energies"] - exact.reference_energies[arguments[2]]
    assert_same(got["energies"] - exact.reference_energies[arguments[2]], offset, relative)
    assert_same(got["charges"], want["charges"], relative)
    rounding = 5.0 if dtype is torch.float32 else 1.0  # as much in the networks themselves
    assert_same(got["forces"], want["forces"], rounding * relative)
    assert_same(got["strain_derivative"], want["strain_derivative"], rounding * relative)
    if dtype is torch.float64:
        born = module.born_effective_charges(*arguments)
        assert_same(born, scripted(exact).born_effective_charges(*arguments), relative)


@pytest.mark.parametrize("variant", ["Agnesi", "density"])
def test_forces_are_derivatives_of_the_splines(variant, tmp_path):
    """With splines so coarse that they differ from the networks, their energy still has their forces as derivative."""
    model = make_model(**VARIANTS[variant])
    exact, coarse = loaded(model, tmp_path), loaded(model, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("les_md.architectures.radial_spline.INTERVALS", (12,))
        with pytest.raises(RadialSplineError, match=r"splines of 12 intervals differ .* --radial exact"):
            coarse.network.use_splines(1e-9)
        assert not coarse.network.has_splines  # nothing was replaced
        patch.setattr("les_md.architectures.radial_spline.LARGEST_ERROR", 100.0)
        coarse.network.use_splines(1e-9)
    module = scripted(coarse)

    def energy(atoms: ase.Atoms) -> float:
        return float(evaluate(module, inputs(coarse, atoms))["energies"].sum())

    atoms, step = crystal(), 1e-4
    forces = evaluate(module, inputs(coarse, atoms))["forces"]
    networks = evaluate(scripted(exact), inputs(exact, atoms))["forces"]
    assert (forces - networks).abs().max() > 1e-5 * networks.abs().max()
    for atom, axis in ((0, 0), (3, 1), (7, 2)):
        moved = [atoms.copy(), atoms.copy()]
        moved[0].positions[atom, axis] += step
        moved[1].positions[atom, axis] -= step
        slope = (energy(moved[0]) - energy(moved[1])) / (2 * step)
        assert -slope == pytest.approx(float(forces[atom, axis]), abs=2e-6 * float(forces.abs().max()))


def test_splines_in_blocks_and_beyond_the_cutoff(tmp_path):
    trained = loaded(make_model(**VARIANTS["Agnesi"]), tmp_path, radial="spline")
    vectors, index, kinds, *_ = inputs(trained, crystal(), skin=0.0)
    wide_vectors, wide_index, *_ = inputs(trained, crystal(), skin=1.5)
    assert len(wide_vectors) > len(vectors) + 50
    energy, charge, _ = LayeredEvaluation(trained.network, whole_up_to=100)(vectors, index, kinds)
    in_blocks = LayeredEvaluation(trained.network, block_size=3, whole_up_to=0)
    got_energy, got_charge, _ = in_blocks(wide_vectors, wide_index, kinds)
    assert_same(got_energy, energy, 1e-13)
    assert_same(got_charge, charge, 1e-13)
    isolated = trained.network(vectors[:0], index[:, :0], kinds)
    assert torch.isfinite(isolated[0]).all()


# ---- splines themselves


def _waves(cutoff: float):
    """Functions with the envelope of MACE, two classes."""
    frequencies = torch.arange(1, 6, dtype=torch.float64)

    def function(distances, kind):
        x = distances / cutoff
        return torch.sin(np.pi * frequencies * x) / x * (1 + kind * x) * (1 - x) ** 3 * (x < 1)

    return function


def test_spline_is_smooth_and_ends_at_the_cutoff():
    spline, error = radial_spline(_waves(4.0), lambda h: h, 4.0, 2, target=1e-9)
    assert error.value <= error.derivative <= 1e-9
    assert error.intervals == spline.intervals

    def derivatives(at: torch.Tensor, kind: int) -> list[torch.Tensor]:
        at = at.clone().requires_grad_(True)
        values = spline(at[:, None], torch.full([len(at)], kind))
        first = [torch.autograd.grad(values[:, k].sum(), at, create_graph=True)[0] for k in range(values.size(1))]
        second = [torch.autograd.grad(f.sum(), at, retain_graph=True)[0] for f in first]
        return [values.detach(), torch.stack(first, 1).detach(), torch.stack(second, 1)]

    nodes = spline.start + torch.arange(1, spline.intervals + 1, dtype=torch.float64) / spline.inverse_step
    for kind in (0, 1):
        for below, above in zip(derivatives(nodes - 1e-9, kind), derivatives(nodes + 1e-9, kind), strict=True):
            torch.testing.assert_close(below, above, rtol=0.0, atol=1e-6 * float(below.abs().max()))
    beyond = spline(torch.tensor([[4.0], [4.1], [8.0]], dtype=torch.float64), torch.zeros(3, dtype=torch.int64))
    assert beyond.abs().max() == 0.0
    for distance in (0.7, 2.3, 3.9):
        at = torch.tensor([[distance]], dtype=torch.float64)
        torch.testing.assert_close(spline(at, torch.tensor([1])), _waves(4.0)(at, 1), rtol=1e-9, atol=1e-11)


def test_error_falls_with_the_sixth_power_of_the_interval():
    errors = []
    for intervals in (32, 64, 128):
        spline = RadialSpline(_waves(4.0), 4.0, 1, intervals)
        at = torch.linspace(1.0, 3.9, 997, dtype=torch.float64)[:, None]
        errors.append(float((spline(at, torch.zeros(0, dtype=torch.int64)) - _waves(4.0)(at, 0)).abs().max()))
    assert errors[0] / errors[1] > 2**5
    assert errors[1] / errors[2] > 2**5


def test_functions_with_a_kink_are_refused():
    def kink(distances, kind):
        return _waves(4.0)(distances, kind) * (distances - 2.1234).abs()

    with pytest.raises(RadialSplineError, match=r"differ from the radial functions .* --radial exact"):
        radial_spline(kink, lambda h: h, 4.0, 1, target=1e-9)


# ---- the choice at export


def test_choice_at_export(tmp_path, capsys):
    checkpoint = saved(make_model(r_max=3.2), tmp_path)
    for dtype in ("float32", "float64"):
        report = export(checkpoint, tmp_path / "out.pt", dtype=dtype)
        assert report.metadata["radial"] == {"kind": "exact"}
        report = export(checkpoint, tmp_path / "out.pt", dtype=dtype, radial="spline")
        assert report.metadata["radial"]["kind"] == "spline"
        assert report.metadata["radial"]["derivative_error"] < 1e-6
        assert load(tmp_path / "out.pt").metadata["radial"] == report.metadata["radial"]
    assert main(["info", str(tmp_path / "out.pt")]) == 0
    assert "spline of" in capsys.readouterr().out
    atoms = crystal()
    results = []
    for radial in ("exact", "spline"):
        assert (
            export_main([str(checkpoint), "-o", str(tmp_path / "out.pt"), "--dtype", "float64", "--radial", radial])
            == 0
        )
        calculator = LESCalculator(tmp_path / "out.pt", kspace="ewald")
        calculator.calculate(atoms, ["energy", "forces"])
        results.append(calculator.results["forces"])
    assert_same(results[1], results[0], 1e-8)
    assert not np.array_equal(*results)


def test_wrong_choices(tmp_path, monkeypatch, capsys):
    from tests.test_exporting import write_checkpoint

    native = write_checkpoint(tmp_path / "native.pth")
    assert export_main([str(native), "-o", str(tmp_path / "out.pt"), "--radial", "spline"]) == 1
    assert "a cace model has no radial networks to be splines" in capsys.readouterr().err
    with pytest.raises(ValueError, match="exact or spline, got 'cubic'"):
        export(native, tmp_path / "out.pt", radial="cubic")
    assert not (tmp_path / "out.pt").exists()
    checkpoint = saved(make_model(**VARIANTS["Agnesi"]), tmp_path)
    monkeypatch.setattr("les_md.architectures.mace_network.MOST_SPLINES", 10)
    with pytest.raises(ValueError, match=r"6 pairs of elements would be too large as splines"):
        export(checkpoint, tmp_path / "out.pt", radial="spline")
    assert not (tmp_path / "out.pt").exists()


# ---- the first layer by species, and sparse products


@pytest.mark.parametrize("variant", ["three layers, rank two", "no residual in the first layer", "density", "Agnesi"])
def test_first_layer_by_species(variant, tmp_path):
    """At once and in blocks, some of which lack a species."""
    trained = loaded(make_model(**VARIANTS[variant]), tmp_path)
    vectors, index, kinds, *_ = inputs(trained, crystal())
    generator = torch.Generator().manual_seed(2)
    cotangents = torch.randn(len(kinds), dtype=torch.float64, generator=generator), torch.ones(len(kinds), 1).double()
    results = []
    for most_species in (0, 2, 8):
        trained.network.most_species = most_species
        for block_size in (100, 1):
            evaluation = LayeredEvaluation(trained.network, block_size=block_size, whole_up_to=0)
            energy, charge, state = evaluation(vectors, index, kinds)
            results.append([energy, charge, evaluation.pull_back(vectors, index, kinds, state, *cotangents)])
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            assert_same(got, want, 1e-12)


@pytest.mark.parametrize("correlation", [1, 2, 3, 4])
def test_sparse_products(correlation):
    """Against the sums over all components of the coupling coefficients."""
    model = make_model(max_ell=2, correlation=correlation, hidden_irreps=o3.Irreps("4x0e + 4x1o"))
    contractions = model.products[0].symmetric_contractions
    product = SymmetricProduct(contractions, agnostic=False)
    messages = torch.randn(5, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    types = torch.tensor([0, 2, 1, 2, 0])
    parts = []
    for contraction in contractions.contractions:
        weights = [contraction.weights_max, *contraction.weights]
        total = 0.0
        for order in range(1, correlation + 1):
            coupling = contraction.get_buffer(f"U_matrix_{order}")
            coupling = coupling if coupling.dim() == order + 2 else coupling[None]
            term = torch.einsum("o...k,ekc->eco...", coupling, weights[correlation - order])[types]
            for _ in range(order):
                term = (term * messages.view(5, 4, *[1] * (term.dim() - 3), 9)).sum(-1)
            total = total + term
        parts.append(total.flatten(1))
    assert_same(product(messages.transpose(1, 2), types), torch.cat(parts, dim=1), 1e-12)
    for polynomial in product.polynomials:
        assert polynomial.pairs.size(1) < 45 / 2  # of 45 pairs


def test_every_product_contains_a_common_pair():
    products = [(0, 0, 1), (0, 1), (1, 2, 3, 3), (2, 3), (0, 0)]
    pairs = _common_pairs(products)
    assert list(pairs.values()) == list(range(len(pairs)))
    assert {(0, 1), (2, 3), (0, 0)} == set(pairs)
