"""The slab correction: exact derivatives, no preferred origin, and the physics of a single slab."""

import numpy as np
import pytest
import torch

from les_md.electrostatics import LatentEwald, LongRangeParameters
from les_md.electrostatics.parameters import NORM_FACTOR_2026 as C

BOUNDS = torch.zeros(2, 3, dtype=torch.float64)
CELLS = {
    "upright": np.diag([9.0, 10.0, 30.0]),
    # Any angle between the surface vectors, which may lie anywhere in the plane; c along the normal
    "oblique": np.array([[8.0, 5.0, 0.0], [-3.0, 9.0, 0.0], [0.0, 0.0, 28.0]]),
    "left-handed": np.array([[-3.0, 9.0, 0.0], [8.0, 5.0, 0.0], [0.0, 0.0, 28.0]]),
}
MODULE = LatentEwald(LongRangeParameters(sigma=1.0, dl=2.0))


def slab_system(name: str, net_charge: float = 0.0, num_channels: int = 1, num_atoms: int = 60, seed: int = 3):
    """Independent charges in a layer of 8 Å that crosses no face along the normal."""
    generator = np.random.default_rng(seed)
    cell = CELLS[name]
    fractional = generator.uniform(size=(num_atoms, 3))
    fractional[:, 2] = 0.2 + fractional[:, 2] * 8.0 / cell[2, 2]
    charges = generator.normal(size=(num_atoms, num_channels))
    charges += net_charge / num_atoms - charges.mean(0)
    return torch.tensor(fractional @ cell), torch.tensor(charges), torch.tensor(cell)


def evaluate(positions, charges, cell, *, slab=True, kspace="ewald", accuracy=1e-5, kset_cell=None, module=MODULE):
    """Energy, potential, forces, strain derivative."""
    kset_cell = cell if kset_cell is None else kset_cell
    plan = module.plan(cell, kset_cell, BOUNDS, len(positions), kspace, accuracy, slab)
    energies, potential, forces, strain_derivative = module(positions, charges, plan)
    return energies.sum(), potential, forces, strain_derivative


def derivative_of(energy, step: float) -> float:
    values = [float(energy(multiple * step)) for multiple in (-2, -1, 1, 2)]
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


def random_rotation(seed: int = 1) -> torch.Tensor:
    rotation, _ = torch.linalg.qr(torch.tensor(np.random.default_rng(seed).normal(size=(3, 3))))
    return rotation


@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
@pytest.mark.parametrize("net_charge", [0.0, 5.0])
@pytest.mark.parametrize("name", CELLS)
def test_forces_and_potential_are_derivatives(name, net_charge, kspace):
    positions, charges, cell = slab_system(name, net_charge, num_channels=2)
    rotation = random_rotation()
    positions, cell = positions @ rotation, cell @ rotation
    _, potential, forces, _ = evaluate(positions, charges, cell, kspace=kspace, accuracy=1e-3)
    for atom, axis in ((0, 0), (17, 1), (59, 2)):

        def energy_of_place(displacement, atom=atom, axis=axis):
            moved = positions.clone()
            moved[atom, axis] += displacement
            return evaluate(moved, charges, cell, kspace=kspace, accuracy=1e-3)[0]

        def energy_of_charge(added, atom=atom):
            changed = charges.clone()
            changed[atom, 1] += added
            return evaluate(positions, changed, cell, kspace=kspace, accuracy=1e-3)[0]

        scale = float(forces.abs().max())
        assert -derivative_of(energy_of_place, 1e-4) == pytest.approx(float(forces[atom, axis]), abs=1e-7 * scale)
        assert derivative_of(energy_of_charge, 1e-2) == pytest.approx(float(potential[atom, 1]), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
@pytest.mark.parametrize("net_charge", [0.0, 5.0])
@pytest.mark.parametrize("name", CELLS)
def test_strain_derivative(name, net_charge, kspace):
    """Also under shear that tilts the normal: the correction is that of the deformed cell."""
    positions, charges, cell = slab_system(name, net_charge, num_channels=2)
    rotation = random_rotation(2)
    positions, cell = positions @ rotation, cell @ rotation
    _, _, _, strain_derivative = evaluate(positions, charges, cell, kspace=kspace, accuracy=1e-3)
    scale = float(strain_derivative.abs().max())
    torch.testing.assert_close(strain_derivative, strain_derivative.T, rtol=1e-10, atol=1e-9)
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):

        def energy(strain, a=a, b=b):
            deformation = torch.eye(3, dtype=torch.float64)
            deformation[a, b] += 0.5 * strain
            deformation[b, a] += 0.5 * strain
            strained = cell @ deformation
            return evaluate(positions @ deformation, charges, strained, kspace=kspace, accuracy=1e-3, kset_cell=cell)[0]

        assert derivative_of(energy, 1e-4) == pytest.approx(float(strain_derivative[a, b]), abs=1e-7 * scale)


