"""Latent dipoles, quadrupoles, κ and α: against sums written down plainly, charges in their place, and derivatives."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import erf

from les_md import Les
from les_md.electrostatics import LatentEwald, LongRangeParameters
from les_md.electrostatics.latent_layout import LatentLayout
from les_md.electrostatics.multipole_ewald import MultipoleEwald
from les_md.electrostatics.multipole_pairs import boys_functions, kernel_derivatives
from les_md.electrostatics.multipole_sources import self_values
from tests.electrostatics.multipole_systems import (
    ALL,
    LAYOUTS,
    PERMANENT,
    energy_of_charges,
    random_latent,
    rotated,
    split,
)

NO_BOUNDS = torch.zeros(2, 3, dtype=torch.float64)
CELL = torch.tensor([[6.5, 0.0, 0.0], [0.4, 7.0, 0.0], [-0.3, 0.6, 8.0]], dtype=torch.float64)
ISOLATED = torch.zeros(3, 3, dtype=torch.float64)
#: Name: cell, kspace, slab.
SYSTEMS = {
    "direct": (CELL, "ewald", False),
    "mesh": (CELL, "mesh", False),
    "left-handed": (CELL[[1, 0, 2]], "ewald", False),
    "slab": (CELL, "ewald", True),
    "mesh of a slab": (CELL, "mesh", True),
    "isolated": (ISOLATED, "ewald", False),
}
#: Every kind of latent variable in two systems, all together in the others.
CASES = [(name, kind) for name in SYSTEMS for kind in LAYOUTS if name in ("direct", "isolated") or kind == "all"]


def atoms(count: int = 9, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, generator=generator, dtype=torch.float64) @ CELL


def plan_of(module, name: str, count: int, cell=None):
    unstrained, kspace, slab = SYSTEMS[name]
    cell = unstrained if cell is None else cell
    return module.plan(cell, unstrained, NO_BOUNDS, count, kspace, 1e-5, slab)


def wave_vectors_of(cell: np.ndarray, dl: float) -> np.ndarray:
    """All k of the truncated sum, by enumeration."""
    limits = [max(1, int(np.linalg.norm(edge) / dl)) for edge in cell]
    n = np.array(list(np.ndindex(*(2 * limit + 1 for limit in limits)))) - limits
    k = n @ (2.0 * math.pi * np.linalg.inv(cell).T)
    squared = (k**2).sum(1)
    return k[(squared > 0.0) & (squared <= (2.0 * math.pi / dl) ** 2)]


def plain_periodic(positions, latent, layout, cell, parameters):
    """Energy, and values of charges and dipoles, of the sum as it is written down, in complex NumPy arithmetic."""
    q, u, quadrupoles, kappa, alpha = split(latent, layout)
    k = wave_vectors_of(cell, parameters.dl)
    phases = np.exp(1j * positions @ k.T)[:, None, :]
    squared = (k**2).sum(1)
    w = parameters.norm_factor / abs(np.linalg.det(cell)) * np.exp(-0.5 * parameters.sigma**2 * squared) / squared
    source = q[:, :, None] + 1j * u @ k.T - 0.5 * np.einsum("kx,ncxy,ky->nck", k, quadrupoles, k)
    structure = (source * phases).sum(0)
    potential = 2.0 * (w * structure * phases.conj()).real.sum(2)
    slope = 2.0 * np.einsum("nck,kx->ncx", w * structure * phases.conj() * 1j, k).real  # −∂φ/∂r
    unit = parameters.norm_factor / (2.0 * math.pi) ** 1.5
    sigma = parameters.sigma
    energy = (w * np.abs(structure) ** 2).sum()
    if parameters.remove_self_interaction:
        energy -= unit * (q**2).sum() / sigma
        energy -= unit * (u**2).sum() / (3.0 * sigma**3)
        energy -= unit * (quadrupoles**2).sum() / (10.0 * sigma**5)
        potential = potential - 2.0 * unit * q / sigma
        slope = slope - 2.0 * unit * u / (3.0 * sigma**3) * -1.0
    return energy - 0.5 * (kappa * potential**2).sum() - 0.5 * (alpha[:, :, None] * slope**2).sum()


@pytest.mark.parametrize("remove_self_interaction", [True, False])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_periodic_energy_is_the_sum_written_down(kind, remove_self_interaction):
    layout = LAYOUTS[kind]
    parameters = LongRangeParameters(sigma=1.1, dl=1.9, remove_self_interaction=remove_self_interaction)
    positions, latent = atoms(), random_latent(9, layout)
    module = MultipoleEwald(parameters, layout)
    energy = float(module.energy(positions, latent, CELL))
    want = plain_periodic(positions.numpy(), latent.numpy(), layout, CELL.numpy(), parameters)
    assert energy == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(("sign_at", "order"), [(0.0, 0), (1.0, 1), (2.0, 2)])
def test_isolated_pair_is_analytic(sign_at, order):
    """Two charges, dipoles along and across, and axial quadrupoles, from derivatives of erf(r/√2σ)/r by hand."""
    parameters, distance = LongRangeParameters(), 2.3
    layout = LatentLayout(1, dipoles=True, quadrupoles=True)
    positions = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, distance]], dtype=torch.float64)
    constant = parameters.norm_factor / (2.0 * math.pi)

    def kernel(x, y, z):
        r = math.sqrt(x * x + y * y + z * z)
        return erf(r / (math.sqrt(2.0) * parameters.sigma)) / r

    def second(axis, h=1e-3):
        step = h * np.eye(3)[axis]
        at = np.array([0.0, 0.0, distance])
        return (kernel(*(at + step)) - 2.0 * kernel(*at) + kernel(*(at - step))) / h**2

    latent = torch.zeros(2, 10, dtype=torch.float64)
    if order == 0:
        latent[:, 0] = torch.tensor([0.7, -0.4])
        want = constant * 0.7 * -0.4 * kernel(0.0, 0.0, distance)
    elif order == 1:
        latent[:, 1:4] = torch.tensor([[0.3, 0.0, 0.5], [-0.2, 0.0, 0.6]], dtype=torch.float64)
        want = -constant * (0.3 * -0.2 * second(0) + 0.5 * 0.6 * second(2))  # −u·∇∇v·u'
    else:
        latent[0, 0] = 0.8
        latent[1, 4:7] = torch.tensor([-0.5, -0.5, 1.0], dtype=torch.float64)
        want = constant * 0.8 * 0.5 * (-0.5 * second(0) - 0.5 * second(1) + second(2))
    energy = MultipoleEwald(parameters, layout).energy(positions, latent, ISOLATED)
    assert float(energy) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", ["direct", "isolated", "slab"])
def test_multipoles_are_limits_of_charges(name):
    """Permanent sources as clouds of charges 0.02 and 0.04 Å apart, whose energy the charges' own sum has."""
    cell, _kspace, slab = SYSTEMS[name]
    parameters = LongRangeParameters(remove_self_interaction=False)
    layout = LatentLayout(1, dipoles=True, quadrupoles=True)
    positions, latent = atoms(), random_latent(9, layout)
    module = MultipoleEwald(parameters, layout)
    energy = module(positions, latent, plan_of(module, name, 9))[0].sum()
    want = energy_of_charges(parameters, positions, latent, layout, cell, slab)
    assert float(energy) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("remove_self_interaction", [True, False])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_forces_and_potential_are_derivatives(name, kind, remove_self_interaction):
    """Analytic ones against automatic differentiation of the energy, on the mesh those of the mesh's energy."""
    layout = LAYOUTS[kind]
    module = MultipoleEwald(LongRangeParameters(remove_self_interaction=remove_self_interaction), layout)
    positions, latent = atoms().requires_grad_(), random_latent(9, layout).requires_grad_()
    energies, potential, forces, _strain = module(positions, latent, plan_of(module, name, 9))
    by_position, by_latent = torch.autograd.grad(energies.sum(), [positions, latent])
    torch.testing.assert_close(forces, -by_position, rtol=0.0, atol=1e-11 * float(forces.detach().abs().max()))
    torch.testing.assert_close(potential, by_latent, rtol=0.0, atol=1e-11 * float(potential.detach().abs().max()))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_finite_differences_of_strain(name, kind):
    """At fixed dipoles and quadrupoles and a fixed set of wave vectors."""
    layout = LAYOUTS[kind]
    module = MultipoleEwald(LongRangeParameters(), layout)
    positions, latent = atoms(), random_latent(9, layout)
    cell = SYSTEMS[name][0]
    strain_derivative = module(positions, latent, plan_of(module, name, 9))[3]
    numeric = torch.zeros_like(cell)
    step = 1e-4
    for a in range(3):
        for b in range(3):
            for sign in (-1.0, 1.0):
                deformation = torch.eye(3, dtype=torch.float64)
                deformation[a, b] += 0.5 * sign * step
                deformation[b, a] += 0.5 * sign * step
                plan = plan_of(module, name, 9, cell @ deformation)
                numeric[a, b] += sign * module(positions @ deformation, latent, plan)[0].sum() / (2.0 * step)
    torch.testing.assert_close(strain_derivative, numeric, rtol=0.0, atol=1e-6 * float(numeric.abs().max()))


