"""The mesh of isolated systems against the sum over all pairs."""

import numpy as np
import pytest
import torch

from les_md.electrostatics import LatentEwald, LongRangeParameters

NO_CELL = torch.zeros(3, 3, dtype=torch.float64)


def cluster(num_atoms: int, extent, *, net_charge: float = 0.0, num_channels: int = 1, seed: int = 5):
    """Independent charges at independent places in a box of this ``extent`` somewhere in space."""
    generator = np.random.default_rng(seed)
    positions = generator.uniform(size=(num_atoms, 3)) * np.array(extent) + np.array([3.0, -40.0, 0.7])
    charges = generator.normal(size=(num_atoms, num_channels))
    charges += net_charge / num_atoms - charges.mean(0)
    return torch.tensor(positions), torch.tensor(charges)


def bounds_of(positions):
    return torch.stack([positions.amin(0), positions.amax(0)])


def mesh_plan(module, positions, accuracy, kspace="mesh"):
    return module.plan(NO_CELL, NO_CELL, bounds_of(positions), len(positions), kspace, accuracy, False)


def relative_difference(value, reference) -> float:
    return float(torch.linalg.norm(value - reference) / torch.linalg.norm(reference))


#: Atoms, extent (Å), net charge.
CLUSTERS = {
    "small": (200, (14.0, 14.0, 14.0), 0.0),
    "large": (800, (21.0, 20.0, 22.0), 0.0),
    "elongated": (300, (5.0, 5.0, 80.0), 0.0),
    "flat": (300, (25.0, 22.0, 4.0), 0.0),
    "charged": (400, (17.0, 17.0, 17.0), 12.0),
}


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        ("small", 0.7), ("small", 1.0), ("small", 2.0), ("large", 1.0), ("elongated", 0.7), ("elongated", 1.0),
        ("elongated", 2.0), ("flat", 1.0), ("charged", 1.0), ("charged", 2.0),
    ],
)  # fmt: skip
def test_error(name, sigma, accuracy):
    """The force error is below the accuracy asked for, and not wastefully so; potential and energy follow."""
    num_atoms, extent, net_charge = CLUSTERS[name]
    positions, charges = cluster(num_atoms, extent, net_charge=net_charge)
    module = LatentEwald(LongRangeParameters(sigma=sigma))
    plan = mesh_plan(module, positions, accuracy)
    assert int(plan["solver"]) == 3
    energies, potential, forces, _ = module(positions, charges, plan)
    exact = module(positions, charges, module.direct_plan(NO_CELL))
    assert accuracy / 100.0 <= relative_difference(forces, exact[2]) <= accuracy
    assert relative_difference(potential, exact[1]) <= accuracy
    assert relative_difference(energies, exact[0]) <= accuracy
    # The self-interactions dominate the potential; errors of the total energy are random and nearly cancel
    assert float((energies - exact[0]).sum().abs()) <= accuracy * float(torch.linalg.norm(exact[0])) * num_atoms**0.5


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0])
def test_error_of_neutral_molecules(sigma, accuracy):
    """Charges that screen each other at short distance, like those of a droplet."""
    generator = np.random.default_rng(7)
    molecule = np.array([[0.0, 0.0, 0.0], [0.7586, 0.5859, 0.0], [-0.7586, 0.5859, 0.0]])
    places = []
    for site in np.ndindex(5, 5, 5):
        rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
        places.append((np.array(site) + generator.uniform(-0.08, 0.08, 3)) * 3.1 + molecule @ rotation)
    positions = torch.tensor(np.concatenate(places))
    charges = torch.tensor(np.tile([-0.8, 0.4, 0.4], 125))[:, None]
    module = LatentEwald(LongRangeParameters(sigma=sigma))
    forces = module(positions, charges, mesh_plan(module, positions, accuracy))[2]
    exact = module(positions, charges, module.direct_plan(NO_CELL))[2]
    assert accuracy / 100.0 <= relative_difference(forces, exact) <= accuracy


