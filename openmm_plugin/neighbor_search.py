"""Neighbour search in torch operations only, so that it scripts and runs inside openmm-torch's TorchForce.

Two ways, chosen by the number of candidates: all pairs of atoms with as many images as the cutoff reaches (few
operations, quadratic memory), and a cell list over the occupied bins (memory proportional to the number of atoms).
Both give the same edges in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def edges_within(positions: Tensor, cell: Tensor, periodic: bool, cutoff: float) -> tuple[Tensor, Tensor]:
    """All directed pairs closer than ``cutoff``, periodic images and an atom's own images included.

    Parameters
    ----------
    positions : [N, 3] float64, Å; need not lie inside the cell.
    cell : [3, 3] float64, Å, rows are lattice vectors of any shape and handedness; only read if ``periodic``.
    periodic : along all three lattice vectors, or along none.
    cutoff : Å.

    Returns
    -------
    ``edge_index`` [2, E] int64 (centre, neighbour) and ``edge_vectors`` [E, 3] float64, Å, r_neighbour − r_centre of
    the given positions plus a lattice vector; sorted by centre, then neighbour, then lattice vector.

    Raises
    ------
    ValueError : positions or cell that are not finite, a singular cell, a cutoff that is not positive.
    """
    return _edges(positions, cell, periodic, cutoff, 3e5)  # where both ways take the same time on a CPU


def _edges(
    positions: Tensor, cell: Tensor, periodic: bool, cutoff: float, most_candidates: float
) -> tuple[Tensor, Tensor]:
    """``edges_within`` through all pairs if they are not more than ``most_candidates``, images included."""
    if not cutoff > 0.0:
        raise ValueError("the cutoff of a neighbour search must be positive")
    if not bool(torch.isfinite(positions).all().item()):
        raise ValueError("the positions are not finite: the simulation has become unstable")
    # Both ways search slightly further than they need; the vectors that are returned decide.
    reach = cutoff * (1.0 + 1e-9) + 1e-6
    heights = [0.0, 0.0, 0.0]
    num_images = [0, 0, 0]
    fractional = positions
    if periodic:
        host_cell = cell.to("cpu")  # small sums, which are not worth the way to another device
        heights = _heights(host_cell)
        fractional = torch.matmul(positions, torch.linalg.inv(host_cell).to(positions.device))
        # The component of a pair's vector along the normal of a lattice plane is at most its length. Differences of
        # fractional coordinates are brought to −½ … ½ first, so these many images are enough.
        num_images = [int(reach / heights[axis] + 0.5) for axis in range(3)]
    candidates = float(positions.size(0)) * float(positions.size(0))
    for axis in range(3):
        candidates = candidates * float(2 * num_images[axis] + 1)
    if candidates <= most_candidates:
        centre, neighbour, shifts = _all_pairs(fractional, cell, periodic, num_images, reach)
    else:
        centre, neighbour, shifts = _cell_list(positions, fractional, cell, periodic, heights, reach)
    vectors = positions.index_select(0, neighbour) - positions.index_select(0, centre)
    if periodic:
        # Not by a matrix product, whose rounding may depend on the row: a pair and its reverse agree to the last bit.
        vectors = vectors + (shifts[:, 0:1] * cell[0] + shifts[:, 1:2] * cell[1] + shifts[:, 2:3] * cell[2])
    x, y, z = vectors.unbind(1)
    inside = torch.nonzero(x * x + y * y + z * z < cutoff * cutoff).squeeze(1)
    return (
        torch.stack([centre.index_select(0, inside), neighbour.index_select(0, inside)]),
        vectors.index_select(0, inside),
    )


def _heights(cell: Tensor) -> list[float]:
    """Distances between opposite faces of the cell, Å."""
    if not bool(torch.isfinite(cell).all().item()):
        raise ValueError("the periodic cell is not finite: the simulation has become unstable")
    lengths = torch.linalg.norm(cell, dim=1)
    volume = float(torch.abs(torch.linalg.det(cell)).item())
    if not volume > 1e-9 * float(lengths.prod().item()):
        raise ValueError("the periodic cell is singular: its three lattice vectors must span a volume")
    faces = torch.linalg.cross(cell[[1, 2, 0]], cell[[2, 0, 1]])
    areas = torch.linalg.norm(faces, dim=1)
    return [volume / float(areas[axis].item()) for axis in range(3)]


def _all_pairs(
    fractional: Tensor, cell: Tensor, periodic: bool, num_images: list[int], reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs within ``reach`` by trying all of them, each with all images.

    Parameters: ``fractional`` coordinates [N, 3] (Å if not periodic), ``num_images`` to either side along each axis.

    Returns: centre [E], neighbour [E], lattice vector in units of the cell [E, 3] float64; sorted.
    """
    num_atoms = fractional.size(0)
    device = fractional.device
    # One array for each component: arrays whose last axis is the component take several times longer.
    components: list[Tensor] = []
    nearest: list[Tensor] = []
    for coordinate in fractional.unbind(1):
        difference = coordinate[None, :] - coordinate[:, None]
        if periodic:
            whole = torch.round(difference)
            nearest.append(whole.reshape(-1))
            difference = difference - whole
        components.append(difference)
    a, b, c = components
    if periodic:
        a, b, c = [a * cell[0, k] + b * cell[1, k] + c * cell[2, k] for k in range(3)]
    sizes = [2 * num_images[axis] + 1 for axis in range(3)]
    num_translations = sizes[0] * sizes[1] * sizes[2]
    translations = torch.zeros([1, 3], dtype=torch.float64, device=device)
    if num_translations > 1:
        ranges = [torch.arange(-num_images[axis], num_images[axis] + 1, device=device) for axis in range(3)]
        grid = torch.meshgrid(ranges, indexing="ij")
        translations = torch.stack([grid[0], grid[1], grid[2]], dim=3).reshape(-1, 3).to(torch.float64)
        along = torch.matmul(translations, cell)
        a, b, c = a[:, :, None] + along[:, 0], b[:, :, None] + along[:, 1], c[:, :, None] + along[:, 2]
    close = a * a + b * b + c * c < reach * reach
    close = close.view(num_atoms, num_atoms, num_translations)
    close[:, :, num_translations // 2].fill_diagonal_(False)  # an atom and itself, not an image
    found = torch.nonzero(close.view(-1)).squeeze(1)
    pair = found
    shifts = torch.zeros([found.size(0), 3], dtype=torch.float64, device=device)
    if periodic:
        pair = torch.div(found, num_translations, rounding_mode="floor")
        shifts = translations.index_select(0, found - pair * num_translations) - torch.stack(
            [whole.index_select(0, pair) for whole in nearest], dim=1
        )
    centre = torch.div(pair, num_atoms, rounding_mode="floor")
    return centre, pair - centre * num_atoms, shifts


def _cell_list(
    positions: Tensor, fractional: Tensor, cell: Tensor, periodic: bool, heights: list[float], reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same through bins at least ``reach`` wide, of which only the occupied ones are stored.

    Parameters: ``heights`` of the cell (Å, zeros if not periodic).
    """
    device = positions.device
    num_atoms = positions.size(0)
    num_bins = [1, 1, 1]  # along each axis
    layers = [1, 1, 1]  # of bins around a bin that the cutoff reaches
    wraps = torch.zeros_like(positions)
    inside = positions
    if periodic:
        wraps = torch.floor(fractional)
        relative = fractional - wraps
        inside = torch.matmul(relative, cell)
        for axis in range(3):
            # (So many bins that their number fits into an integer; here and below.)
            num_bins[axis] = int(min(max(heights[axis] / reach, 1.0), 1e6))
            if heights[axis] < reach:
                layers[axis] = int(reach / heights[axis]) + 1
    else:
        lowest = positions.amin(0)
        extent = positions.amax(0) - lowest
        relative = (positions - lowest) / torch.clamp(extent, min=reach)
        for axis in range(3):
            num_bins[axis] = int(min(max(float(extent[axis].item()) / reach, 1.0), 1e6))
    bins = torch.tensor(num_bins, device=device)
    coordinates = torch.minimum((relative * bins).to(torch.int64), bins - 1)
    number_of_atom, order = torch.sort(_bin_number(coordinates, num_bins), stable=True)
    occupied, bin_of_atom, counts = torch.unique_consecutive(number_of_atom, return_inverse=True, return_counts=True)
    first_atoms = torch.cumsum(counts, 0) - counts
    coordinates = coordinates.index_select(0, order.index_select(0, first_atoms))
    xs, ys, zs = inside.index_select(0, order).unbind(1)
    xs, ys, zs = xs.contiguous(), ys.contiguous(), zs.contiguous()

    # A pair and its lattice vector as one number, which orders them as is asked for
    sizes = [2 * layers[axis] + 1 for axis in range(3)]
    num_translations = sizes[0] * sizes[1] * sizes[2]
    keys: list[Tensor] = []
    # The pairs of a bin and the bin at the opposite offset are the reversed pairs of another bin: half is enough.
    for half in range(num_translations // 2, num_translations):
        offset = [
            half // (sizes[1] * sizes[2]) - layers[0],
            half // sizes[2] % sizes[1] - layers[1],
            half % sizes[2] - layers[2],
        ]
        target = coordinates + torch.tensor(offset, device=device)
        shift = torch.zeros_like(target)
        if periodic:
            shift = torch.div(target, bins, rounding_mode="floor")
            target = target - shift * bins
        number = _bin_number(target, num_bins)
        partner = torch.searchsorted(occupied, number).clamp(max=occupied.size(0) - 1)
        exists = occupied.index_select(0, partner) == number
        if not periodic:
            exists = exists & ((target >= 0) & (target < bins)).all(1)
        # Every atom of the bin with all atoms of the partner
        num_candidates = (counts.index_select(0, partner) * exists).index_select(0, bin_of_atom)
        first = first_atoms.index_select(0, partner).index_select(0, bin_of_atom)
        first = first + num_candidates - torch.cumsum(num_candidates, 0)
        centre = torch.repeat_interleave(num_candidates)
        neighbour = torch.arange(centre.size(0), device=device) + first.index_select(0, centre)
        translation = torch.zeros([occupied.size(0), 3], dtype=torch.float64, device=device)
        if periodic:
            translation = torch.matmul(shift.to(torch.float64), cell)
        along_x, along_y, along_z = translation.index_select(0, bin_of_atom).unbind(1)
        x = xs.index_select(0, neighbour) - (xs - along_x).index_select(0, centre)
        y = ys.index_select(0, neighbour) - (ys - along_y).index_select(0, centre)
        z = zs.index_select(0, neighbour) - (zs - along_z).index_select(0, centre)
        close = x * x + y * y + z * z < reach * reach
        if half == num_translations // 2:
            close = close & (centre != neighbour)
        found = torch.nonzero(close).squeeze(1)
        centre = centre.index_select(0, found)
        neighbour = order.index_select(0, neighbour.index_select(0, found))
        code = (shift[:, 0] * sizes[1] + shift[:, 1]) * sizes[2] + shift[:, 2]
        code = code.index_select(0, bin_of_atom).index_select(0, centre)
        centre = order.index_select(0, centre)
        keys.append((centre * num_atoms + neighbour) * num_translations + (num_translations // 2 + code))
        if half > num_translations // 2:
            keys.append((neighbour * num_atoms + centre) * num_translations + (num_translations // 2 - code))
    key = torch.sort(torch.cat(keys))[0]
    pair = torch.div(key, num_translations, rounding_mode="floor")
    code = key - pair * num_translations
    centre = torch.div(pair, num_atoms, rounding_mode="floor")
    neighbour = pair - centre * num_atoms
    shifts = torch.zeros([centre.size(0), 3], dtype=torch.float64, device=device)
    if periodic:
        code_x = torch.div(code, sizes[1] * sizes[2], rounding_mode="floor")
        code = code - code_x * (sizes[1] * sizes[2])
        code_y = torch.div(code, sizes[2], rounding_mode="floor")
        code_z = code - code_y * sizes[2]
        shifts = torch.stack([code_x - layers[0], code_y - layers[1], code_z - layers[2]], dim=1)
        shifts = shifts + wraps.index_select(0, centre) - wraps.index_select(0, neighbour)
    return centre, neighbour, shifts


def _bin_number(coordinates: Tensor, num_bins: list[int]) -> Tensor:
    """One number for the coordinates [..., 3] of a bin."""
    x, y, z = coordinates.unbind(-1)
    return (x * num_bins[1] + y) * num_bins[2] + z
