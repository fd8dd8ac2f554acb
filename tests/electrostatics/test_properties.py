"""What the electrostatics must satisfy whatever the reference says: derivatives, invariances, analytic limits."""

import math

import numpy as np
import pytest
import torch

from les_md.electrostatics import LatentEwald, LongRangeParameters, ewald, isolated
from les_md.electrostatics.response import born_effective_charges, polarisation_sums, polarisation_weights

CELLS = {
    "isolated": np.zeros((3, 3)),
    "cubic": np.diag([9.3, 9.3, 9.3]),
    "triclinic": np.array([[9.1, 0.0, 0.0], [2.3, 8.3, 0.0], [-1.1, 1.7, 11.3]]),
    "left-handed": np.array([[0.0, 8.3, 0.4], [9.1, 0.0, 0.0], [0.3, -1.0, 7.7]]),
    "tiny": np.diag([1.7, 2.3, 2.9]),
}
PARAMETERS = LongRangeParameters(sigma=0.9, dl=1.3)


def direct(module, positions, charges, cell):
    """The sum term by term: energies, potential, forces, strain derivative."""
    return module(positions, charges, module.direct_plan(cell))


def system(cell: np.ndarray, num_atoms: int = 9, num_channels: int = 1, seed: int = 3):
    generator = np.random.default_rng(seed)
    box = cell if cell.any() else np.eye(3) * 6.0
    positions = torch.tensor(generator.uniform(-0.3, 1.4, (num_atoms, 3)) @ box)
    charges = torch.tensor(generator.normal(size=(num_atoms, num_channels)) + 0.2)
    return positions, charges, torch.tensor(cell)


