"""The neighbour search of the TorchForce backend against enumeration of images and against vesin."""

import itertools

import numpy as np
import pytest
import torch

from les_md.neighbors import NeighborList
from les_md.openmm.neighbor_search import _edges, edges_within

CELLS = {
    "cubic": 9.0 * np.eye(3),
    "smaller than the cutoff": np.array([[2.1, 0.0, 0.0], [0.4, 2.6, 0.0], [-0.5, 0.3, 2.4]]),
    "thin": np.diag([1.4, 11.0, 8.0]),
    "strongly triclinic": np.array([[7.0, 0.0, 0.0], [6.5, 3.0, 0.0], [-6.0, 2.5, 5.0]]),
    "left-handed": np.array([[1.0, 6.0, 2.0], [5.0, 0.5, 1.5], [0.7, -1.0, 6.5]]),
    "isolated": None,
}
SCRIPTED = torch.jit.script(_edges)


@pytest.fixture(params=["all pairs", "cell list", "cell list, scripted"])
def search(request):
    """edges_within that goes one way whatever the number of atoms."""
    most_candidates = np.inf if request.param == "all pairs" else 0.0
    edges = SCRIPTED if request.param.endswith("scripted") else _edges

    def searched(positions, cell, cutoff):
        box = np.zeros((3, 3)) if cell is None else cell
        index, vectors = edges(
            torch.from_numpy(positions), torch.from_numpy(box), cell is not None, cutoff, most_candidates
        )
        assert index.dtype == torch.int64 and vectors.dtype == torch.float64
        return index.numpy(), vectors.numpy()

    return searched


def by_vesin(positions, cell, cutoff):
    box = np.zeros((3, 3)) if cell is None else cell
    index, vectors = NeighborList(cutoff, skin=0.0).compute(positions, box, np.full(3, cell is not None))
    close = (vectors**2).sum(1) < cutoff**2
    return index[:, close], vectors[close]


def by_enumeration(positions, cell, cutoff, images=14):
    """Pairs in the order asked for; every atom first moved into the cell, then around it."""
    if cell is None:
        shifts, wraps = np.zeros((1, 3)), np.zeros((len(positions), 3))
    else:
        shifts = np.array(list(itertools.product(range(-images, images + 1), repeat=3)), dtype=float)
        wraps = np.floor(positions @ np.linalg.inv(cell))
    pairs, found = [], []
    for i, j in itertools.product(range(len(positions)), repeat=2):
        lattice = (shifts - wraps[j] + wraps[i]) @ (np.zeros((3, 3)) if cell is None else cell)
        vectors = positions[j] - positions[i] + lattice
        close = (vectors**2).sum(1) < cutoff**2
        if i == j:
            close &= shifts.any(1)
        pairs += [(i, j)] * int(close.sum())
        found.append(vectors[close])
    return np.array(pairs, dtype=int).reshape(-1, 2).T, np.concatenate(found)


def assert_same_edges(edges, expected):
    """The same pairs with the same vectors, in whichever order."""
    assert edges[0].shape == expected[0].shape
    rows = [np.column_stack([index.T, np.round(vectors, 6) + 0.0]) for index, vectors in (edges, expected)]
    rows = [row[np.lexsort(row.T[::-1])] for row in rows]
    np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=2e-6)


def unwrapped(number, cell, seed=0, far=2.0):
    """Random positions in the cell and around it."""
    box = 3.0 * np.eye(3) if cell is None else cell
    return np.random.default_rng(seed).uniform(-far, far, (number, 3)) @ box


@pytest.mark.parametrize("name", CELLS)
def test_against_enumeration(search, name):
    """The same vectors in the same order."""
    positions = unwrapped(7, CELLS[name], far=1.2)
    index, vectors = search(positions, CELLS[name], 4.1)
    expected_index, expected_vectors = by_enumeration(positions, CELLS[name], 4.1)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_allclose(vectors, expected_vectors, rtol=0, atol=1e-12)
    assert len(vectors) > 4


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("seed", range(3))
def test_against_vesin(search, name, seed):
    number = 120 if name in ("cubic", "isolated") else 40
    positions = unwrapped(number, CELLS[name], seed, far=2.0)
    assert_same_edges(search(positions, CELLS[name], 4.1), by_vesin(positions, CELLS[name], 4.1))