def test_finite_differences_of_positions():
    module = MultipoleEwald(LongRangeParameters(), ALL)
    positions, latent = atoms(), random_latent(9, ALL)
    for cell in (CELL, ISOLATED):
        forces = module(positions, latent, module.direct_plan(cell))[2]
        for atom, axis in ((0, 0), (3, 1), (8, 2)):
            shifted = []
            for sign in (-1.0, 1.0):
                moved = positions.clone()
                moved[atom, axis] += sign * 1e-4
                shifted.append(float(module.energy(moved, latent, cell)))
            assert -(shifted[1] - shifted[0]) / 2e-4 == pytest.approx(float(forces[atom, axis]), rel=1e-5)


@pytest.mark.parametrize("name", ["direct", "isolated", "slab"])
def test_rotation_and_translation(name):
    """Cell, positions and multipoles turned together, and all shifted."""
    generator = np.random.default_rng(5)
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    turn = torch.tensor(rotation)
    module = MultipoleEwald(LongRangeParameters(), ALL)
    positions, latent = atoms(), random_latent(9, ALL)
    if name == "slab":  # the energy of a charged slab depends on the origin
        latent[:, :2] -= latent[:, :2].mean(0)
        latent[:, ALL.num_sources : ALL.num_sources + 2] = 0.0
    cell = SYSTEMS[name][0]
    energies, _potential, forces, strain = module(positions, latent, plan_of(module, name, 9))
    moved = (positions + torch.tensor([1.3, -0.7, 2.1])) @ turn
    plan = module.plan(cell @ turn, cell @ turn, NO_BOUNDS, 9, "ewald", 1e-5, SYSTEMS[name][2])
    turned = module(moved, rotated(latent, ALL, rotation), plan)
    scale = float(forces.abs().max())
    assert float(turned[0].sum()) == pytest.approx(float(energies.sum()), rel=1e-11)
    torch.testing.assert_close(turned[2], forces @ turn, rtol=0.0, atol=1e-11 * scale)
    torch.testing.assert_close(turned[3], turn.T @ strain @ turn, rtol=0.0, atol=1e-10 * scale)