@pytest.mark.parametrize("remove_self_interaction", [True, False])
def test_self_interaction(remove_self_interaction):
    """The mesh has each Gaussian's interaction with itself; it is removed exactly like that of the pairs."""
    positions, charges = cluster(250, (15.0, 15.0, 15.0), num_channels=2)
    module = LatentEwald(LongRangeParameters(remove_self_interaction=remove_self_interaction))
    ours = module(positions, charges, mesh_plan(module, positions, 1e-6))
    exact = module(positions, charges, module.direct_plan(NO_CELL))
    for value, reference in zip(ours[:3], exact[:3], strict=True):
        assert relative_difference(value, reference) <= 1e-6
    assert relative_difference(ours[3], exact[3]) <= 3e-6


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0])
def test_two_charges_far_apart(sigma):
    """The pair energy C q q'/(2π r), to the accuracy of their self-interaction on the mesh."""
    constant = LongRangeParameters().norm_factor / (2.0 * np.pi)
    module = LatentEwald(LongRangeParameters(sigma=sigma))
    charges = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    for distance in (15.0, 60.0):
        direction = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3.0
        positions = torch.stack([0.0 * direction, distance * direction])
        energies, potential, forces, _ = module(positions, charges, mesh_plan(module, positions, 1e-6))
        error = 1e-5 * constant / sigma
        assert float(energies.sum()) == pytest.approx(-2.0 * constant / distance, abs=error)
        assert float(potential[0]) == pytest.approx(-2.0 * constant / distance, abs=error)
        expected = 2.0 * constant / distance**2 * direction
        torch.testing.assert_close(forces[0], expected, rtol=0.0, atol=error / sigma)


@pytest.mark.parametrize("accuracy", [5e-3, 1e-5])
def test_forces_and_potential_are_derivatives_of_the_mesh_energy(accuracy):
    """Energy is conserved whatever the accuracy."""
    module = LatentEwald(LongRangeParameters())
    positions, charges = cluster(60, (12.0, 9.0, 10.0), num_channels=2)
    plan = mesh_plan(module, positions, accuracy)
    _, potential, forces, _ = module(positions, charges, plan)
    scale = float(forces.abs().max())
    if accuracy > 1e-3:
        direct = module(positions, charges, module.direct_plan(NO_CELL))[2]
        assert float((forces - direct).abs().max()) > 1e-4 * scale
    for atom, axis in ((0, 0), (7, 1), (31, 2), (59, 0)):

        def energy(displacement, atom=atom, axis=axis):
            moved = positions.clone()
            moved[atom, axis] += displacement
            return float(module(moved, charges, plan)[0].sum())

        values = [energy(multiple * 1e-4) for multiple in (-2, -1, 1, 2)]
        derivative = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 12e-4
        assert -derivative == pytest.approx(float(forces[atom, axis]), rel=1e-7, abs=1e-7 * scale)
        more, less = charges.clone(), charges.clone()
        more[atom, 0] += 0.01
        less[atom, 0] -= 0.01
        difference = module(positions, more, plan)[0].sum() - module(positions, less, plan)[0].sum()
        assert float(difference) / 0.02 == pytest.approx(float(potential[atom, 0]), rel=1e-9, abs=1e-9)