@pytest.mark.parametrize("cell", [np.array([[31.0, 0, 0], [9.0, 29.0, 0], [-8.0, 3.0, 33.0]]), None])
def test_many_atoms(cell):
    """Through several bins along each axis, as chosen by the number of atoms."""
    positions = unwrapped(1500, 30.0 * np.eye(3) if cell is None else cell, far=0.6)
    box = torch.zeros(3, 3, dtype=torch.float64) if cell is None else torch.from_numpy(cell)
    index, vectors = (tensor.numpy() for tensor in edges_within(torch.from_numpy(positions), box, cell is not None, 4))
    assert_same_edges((index, vectors), by_vesin(positions, cell, 4.0))


@pytest.mark.parametrize("name", CELLS)
def test_order_and_symmetry(search, name):
    """Sorted; the reverse of a pair has exactly the opposite vector; moving atoms by lattice vectors is nothing."""
    cell = CELLS[name]
    positions = unwrapped(30, cell, far=0.5)
    index, vectors = search(positions, cell, 4.1)
    shifts = np.zeros_like(vectors)
    if cell is not None:
        shifts = np.round((vectors - positions[index[1]] + positions[index[0]]) @ np.linalg.inv(cell))
    rows = np.column_stack([index.T, shifts])
    assert (np.lexsort(rows.T[::-1]) == np.arange(len(rows))).all()
    assert len(np.unique(rows, axis=0)) == len(rows)
    reverse = np.lexsort(np.column_stack([index[1], index[0], -shifts]).T[::-1])
    np.testing.assert_array_equal(vectors[reverse], -vectors)
    if cell is not None:
        moves = np.random.default_rng(1).integers(-50, 50, (30, 3))
        moved_index, moved_vectors = search(positions + moves @ cell, cell, 4.1)
        assert_same_edges((index, vectors), (moved_index, moved_vectors))


def test_both_ways_agree_to_the_last_bit():
    cell = CELLS["strongly triclinic"]
    positions = torch.from_numpy(unwrapped(60, cell))
    first = _edges(positions, torch.from_numpy(cell), True, 4.0, np.inf)
    second = _edges(positions, torch.from_numpy(cell), True, 4.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("cell", [None, 2.0 * np.eye(3)])
def test_no_atoms_and_one_atom(search, cell):
    index, vectors = search(np.zeros((0, 3)), cell, 3.0)
    assert index.shape == (2, 0) and vectors.shape == (0, 3)
    index, vectors = search(np.array([[100.0, -7.0, 0.3]]), cell, 3.0)
    # images at 2 and 2√2 Å
    assert index.shape == (2, 0 if cell is None else 6 + 12)
    np.testing.assert_allclose(vectors.sum(0), 0.0)


def test_atoms_far_apart(search):
    """Two pairs a light second apart: no array has a row for each empty bin between them."""
    positions = np.array([[0.0, 0, 0], [1.0, 0, 0], [3e18, 2e18, -1e18], [3e18, 2e18, -1e18]])
    index, _ = search(positions, None, 3.0)
    np.testing.assert_array_equal(index, [[0, 1, 2, 3], [1, 0, 3, 2]])


def test_atoms_at_the_cutoff(search):
    """A pair at exactly the cutoff is not closer than the cutoff; one below is."""
    positions = np.array([[0.0, 0, 0], [3.0, 0, 0], [3.0, 3.0 - 1e-9, 0]])
    index, _ = search(positions, 9.0 * np.eye(3), 3.0)
    np.testing.assert_array_equal(index, [[1, 2], [2, 1]])


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"positions": torch.tensor([[0.0, np.nan, 0.0]])}, "positions are not finite"),
        ({"positions": torch.tensor([[0.0, np.inf, 0.0]])}, "positions are not finite"),
        ({"cell": torch.zeros(3, 3)}, "singular"),
        ({"cell": torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]])}, "singular"),
        ({"cell": torch.full((3, 3), np.nan)}, "cell is not finite"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"cutoff": float("nan")}, "cutoff"),
    ],
)
def test_wrong_input(scripted, change, message):
    arguments = {"positions": torch.zeros(1, 3), "cell": torch.eye(3), "periodic": True, "cutoff": 3.0, **change}
    arguments = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with pytest.raises(torch.jit.Error if scripted else ValueError, match=message):
        (torch.jit.script(edges_within) if scripted else edges_within)(**arguments)