def test_large_cell_is_isolated():
    """Neutral molecules in large cells against open space; the difference is the interaction with images, as 1/L³.

    (Without κ: it answers the potential itself, whose mean over a cell is zero.)
    """
    layout = LatentLayout(1, dipoles=True, quadrupoles=True, alphas=True)
    positions, latent = atoms(5), random_latent(5, layout)
    latent[:, 0] -= latent[:, 0].mean()
    module = MultipoleEwald(LongRangeParameters(sigma=1.5, dl=1.5), layout)
    isolated = module(positions, latent, module.direct_plan(ISOLATED))
    errors = []
    for edge in (20.0, 40.0):
        periodic = module(positions, latent, module.direct_plan(edge * torch.eye(3, dtype=torch.float64)))
        errors.append(float((periodic[2] - isolated[2]).abs().max() / isolated[2].abs().max()))
    assert errors[1] < 3e-3
    assert errors[1] < errors[0] / 6.0


def test_an_atom_alone_has_no_energy():
    for kind, layout in LAYOUTS.items():
        module = MultipoleEwald(LongRangeParameters(), layout)
        latent = random_latent(1, layout)
        energies, _potential, forces, strain = module(atoms(1), latent, module.direct_plan(ISOLATED))
        assert abs(float(energies.sum())) < 1e-13, kind
        assert float(forces.abs().max()) < 1e-13 and float(strain.abs().max()) < 1e-13