def test_potential_is_symmetric():
    module = LatentEwald(LongRangeParameters())
    positions, first = cluster(200, (12.0, 13.0, 14.0))
    second = torch.tensor(np.random.default_rng(8).normal(size=first.shape))
    plan = mesh_plan(module, positions, 1e-3)
    of_first, of_second = module(positions, first, plan)[1], module(positions, second, plan)[1]
    assert float((first * of_second).sum()) == pytest.approx(float((second * of_first).sum()), rel=1e-11)


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5])
def test_strain_derivative(accuracy):
    """Against finite strain of the sum over all pairs, to the accuracy."""
    module = LatentEwald(LongRangeParameters())
    positions, charges = cluster(300, (14.0, 17.0, 20.0))
    _, _, _, ours = module(positions, charges, mesh_plan(module, positions, accuracy))
    expected = torch.zeros(3, 3, dtype=torch.float64)
    step = 1e-4
    for a in range(3):
        for b in range(3):
            values = []
            for multiple in (-2, -1, 1, 2):
                deformation = torch.eye(3, dtype=torch.float64)
                deformation[a, b] += 0.5 * multiple * step
                deformation[b, a] += 0.5 * multiple * step
                values.append(module.energy(positions @ deformation, charges, NO_CELL))
            expected[a, b] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    assert relative_difference(ours, expected) <= 3.0 * accuracy


def test_place_in_space_matters_to_the_accuracy_only():
    module = LatentEwald(LongRangeParameters())
    positions, charges = cluster(200, (14.0, 12.0, 13.0))
    energies, potential, forces, strain_derivative = module(positions, charges, mesh_plan(module, positions, 1e-6))
    shift = torch.tensor([1.234e3, -5.67, 0.89], dtype=torch.float64)
    # With its mesh the system moves as a whole
    moved = module(positions + shift, charges, mesh_plan(module, positions + shift, 1e-6))
    torch.testing.assert_close(moved[0], energies, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved[2], forces, rtol=1e-9, atol=1e-9)
    # Within its mesh it moves over it
    plan = mesh_plan(module, positions, 1e-6)
    shift = torch.tensor([0.31, -0.47, 0.63], dtype=torch.float64)
    moved = module(positions + shift, charges, plan)
    assert 0.0 < relative_difference(moved[2], forces) < 2e-6
    assert relative_difference(moved[1], potential) < 2e-6
    assert relative_difference(moved[3], strain_derivative) < 1e-5


def test_atom_beyond_the_bounds():
    """A plan holds within its bounds, which have a margin, and says so where it does not."""
    module = LatentEwald(LongRangeParameters())
    positions, charges = cluster(200, (14.0, 14.0, 14.0))
    plan = mesh_plan(module, positions, 1e-4)
    direct = module.direct_plan(NO_CELL)
    assert (plan["bounds"][0] <= positions.amin(0) - 2.0).all()
    assert (plan["bounds"][1] >= positions.amax(0) + 2.0).all()
    for axis in range(3):
        for side in range(2):
            moved = positions.clone()
            moved[11, axis] = plan["bounds"][side, axis]
            # At the bounds the mesh is still as good as elsewhere
            difference = relative_difference(module(moved, charges, plan)[2], module(moved, charges, direct)[2])
            assert difference <= 1e-4
            field, _ = module.solve(module.spread(positions, charges, plan), 1, plan)
            moved[11, axis] += (2 * side - 1) * 2.0
            with pytest.raises(RuntimeError, match=r"left the mesh of an isolated system.* bounds"):
                module.spread(moved, charges, plan)
            with pytest.raises(RuntimeError, match=r"left the mesh of an isolated system.* bounds"):
                module.gather(field, moved, charges, plan)


