"""The mesh of periodic systems: as accurate as it says, and exact in everything that does not depend on accuracy."""

import math

import numpy as np
import pytest
import torch

from les_md.electrostatics import LatentEwald, LongRangeParameters, mesh

BOUNDS = torch.zeros(2, 3, dtype=torch.float64)


def triclinic(edges, angles_like) -> np.ndarray:
    """Cell with the given edges, the second and third vector tilted by fractions of the first and second edge."""
    xy, xz, yz = angles_like
    a, b, c = edges
    second = np.array([xy, 1.0, 0.0])
    third = np.array([xz, yz, 1.0])
    return np.stack([[a, 0.0, 0.0], b * second / np.linalg.norm(second), c * third / np.linalg.norm(third)])


CELLS = {
    "cubic": np.diag([13.0, 13.0, 13.0]),
    "triclinic": triclinic([16.0, 15.0, 17.0], [0.5, -0.6, 0.7]),
    "elongated": np.diag([9.0, 12.0, 40.0]),
    "long": np.diag([9.0, 12.0, 70.0]),
    "left-handed": np.array([[0.0, 12.3, 0.4], [14.1, 0.0, 0.0], [0.3, -3.0, 11.7]]),
    "tiny": np.diag([2.1, 2.6, 2.9]),
}


def random_system(name: str, density: float, net_charge: float = 0.0, num_channels: int = 1, seed: int = 5):
    """Independent charges at independent places, some outside the cell."""
    generator = np.random.default_rng(seed)
    cell = CELLS[name]
    num_atoms = max(3, round(density * abs(np.linalg.det(cell))))
    positions = generator.uniform(-0.4, 1.5, (num_atoms, 3)) @ cell
    charges = generator.normal(size=(num_atoms, num_channels))
    charges += net_charge / num_atoms - charges.mean(0)
    return torch.tensor(positions), torch.tensor(charges), torch.tensor(cell)


def random_water(edge_count: int = 4, spacing: float = 3.1, seed: int = 7):
    """Rigid molecules on a grid, turned at random: like water, charges are correlated at short distance."""
    generator = np.random.default_rng(seed)
    molecule = np.array([[0.0, 0.0, 0.0], [0.7586, 0.5859, 0.0], [-0.7586, 0.5859, 0.0]])
    positions = []
    for site in np.ndindex(edge_count, edge_count, edge_count):
        rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
        positions.append((np.array(site) + generator.uniform(-0.08, 0.08, 3)) * spacing + molecule @ rotation)
    charges = np.tile([-0.8, 0.4, 0.4], edge_count**3)
    cell = np.eye(3) * edge_count * spacing
    return torch.tensor(np.concatenate(positions)), torch.tensor(charges)[:, None], torch.tensor(cell)


def water(shared):
    """A configuration of the training data of the reference models."""
    lines = (shared / "data" / "water_rpbe_d3.xyz").read_text().splitlines()
    count = int(lines[0])
    cell = np.array(lines[1].split('Lattice="')[1].split('"')[0].split(), dtype=float).reshape(3, 3)
    atoms = [line.split() for line in lines[2 : 2 + count]]
    charges = np.array([{"O": -0.8, "H": 0.4}[atom[0]] for atom in atoms])
    positions = np.array([atom[1:4] for atom in atoms], dtype=float)
    return torch.tensor(positions), torch.tensor(charges)[:, None], torch.tensor(cell)


def mesh_plan(module, cell, num_atoms, accuracy, *, kset_cell=None, slab=False):
    return module.plan(cell, cell if kset_cell is None else kset_cell, BOUNDS, num_atoms, "mesh", accuracy, slab)


def force_error(module, positions, charges, cell, accuracy) -> float:
    """Relative root-mean-square difference between the forces of the mesh and of the direct sum."""
    plan = mesh_plan(module, cell, len(positions), accuracy)
    assert int(plan["solver"]) == 1
    direct = module(positions, charges, module.direct_plan(cell))[2]
    return float(torch.linalg.norm(module(positions, charges, plan)[2] - direct) / torch.linalg.norm(direct))