def test_self_interaction():
    """C q²/(σ(2π)^{3/2}), C u²/(3σ³(2π)^{3/2}), C Q:Q/(10σ⁵(2π)^{3/2}), as the all-pairs sum has them at r = 0."""
    parameters = LongRangeParameters(remove_self_interaction=False)
    latent = random_latent(1, PERMANENT)
    module = MultipoleEwald(parameters, PERMANENT)
    energy = module.energy(atoms(1), latent, ISOLATED)
    q, u, quadrupoles, _, _ = split(latent.numpy(), PERMANENT)
    unit = parameters.norm_factor / (2.0 * math.pi) ** 1.5
    want = unit * ((q**2).sum() + (u**2).sum() / 3.0 + (quadrupoles**2).sum() / 10.0)
    assert float(energy) == pytest.approx(want, rel=1e-13)
    values = self_values(latent, 2, 1.0, parameters.norm_factor)
    assert float(0.5 * (values * latent).sum()) == pytest.approx(want, rel=1e-13)


def test_charges_alone_are_as_before():
    """With all else zero the energy, forces and potential of the charges are those of ``LatentEwald``."""
    parameters = LongRangeParameters()
    latent = random_latent(9, ALL)
    latent[:, 2:] = 0.0
    old, new = LatentEwald(parameters), MultipoleEwald(parameters, ALL)
    for name, (cell, kspace, slab) in SYSTEMS.items():
        want = old(atoms(), latent[:, :2], old.plan(cell, cell, NO_BOUNDS, 9, kspace, 1e-6, slab))
        got = new(atoms(), latent, new.plan(cell, cell, NO_BOUNDS, 9, kspace, 1e-6, slab))
        rtol = 1e-5 if "mesh" in name else 1e-12
        for ours, theirs in zip((got[0], got[1][:, :2], got[2], got[3]), want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=rtol * float(theirs.abs().max()))


@pytest.mark.parametrize("name", SYSTEMS)
def test_channels_add_up_and_do_not_mix(name):
    one_channel = LatentLayout(1, True, True, True, True)
    module, single = (MultipoleEwald(LongRangeParameters(), layout) for layout in (ALL, one_channel))
    positions, first, second = atoms(), random_latent(9, one_channel), random_latent(9, one_channel, seed=7)
    widths = (1, 3, 6, 1, 1)
    pieces = zip(first.split(widths, 1), second.split(widths, 1), strict=True)
    both = torch.cat([part for pair in pieces for part in pair], 1)
    together = module(positions, both, plan_of(module, name, 9))
    alone = [single(positions, one, plan_of(single, name, 9)) for one in (first, second)]
    for quantity in (0, 2, 3):
        total = alone[0][quantity] + alone[1][quantity]
        torch.testing.assert_close(together[quantity], total, rtol=0.0, atol=1e-11 * float(total.abs().max()))


