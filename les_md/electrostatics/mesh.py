r"""Structure factors and potentials through a mesh: the same sums as in ``ewald.py``, in O(N log N).

The structure factor of N charges at M wave vectors is a non-uniform Fourier transform. Charges are spread on a regular
mesh with a smooth window φ (``mesh_window.py``), the mesh is transformed by FFT, and the window is divided out:

    S(k) = Σ_i q_i exp(i k·r_i) ≈ Π_a φ̂(n_a/mesh_a)⁻¹ · FFT[Σ_i q_i φ(mesh − r_i)](k)

Only the wave vectors of the model's own truncated sum are kept, so the mesh converges to that sum and to nothing
else, and everything between the two transforms (weights, energy, strain derivative) is shared with the direct sum.
The way back uses the same window, so potential and forces are exact derivatives of the mesh energy: energy is
conserved whatever the accuracy. (Smooth particle-mesh Ewald: Essmann et al., J. Chem. Phys. 103, 8577 (1995), with
another window.)

The mesh lives in fractional coordinates; strain at fixed fractional coordinates leaves S(k) as it is, so the strain
derivative of the direct sum is exact here too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from les_md.electrostatics.ewald import half_space_limits


def window_transform_inside(frequency: Tensor, amplitude: float, beta: float, order: int) -> Tensor:
    """φ̂ of ``mesh_window.py`` for the frequencies of the sum, where z² > 0."""
    z = torch.sqrt(beta**2 - (math.pi * order * frequency) ** 2)
    return amplitude * ((z**2 + 3.0) * torch.sinh(z) - 3.0 * z * torch.cosh(z)) / z**5


def _atoms_per_block(points: int) -> int:
    """Atoms at a time, so that an intermediate of ``points`` numbers per atom is 4 MB: larger ones are slower."""
    return max(1, (1 << 19) // points)


def _window_of(offset: Tensor, polynomials: Tensor) -> tuple[Tensor, Tensor]:
    """Window and slope at the points around each charge.

    Parameters: ``offset`` [N, 3], the fraction of a mesh spacing behind the first half of the points, in [0, 1);
    ``polynomials`` [degree + 1, 2 order].

    Returns: φ and dφ/dx, [N, 3, order].
    """
    tau = 2.0 * offset.reshape(-1) - 1.0
    powers = [torch.ones_like(tau), tau]
    for _ in range(polynomials.size(0) - 2):
        powers.append(powers[-1] * tau)
    both = torch.matmul(torch.stack(powers, dim=1), polynomials).reshape(offset.size(0), 3, 2, polynomials.size(1) // 2)
    return both[:, :, 0], both[:, :, 1]


def _locate(coordinates: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """First mesh point of each charge's window (may be negative), [N, 3] int64, and its offset [N, 3].

    Parameters: ``coordinates`` [N, 3] in mesh spacings.
    """
    shifted = coordinates - 0.5 * order
    # A point at distance order/2 has no weight: the window of order points starts at the next one.
    first = torch.floor(shifted.detach())
    return first.to(torch.int64) + 1, shifted - first


def spread_on_mesh(coordinates: Tensor, charges: Tensor, shape: list[int], polynomials: Tensor) -> Tensor:
    """Charges spread over a mesh without periodicity.

    Parameters: ``coordinates`` [N, 3] in mesh spacings along axes 1, 2, 3, all windows inside the mesh; ``charges``
    [N, n_q]; ``shape`` number of points along axes 1, 2, 3.

    Returns: [n_q, shape_1, shape_2, shape_3].
    """
    order = polynomials.size(1) // 2
    stride1, stride2 = shape[1] * shape[2], shape[2]
    steps = torch.arange(order, device=coordinates.device)
    plane = (steps[:, None] * stride2 + steps[None, :]).reshape(-1)
    points = shape[0] * stride1
    flat = torch.zeros(charges.size(1), points, dtype=charges.dtype, device=charges.device)
    block = _atoms_per_block(order * order)
    for start in range(0, coordinates.size(0), block):
        first, offset = _locate(coordinates[start : start + block], order)
        value, _slope = _window_of(offset, polynomials)
        # The window's planes across axis 1 have one index, and are added to the mesh from plane to plane.
        index = ((first[:, 0] * stride1 + first[:, 1] * stride2 + first[:, 2])[:, None] + plane).reshape(-1)
        across = (value[:, 1, :, None] * value[:, 2, None, :]).reshape(-1, order * order)
        for channel in range(charges.size(1)):
            along = charges[start : start + block, channel, None] * value[:, 0]
            for step in range(order):
                mesh = flat[channel].narrow(0, step * stride1, points - step * stride1)
                mesh.scatter_add_(0, index, (across * along[:, step, None]).reshape(-1))
    return flat.reshape(-1, shape[0], shape[1], shape[2])


def gather_from_mesh(mesh: Tensor, coordinates: Tensor, polynomials: Tensor) -> tuple[Tensor, Tensor]:
    """Values of a mesh at the charges, the transpose of ``spread_on_mesh``, and their exact derivatives.

    Parameters: ``mesh`` [n_q, shape_1, shape_2, shape_3], ``coordinates`` [N, 3] in mesh spacings.

    Returns: values [N, n_q], derivatives with respect to the coordinates [N, n_q, 3].
    """
    order = polynomials.size(1) // 2
    stride1, stride2 = mesh.size(2) * mesh.size(3), mesh.size(3)
    steps = torch.arange(order, device=coordinates.device)
    lines = (steps[:, None] * stride1 + steps[None, :] * stride2).reshape(-1)
    block = _atoms_per_block(order * order * order)
    values: list[Tensor] = []
    derivatives: list[Tensor] = []
    for start in range(0, max(1, coordinates.size(0)), block):
        first, offset = _locate(coordinates[start : start + block], order)
        value, slope = _window_of(offset, polynomials)
        # The points along axis 3 are neighbours in memory: one index stands for a whole line of the window.
        index = ((first[:, 0] * stride1 + first[:, 1] * stride2 + first[:, 2])[:, None] + lines).reshape(-1)
        # Value, derivative along axis 1 and derivative along axis 2: products of what belongs to the two axes
        first_axis = torch.stack([value[:, 0], slope[:, 0], value[:, 0]], dim=1)
        second_axis = torch.stack([value[:, 1], value[:, 1], slope[:, 1]], dim=1)
        across = (first_axis[:, :, :, None] * second_axis[:, :, None, :]).reshape(-1, 3, order * order)
        channel_values: list[Tensor] = []
        channel_derivatives: list[Tensor] = []
        for channel in range(mesh.size(0)):
            near = mesh[channel].reshape(-1).unfold(0, order, 1).index_select(0, index)
            line = torch.bmm(across, near.reshape(-1, order * order, order))
            along3 = (line * value[:, 2, None, :]).sum(2)
            derivative3 = (line[:, 0] * slope[:, 2]).sum(1)
            channel_values.append(along3[:, 0])
            channel_derivatives.append(torch.stack([along3[:, 1], along3[:, 2], derivative3], dim=1))
        values.append(torch.stack(channel_values, dim=1))
        derivatives.append(torch.stack(channel_derivatives, dim=1))
    return torch.cat(values), torch.cat(derivatives)


def periodic_coordinates(positions: Tensor, cell: Tensor, shape: list[int], order: int) -> Tensor:
    """Positions in mesh spacings, moved by whole cells so that windows begin at point 0 or later."""
    points = torch.tensor(shape, dtype=positions.dtype, device=positions.device)
    fractional = torch.matmul(positions, torch.linalg.inv(cell))
    coordinates = (fractional - torch.floor(fractional.detach())) * points
    return coordinates + points * (coordinates.detach() < 0.5 * order).to(positions.dtype)


def padded_shape(shape: list[int], order: int) -> list[int]:
    """Points of the mesh without periodicity that holds all windows of charges in the cell."""
    # Rounding may put a charge on the upper face of the cell: one point more than windows reach beyond it.
    return [points + order + 1 for points in shape]


def _fold(padded: Tensor, shape: list[int]) -> Tensor:
    """Adds what lies beyond the cell to its periodic images; a view of ``padded``, which is changed.

    Parameters: ``padded`` [n_q, shape_1 + padding, shape_2 + padding, shape_3 + padding].
    """
    for axis, points in enumerate(shape):
        padding = padded.size(axis + 1) - points
        padded.narrow(axis + 1, 0, padding).add_(padded.narrow(axis + 1, points, padding))
        padded = padded.narrow(axis + 1, 0, points)
    return padded


def _unfold(mesh: Tensor, padding: int) -> Tensor:
    """Continues a periodic mesh by ``padding`` points along each axis, the transpose of ``_fold``."""
    n1, n2, n3 = mesh.size(1), mesh.size(2), mesh.size(3)
    sizes = [mesh.size(0), n1 + padding, n2 + padding, n3 + padding]
    padded = torch.empty(sizes, dtype=mesh.dtype, device=mesh.device)
    padded[:, :n1, :n2, :n3] = mesh
    padded[:, :n1, :n2, n3:] = padded[:, :n1, :n2, :padding]
    padded[:, :n1, n2:] = padded[:, :n1, :padding]
    padded[:, n1:] = padded[:, :padding]
    return padded


def mesh_structure_factor(
    positions: Tensor,
    charges: Tensor,
    cell: Tensor,
    shape: list[int],
    polynomials: Tensor,
    deconvolution: Tensor,
) -> Tensor:
    """S(k) of every charge channel, as ``ewald.structure_factor`` has it.

    Parameters: ``positions`` [N, 3] Å, ``charges`` [N, n_q] e, ``cell`` [3, 3] Å, ``shape`` mesh points
    along axes 1, 2, 3 (each above the window's order), ``polynomials`` [degree + 1, 2 order], ``deconvolution``
    [K_1+1, 2K_2+1, 2K_3+1], 1/φ̂.

    Returns: [n_q, K_1+1, 2K_2+1, 2K_3+1, 2], real and imaginary part last.
    """
    order = polynomials.size(1) // 2
    coordinates = periodic_coordinates(positions, cell, shape, order)
    mesh = spread_on_mesh(coordinates, charges, padded_shape(shape, order), polynomials)
    return structure_factor_of_mesh(mesh, shape, deconvolution)


def structure_factor_of_mesh(mesh: Tensor, shape: list[int], deconvolution: Tensor) -> Tensor:
    """S(k) from charges on a mesh of ``padded_shape``, which is changed; other parameters and result as above."""
    limits = half_space_limits(deconvolution)
    mesh = _fold(mesh, shape)
    # The real transform halves axis 1, as the sum over wave vectors does.
    transformed = torch.fft.rfftn(mesh, dim=[2, 3, 1])[:, : limits[0] + 1]
    # Negative frequencies stand at the end of an FFT's output, and before the positive ones here.
    kept = torch.cat([transformed[:, :, shape[1] - limits[1] :], transformed[:, :, : limits[1] + 1]], dim=2)
    kept = torch.cat([kept[..., shape[2] - limits[2] :], kept[..., : limits[2] + 1]], dim=3)
    # The FFT has exp(−i k·r).
    return torch.view_as_real(kept.conj() * deconvolution)


def forces_on_mesh(derivatives: Tensor, charges: Tensor, cell: Tensor, shape: list[int]) -> Tensor:
    """Forces [N, 3] at fixed charges from the potential's ``derivatives`` by mesh coordinates [N, n_q, 3]."""
    points = torch.tensor(shape, dtype=derivatives.dtype, device=derivatives.device)
    # r = s h, mesh coordinate = s · points: ∂/∂r = h⁻¹ (points ∂/∂coordinate)
    gradient = (charges[:, :, None] * derivatives).sum(1) * points
    return -torch.matmul(gradient, torch.linalg.inv(cell).transpose(0, 1))


def mesh_values(
    field: Tensor, positions: Tensor, cell: Tensor, shape: list[int], polynomials: Tensor, deconvolution: Tensor
) -> tuple[Tensor, Tensor]:
    """Potential [N, n_q] eV/e and its gradients [N, n_q, 3], from the field of ``ewald.reciprocal_field``.

    Other parameters: those of ``mesh_structure_factor``.
    """
    order = polynomials.size(1) // 2
    mesh = mesh_of_field(field, shape, deconvolution, order)
    coordinates = periodic_coordinates(positions, cell, shape, order)
    values, derivatives = gather_from_mesh(mesh, coordinates, polynomials)
    points = torch.tensor(shape, dtype=positions.dtype, device=positions.device)
    return values, torch.matmul(derivatives * points, torch.linalg.inv(cell).transpose(0, 1))


def mesh_of_field(field: Tensor, shape: list[int], deconvolution: Tensor, order: int) -> Tensor:
    """The potential of a field (``ewald.reciprocal_field``) on a mesh of ``padded_shape``, for windows of ``order``."""
    limits = half_space_limits(deconvolution)
    half = torch.view_as_complex(field.contiguous()).conj() * deconvolution
    # The inverse transform counts every wave vector off the plane n_1 = 0 twice, as k and −k.
    half[:, 1:] *= 0.5
    k2, k3 = limits[1], limits[2]
    full = torch.zeros([half.size(0), limits[0] + 1, shape[1], shape[2]], dtype=half.dtype, device=half.device)
    full[:, :, : k2 + 1, : k3 + 1] = half[:, :, k2:, k3:]
    full[:, :, : k2 + 1, shape[2] - k3 :] = half[:, :, k2:, :k3]
    full[:, :, shape[1] - k2 :, : k3 + 1] = half[:, :, :k2, k3:]
    full[:, :, shape[1] - k2 :, shape[2] - k3 :] = half[:, :, :k2, :k3]
    mesh = torch.fft.irfftn(full, s=[shape[1], shape[2], shape[0]], dim=[2, 3, 1], norm="forward")
    return _unfold(mesh, order + 1)