def test_densities_of_disjoint_atoms_add_up():
    module = LatentEwald(LongRangeParameters())
    positions, charges = cluster(100, (10.0, 12.0, 9.0), num_channels=2)
    plan = mesh_plan(module, positions, 1e-4)
    parts = [slice(0, 33), slice(33, 33), slice(33, None)]
    density = sum(module.spread(positions[part], charges[part], plan) for part in parts)
    torch.testing.assert_close(density, module.spread(positions, charges, plan), rtol=1e-12, atol=1e-12)
    field, _ = module.solve(density, 2, plan)
    gathered = [module.gather(field, positions[part], charges[part], plan) for part in parts]
    _, potential, forces, strain_derivative = module(positions, charges, plan)
    torch.testing.assert_close(torch.cat([part[0] for part in gathered]), potential, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(torch.cat([part[1] for part in gathered]), forces, rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(sum(part[2] for part in gathered), strain_derivative, rtol=1e-11, atol=1e-10)


def test_channels_add_up_and_do_not_mix():
    module = LatentEwald(LongRangeParameters())
    positions, charges = cluster(100, (10.0, 12.0, 9.0), num_channels=3)
    plan = mesh_plan(module, positions, 1e-4)
    energies, potential, forces, _ = module(positions, charges, plan)
    single = [module(positions, charges[:, channel : channel + 1], plan) for channel in range(3)]
    torch.testing.assert_close(energies, sum(s[0] for s in single), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(potential, torch.cat([s[1] for s in single], dim=1), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(forces, sum(s[2] for s in single), rtol=1e-12, atol=1e-11)


def test_choice_of_the_solver():
    """auto: few atoms by pairs, many on the mesh, and by pairs where a mesh would be mostly empty."""
    module = LatentEwald(LongRangeParameters())
    chosen = []
    for num_atoms in (2, 100, 1000, 10_000, 30_000):
        bounds = torch.zeros(2, 3, dtype=torch.float64)
        bounds[1] = (num_atoms / 0.1) ** (1.0 / 3.0)
        plan = module.plan(NO_CELL, NO_CELL, bounds, num_atoms, "auto", 1e-4, False)
        chosen.append(int(plan["solver"]))
    assert chosen[:2] == [2, 2]
    assert chosen[-1] == 3
    assert chosen == sorted(chosen)
    bounds[1] = 2000.0
    assert int(module.plan(NO_CELL, NO_CELL, bounds, 10_000, "auto", 1e-4, False)["solver"]) == 2
    with pytest.raises(RuntimeError, match=r"more than 1\.5e9 points: use kspace ewald"):
        module.plan(NO_CELL, NO_CELL, bounds, 10_000, "mesh", 1e-4, False)
    assert module.describe(module.direct_plan(NO_CELL)) == "all pairs"


def test_scripted_module_is_the_same():
    module = LatentEwald(LongRangeParameters(sigma=0.8))
    scripted = torch.jit.script(module)
    positions, charges = cluster(150, (12.0, 11.0, 9.0), num_channels=2)
    plan, scripted_plan = (mesh_plan(some, positions, 1e-5) for some in (module, scripted))
    assert plan.keys() == scripted_plan.keys()
    assert module.describe(plan) == scripted.describe(scripted_plan)
    assert module.describe(plan).startswith("isolated mesh ")
    for value, expected in zip(
        scripted(positions, charges, scripted_plan), module(positions, charges, plan), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("num_atoms", [1, 2])
def test_fewest_atoms(num_atoms):
    """One atom has no extent; two atoms on top of each other have none either."""
    module = LatentEwald(LongRangeParameters())
    positions = torch.full((num_atoms, 3), 7.5, dtype=torch.float64)
    charges = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)[:num_atoms]
    ours = module(positions, charges, mesh_plan(module, positions, 1e-6))
    exact = module(positions, charges, module.direct_plan(NO_CELL))
    for value, reference in zip(ours, exact, strict=True):
        torch.testing.assert_close(value, reference, rtol=0.0, atol=1e-5 * 14.4)


def test_a_mesh_that_would_be_too_large():
    """Atoms far from the others: auto goes on with all pairs, mesh is refused."""
    module = LatentEwald(LongRangeParameters())
    cell = torch.zeros(3, 3, dtype=torch.float64)
    bounds = torch.tensor([[0.0, 0.0, 0.0], [900.0, 900.0, 900.0]], dtype=torch.float64)
    assert module.describe(module.plan(cell, cell, bounds, 1_000_000, "auto", 1e-5, False)) == "all pairs"
    with pytest.raises(RuntimeError, match=r"more than 1\.5e9 points: use kspace ewald"):
        module.plan(cell, cell, bounds, 1_000_000, "mesh", 1e-5, False)
