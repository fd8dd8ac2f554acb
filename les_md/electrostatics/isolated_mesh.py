r"""The sum over all pairs of an isolated system through a mesh, in O(N log N).

The kernel erf(r/(√2 σ))/r is smooth, but it has no period. Cut at a distance R no pair reaches, the point charge's
1/r has the transform 4π (1 − cos kR)/k² (Vico, Greengard, Ferrando, J. Comput. Phys. 323, 191 (2016)), so

    erf(r/(√2 σ))/r = (1/D³) Σ_k 4π (1 − cos kR)/k² exp(−σ²k²/2) exp(i k·r),   k = 2π n/D,

for all r up to R − 6σ, if the period D exceeds the largest distance by R + 6σ. With the window divided out
(``mesh_window.py``) this gives the kernel between mesh points. It is needed only at the distances within the mesh,
and a convolution with it on a mesh of twice the size is free of images (Hockney and Eastwood, Computer Simulation
Using Particles, 1988). The kernel is made once; a step costs two FFTs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from les_md.electrostatics.mesh import window_transform_inside


def truncation_of_gaussian() -> float:
    """σ times the largest wave number: force errors of √erfc = 9e-8 relative for uncorrelated charges."""
    return 5.5


def pair_kernel(
    shape: list[int], doubled: list[int], spacing: float, sigma: float, amplitude: float, beta: float, order: int
) -> Tensor:
    """Transform of the kernel between mesh points, [doubled_1, doubled_2, doubled_3 // 2 + 1], 1/Å.

    Parameters: ``shape`` points of the mesh along axes 1, 2, 3 and ``doubled`` at least twice as many less one,
    ``spacing`` Å, ``sigma`` Å, and the window's ``amplitude``, shape ``beta`` and ``order`` (``mesh_window.py``).
    """
    diagonal = math.sqrt(float(shape[0] ** 2 + shape[1] ** 2 + shape[2] ** 2)) * spacing
    reach = diagonal + 6.0 * sigma
    k_max = truncation_of_gaussian() / sigma
    cosines: list[Tensor] = []
    wave_numbers: list[Tensor] = []
    transforms: list[Tensor] = []
    volume = 1.0
    for points in shape:
        period = points + math.ceil((reach + 6.0 * sigma) / spacing)
        volume = volume * period * spacing
        limit = min(math.floor(k_max * period * spacing / (2.0 * math.pi)), (period - 1) // 2)
        n = torch.arange(0, limit + 1, dtype=torch.float64)
        angle = torch.arange(0, points, dtype=torch.float64)[:, None] * n * (2.0 * math.pi / period)
        multiplicity = torch.full_like(n, 2.0)
        multiplicity[0] = 1.0
        cosines.append(torch.cos(angle) * multiplicity)
        wave_numbers.append(n * (2.0 * math.pi / (period * spacing)))
        transforms.append(window_transform_inside(n / float(period), amplitude, beta, order) ** 2)
    k_squared = (
        wave_numbers[0][:, None, None] ** 2 + wave_numbers[1][None, :, None] ** 2 + wave_numbers[2][None, None, :] ** 2
    )
    inside = k_squared <= k_max**2
    k_squared[0, 0, 0] = 1.0
    weight = 4.0 * math.pi * (1.0 - torch.cos(torch.sqrt(k_squared) * reach)) / k_squared
    weight = weight * torch.exp(-0.5 * sigma**2 * k_squared)
    # (a scripted assignment would round the number to single precision)
    weight[0, 0, 0].fill_(2.0 * math.pi * reach**2)
    weight = weight * inside.to(torch.float64) / volume
    weight = weight / transforms[0][:, None, None] / transforms[1][None, :, None] / transforms[2]
    kernel = torch.matmul(weight, cosines[2].transpose(0, 1))  # [k_1, k_2, x_3]
    kernel = torch.matmul(cosines[1], kernel)  # [k_1, x_2, x_3]
    kernel = torch.matmul(cosines[0], kernel.reshape(kernel.size(0), -1)).reshape(shape)
    for axis in range(3):
        kernel = _mirrored(kernel, axis, doubled[axis])
    return torch.real(torch.fft.rfftn(kernel)).contiguous()


def _mirrored(kernel: Tensor, dim: int, points: int) -> Tensor:
    """An even function given at 0, 1, …, on ``points`` periodic points; 0 where it is not given."""
    length = kernel.size(dim)
    mirror = kernel.narrow(dim, 1, length - 1).flip([dim])
    sizes = list(kernel.shape)
    sizes[dim] = points - 2 * length + 1
    zeros = torch.zeros(sizes, dtype=kernel.dtype, device=kernel.device)
    return torch.cat([kernel, zeros, mirror], dim=dim)


def isolated_mesh_potential(density: Tensor, kernel: Tensor, doubled: list[int]) -> Tensor:
    """Convolution of the charges on the mesh with the kernel, like ``density``, in 1/Å."""
    transformed = torch.fft.rfftn(density, s=doubled, dim=[1, 2, 3]) * kernel
    potential = torch.fft.irfftn(transformed, s=doubled, dim=[1, 2, 3])
    return potential[:, : density.size(1), : density.size(2), : density.size(3)].contiguous()


def isolated_coordinates(positions: Tensor, origin: Tensor, spacing: float, shape: list[int], order: int) -> Tensor:
    """Positions in mesh spacings; raises if the window of ``order`` points of a charge has left the mesh."""
    coordinates = (positions - origin) / spacing
    points = torch.tensor(shape, dtype=positions.dtype, device=positions.device)
    if bool(((coordinates < 0.5 * order) | (coordinates > points - 1.0 - 0.5 * order)).any()):
        raise RuntimeError("a charge has left the mesh of an isolated system: plan it anew with the present bounds")
    return coordinates