@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
@pytest.mark.parametrize("net_charge", [0.0, 5.0])
@pytest.mark.parametrize("name", CELLS)
def test_origin_and_orientation_do_not_matter(name, net_charge, kspace):
    """Translation along the normal and in the plane, rotation of everything: for charged cells too."""
    positions, charges, cell = slab_system(name, net_charge)
    accuracy = 1e-6
    energy, potential, forces, strain_derivative = evaluate(positions, charges, cell, kspace=kspace, accuracy=accuracy)
    tolerance = 1e-11 if kspace == "ewald" else 3.0 * accuracy  # the mesh has an origin, as accurate as it is
    rotation = random_rotation()
    plane = 3.0 * cell[0] - 1.3 * cell[1]
    for shift in (torch.tensor([0.0, 0.0, 7.7]), torch.tensor([0.0, 0.0, -123.4]), plane, plane + 55.5):
        moved = evaluate((positions + shift) @ rotation, charges, cell @ rotation, kspace=kspace, accuracy=accuracy)
        # The correction of a charged slab is a difference of large numbers where the slab is far from the origin
        far = 1e-13 * net_charge**2 * float(shift.abs().max()) ** 2
        assert float(moved[0]) == pytest.approx(float(energy), rel=tolerance, abs=far)
        for value, expected in (
            (moved[1], potential), (moved[2], forces @ rotation), (moved[3], rotation.T @ strain_derivative @ rotation),
        ):  # fmt: skip
            difference = float(torch.linalg.norm(value - expected))
            assert difference <= tolerance * float(torch.linalg.norm(expected)) + far


def with_height(cell, height: float):
    taller = cell.clone()
    taller[2] *= height / float(torch.linalg.norm(cell[2]))
    return taller


@pytest.mark.parametrize("name", ["upright", "oblique"])
def test_polar_slab_does_not_depend_on_the_vacuum(name):
    """Uncorrected energies differ by C M² (1/V − 1/V'), corrected ones do not."""
    positions, charges, cell = slab_system(name, num_atoms=40)
    charges = charges + 0.3 * (positions[:, 2:] - positions[:, 2].mean())
    charges = charges - charges.mean()
    dipole = float((charges[:, 0] * positions[:, 2]).sum())
    cells = [with_height(cell, height) for height in (40.0, 120.0)]
    inverse_volume = [1.0 / abs(float(torch.linalg.det(some))) for some in cells]
    plain = [evaluate(positions, charges, some, slab=False) for some in cells]
    corrected = [evaluate(positions, charges, some) for some in cells]
    expected = C * dipole**2 * (inverse_volume[0] - inverse_volume[1])
    assert expected > 0.5
    assert float(plain[1][0] - plain[0][0]) == pytest.approx(expected, rel=5e-3)
    assert abs(float(corrected[1][0] - corrected[0][0])) < 5e-3 * expected
    change, plain_change = (float(torch.linalg.norm(both[1][2] - both[0][2])) for both in (corrected, plain))
    assert change < 0.01 * plain_change


@pytest.mark.parametrize("name", CELLS)
def test_charged_slab_does_not_depend_on_the_vacuum(name):
    """Forces only: the energy of a charged slab with its background has no limit."""
    positions, charges, cell = slab_system(name, net_charge=6.0, num_atoms=40)
    cells = [with_height(cell, height) for height in (40.0, 120.0)]
    plain = [evaluate(positions, charges, some, slab=False)[2] for some in cells]
    corrected = [evaluate(positions, charges, some)[2] for some in cells]
    assert torch.linalg.norm(corrected[1] - corrected[0]) < 0.01 * torch.linalg.norm(plain[1] - plain[0])


def sheets(separation: float, height: float, per_edge: int = 5, spacing: float = 2.0):
    """Two flat square lattices of charges +1/4 and −1/4 e, ``separation`` apart."""
    sites = np.array(list(np.ndindex(per_edge, per_edge, 2)), dtype=float) * [spacing, spacing, separation]
    charges = np.where(sites[:, 2] > 0.0, 0.25, -0.25)
    cell = np.diag([per_edge * spacing, per_edge * spacing, height])
    return torch.tensor(sites + np.array([0.3, 0.4, 5.0])), torch.tensor(charges)[:, None], torch.tensor(cell)


