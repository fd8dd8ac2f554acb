"""The written-out evaluation of CACE networks against automatic differentiation of the plain network."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from les_md.architectures import LoadOptions, find_architecture
from les_md.architectures.cace_evaluation import CACEEvaluation, can_evaluate
from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.architectures.zbl import ZBLRepulsion
from les_md.checkpoint import read_checkpoint
from les_md.layered_evaluation import WholeEvaluation
from les_md.models import resolve_checkpoint

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SIZES = list(itertools.product((1, 2, 3, 4), (1, 2, 3, 4)))
PUBLISHED = [
    "caceles_au_mgo_r5.5_nu2",
    "caceles_dipeptide_r4_nl2_nu2",
    "caceles_water_r4.5_nu2",
    "caceles_water_r5.5_nu2",
]


def make_network(numbers=(1, 6, 8), **changes) -> CACENetwork:
    torch.manual_seed(0)
    sizes = {"num_embedding": 2, "num_radial": 5, "hidden": (8, 4), "repulsion": True, **changes}
    return CACENetwork(CACEConfiguration(numbers, 3.0, **sizes)).double().requires_grad_(False)


def geometry(num_species=3, count=9, edge=3.0, seed=0):
    """Edge vectors of all pairs, some beyond 3 Å, the indices and types of ``count`` atoms."""
    positions = torch.tensor(np.random.default_rng(seed).uniform(0, edge, (count, 3)))
    types = torch.tensor([i * i % num_species for i in range(count)])
    pairs = torch.tensor([(i, j) for i in range(count) for j in range(count) if i != j]).reshape(-1, 2).T.contiguous()
    return positions[pairs[1]] - positions[pairs[0]], pairs, types


def assert_same(network, vectors, index, types, block_size=4, fast=None, tolerance=1e-12):
    """Values and derivative agree, relative to the largest of each."""
    plain = WholeEvaluation(network)
    fast = CACEEvaluation(network, block_size) if fast is None else fast
    generator = torch.Generator().manual_seed(1)
    energy, charge, state = plain(vectors, index, types)
    cotangents = [torch.rand(part.shape, generator=generator, dtype=torch.float64) for part in (energy, charge)]
    want = [energy, charge, plain.pull_back(vectors, index, types, state, *cotangents)]
    energy, charge, state = fast(vectors, index, types)
    got = [energy, charge, fast.pull_back(vectors, index, types, state, *cotangents)]
    for name, a, b in zip(("energy", "charge", "gradient"), got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        if b.numel():
            error, scale = float((a - b).abs().max()), float(b.abs().max())
            assert error <= tolerance * scale, (name, error, scale)


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize(("max_l", "max_nu"), SIZES)
def test_every_size(max_l, max_nu, layers):
    network = make_network(max_l=max_l, max_nu=max_nu, num_message_passing=layers)
    vectors, index, types = geometry()
    assert 0 < int((vectors.norm(dim=1) < 3.0).sum()) < len(vectors)
    assert_same(network, vectors, index, types)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_charges": 0},
        {"num_charges": 3, "charge_scale": 0.7},
        {"num_embedding": 1},
        {"num_embedding": 4, "num_bessel": 3},
        {"hidden": ()},
        {"hidden": (5,)},
        {"hidden": (7, 5, 3)},
        {"repulsion": False},
        {"cutoff_exponent": 1},
        {"cutoff_exponent": 5},
        {"numbers": (79,)},
        {"num_message_passing": 2},
        {"num_message_passing": 2, "num_embedding": 3, "message_normalisation": 0.7, "hidden": ()},
    ],
    ids=str,
)
def test_every_option(changes):
    network = make_network(**{"max_l": 3, "max_nu": 3, **changes})
    assert_same(network, *geometry(num_species=len(network.neighbour_embedding)))


@pytest.mark.parametrize("layers", [0, 2])
def test_edges_in_any_order_and_blocks_of_any_size(layers):
    network = make_network(max_l=3, max_nu=4, num_message_passing=layers)
    vectors, index, types = geometry()
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(2))
    for block_size in (1, 2, 5, 9, 100):
        assert_same(network, vectors[order], index[:, order], types, block_size)
    few = order[:20]  # unequal numbers of neighbours, and atoms without any
    assert_same(network, vectors[few], index[:, few], types)


@pytest.mark.parametrize("layers", [0, 2])
def test_nodes_that_are_neighbours_only_or_have_none(layers):
    network = make_network(max_l=2, max_nu=3, num_message_passing=layers)
    vectors, index, types = geometry()
    own = index[0] < 4  # as on a process of several: the other nodes are neighbours
    assert_same(network, vectors[own], index[:, own], types)
    lonely = torch.tensor([1, 0, 2])
    assert_same(network, vectors, index, torch.cat([types, lonely]))
    assert_same(network, vectors, index + 3, torch.cat([lonely, types]), block_size=2)


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("count", [1, 3])
def test_no_edges(count, layers):
    vectors, index, types = geometry(count=5)
    assert_same(make_network(num_message_passing=layers), vectors[:0], index[:, :0], types[:count])


@pytest.mark.parametrize("layers", [0, 1])
def test_no_atoms(layers):
    fast = CACEEvaluation(make_network(num_message_passing=layers, num_charges=2))
    vectors, index, types = geometry()
    nothing = vectors[:0], index[:, :0], types[:0]
    energy, charge, state = fast(*nothing)
    assert (energy.shape, charge.shape) == ((0,), (0, 2))
    assert fast.pull_back(*nothing, state, energy, charge).shape == (0, 3)


@pytest.mark.parametrize("layers", [0, 1])
def test_edges_beyond_the_cutoff_contribute_nothing(layers):
    network = make_network(max_l=3, max_nu=3, num_message_passing=layers)
    vectors, index, types = geometry()
    vectors[3] *= 3.0 / vectors[3].norm()  # at the cutoff
    inside = vectors.norm(dim=1) < 3.0
    fast = CACEEvaluation(network)
    energy, charge, state = fast(vectors, index, types)
    gradient = fast.pull_back(vectors, index, types, state, torch.ones_like(energy), torch.ones_like(charge))
    assert bool((gradient[~inside] == 0.0).all())
    only = fast(vectors[inside], index[:, inside], types)
    torch.testing.assert_close((energy, charge), only[:2], rtol=1e-14, atol=1e-14)


def test_several_cotangents_and_calls():
    network = make_network(max_l=3, max_nu=3, num_charges=2)
    vectors, index, types = geometry()
    plain, fast = WholeEvaluation(network), CACEEvaluation(network, 4)
    cotangents = torch.randn(3, len(types), dtype=torch.float64), torch.randn(3, len(types), 2, dtype=torch.float64)
    want = plain.pull_back_all(vectors, index, types, plain(vectors, index, types)[2], *cotangents)
    state = fast(vectors, index, types)[2]
    for _ in range(2):  # the state is not used up
        got = fast.pull_back_all(vectors, index, types, state, *cotangents)
        assert float((got - want).abs().max()) < 1e-12 * float(want.abs().max())


@pytest.mark.parametrize("layers", [0, 2])
def test_scripted_saved_frozen_and_in_float32(tmp_path, layers):
    network = make_network(max_l=3, max_nu=4, num_message_passing=layers)
    vectors, index, types = geometry()
    script = torch.jit.script(CACEEvaluation(network, 4).eval())
    script.save(str(tmp_path / "evaluation.pt"))
    loaded = torch.jit.load(str(tmp_path / "evaluation.pt"))
    for _ in range(3):  # the script is optimised in its first calls
        assert_same(network, vectors, index, types, fast=loaded)
        assert_same(network, vectors[:0], index[:, :0], types, fast=loaded)
    frozen = torch.jit.freeze(loaded, preserved_attrs=["pull_back"])
    assert_same(network, vectors, index, types, fast=frozen)
    single = make_network(max_l=3, max_nu=4, num_message_passing=layers).float()
    assert_same(single, vectors, index, types, tolerance=1e-4)
    assert CACEEvaluation(single)(vectors, index, types)[0].dtype == torch.float32


@pytest.mark.parametrize("name", [*PUBLISHED, "water_rpbe_d3", "organics_wb97m"])
def test_trained_models(name):
    checkpoint = SHARED / "models" / f"{name}.pth" if name in PUBLISHED else resolve_checkpoint(name)
    if not checkpoint.is_file():
        pytest.skip(f"{checkpoint} is missing")
    contents = read_checkpoint(checkpoint)
    trained = find_architecture(contents).load(contents, options=LoadOptions())
    assert trained.evaluation is CACEEvaluation
    some = geometry(len(trained.atomic_numbers), count=20, edge=6.0)
    assert_same(trained.network, *some, fast=trained.evaluation(trained.network))
    one_element = some[2] * 0 + 1
    assert_same(trained.network, some[0], some[1], one_element)


def test_networks_with_other_parts_are_differentiated_automatically():
    for changes in ({"dipoles": True}, {"alphas": True}, {"fixed_charges": (0.1, 0.2, 0.3)}):
        network = make_network(**changes)
        assert not can_evaluate(network)
        with pytest.raises(ValueError, match="without latent variables"):
            CACEEvaluation(network)


def test_derivative_of_the_repulsion():
    zbl = ZBLRepulsion([1, 8, 79]).double()
    distance = torch.tensor([0.1, 0.5, 1.0, 1.9, 2.7], dtype=torch.float64, requires_grad=True)
    first, second = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([0, 0, 2, 1, 2])
    want = zbl(distance, first, second)
    (slope,) = torch.autograd.grad(want.sum(), distance)
    energy, derivative = zbl.with_derivative(distance.detach(), first, second)
    torch.testing.assert_close(energy, want.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(derivative, slope, rtol=1e-12, atol=1e-12)
