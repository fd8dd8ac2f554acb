"""The native CACE network: invariances, derivatives, scripting, for every size of the symmetriser."""

import itertools

import numpy as np
import pytest
import torch

from les_md.architectures.cace_network import CACEConfiguration, CACENetwork, Symmetriser, monomial_exponents, monomials
from les_md.architectures.zbl import ZBLRepulsion
from les_md.electrostatics.latent_inputs import les_inputs

SIZES = list(itertools.product((1, 2, 3, 4), (1, 2, 3, 4)))


def network_and_edges(max_l=3, max_nu=3, layers=1, repulsion=False, charges=1, seed=0):
    torch.manual_seed(seed)
    configuration = CACEConfiguration(
        (1, 8), 3.0, 2, max_l=max_l, max_nu=max_nu, num_message_passing=layers, repulsion=repulsion, num_charges=charges
    )
    network = CACENetwork(configuration).double().requires_grad_(False)
    positions = torch.tensor(np.random.default_rng(seed).uniform(0, 3.0, (7, 3)))
    types = torch.tensor([0, 1, 0, 0, 1, 0, 1])
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    edge_index = torch.tensor(pairs).T.contiguous()
    return network, positions, edge_index, types


def vectors_of(positions, edge_index):
    return positions[edge_index[1]] - positions[edge_index[0]]