#: System, σ, dl, accuracy: every kind of cell, width and resolution, and every accuracy several times.
ERROR_CASES = [
    ("cubic", 0.7, 1.0, 1e-3), ("cubic", 0.7, 1.0, 1e-5), ("cubic", 0.7, 3.0, 1e-6), ("cubic", 1.0, 2.0, 1e-3),
    ("cubic", 1.0, 2.0, 1e-4), ("cubic", 1.0, 2.0, 1e-5), ("cubic", 1.0, 2.0, 1e-6), ("cubic", 1.0, 2.0, 1e-7),
    ("cubic", 2.0, 3.0, 1e-4), ("cubic", 1.5, 2.0, 1e-7), ("dense", 1.0, 2.0, 1e-5), ("dense", 1.0, 3.0, 1e-7),
    ("dilute", 1.0, 2.0, 1e-5), ("dilute", 1.5, 3.0, 1e-3), ("triclinic", 1.0, 2.0, 1e-3),
    ("triclinic", 1.0, 2.0, 1e-5), ("triclinic", 0.7, 1.0, 1e-4), ("triclinic", 1.5, 3.0, 1e-6),
    ("triclinic", 2.0, 3.0, 1e-7), ("elongated", 1.0, 1.0, 1e-7), ("elongated", 1.5, 3.0, 1e-5),
    ("long", 1.0, 2.0, 1e-4), ("long", 2.0, 2.0, 1e-6), ("left-handed", 1.0, 2.0, 1e-4),
    ("left-handed", 0.7, 2.0, 1e-6), ("left-handed", 2.0, 1.0, 1e-3), ("charged", 1.0, 2.0, 1e-5),
    ("charged", 1.5, 3.0, 1e-3), ("charged", 0.7, 2.0, 1e-7),
]  # fmt: skip
#: The same for water.
WATER_CASES = [
    (0.7, 1.0, 1e-4), (0.7, 3.0, 1e-6), (1.0, 1.0, 1e-5), (1.0, 2.0, 1e-3), (1.0, 2.0, 1e-4), (1.0, 2.0, 1e-5),
    (1.0, 2.0, 1e-6), (1.0, 2.0, 1e-7), (1.5, 2.0, 1e-5), (1.5, 3.0, 1e-3), (2.0, 3.0, 1e-4),
]  # fmt: skip


def random_case(name: str):
    if name == "charged":
        return random_system("cubic", 0.10, net_charge=8.0)
    if name in ("dense", "dilute"):
        return random_system("cubic", {"dense": 0.12, "dilute": 0.05}[name], seed=9)
    return random_system(name, 0.05 if name == "long" else 0.08)


@pytest.mark.parametrize(("name", "sigma", "dl", "accuracy"), ERROR_CASES)
def test_error_of_random_charges(name, sigma, dl, accuracy):
    """The force error is below the accuracy asked for, and not wastefully so."""
    module = LatentEwald(LongRangeParameters(sigma=sigma, dl=dl))
    error = force_error(module, *random_case(name), accuracy)
    assert accuracy / 100.0 <= error <= accuracy


@pytest.mark.parametrize(("sigma", "dl", "accuracy"), WATER_CASES)
def test_error_of_water(shared, sigma, dl, accuracy):
    module = LatentEwald(LongRangeParameters(sigma=sigma, dl=dl))
    assert accuracy / 100.0 <= force_error(module, *water(shared), accuracy) <= accuracy


@pytest.mark.parametrize(("sigma", "dl", "accuracy"), WATER_CASES)
def test_error_of_randomly_turned_molecules(sigma, dl, accuracy):
    module = LatentEwald(LongRangeParameters(sigma=sigma, dl=dl))
    assert accuracy / 100.0 <= force_error(module, *random_water(), accuracy) <= accuracy


@pytest.mark.parametrize(
    ("sigma", "dl", "accuracy"),
    [(0.7, 1.0, 1e-3), (1.0, 1.0, 1e-5), (1.0, 1.0, 1e-7), (1.0, 2.0, 1e-5), (1.5, 2.0, 1e-5)],
)
def test_cell_smaller_than_the_window(sigma, dl, accuracy):
    """Three atoms in a cell of 2 Å, where windows overlap with themselves."""
    module = LatentEwald(LongRangeParameters(sigma=sigma, dl=dl))
    assert force_error(module, *random_system("tiny", 0.08), accuracy) <= accuracy


@pytest.mark.parametrize("name", ["triclinic", "left-handed"])
def test_energy_potential_and_strain_converge_with_the_forces(name):
    module = LatentEwald(LongRangeParameters())
    positions, charges, cell = random_system(name, 0.06, num_channels=2)
    exact = module(positions, charges, module.direct_plan(cell))
    for accuracy in (1e-3, 1e-5, 1e-7):
        ours = module(positions, charges, mesh_plan(module, cell, len(positions), accuracy))
        for value, reference in zip(ours, exact, strict=True):
            difference = torch.linalg.norm(value - reference) / torch.linalg.norm(reference)
            assert float(difference) <= accuracy


