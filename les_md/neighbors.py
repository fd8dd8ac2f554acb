"""Neighbour list with a Verlet skin: vesin finds the pairs, vectors are refreshed every step."""

from __future__ import annotations

import numpy as np
import vesin


class NeighborList:
    """All directed pairs closer than ``cutoff``, periodic images and an atom's own images included.

    Pairs are searched out to ``cutoff + skin`` and searched again only when a pair may have come closer than the
    cutoff unseen. What ``compute`` returns, order and last bit included, depends on its arguments alone and not on
    when the pairs were searched, so that a simulation goes on from a checkpoint exactly as it would have without.

    Parameters: ``cutoff`` and ``skin`` in Å.
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        if skin < 0.0:
            raise ValueError(f"skin must not be negative, got {skin}")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.num_builds = 0
        self._search = vesin.NeighborList(cutoff=self.cutoff + self.skin, full_list=True)
        self._positions: np.ndarray | None = None
        self._cell = np.zeros((3, 3))
        self._periodic = np.zeros(3, dtype=bool)
        self._edge_index = np.zeros((2, 0), dtype=np.int64)
        self._shifts = np.zeros((0, 3))
        self._offset_cell = np.zeros((3, 3))
        self._offsets = np.zeros((0, 3))

    def compute(self, positions: np.ndarray, cell: np.ndarray, periodic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Edges of a configuration.

        Parameters: ``positions`` [N, 3] Å, ``cell`` [3, 3] Å (rows are lattice vectors), ``periodic`` [3] bool.

        Returns: ``edge_index`` [2, E] int64 (centre, neighbour), ``edge_vectors`` [E, 3] Å from centre to neighbour,
        sorted by centre, neighbour and lattice shift.
        """
        periodic = np.asarray(periodic, dtype=bool)
        searched = self._needs_search(positions, cell, periodic)
        if searched:
            self._find_pairs(positions, cell, periodic)
        if searched or (cell != self._offset_cell).any():
            # Not a matrix product: what BLAS makes of a row may depend, in its last bit, on the other rows.
            self._offsets = sum(self._shifts[:, axis, None] * cell[axis] for axis in range(3))
            self._offset_cell = cell.copy()
        centre, neighbour = self._edge_index
        vectors = np.take(positions, neighbour, axis=0)
        vectors -= np.take(positions, centre, axis=0)
        vectors += self._offsets
        x, y, z = vectors.T
        within = np.flatnonzero(x * x + y * y + z * z < self.cutoff**2)
        return np.take(self._edge_index, within, axis=1), np.take(vectors, within, axis=0)

    def _find_pairs(self, positions: np.ndarray, cell: np.ndarray, periodic: np.ndarray) -> None:
        first, second, shifts = self._search.compute(
            points=positions, box=cell, periodic=periodic, quantities="ijS", copy=True
        )
        shifts = np.asarray(shifts, dtype=np.int64)
        order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], second, first))
        self._edge_index = np.stack([first[order], second[order]]).astype(np.int64)
        self._shifts = shifts[order].astype(np.float64)
        self._positions, self._cell, self._periodic = positions.copy(), cell.copy(), periodic.copy()
        self.num_builds += 1

    def _needs_search(self, positions: np.ndarray, cell: np.ndarray, periodic: np.ndarray) -> bool:
        if self._positions is None or self._positions.shape != positions.shape or (periodic != self._periodic).any():
            return True
        deformation = np.eye(3)
        if (cell != self._cell).any():
            if np.linalg.det(self._cell) == 0.0:
                return True
            deformation = np.linalg.solve(self._cell, cell)
        # An unlisted pair was at least cutoff + skin apart. The deformation shortens that by at most its smallest
        # singular value, and the motion of the two atoms relative to the deformed old positions by at most twice the
        # largest one.
        motion = positions - self._positions @ deformation
        largest = np.sqrt((motion**2).sum(1).max(initial=0.0))
        shortest = np.linalg.svd(deformation, compute_uv=False).min() * (self.cutoff + self.skin)
        return bool(shortest - 2.0 * largest < self.cutoff)