@pytest.mark.parametrize("name", SYSTEMS)
def test_parts_of_the_atoms_on_their_own(name):
    """Densities of two parts reduced as processes do it, without and with induced sources."""
    module = torch.jit.script(MultipoleEwald(LongRangeParameters(), ALL))
    positions, latent = atoms(), random_latent(9, ALL)
    plan = plan_of(module, name, 9)
    whole = module(positions, latent, plan)
    parts = [slice(0, 4), slice(4, 4), slice(4, 9)]  # one of them empty

    def reduced(densities):
        return torch.cat(densities) if int(plan["solver"]) == 2 else torch.stack(densities).sum(0)

    density = reduced([module.spread(positions[p], latent[p], plan) for p in parts])
    field, strain = module.solve(density, 2, plan)
    spread = [module.spread_induced(field, positions[p], latent[p], plan) for p in parts]
    induced_field, strain_of_induced = module.solve_induced(density, reduced([d for d, _ in spread]), plan)
    gathered = [
        module.gather_induced(induced_field, positions[p], latent[p], plan, state)
        for p, (_, state) in zip(parts, spread, strict=True)
    ]
    potential, forces = torch.cat([g[0] for g in gathered]), torch.cat([g[1] for g in gathered])
    strain = strain + strain_of_induced + sum(g[2] for g in gathered)
    assert float(module.energies(latent, potential).sum()) == pytest.approx(float(whole[0].sum()), rel=1e-12)
    for ours, theirs in ((potential, whole[1]), (forces, whole[2]), (strain, whole[3])):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-11 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", SYSTEMS)