def derivative_of(energy, step: float) -> float:
    values = [float(energy(multiple * step)) for multiple in (-2, -1, 1, 2)]
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


@pytest.mark.parametrize("name", ["cubic", "triclinic", "left-handed", "tiny"])
def test_forces_are_derivatives_of_the_mesh_energy(name):
    """At an accuracy at which they visibly differ from the direct sum: energy is conserved whatever the accuracy."""
    module = LatentEwald(LongRangeParameters(dl=1.5))
    positions, charges, cell = random_system(name, 0.05, num_channels=2)
    plan = mesh_plan(module, cell, len(positions), 5e-3)
    _, _, forces, _ = module(positions, charges, plan)
    scale = float(forces.abs().max())
    direct = module(positions, charges, module.direct_plan(cell))[2]
    assert float((forces - direct).abs().max()) > 1e-4 * scale
    for atom, axis in ((0, 0), (1, 1), (2, 2), (len(positions) - 1, 0)):

        def energy(displacement, atom=atom, axis=axis):
            moved = positions.clone()
            moved[atom, axis] += displacement
            return module(moved, charges, plan)[0].sum()

        # A window edge within the difference, where only the slope is continuous, spoils it to O(step)
        assert -derivative_of(energy, 1e-4) == pytest.approx(float(forces[atom, axis]), rel=1e-7, abs=1e-7 * scale)


@pytest.mark.parametrize("name", ["triclinic", "left-handed"])
def test_potential_is_the_derivative_with_respect_to_charges(name):
    """The map from charges to potential is linear and symmetric, whatever the accuracy."""
    module = LatentEwald(LongRangeParameters())
    positions, first, cell = random_system(name, 0.06)
    second = torch.tensor(np.random.default_rng(8).normal(size=first.shape))
    plan = mesh_plan(module, cell, len(positions), 1e-3)
    energies, of_first, _, _ = module(positions, first, plan)
    _, of_second, _, _ = module(positions, second, plan)
    _, of_both, _, _ = module(positions, 2.0 * first - 3.0 * second, plan)
    torch.testing.assert_close(of_both, 2.0 * of_first - 3.0 * of_second, rtol=1e-11, atol=1e-10)
    assert float((first * of_second).sum()) == pytest.approx(float((second * of_first).sum()), rel=1e-11)
    assert float(energies.sum()) == pytest.approx(0.5 * float((first * of_first).sum()), rel=1e-12)
    for atom in (0, len(positions) // 2):

        def energy(added, atom=atom):
            charges = first.clone()
            charges[atom] += added
            return module(positions, charges, plan)[0].sum()

        assert derivative_of(energy, 1e-2) == pytest.approx(float(of_first[atom]), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ["cubic", "triclinic", "left-handed", "tiny"])
def test_strain_derivative_of_the_mesh_energy(name):
    """Against finite strain at a fixed set of wave vectors and a fixed mesh."""
    module = LatentEwald(LongRangeParameters(dl=1.5))
    positions, charges, cell = random_system(name, 0.05, num_channels=2)
    plan = mesh_plan(module, cell, len(positions), 5e-3)
    _, _, _, strain_derivative = module(positions, charges, plan)
    torch.testing.assert_close(strain_derivative, strain_derivative.T, rtol=1e-11, atol=1e-10)
    scale = float(strain_derivative.abs().max())
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):

        def energy(strain, a=a, b=b):
            deformation = torch.eye(3, dtype=torch.float64)
            deformation[a, b] += 0.5 * strain
            deformation[b, a] += 0.5 * strain
            strained = cell @ deformation
            fixed = mesh_plan(module, strained, len(positions), 5e-3, kset_cell=cell)
            assert torch.equal(fixed["shape"], plan["shape"])
            return module(positions @ deformation, charges, fixed)[0].sum()

        expected = float(strain_derivative[a, b])
        assert derivative_of(energy, 1e-4) == pytest.approx(expected, rel=1e-8, abs=1e-8 * scale)