def test_monomials_are_in_order():
    unit = torch.tensor([[0.3, -0.5, 0.7]], dtype=torch.float64)
    for degree, values in enumerate(monomials(unit, 4)):
        expected = [0.3**x * (-0.5) ** y * 0.7**z for x, y, z in monomial_exponents(degree)]
        torch.testing.assert_close(values[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("max_l", "counts"), [(2, (3, 4, 4)), (3, (4, 6, 7)), (4, (5, 9, 13))], ids=["L=2", "L=3", "L=4"]
)
def test_number_of_invariants(max_l, counts):
    assert tuple(Symmetriser(max_l, nu).num_features for nu in (2, 3, 4)) == counts


@pytest.mark.parametrize(("max_l", "max_nu"), SIZES)
def test_rotation_reflection_and_permutation(max_l, max_nu):
    network, positions, edge_index, types = network_and_edges(max_l, max_nu, repulsion=True)
    energy, charge = network(vectors_of(positions, edge_index), edge_index, types)
    improper, _ = torch.linalg.qr(torch.tensor(np.random.default_rng(1).normal(size=(3, 3))))
    for rotation in (improper, -improper):
        rotated = network(vectors_of(positions @ rotation, edge_index), edge_index, types)
        torch.testing.assert_close(rotated[0], energy, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(rotated[1], charge, rtol=1e-8, atol=1e-8)
    order = torch.randperm(edge_index.size(1))
    shuffled = network(vectors_of(positions, edge_index)[order], edge_index[:, order], types)
    torch.testing.assert_close(shuffled[0], energy, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_edges_beyond_the_cutoff_contribute_nothing(layers):
    network, positions, edge_index, types = network_and_edges(layers=layers, repulsion=True)
    vectors = vectors_of(positions, edge_index)
    inside = vectors.norm(dim=1) < 3.0
    assert 0 < int(inside.sum()) < len(inside)
    everything = network(vectors, edge_index, types)
    only_inside = network(vectors[inside], edge_index[:, inside], types)
    torch.testing.assert_close(everything[0], only_inside[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(everything[1], only_inside[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layers", [1, 2])
def test_nodes_without_edges(layers):
    """Atoms without neighbours are the same wherever they stand among the nodes, and leave the others alone."""
    network, positions, edge_index, types = network_and_edges(layers=layers, repulsion=True)
    vectors = vectors_of(positions, edge_index)
    energy, charge = network(vectors, edge_index, types)
    lonely = torch.tensor([1, 0, 1])
    after = network(vectors, edge_index, torch.cat([types, lonely]))
    before = network(vectors, edge_index + 3, torch.cat([lonely, types]))
    alone = network(vectors[:0], edge_index[:, :0], lonely)
    for whole, last, first, single in zip((energy, charge), after, before, alone, strict=True):
        torch.testing.assert_close(last, torch.cat([whole, single]), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(first, torch.cat([single, whole]), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("layers", [0, 1])
def test_first_and_second_derivatives(layers):
    network, positions, edge_index, types = network_and_edges(max_l=2, layers=layers, repulsion=True)
    vectors = vectors_of(positions, edge_index)

    def outputs(v):
        energy, charge = network(v, edge_index, types)
        return energy.sum(), (charge**2).sum()

    assert torch.autograd.gradcheck(outputs, vectors.clone().requires_grad_(True), rtol=1e-4)
    few = torch.tensor([0, 3, 11, 20])
    assert torch.autograd.gradgradcheck(
        lambda v: network(v, edge_index[:, few], types)[0].sum(), vectors[few].clone().requires_grad_(True), rtol=1e-3
    )


@pytest.mark.parametrize("charges", [0, 1, 3])
def test_script_save_and_load(tmp_path, charges):
    network, positions, edge_index, types = network_and_edges(charges=charges, repulsion=True)
    vectors = vectors_of(positions, edge_index)
    expected = network(vectors, edge_index, types)
    torch.jit.script(network).save(str(tmp_path / "network.pt"))
    loaded = torch.jit.load(str(tmp_path / "network.pt"))
    for count in (edge_index.size(1), 5, 0, edge_index.size(1)):
        got = loaded(vectors[:count], edge_index[:, :count], types)
        assert got[0].shape == (7,)
        assert got[1].shape == (7, charges)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-12, atol=1e-12)


def test_float32_agrees_to_rounding():
    network, positions, edge_index, types = network_and_edges(repulsion=True)
    vectors = vectors_of(positions, edge_index)
    double = network(vectors, edge_index, types)[0]
    single = network.float()(vectors, edge_index, types)[0].double()
    assert float((double - single).abs().max() / double.abs().max()) < 1e-5


def test_zbl_is_the_screened_nuclear_repulsion():
    """Oxygen pair at 0.1 Å: Coulomb repulsion, universal screening function, envelope 1 − 28x⁶ + 48x⁷ − 21x⁸."""
    zbl = ZBLRepulsion([1, 8]).double()
    r = torch.tensor([0.1, 1.3, 1.5], dtype=torch.float64)
    types = torch.ones(3, dtype=torch.int64)
    energy = 2.0 * zbl(r, types, types)
    a = 0.46850 / (2 * 8**0.23)
    phi = sum(
        c * np.exp(-d * 0.1 / a)
        for c, d in ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    )
    x = 0.1 / (2 * 0.66)
    assert float(energy[0]) == pytest.approx(14.399645478 * 64 / 0.1 * phi * (1 - 28 * x**6 + 48 * x**7 - 21 * x**8))
    assert 0.0 < float(energy[1]) < 1e-2
    assert float(energy[2]) == 0.0


@pytest.mark.parametrize("wrong", [{"max_l": 0}, {"max_nu": 5}])
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match="CACE needs max_l"):
        CACEConfiguration((1, 8), 3.0, 2, **wrong)


LATENT = {"dipoles": True, "quadrupoles": True, "kappas": True, "alphas": True}


def latent_network(layers=1, charges=1, dtype=torch.float64, **kinds):
    """A network with latent variables beyond charges, of visible size, and the geometry of ``network_and_edges``."""
    torch.manual_seed(3)
    kinds = kinds or LATENT
    configuration = CACEConfiguration(
        (1, 8), 3.0, 2, max_l=2, num_radial=4, hidden=(8,), num_message_passing=layers, num_charges=charges, **kinds
    )
    network = CACENetwork(configuration).to(dtype).requires_grad_(False)
    _, positions, edge_index, types = network_and_edges()
    return network, positions.to(dtype), edge_index, types


def inputs_of(network, vectors, edge_index, types):
    energy, latent = network(vectors, edge_index, types)
    return energy, les_inputs(latent, network.latent)


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("charges", [1, 2])
def test_latent_variables_rotate(layers, charges):
    """Dipoles are vectors, quadrupoles traceless tensors, κ and α positive scalars, to rounding."""
    network, positions, edge_index, types = latent_network(layers, charges)
    _, want = inputs_of(network, vectors_of(positions, edge_index), edge_index, types)
    assert set(want) == {"latent_charges", *(f"latent_{kind}" for kind in LATENT)}
    assert float(want["latent_dipoles"].abs().min()) > 1e-6
    assert float(want["latent_quadrupoles"].abs().min()) > 1e-6
    assert float(want["latent_quadrupoles"].diagonal(dim1=-2, dim2=-1).sum(-1).abs().max()) < 1e-14
    for name in ("latent_kappas", "latent_alphas"):
        assert float(want[name].min()) > 0.0
        assert float(want[name].std()) > 0.0
    improper, _ = torch.linalg.qr(torch.tensor(np.random.default_rng(1).normal(size=(3, 3))))
    for rotation in (improper, -improper):
        _, got = inputs_of(network, vectors_of(positions @ rotation, edge_index), edge_index, types)
        turned = {
            **want,
            "latent_dipoles": want["latent_dipoles"] @ rotation,
            "latent_quadrupoles": rotation.T @ want["latent_quadrupoles"] @ rotation,
        }
        for name, value in turned.items():
            error = float((got[name] - value).abs().max() / value.abs().max())
            assert error < 1e-9, (name, error)  # the 1e-9 Å of the unit vectors is invariant, too


@pytest.mark.parametrize("layers", [0, 2])
def test_latent_variables_of_nodes_and_edges_that_do_not_matter(layers):
    """Edges beyond the cutoff count nothing; atoms without neighbours have no dipole or quadrupole."""
    network, positions, edge_index, types = latent_network(layers)
    vectors = vectors_of(positions, edge_index)
    inside = vectors.norm(dim=1) < 3.0
    _, everything = network(vectors, edge_index, types)
    _, only_inside = network(vectors[inside], edge_index[:, inside], types)
    torch.testing.assert_close(everything, only_inside, rtol=1e-13, atol=1e-13)
    lonely = torch.tensor([1, 0, 1])
    after = network(vectors, edge_index, torch.cat([types, lonely]))[1]
    alone = network(vectors[:0], edge_index[:, :0], lonely)[1]
    torch.testing.assert_close(after, torch.cat([everything, alone]), rtol=1e-13, atol=1e-14)
    assert bool((alone[:, 1:10] == 0.0).all())
    assert bool((alone[:, 10:] > 0.0).all())


@pytest.mark.parametrize("kinds", [{"dipoles": True}, {"quadrupoles": True, "alphas": True}, LATENT], ids=str)
def test_latent_variables_in_scripts(tmp_path, kinds):
    network, positions, edge_index, types = latent_network(charges=2, **kinds)
    vectors = vectors_of(positions, edge_index)
    energy, latent = network(vectors, edge_index, types)
    torch.jit.script(network).save(str(tmp_path / "network.pt"))
    loaded = torch.jit.load(str(tmp_path / "network.pt"))
    for count in (edge_index.size(1), 5, 0, edge_index.size(1)):
        got = loaded(vectors[:count], edge_index[:, :count], types)
        assert got[1].shape == (7, network.latent.num_columns)
    torch.testing.assert_close(got, (energy, latent), rtol=1e-12, atol=1e-12)
    single = network.float()(vectors, edge_index, types)[1].double()
    assert float((single - latent).abs().max() / latent.abs().max()) < 1e-5


def test_derivatives_of_latent_variables():
    network, positions, edge_index, types = latent_network(layers=0)
    few = torch.tensor([0, 3, 7, 11, 20])
    vectors = vectors_of(positions, edge_index)[few].clone().requires_grad_(True)

    def latent(v):
        return network(v, edge_index[:, few], types)[1].square().sum(0)

    assert torch.autograd.gradcheck(latent, vectors, rtol=1e-4)
    assert torch.autograd.gradgradcheck(latent, vectors, rtol=1e-3)


def test_latent_variables_leave_energies_and_charges_alone():
    """The weights of a model of charges are the first that are drawn, and their results the first columns."""
    network, positions, edge_index, types = latent_network()
    torch.manual_seed(3)
    without = CACENetwork(
        CACEConfiguration((1, 8), 3.0, 2, max_l=2, num_radial=4, hidden=(8,), num_message_passing=1)
    ).double()
    assert set(without.state_dict()) < set(network.state_dict())
    vectors = vectors_of(positions, edge_index)
    energy, charge = without(vectors, edge_index, types)
    with_energy, latent = network(vectors, edge_index, types)
    torch.testing.assert_close((with_energy, latent[:, :1]), (energy, charge), rtol=0.0, atol=0.0)


def test_fixed_charges_of_elements():
    network, positions, edge_index, types = latent_network(fixed_charges=(0.4, -0.8))
    plain, *_ = latent_network(dipoles=True)
    vectors = vectors_of(positions, edge_index)
    all_types = torch.cat([types, torch.tensor([1, 0, 1])])  # beyond the last centre, too
    charge = network(vectors, edge_index, all_types)[1]
    learned = plain(vectors, edge_index, all_types)[1][:, :1]
    fixed = torch.tensor([0.4, -0.8], dtype=torch.float64)[all_types, None]
    torch.testing.assert_close(charge, learned + fixed, rtol=1e-12, atol=1e-12)
    assert "fixed_charges" not in network.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quadrupoles": True, "max_l": 1}, "max_l must be at least 2"),
        ({"dipoles": True, "num_charges": 0}, "has latent charges too"),
        ({"alphas": True, "num_charges": 0}, "has latent charges too"),
        ({"fixed_charges": (0.4,)}, "charges of 2 elements"),
        ({"fixed_charges": (0.4, -0.8), "num_charges": 2}, "one charge channel"),
        ({"response_scale": 0.0}, "response_scale must be positive"),
    ],
)
def test_latent_variables_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        CACEConfiguration((1, 8), 3.0, 2, **changes)