@pytest.mark.parametrize("remove_self_interaction", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_forces_and_potential_are_derivatives(name, remove_self_interaction):
    """Analytic forces and potential against automatic differentiation of the energy, to rounding."""
    module = LatentEwald(LongRangeParameters(sigma=0.9, dl=1.3, remove_self_interaction=remove_self_interaction))
    positions, charges, cell = system(CELLS[name])
    positions.requires_grad_(True)
    charges.requires_grad_(True)
    gradient, potential = torch.autograd.grad(module.energy(positions, charges, cell), [positions, charges])
    energies, ours, forces, _ = direct(module, positions.detach(), charges.detach(), cell)
    torch.testing.assert_close(forces, -gradient, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(ours, potential, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(energies.sum(), module.energy(positions, charges, cell).detach(), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_finite_differences_of_positions(name):
    module = LatentEwald(PARAMETERS)
    positions, charges, cell = system(CELLS[name])
    _, _, forces, _ = direct(module, positions, charges, cell)
    step = 1e-4
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        energies = []
        for multiple in (-2, -1, 1, 2):
            moved = positions.clone()
            moved[atom, axis] += multiple * step
            energies.append(module.energy(moved, charges, cell))
        derivative = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)
        assert float(-derivative) == pytest.approx(float(forces[atom, axis]), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("name", CELLS)
def test_finite_differences_of_strain(name):
    module = LatentEwald(PARAMETERS)
    positions, charges, cell = system(CELLS[name])
    _, _, _, strain_derivative = direct(module, positions, charges, cell)
    step = 1e-5
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        energies = []
        for multiple in (-2, -1, 1, 2):
            deformation = torch.eye(3, dtype=torch.float64)
            deformation[a, b] += 0.5 * multiple * step
            deformation[b, a] += 0.5 * multiple * step
            energies.append(module.energy(positions @ deformation, charges, cell @ deformation))
        derivative = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)
        assert float(derivative) == pytest.approx(float(strain_derivative[a, b]), rel=1e-6, abs=1e-6)


def test_strain_derivative_is_at_fixed_wave_vectors():
    """The reference keeps the set of n when it differentiates, also where a finite strain would change it."""
    module = LatentEwald(LongRangeParameters(dl=2.0))
    positions, charges, cell = system(np.diag([8.0, 8.0, 8.0]))  # edges are multiples of dl, k on the sphere
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    deformation = torch.eye(3, dtype=torch.float64) + 0.5 * (strain + strain.T)
    (derivative,) = torch.autograd.grad(module.energy(positions @ deformation, charges, cell @ deformation), strain)
    torch.testing.assert_close(direct(module, positions, charges, cell)[3], derivative, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_rotation_translation_and_lattice_translations(name):
    module = LatentEwald(PARAMETERS)
    positions, charges, cell = system(CELLS[name])
    energies, potential, forces, strain_derivative = direct(module, positions, charges, cell)
    rotation, _ = torch.linalg.qr(torch.tensor(np.random.default_rng(1).normal(size=(3, 3))))
    shift = torch.tensor([[0.37, -5.1, 2.9]], dtype=torch.float64)
    lattice = torch.tensor(np.random.default_rng(2).integers(-3, 4, (len(positions), 3)).astype(float)) @ cell
    moved = direct(module, (positions + shift + lattice) @ rotation, charges, cell @ rotation)
    torch.testing.assert_close(moved[0], energies, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(moved[1], potential, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(moved[2], forces @ rotation, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved[3], rotation.T @ strain_derivative @ rotation, rtol=1e-9, atol=1e-9)


def test_rotation_keeps_wave_vectors_on_the_boundary():
    """Rounding of a rotated cell must not drop wave vectors that lie on the surface of the sphere."""
    cell = torch.eye(3, dtype=torch.float64) * 12.0
    multiplicity = ewald.wave_vector_multiplicity(cell, 2.0)
    for seed in range(20):
        rotation, _ = torch.linalg.qr(torch.tensor(np.random.default_rng(seed).normal(size=(3, 3))))
        rotated = ewald.wave_vector_multiplicity(cell @ rotation, 2.0)
        assert rotated.shape == multiplicity.shape
        assert float(rotated.sum()) == float(multiplicity.sum())


def test_wave_vectors_against_enumeration():
    """The half space with its multiplicities counts every n of the definition once."""
    for cell in (CELLS["triclinic"], CELLS["tiny"], CELLS["left-handed"]):
        dl = 1.3
        reciprocal = 2.0 * np.pi * np.linalg.inv(cell).T
        limits = np.maximum(1, np.floor(np.linalg.norm(cell, axis=1) / dl)).astype(int)
        count = 0
        for n in np.ndindex(*(2 * limits + 1)):
            k = (np.array(n) - limits) @ reciprocal
            count += 0.0 < k @ k <= (2.0 * np.pi / dl) ** 2
        multiplicity = ewald.wave_vector_multiplicity(torch.tensor(cell), dl)
        assert int(multiplicity.sum()) == count


@pytest.mark.parametrize("name", CELLS)
def test_channels_add_up_and_do_not_mix(name):
    module = LatentEwald(PARAMETERS)
    positions, charges, cell = system(CELLS[name], num_channels=3)
    energies, potential, forces, strain_derivative = direct(module, positions, charges, cell)
    single = [direct(module, positions, charges[:, channel : channel + 1], cell) for channel in range(3)]
    torch.testing.assert_close(energies, sum(s[0] for s in single), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(potential, torch.cat([s[1] for s in single], dim=1), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(forces, sum(s[2] for s in single), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(strain_derivative, sum(s[3] for s in single), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", ["cubic", "triclinic"])
def test_densities_of_disjoint_atoms_add_up(name):
    """What lets N processes share the work: spread is linear in the set of atoms, gather works on any subset."""
    module = LatentEwald(PARAMETERS)
    positions, charges, cell = system(CELLS[name])
    plan = module.direct_plan(cell)
    density = module.spread(positions[:4], charges[:4], plan) + module.spread(positions[4:], charges[4:], plan)
    torch.testing.assert_close(density, module.spread(positions, charges, plan), rtol=1e-12, atol=1e-12)
    field, _ = module.solve(density, 1, plan)
    potential, forces, _ = module.gather(field, positions[4:], charges[4:], plan)
    _, all_potentials, all_forces, _ = direct(module, positions, charges, cell)
    torch.testing.assert_close(potential, all_potentials[4:], rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(forces, all_forces[4:], rtol=1e-12, atol=1e-11)


def test_blocks_do_not_change_the_result(monkeypatch):
    module = LatentEwald(PARAMETERS)
    positions, charges, cell = system(CELLS["triclinic"])
    whole = direct(module, positions, charges, cell)
    cluster = direct(module, positions, charges, torch.zeros(3, 3, dtype=torch.float64))
    monkeypatch.setattr(ewald, "_planes_per_block", lambda num_atoms, plane: 1)
    monkeypatch.setattr(isolated, "_rows_per_block", lambda num_sources: 2)
    for first, second in zip(whole, direct(module, positions, charges, cell), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-11)
    blocks = direct(module, positions, charges, torch.zeros(3, 3, dtype=torch.float64))
    for first, second in zip(cluster, blocks, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-11)


def test_workspace_is_bounded():
    """A block of wave vectors holds a fixed number of complex numbers as the system grows."""
    for num_atoms, plane in ((192, 13), (6_000, 41), (20_000, 61)):
        assert ewald._planes_per_block(num_atoms, plane) * num_atoms * plane <= max(1 << 22, num_atoms * plane)
    assert isolated._rows_per_block(20_000) * 20_000 <= 1 << 22


def madelung_energy(positions: np.ndarray, charges: np.ndarray, cell: np.ndarray, sigma: float) -> float:
    """Energy per cell, with C chosen so that two point charges interact as q q'/r, and the self-interaction removed."""
    parameters = LongRangeParameters(sigma=sigma, dl=0.25 * sigma, norm_factor=2.0 * math.pi)
    module = LatentEwald(parameters)
    return float(module.energy(torch.tensor(positions @ cell), torch.tensor(charges)[:, None], torch.tensor(cell)))


@pytest.mark.parametrize(
    ("lattice", "positions", "charges", "cell", "distance", "madelung"),
    [
        # Madelung constants with respect to the nearest-neighbour distance (Borwein et al., J. Math. Phys. 26, 2999
        # (1985)).
        (
            "rock salt",
            np.array([[0, 0, 0], [0.5, 0.5, 0.5]]),
            np.array([1.0, -1.0]),
            np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * 1.0,
            1.0,
            1.7475645946331822,
        ),
        (
            "caesium chloride",
            np.array([[0, 0, 0], [0.5, 0.5, 0.5]]),
            np.array([1.0, -1.0]),
            np.eye(3),
            math.sqrt(3.0) / 2.0,
            1.7626747730709,
        ),
        (
            "zinc blende",
            np.array([[0, 0, 0], [0.25, 0.25, 0.25]]),
            np.array([1.0, -1.0]),
            np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * 0.5,
            math.sqrt(3.0) / 4.0,
            1.6380550533888,
        ),
    ],
)
def test_madelung_constants(lattice, positions, charges, cell, distance, madelung):
    """Narrow Gaussians and small dl: the sum is the Coulomb energy of point charges."""
    # At this width the overlap erfc(r/2σ) of neighbours is below 1e-14.
    sigma = distance / 11.0
    energy = madelung_energy(positions, charges, cell, sigma)
    assert -energy * distance == pytest.approx(madelung, rel=1e-9), lattice


def test_isolated_pair_is_analytic():
    module = LatentEwald(LongRangeParameters(sigma=1.1))
    for r in (1e-9, 1e-3, 0.0310, 0.0312, 0.5, 3.0, 40.0):
        positions = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, r]], dtype=torch.float64)
        charges = torch.tensor([[0.7], [-1.3]], dtype=torch.float64)
        energies, _, forces, _ = direct(module, positions, charges, torch.zeros(3, 3, dtype=torch.float64))
        a = 1.0 / (math.sqrt(2.0) * 1.1)
        constant = 90.4756 / (2.0 * math.pi) * 0.7 * -1.3
        assert float(energies.sum()) == pytest.approx(constant * math.erf(a * r) / r, rel=1e-12)
        if r > 0.1:
            slope = 2 * a / math.sqrt(math.pi) * math.exp(-((a * r) ** 2)) / r - math.erf(a * r) / r**2
        else:
            x = a * r
            slope = 2 * a * a / math.sqrt(math.pi) * (-2 * x / 3 + 2 * x**3 / 5 - x**5 / 7 + x**7 / 27)
        assert float(forces[1, 2]) == pytest.approx(-constant * slope, rel=1e-11)


def test_coincident_atoms_are_finite():
    positions = torch.zeros(2, 3, dtype=torch.float64)
    charges = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    for cell in (torch.zeros(3, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64) * 8):
        for result in direct(LatentEwald(PARAMETERS), positions, charges, cell):
            assert torch.isfinite(result).all()


@pytest.mark.parametrize("name", ["isolated", "triclinic"])
def test_second_derivatives(name):
    """Training differentiates twice."""
    module = LatentEwald(PARAMETERS)
    positions, charges, cell = system(CELLS[name], num_atoms=4)
    assert torch.autograd.gradgradcheck(
        lambda r, q: module.energy(r, q, cell),
        (positions.requires_grad_(True), charges.requires_grad_(True)),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("remove_mean", [True, False])
@pytest.mark.parametrize("name", ["isolated", "triclinic"])
def test_born_effective_charges_are_derivatives_of_the_polarisation(name, remove_mean):
    """Against finite differences of the definition of P, with charges that depend on the positions."""
    positions, base, cell = system(CELLS[name])
    isolated_system = not bool(cell.any())

    def charge(r):
        return base[:, 0] * (1.0 + 0.2 * torch.sin(r @ torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64)))

    def polarisation(r):
        q = charge(r)
        q = q - q.mean() if remove_mean else q
        if isolated_system:
            return (q[:, None] * r).sum(0).to(torch.complex128)
        s = r @ torch.linalg.inv(cell)
        return (q[:, None] * torch.exp(2j * math.pi * s)).sum(0) / (2j * math.pi)

    r = positions.clone().requires_grad_(True)
    weights = polarisation_weights(positions, cell, isolated_system)
    means = polarisation_sums(weights, charge(positions)[:, None], remove_mean) / len(positions)
    pulled_back = torch.stack([torch.autograd.grad(charge(r), r, w)[0] for w in weights - means[:-1, None]])
    result = born_effective_charges(
        charge(positions)[:, None], means[-1], pulled_back, positions, cell, isolated_system, 1.0
    )
    step = 1e-4
    for atom, axis in ((0, 0), (5, 1), (7, 2)):
        values = []
        for multiple in (-1, 1):
            moved = positions.clone()
            moved[atom, axis] += multiple * step
            values.append(polarisation(moved))
        slope = (values[1] - values[0]) / (2 * step)
        if isolated_system:
            expected = slope.real
        else:
            s = positions[atom] @ torch.linalg.inv(cell)
            expected = ((slope * torch.exp(-2j * math.pi * s)).real[:, None] * cell).sum(0)
        torch.testing.assert_close(result[atom, :, axis], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"dl": -1.0}, {"norm_factor": float("nan")}])
def test_wrong_parameters(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a positive number"):
        LongRangeParameters(**wrong)