def test_channels_add_up_and_do_not_mix():
    module = LatentEwald(LongRangeParameters())
    positions, charges, cell = random_system("triclinic", 0.05, num_channels=3)
    plan = mesh_plan(module, cell, len(positions), 1e-4)
    energies, potential, forces, strain_derivative = module(positions, charges, plan)
    single = [module(positions, charges[:, channel : channel + 1], plan) for channel in range(3)]
    torch.testing.assert_close(energies, sum(s[0] for s in single), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(potential, torch.cat([s[1] for s in single], dim=1), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(forces, sum(s[2] for s in single), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(strain_derivative, sum(s[3] for s in single), rtol=1e-12, atol=1e-10)


def test_densities_of_disjoint_atoms_add_up():
    """What lets N processes share the work; a process may hold no atom."""
    module = LatentEwald(LongRangeParameters())
    positions, charges, cell = random_system("triclinic", 0.05, num_channels=2)
    plan = mesh_plan(module, cell, len(positions), 1e-4)
    parts = [slice(0, 17), slice(17, 17), slice(17, None)]
    density = sum(module.spread(positions[part], charges[part], plan) for part in parts)
    torch.testing.assert_close(density, module.spread(positions, charges, plan), rtol=1e-12, atol=1e-11)
    field, strain_derivative = module.solve(density, 2, plan)
    whole = module(positions, charges, plan)
    torch.testing.assert_close(strain_derivative, whole[3], rtol=1e-12, atol=1e-10)
    for part in parts:
        potential, forces, _ = module.gather(field, positions[part], charges[part], plan)
        torch.testing.assert_close(potential, whole[1][part], rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(forces, whole[2][part], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
@pytest.mark.parametrize("name", ["triclinic", "isolated"])
def test_no_atoms(name, kspace, scripted):
    """A process without atoms: zero density, empty results, whatever the solver."""
    module = LatentEwald(LongRangeParameters())
    module = torch.jit.script(module) if scripted else module
    cell = torch.zeros(3, 3, dtype=torch.float64) if name == "isolated" else torch.tensor(CELLS[name])
    bounds = torch.tensor([[0.0, 0.0, 0.0], [9.0, 8.0, 7.0]], dtype=torch.float64)
    positions = torch.tensor(np.random.default_rng(3).uniform(0.0, 7.0, (5, 3)))
    charges = torch.ones(5, 2, dtype=torch.float64)
    plan = module.plan(cell, cell, bounds, 5, kspace, 1e-4, False)
    nothing = module.spread(positions[:0], charges[:0], plan)
    assert (nothing == 0.0).all()
    density = module.spread(positions, charges, plan)
    if int(plan["solver"]) == 2:
        assert nothing.shape == (0,)
    else:
        assert nothing.shape == density.shape
    field, _ = module.solve(density, 2, plan)
    potential, forces, strain_derivative = module.gather(field, positions[:0], charges[:0], plan)
    assert potential.shape == (0, 2)
    assert forces.shape == (0, 3)
    assert (strain_derivative == 0.0).all()
    energies, potential, forces, strain_derivative = module(positions[:0], charges[:0], plan)
    assert energies.shape == (0,)
    assert potential.shape == (0, 2)
    assert forces.shape == (0, 3)
    assert (strain_derivative == 0.0).all()


@pytest.mark.parametrize("accuracy", [1e-3, 1e-6])
def test_lattice_translations(accuracy):
    """Atoms on faces of the cell and many cells away, up to rounding."""
    module = LatentEwald(LongRangeParameters())
    positions, charges, cell = random_system("triclinic", 0.05)
    generator = np.random.default_rng(11)
    fractional = torch.remainder(positions @ torch.linalg.inv(cell), 1.0)
    on_a_face = torch.tensor(generator.integers(0, 3, fractional.shape) == 0)
    fractional[on_a_face] = 0.0
    plan = mesh_plan(module, cell, len(positions), accuracy)
    reference = module(fractional @ cell, charges, plan)
    moved = [fractional + torch.tensor(generator.integers(-9, 10, fractional.shape)) for _ in range(3)]
    for face in (1.0, 1.0 - 1e-16, 1.0 - 1e-17, -1e-17, -1e-300, -0.0, 5e-17):
        moved.append(torch.where(on_a_face, torch.tensor(face, dtype=torch.float64), fractional))
    for coordinates in moved:
        results = module(coordinates @ cell, charges, plan)
        for value, expected in zip(results, reference, strict=True):
            # On a mesh point rounding chooses between two polynomials of the window
            torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-10)


def test_faces_of_a_cell_whose_fractions_are_exact():
    """In a cubic cell with an edge of 2ⁿ fractional coordinates are not rounded: the faces are met exactly."""
    module = LatentEwald(LongRangeParameters())
    cell = torch.eye(3, dtype=torch.float64) * 16.0
    charges = torch.tensor(np.random.default_rng(2).normal(size=(8, 1)))
    corners = torch.tensor(list(np.ndindex(2, 2, 2)), dtype=torch.float64)
    for accuracy in (2e-3, 1e-4, 1e-5, 1e-6):
        plan = mesh_plan(module, cell, 300, accuracy)
        shifted = corners * 0.25
        reference = module(shifted @ cell, charges, plan)
        for face in (1.0, -1e-17, 1.0 - 1e-17, 1.0 - 2.0**-53, -3.0, 2.0**20):
            results = module(torch.where(shifted == 0.0, face, shifted) @ cell, charges, plan)
            # Just below a mesh point another polynomial of the window holds
            for value, expected in zip(results, reference, strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-10)


def test_choice_of_the_solver():
    """auto: few atoms directly, many on the mesh; it depends on the cell and the number of atoms alone."""
    module = LatentEwald(LongRangeParameters())
    rotation, _ = torch.linalg.qr(torch.tensor(np.random.default_rng(1).normal(size=(3, 3))))
    chosen = []
    for num_atoms in (3, 100, 1000, 10_000, 100_000):
        cell = torch.eye(3, dtype=torch.float64) * (num_atoms / 0.1) ** (1.0 / 3.0)
        plan = module.plan(cell, cell, BOUNDS, num_atoms, "auto", 1e-5, False)
        chosen.append(int(plan["solver"]))
        for other_bounds, other_cell in ((BOUNDS + 5.0, cell), (BOUNDS, cell @ rotation)):
            other = module.plan(other_cell, other_cell, other_bounds, num_atoms, "auto", 1e-5, False)
            assert module.describe(other) == module.describe(plan)
    assert chosen[0] == 0
    assert chosen[-2:] == [1, 1]
    assert chosen == sorted(chosen)
    cell = torch.tensor(CELLS["triclinic"])
    for kspace, solver in (("ewald", 0), ("mesh", 1)):
        for num_atoms in (1, 10_000):
            plan = module.plan(cell, cell, BOUNDS, num_atoms, kspace, 1e-5, False)
            assert int(plan["solver"]) == solver
    assert module.describe(module.direct_plan(cell)).startswith("ewald, ")
    assert module.describe(mesh_plan(module, cell, 100, 1e-5)).startswith("mesh ")


@pytest.mark.parametrize("kspace", ["ewald", "mesh", "auto"])
def test_scripted_module_is_the_same(kspace):
    module = LatentEwald(LongRangeParameters(sigma=0.8, dl=1.7))
    scripted = torch.jit.script(module)
    positions, charges, cell = random_system("triclinic", 0.06, num_channels=2)
    plan = module.plan(cell, cell, BOUNDS, len(positions), kspace, 1e-5, False)
    scripted_plan = scripted.plan(cell, cell, BOUNDS, len(positions), kspace, 1e-5, False)
    assert plan.keys() == scripted_plan.keys()
    assert module.describe(plan) == scripted.describe(scripted_plan)
    for value, expected in zip(
        scripted(positions, charges, scripted_plan), module(positions, charges, plan), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("kspace", ["mesh", "auto"])
@pytest.mark.parametrize("accuracy", [1e-12, 0.5, 0.0, -1.0, math.nan, math.inf])
def test_accuracy_out_of_reach(accuracy, kspace):
    module = LatentEwald(LongRangeParameters())
    cell = torch.tensor(CELLS["cubic"])
    isolated = torch.zeros(3, 3, dtype=torch.float64)
    for some_cell in (cell, isolated):
        with pytest.raises(RuntimeError, match=r"out of reach of the mesh: give a relative force error .* to 0\.1"):
            module.plan(some_cell, some_cell, BOUNDS, 100, kspace, accuracy, False)
        module.plan(some_cell, some_cell, BOUNDS, 100, "ewald", accuracy, False)  # has no use for it


@pytest.mark.parametrize("kspace", ["", "pppm", "Mesh"])
def test_unknown_kspace(kspace):
    module = LatentEwald(LongRangeParameters())
    cell = torch.tensor(CELLS["cubic"])
    with pytest.raises(RuntimeError, match=f"unknown kspace '{kspace}': give auto, ewald or mesh"):
        module.plan(cell, cell, BOUNDS, 100, kspace, 1e-5, False)


@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
def test_fixed_set_of_wave_vectors(kspace):
    """kset_cell keeps the sum continuous where a growing cell would add wave vectors."""
    module = LatentEwald(LongRangeParameters(dl=2.0))
    fractional = torch.tensor(np.random.default_rng(4).uniform(size=(150, 3)))
    charges = torch.tensor(np.random.default_rng(6).normal(size=(150, 1)))
    # 12 Å is a multiple of dl
    below, above = (torch.eye(3, dtype=torch.float64) * 12.0 * (1.0 + strain) for strain in (-1e-6, 1e-6))

    def result(cell, kset_cell):
        plan = module.plan(cell, kset_cell, BOUNDS, 150, kspace, 1e-4, False)
        energies, _, _, strain_derivative = module(fractional @ cell, charges, plan)
        return float(energies.sum()), float(torch.trace(strain_derivative)), int((plan["weight"] > 0.0).sum())

    smaller, larger = result(below, below), result(above, above)
    kept = result(above, below)
    assert kept[2] == smaller[2] < larger[2]
    change = 1e-6 * (smaller[1] + kept[1])
    assert kept[0] - smaller[0] == pytest.approx(change, rel=1e-4)
    assert abs(larger[0] - smaller[0]) > 100.0 * abs(change)


def test_blocks_do_not_change_the_result(monkeypatch):
    module = LatentEwald(LongRangeParameters())
    positions, charges, cell = random_system("left-handed", 0.02, num_channels=2)
    assert len(positions) % 3 != 0
    plan = mesh_plan(module, cell, len(positions), 1e-4)
    whole = module(positions, charges, plan)
    monkeypatch.setattr(mesh, "_atoms_per_block", lambda points: 3)
    for value, expected in zip(module(positions, charges, plan), whole, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-11)


def test_workspace_is_bounded():
    for points in (64, 512, 1000):
        assert mesh._atoms_per_block(points) * points <= 1 << 21


@pytest.mark.parametrize(("sigma", "dl"), [(0.7, 1.0), (1.0, 2.0), (1.5, 3.0), (2.0, 2.0)])
def test_the_accuracy_that_a_refusal_names_is_accepted(sigma, dl):
    module = LatentEwald(LongRangeParameters(sigma=sigma, dl=dl))
    for cell in (torch.eye(3, dtype=torch.float64) * 12.0, torch.zeros(3, 3, dtype=torch.float64)):
        with pytest.raises(RuntimeError) as refusal:
            module.plan(cell, cell, BOUNDS, 100, "mesh", 1e-15, False)
        named = float(str(refusal.value).split("force error from ")[1].split()[0])
        assert "order" in module.describe(module.plan(cell, cell, BOUNDS, 100, "mesh", named, False))


@pytest.mark.parametrize("solver", [1, 3])
def test_parts_for_engines_are_spread_and_gather(solver):
    """What an engine with its own operators calls, with the operators of ``mesh.py``."""
    positions, charges, cell = random_system("triclinic", 0.02, num_channels=2)
    module = torch.jit.script(LatentEwald(LongRangeParameters()))
    if solver == 1:
        plan = mesh_plan(module, cell, len(positions), 1e-4, slab=True)
    else:
        bounds = torch.stack([positions.min(0).values, positions.max(0).values])
        plan = module.plan(torch.zeros_like(cell), cell, bounds, len(positions), "mesh", 1e-4, False)
    assert int(plan["solver"]) == solver
    coordinates, shape = module.mesh_coordinates(positions, plan)
    spread = mesh.spread_on_mesh(coordinates, charges, shape, plan["polynomials"])
    density = module.density_of_mesh(spread, positions, charges, plan)
    assert torch.equal(density, module.spread(positions, charges, plan))
    field, _strain = module.solve(density, 2, plan)
    potential = module.mesh_of_field(field, 2, plan)
    assert list(potential.shape) == [2, *shape]
    values, derivatives = mesh.gather_from_mesh(potential, coordinates, plan["polynomials"])
    parts = module.gather_from_values(values, derivatives, field, positions, charges, plan)
    for part, whole in zip(parts, module.gather(field, positions, charges, plan), strict=True):
        assert torch.equal(part, whole)