def test_scripted_module_is_the_same(name):
    module = MultipoleEwald(LongRangeParameters(), ALL)
    scripted = torch.jit.script(module)
    positions, latent = atoms(), random_latent(9, ALL)
    plan = plan_of(module, name, 9)
    for ours, theirs in zip(scripted(positions, latent, plan), module(positions, latent, plan), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert scripted.describe(plan) == module.describe(plan)


def test_response_is_that_of_a_small_change():
    """The induced energy is minus half of (Δq)²/κ and (Δu)²/α, and what it adds to ∂E/∂s the potential of both."""
    layout = LatentLayout(1, dipoles=True, kappas=True, alphas=True)
    module = MultipoleEwald(LongRangeParameters(), layout)
    permanent = MultipoleEwald(LongRangeParameters(), LatentLayout(1, dipoles=True))
    positions, latent = atoms(), random_latent(9, layout)
    sources = latent[:, :4]
    plan = plan_of(module, "direct", 9)
    phi = permanent(positions, sources, plan)[1]
    induced = torch.cat([-latent[:, 4:5] * phi[:, :1], -latent[:, 5:6] * phi[:, 1:]], 1)
    difference = module.energy(positions, latent, CELL) - permanent.energy(positions, sources, CELL)
    answer = (induced[:, :1] ** 2 / latent[:, 4:5]).sum() + (induced[:, 1:] ** 2 / latent[:, 5:6]).sum()
    assert float(difference) == pytest.approx(-0.5 * float(answer), rel=1e-11)
    both = permanent(positions, sources + induced, plan)[1]
    torch.testing.assert_close(module(positions, latent, plan)[1][:, :4], both, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("remove_self_interaction", [True, False])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_agrees_with_the_module_for_training(kind, remove_self_interaction):
    """``les_md.Les``: other code for the same energy."""
    layout, positions = LAYOUTS[kind], atoms()
    latent = random_latent(9, layout)
    q, u, quadrupoles, kappa, alpha = (torch.tensor(part) for part in split(latent.numpy(), layout))
    given = {"latent_charges": q}
    for name, part, there in (
        ("latent_dipoles", u, layout.dipoles), ("latent_quadrupoles", quadrupoles, layout.quadrupoles),
        ("latent_kappas", kappa, layout.kappas), ("latent_alphas", alpha, layout.alphas),
    ):  # fmt: skip
        if there:
            given[name] = part
    les = Les(remove_self_interaction=remove_self_interaction)
    module = MultipoleEwald(LongRangeParameters(remove_self_interaction=remove_self_interaction), layout)
    for cell in (CELL, ISOLATED):
        theirs = les(positions, cell[None], **given)
        assert float(module.energy(positions, latent, cell)) == pytest.approx(float(theirs["E_lr"]), rel=1e-11)
        if layout.responds:
            plan = module.direct_plan(cell)
            field, _strain = module.solve(module.spread(positions, latent, plan), 2, plan)
            _density, state = module.spread_induced(field, positions, latent, plan)
            if layout.kappas:
                induced = module.total_charges(latent, state) - q
                torch.testing.assert_close(induced, theirs["induced_charges"], rtol=1e-10, atol=1e-10)
            if layout.alphas:
                induced = module.total_dipoles(latent, state) - u.sum(1)
                torch.testing.assert_close(induced, theirs["induced_dipoles"].sum(1), rtol=1e-10, atol=1e-10)


def test_mesh_of_an_isolated_system_is_refused():
    module = MultipoleEwald(LongRangeParameters(), PERMANENT)
    bounds = torch.tensor([[0.0] * 3, [40.0] * 3], dtype=torch.float64)
    with pytest.raises(RuntimeError, match="has no mesh: use kspace auto or ewald"):
        module.plan(ISOLATED, ISOLATED, bounds, 5000, "mesh", 1e-5, False)
    assert module.describe(module.plan(ISOLATED, ISOLATED, bounds, 5000, "auto", 1e-5, False)) == "all pairs"


def test_blocks_do_not_change_the_result(monkeypatch):
    module = MultipoleEwald(LongRangeParameters(), ALL)
    positions, latent = atoms(), random_latent(9, ALL)
    whole = module(positions, latent, module.direct_plan(ISOLATED))
    from les_md.electrostatics import multipole_ewald, multipole_pairs

    def by_rows(*arguments):
        return multipole_pairs.multipole_pair_values(*arguments, pairs=20)

    monkeypatch.setattr(multipole_ewald, "multipole_pair_values", by_rows)
    for ours, theirs in zip(module(positions, latent, module.direct_plan(ISOLATED)), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# ---- the kernel's derivatives


def test_boys_functions():
    """Against numerical quadrature, over the border between series and recursion."""
    x = torch.tensor([0.0, 1e-12, 1e-3, 0.5, 2.0, 2.999999, 3.0, 3.000001, 5.0, 20.0, 300.0], dtype=torch.float64)
    t, weights = np.polynomial.legendre.leggauss(200)
    t, weights = 0.5 * (t + 1.0), 0.5 * weights
    for highest in range(7):
        values = boys_functions(x, highest)
        for n, value in enumerate(values):
            want = (weights * t ** (2 * n) * np.exp(-x.numpy()[:, None] * t**2)).sum(1)
            np.testing.assert_allclose(value.numpy(), want, rtol=2e-13)


def test_kernel_derivatives_follow_from_each_other():
    r = torch.linspace(0.2, 9.0, 50, dtype=torch.float64, requires_grad=True)
    values = kernel_derivatives(r * r, 0.8, 5)
    torch.testing.assert_close(values[0], torch.erf(r / (math.sqrt(2.0) * 0.8)) / r, rtol=1e-13, atol=0.0)
    for lower, higher in itertools.pairwise(values):
        slope = torch.autograd.grad(lower.sum(), r, retain_graph=True)[0]
        torch.testing.assert_close(-slope / r, higher, rtol=1e-9, atol=1e-12)