@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
def test_parallel_plate_capacitor(kspace):
    """Plates attract with C Q²/A each whatever the vacuum; the images would reduce this by 2C/V M q on every charge."""
    positions, charges, cell = sheets(separation=8.0, height=40.0)
    area = float(cell[0, 0] * cell[1, 1])
    volume = float(torch.linalg.det(cell))
    dipole = float((charges[:, 0] * positions[:, 2]).sum())
    plain, corrected = (
        evaluate(positions, charges, cell, slab=slab, kspace=kspace, accuracy=1e-6)[2] for slab in (False, True)
    )
    expected = torch.zeros_like(plain)
    expected[:, 2] = -2.0 * C / volume * dipole * charges[:, 0]
    torch.testing.assert_close(corrected - plain, expected, rtol=1e-10, atol=1e-10)
    plate = float(charges.clamp(min=0.0).sum())
    upper = charges[:, 0] > 0.0
    attraction = C * plate**2 / area
    assert float(corrected[upper, 2].sum()) == pytest.approx(-attraction, rel=1e-2)
    assert float(plain[upper, 2].sum()) == pytest.approx(-attraction * (1.0 - 2.0 * 8.0 / 40.0), rel=2e-2)


def test_no_field_outside_a_capacitor():
    """A probe beside two plates feels only their corrugation; without the correction, the field of the images too."""
    positions, charges, cell = sheets(separation=8.0, height=50.0)
    probe = torch.tensor([[5.1, 4.7, 25.0]], dtype=torch.float64)
    positions = torch.cat([positions, probe])
    charges = torch.cat([charges, torch.full((1, 1), 1e-6, dtype=torch.float64)])
    plain, corrected = (float(evaluate(positions, charges, cell, slab=slab)[2][-1, 2]) for slab in (False, True))
    inside = 2.0 * C * 25 * 0.25 / 100.0 * 1e-6
    assert plain == pytest.approx(inside * 8.0 / 50.0, rel=2e-2)
    assert abs(corrected) < 2e-3 * inside


@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
@pytest.mark.parametrize("net_charge", [0.0, 5.0])
def test_densities_of_disjoint_atoms_add_up(net_charge, kspace):
    """The moments travel with the structure factors."""
    positions, charges, cell = slab_system("oblique", net_charge, num_channels=2)
    plan = MODULE.plan(cell, cell, BOUNDS, len(positions), kspace, 1e-4, True)
    parts = [slice(0, 13), slice(13, 13), slice(13, None)]
    density = sum(MODULE.spread(positions[part], charges[part], plan) for part in parts)
    torch.testing.assert_close(density, MODULE.spread(positions, charges, plan), rtol=1e-12, atol=1e-11)
    field, strain_derivative = MODULE.solve(density, 2, plan)
    gathered = [MODULE.gather(field, positions[part], charges[part], plan) for part in parts]
    _, potential, forces, whole_strain_derivative = MODULE(positions, charges, plan)
    torch.testing.assert_close(torch.cat([part[0] for part in gathered]), potential, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(torch.cat([part[1] for part in gathered]), forces, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(strain_derivative, whole_strain_derivative, rtol=1e-11, atol=1e-9)


def test_channels_add_up_and_do_not_mix():
    positions, charges, cell = slab_system("oblique", 2.0, num_channels=3)
    together = evaluate(positions, charges, cell)
    single = [evaluate(positions, charges[:, channel : channel + 1], cell) for channel in range(3)]
    for index in (0, 2, 3):
        torch.testing.assert_close(together[index], sum(s[index] for s in single), rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(together[1], torch.cat([s[1] for s in single], dim=1), rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
def test_scripted_module_is_the_same(kspace):
    scripted = torch.jit.script(MODULE)
    positions, charges, cell = slab_system("oblique", 3.0, num_channels=2)
    plan = MODULE.plan(cell, cell, BOUNDS, len(positions), kspace, 1e-4, True)
    assert MODULE.describe(plan).endswith(", slab correction")
    for value, expected in zip(
        evaluate(positions, charges, cell, kspace=kspace, module=scripted),
        evaluate(positions, charges, cell, kspace=kspace),
        strict=True,
    ):
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("kspace", ["ewald", "mesh", "auto"])
def test_slab_needs_a_cell(kspace):
    cell = torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="a slab correction needs a periodic cell"):
        MODULE.plan(cell, cell, BOUNDS, 10, kspace, 1e-5, True)
