"""The neighbour list against direct enumeration of images, and its reuse between steps."""

import itertools

import numpy as np
import pytest

from les_md.neighbors import NeighborList

CELLS = {
    "cubic": (np.eye(3) * 9.0, (True, True, True)),
    "smaller than the cutoff": (np.array([[2.1, 0, 0], [0.4, 2.6, 0], [-0.5, 0.3, 2.4]]), (True, True, True)),
    "slab": (np.diag([5.0, 6.0, 20.0]), (True, True, False)),
    "wire": (np.diag([5.0, 16.0, 20.0]), (True, False, False)),
    "isolated": (np.zeros((3, 3)), (False, False, False)),
    "isolated in a box": (np.eye(3) * 4.0, (False, False, False)),
}


def enumerate_pairs(positions, cell, periodic, cutoff):
    pairs = []
    ranges = [range(-4, 5) if p else (0,) for p in periodic]
    for shift in itertools.product(*ranges):
        for i, j in itertools.product(range(len(positions)), repeat=2):
            vector = positions[j] - positions[i] + np.array(shift) @ cell
            if (i != j or any(shift)) and np.linalg.norm(vector) < cutoff:
                pairs.append((i, j, *np.round(vector, 8)))
    return sorted(pairs)


@pytest.mark.parametrize("name", CELLS)
def test_against_enumeration(name):
    cell, periodic = CELLS[name]
    generator = np.random.default_rng(0)
    box = cell if cell.any() else np.eye(3) * 5.0
    positions = generator.uniform(-0.4, 1.4, (6, 3)) @ box
    index, vectors = NeighborList(3.5, skin=0.4).compute(positions, cell, np.array(periodic))
    close = np.linalg.norm(vectors, axis=1) < 3.5
    ours = sorted((int(i), int(j), *np.round(v, 8)) for i, j, v in zip(*index[:, close], vectors[close], strict=True))
    assert ours == enumerate_pairs(positions, cell, periodic, 3.5)


def test_no_pair_is_missed_while_the_list_is_reused():
    """Atoms and cell drift; every step holds all pairs within the cutoff, and most steps need no search."""
    generator = np.random.default_rng(1)
    cell = np.array([[7.0, 0, 0], [1.0, 6.5, 0], [-0.5, 0.3, 7.4]])
    positions = generator.uniform(0, 1, (40, 3)) @ cell
    neighbors = NeighborList(3.0, skin=0.6)
    periodic = np.array([True, True, True])
    for step in range(60):
        deformation = np.eye(3) * (1.0 - 0.0005) + 1e-4 * generator.normal(size=(3, 3))
        cell = cell @ deformation
        positions = positions @ deformation + 0.03 * generator.normal(size=positions.shape)
        index, vectors = neighbors.compute(positions, cell, periodic)
        _, fresh_vectors = NeighborList(3.0, skin=0.0).compute(positions, cell, periodic)
        close = np.linalg.norm(vectors, axis=1) < 3.0
        assert close.sum() == len(fresh_vectors), f"step {step}"
        np.testing.assert_allclose(
            np.sort(np.linalg.norm(vectors[close], axis=1)), np.sort(np.linalg.norm(fresh_vectors, axis=1)), atol=1e-10
        )
        assert index.shape[1] == len(vectors)
    assert 2 <= neighbors.num_builds < 30


def test_search_again_when_the_system_changes():
    neighbors = NeighborList(3.0, skin=0.6)
    positions, cell = np.zeros((1, 3)), np.eye(3) * 2.5
    neighbors.compute(positions, cell, np.array([True, True, True]))
    assert neighbors.compute(positions, cell, np.array([False, False, False]))[1].shape == (0, 3)
    assert neighbors.compute(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), cell, np.array([False] * 3))[1].shape == (
        2,
        3,
    )
    assert neighbors.num_builds == 3


def test_negative_skin():
    with pytest.raises(ValueError, match="skin must not be negative"):
        NeighborList(3.0, skin=-0.1)
