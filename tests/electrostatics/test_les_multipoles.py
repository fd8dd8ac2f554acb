"""``les_md.Les`` with latent dipoles, quadrupoles, softness and polarisability, against plain sums and derivatives."""

import pickle

import numpy as np
import pytest
import torch
from scipy.special import hyp1f1

from les_md import Les
from les_md.electrostatics.smeared_multipoles import smeared_derivatives, traceless_symmetric
from tests.electrostatics.test_les_module import boxes, joined

KINDS = ("latent_dipoles", "latent_quadrupoles", "latent_kappas", "latent_alphas")
C = 90.4756


def latent(num_atoms: int, n_q: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random latent variables beyond charges."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "latent_dipoles": 0.5 * normal(num_atoms, n_q, 3),
        "latent_quadrupoles": traceless_symmetric(0.5 * normal(num_atoms, n_q, 3, 3)),
        "latent_kappas": 0.02 * normal(num_atoms, n_q).abs(),
        "latent_alphas": 0.05 * normal(num_atoms, n_q).abs(),
    }


def system(n_q: int = 2, seed: int = 0, sizes=((5, True), (4, False), (1, True), (1, False), (3, True))):
    """Positions, cells, charges, batch, and a dictionary of all other latent variables."""
    positions, cells, charges, batch = joined(boxes(seed, sizes, n_q))
    return positions, cells, charges, batch, latent(len(batch), n_q)


def everything(les, positions, cells, charges, batch, **more) -> dict[str, torch.Tensor]:
    """Results and derivatives of the energy; Born charges of latent variables that move with the atoms."""
    positions = positions.clone().requires_grad_(True)
    strain = torch.zeros_like(cells, requires_grad=True)
    deformation = torch.eye(3, dtype=cells.dtype) + 0.5 * (strain + strain.transpose(1, 2))
    moved = torch.einsum("ix,ixy->iy", positions, deformation[batch])
    result = les(
        moved, cells @ deformation, latent_charges=charges, batch=batch, compute_potential=True, compute_field=True,
        **more,
    )  # fmt: skip
    gradient, stress = torch.autograd.grad(result["E_lr"].sum(), [positions, strain])
    factor = 1.0 + 0.1 * torch.sin(positions.sum(1))
    moving = {
        name: value * factor.reshape(-1, *[1] * (value.dim() - 1)) if name.startswith("latent") else value
        for name, value in {**more, "latent_charges": charges}.items()
    }
    born = les(positions, cells, batch=batch, compute_energy=False, compute_bec=True, **moving)["BEC"]
    found = {name: value.detach() for name, value in result.items() if value is not None}
    return {**found, "forces": -gradient, "strain_derivative": stress, "born": born.detach()}


def test_kernels_are_boys_functions():
    """At distances from zero through the change of formula at r = √2 σ; derivatives of one are the next."""
    sigma = 0.8
    r_squared = torch.linspace(0.0, 40.0, 4001, dtype=torch.float64).requires_grad_(True)
    kernels = smeared_derivatives(r_squared, sigma, 4)
    a_squared = 0.5 / sigma**2
    x = a_squared * r_squared.detach().numpy()
    for n, kernel in enumerate(kernels):
        boys = hyp1f1(n + 0.5, n + 1.5, -x) / (2 * n + 1)
        want = 2.0 * np.sqrt(a_squared / np.pi) * (2.0 * a_squared) ** n * boys
        np.testing.assert_allclose(kernel.detach().numpy(), want, rtol=1e-12)
    for n in range(4):
        (slope,) = torch.autograd.grad(kernels[n].sum(), r_squared, create_graph=True)
        torch.testing.assert_close(-2.0 * slope, kernels[n + 1], rtol=1e-11, atol=0.0)
        (second,) = torch.autograd.grad(slope.sum(), r_squared, retain_graph=True)
        if n < 3:
            torch.testing.assert_close(4.0 * second, kernels[n + 2], rtol=1e-10, atol=0.0)


def plain_periodic(r, h, q, u, quad, sigma=1.0, dl=2.0):
    """Energy, potential and field of one channel, wave vector by wave vector."""
    reciprocal = 2.0 * np.pi * np.linalg.inv(h).T
    largest = [max(1, int(np.floor(np.linalg.norm(row) / dl))) for row in h]
    energy, potential, field = 0.0, np.zeros(len(q)), np.zeros((len(q), 3))
    for n in np.ndindex(*[2 * m + 1 for m in largest]):
        k = (np.array(n) - largest) @ reciprocal
        if not 0.0 < k @ k <= (2.0 * np.pi / dl) ** 2:
            continue
        phase = np.exp(1j * r @ k)
        structure = ((q + 1j * u @ k - 0.5 * np.einsum("a,iab,b->i", k, quad, k)) * phase).sum()
        weight = C / abs(np.linalg.det(h)) * np.exp(-0.5 * sigma**2 * (k @ k)) / (k @ k)
        energy += weight * abs(structure) ** 2
        wave = 2.0 * weight * structure * phase.conj()
        potential += wave.real
        field += -(1j * wave[:, None] * -k).real
    return energy, potential, field


def plain_isolated(r, q, u, quad, sigma=1.0):
    """Energy, potential and field of one channel, from derivatives of erf(r/(√2σ))/r by automatic differentiation."""

    def kernel(d):
        distance = torch.sqrt(d @ d)
        return torch.erf(distance / (np.sqrt(2.0) * sigma)) / distance

    derivatives = [kernel]
    for _ in range(4):
        derivatives.append(torch.func.jacfwd(derivatives[-1]))
    energy, potential, field = 0.0, np.zeros(len(q)), np.zeros((len(q), 3))
    for i in range(len(q)):
        for j in range(len(q)):
            if i == j:
                continue
            v0, v1, v2, v3, v4 = (f(torch.tensor(r[i] - r[j])).numpy() for f in derivatives)
            # ∇_j = −∇_i on a function of r_i − r_j
            phi = q[j] * v0 - u[j] @ v1 + 0.5 * np.einsum("ab,ab", quad[j], v2)
            gradient = q[j] * v1 - v2 @ u[j] + 0.5 * np.einsum("abc,bc->a", v3, quad[j])
            curvature = q[j] * v2 - v3 @ u[j] + 0.5 * np.einsum("abcd,cd->ab", v4, quad[j])
            energy += 0.5 * (q[i] * phi + u[i] @ gradient + 0.5 * np.einsum("ab,ab", quad[i], curvature))
            potential[i] += phi
            field[i] -= gradient
    constant = C / (2.0 * np.pi)
    return constant * energy, constant * potential, constant * field


@pytest.mark.parametrize("without", [(), ("latent_dipoles",), ("latent_quadrupoles",), KINDS[:2]], ids=str)
@pytest.mark.parametrize("removed", [True, False])
def test_against_plain_sums(removed, without):
    """Every configuration and channel of a batch: energy, potential, field, what is induced and its energy."""
    positions, cells, charges, batch, more = system()
    field = torch.tensor([[0.1, -0.2, 0.05]], dtype=torch.float64)
    given = {name: value for name, value in more.items() if name not in without}
    result = Les(remove_self_interaction=removed)(
        positions, cells, latent_charges=charges, batch=batch, compute_potential=True, compute_field=True,
        external_field=field[0], **given,
    )  # fmt: skip
    of_self = C / (2.0 * np.pi) ** 1.5
    for b, cell in enumerate(cells.numpy()):
        chosen = (batch == b).numpy()
        total = 0.0
        for c in range(charges.size(1)):
            r, q = positions.numpy()[chosen], charges.numpy()[chosen, c]
            u, quad, kappa, alpha = (more[name].numpy()[chosen, c] for name in KINDS)
            u = 0.0 * u if "latent_dipoles" in without else u
            quad = 0.0 * quad if "latent_quadrupoles" in without else quad
            isolated = not cell.any()
            energy, phi, e = plain_isolated(r, q, u, quad) if isolated else plain_periodic(r, cell, q, u, quad)
            sign = (0.0 if removed else 1.0) if isolated else (-1.0 if removed else 0.0)
            squares = (q**2).sum() + (u**2).sum() / 3.0 + (quad**2).sum() / 10.0
            energy, phi, e = (
                energy + sign * of_self * squares,
                phi + sign * of_self * 2.0 * q,
                e - sign * of_self * 2.0 * u / 3.0,
            )
            e = e + field.numpy()
            energy += -(u @ field.numpy()[0]).sum() - 0.5 * (kappa * phi**2).sum() - 0.5 * (alpha * (e**2).sum(1)).sum()
            total += energy
            for name, want in (
                ("potential", phi), ("field", e), ("induced_charges", -kappa * phi),
                ("induced_dipoles", alpha[:, None] * e),
            ):  # fmt: skip
                np.testing.assert_allclose(result[name].numpy()[chosen, c], want, rtol=1e-10, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(float(result["E_lr"][b]), total, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scripted", [False, True])
def test_second_derivatives(scripted):
    """Finite differences of first and second derivatives over everything that goes in, strain included."""
    positions, cells, charges, batch, more = system(1, sizes=((2, True), (2, False), (1, True)))
    les = torch.jit.script(Les()) if scripted else Les()

    def energies(r, strain, q, u, quad, kappa, alpha, field):
        deformation = torch.eye(3, dtype=r.dtype) + 0.5 * (strain + strain.transpose(1, 2))
        moved = torch.einsum("ix,ixy->iy", r, deformation[batch])
        result = les(
            moved, cells @ deformation, latent_charges=q, batch=batch, latent_dipoles=u, latent_quadrupoles=quad,
            latent_kappas=kappa, latent_alphas=alpha, external_field=field,
        )  # fmt: skip
        return result["E_lr"]

    field = torch.randn(len(cells), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = [
        x.clone().requires_grad_(True) for x in (positions, torch.zeros_like(cells), charges, *more.values(), field)
    ]
    assert torch.autograd.gradcheck(energies, inputs, atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradgradcheck(energies, inputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("removed", [True, False])
def test_batch_equals_configurations_one_by_one(removed, scripted):
    les = Les(remove_self_interaction=removed)
    positions, cells, charges, batch, more = system()
    whole = everything(torch.jit.script(les) if scripted else les, positions, cells, charges, batch, **more)
    for b in range(len(cells)):
        chosen = batch == b
        alone = everything(
            les, positions[chosen], cells[b : b + 1], charges[chosen], torch.zeros_like(batch[chosen]),
            **{name: value[chosen] for name, value in more.items()},
        )  # fmt: skip
        for name, value in alone.items():
            want = whole[name][b : b + 1] if name in ("E_lr", "strain_derivative") else whole[name][chosen]
            torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-10, msg=name)


def test_charges_alone_take_the_same_value_on_both_paths():
    positions, cells, charges, batch, more = system()
    want = Les()(positions, cells, latent_charges=charges, batch=batch, compute_potential=True)
    zeros = {name: torch.zeros_like(value) for name, value in more.items()}
    got = Les()(positions, cells, latent_charges=charges, batch=batch, compute_potential=True, **zeros)
    assert set(want) == set(got)
    assert [want[name] for name in ("induced_charges", "induced_dipoles", "field")] == [None] * 3
    for name in ("E_lr", "potential"):
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-12)


def test_single_precision():
    """Against float64, relative to the largest value of each result of these configurations."""
    positions, cells, charges, batch, more = system()
    double = everything(Les(), positions, cells, charges, batch, **more)
    single = everything(
        Les(), positions.float(), cells.float(), charges.float(), batch,
        **{name: value.float() for name, value in more.items()},
    )  # fmt: skip
    for name, want in double.items():
        assert single[name].dtype == torch.float32
        assert float((single[name] - want).abs().max()) < 5e-6 * float(want.abs().max()), name


def turned(rotation, positions, cells, more):
    """The same system rotated by an orthogonal matrix acting on rows."""
    rotated = dict(more)
    rotated["latent_dipoles"] = more["latent_dipoles"] @ rotation
    rotated["latent_quadrupoles"] = rotation.T @ more["latent_quadrupoles"] @ rotation
    return positions @ rotation, cells @ rotation, rotated


def test_rotations_and_reflections():
    positions, cells, charges, batch, more = system()
    generator = torch.Generator().manual_seed(4)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    for matrix in (rotation, -rotation):
        want = everything(Les(), positions, cells, charges, batch, **more)
        r, h, rotated = turned(matrix, positions, cells, more)
        got = everything(Les(), r, h, charges, batch, **rotated)
        for name in ("E_lr", "potential", "induced_charges"):
            torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-10)
        for name in ("forces", "field", "induced_dipoles"):
            torch.testing.assert_close(got[name], want[name] @ matrix, rtol=1e-10, atol=1e-10)
        stress = matrix.T @ want["strain_derivative"] @ matrix
        torch.testing.assert_close(got["strain_derivative"], stress, rtol=1e-10, atol=1e-10)


def test_finite_charges_become_multipoles():
    """Two charges become a dipole and four a quadrupole, with an error of the square of their distance."""
    others = torch.tensor([[2.0, 0.5, -1.0], [-1.5, 2.0, 1.0]], dtype=torch.float64)
    direction = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
    x, y = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0][:2]
    zero = torch.zeros(1, 3, dtype=torch.float64)
    for cell in (torch.zeros(3, 3).double(), torch.diag(torch.tensor([7.0, 8.0, 9.0])).double()):
        for name, displacements, weights, moment in (
            ("latent_dipoles", [direction, -direction], [0.5, -0.5], direction),
            ("latent_quadrupoles", [x, -x, y, -y], [0.5, 0.5, -0.5, -0.5], torch.outer(x, x) - torch.outer(y, y)),
        ):
            order = 1 if name == "latent_dipoles" else 2
            values = torch.zeros(3, *moment.shape, dtype=torch.float64)
            values[0] = moment
            point = Les()(
                torch.cat([zero, others]), cell, latent_charges=torch.tensor([0.0, 0.7, -0.4]).double(),
                **{name: values},
            )["E_lr"]  # fmt: skip
            errors = []
            for step in (0.04, 0.02):
                charges = torch.tensor([*(w / step**order for w in weights), 0.7, -0.4]).double()
                r = torch.cat([step * torch.stack(displacements), others])
                energies = [
                    Les()(r, cell, latent_charges=charges * mask)["E_lr"]
                    for mask in (
                        torch.ones(len(r)).double(),
                        torch.tensor([1.0] * len(weights) + [0.0, 0.0]).double(),
                    )
                ]
                # Without the interaction of the charges that make up the multipole; with its images', in a cell.
                own = Les()(zero, cell, latent_charges=torch.zeros(1).double(), **{name: values[:1]})["E_lr"]
                errors.append(float(energies[0] - energies[1] + own - point))
            assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.02), (name, errors)
            assert abs(errors[1]) < 1e-3


def test_periodic_becomes_isolated_in_a_large_box():
    """Sources without net charge and dipole: images are felt as L⁻⁵, that is 32 times less in twice the box."""
    r, _, q, _, more = system(1, sizes=((5, False),))
    q = q - q.mean()
    u = more["latent_dipoles"]
    more = {**more, "latent_dipoles": u - (u.sum(0) + (q * r).sum(0)) / len(r)}
    les = Les(dl=0.9)  # (with all wave vectors that matter)
    alone = {"latent_kappas", "latent_alphas"}
    for given in ({k: v for k, v in more.items() if k not in alone}, more):
        isolated = les(r, torch.zeros(3, 3).double(), latent_charges=q, **given, compute_field=True)
        errors = []
        for length in (20.0, 40.0):
            boxed = les(r, length * torch.eye(3).double(), latent_charges=q, **given, compute_field=True)
            errors.append(abs(float(boxed["E_lr"] - isolated["E_lr"])))
            field_error = float((boxed["field"] - isolated["field"]).abs().max())
        assert errors[1] < errors[0] / 25.0
        assert errors[1] < 3e-4 * abs(float(isolated["E_lr"]))
        assert field_error < 1e-3 * float(isolated["field"].abs().max())


@pytest.mark.parametrize("remove_mean", [True, False])
def test_born_charges_are_derivatives_of_the_polarisation(remove_mean):
    """Of charges and dipoles, permanent and induced: isolated, and periodic with the phase of each atom taken out."""
    les = Les(remove_mean=remove_mean, epsilon_factor=1.7)
    generator = torch.Generator().manual_seed(8)
    for periodic in (False, True):
        r, cell, q = boxes(3, ((4, periodic),), 2)[0]
        more = latent(4, 2)
        slopes = torch.randn(3, generator=generator, dtype=torch.float64)

        def variables(positions, q=q, more=more, slopes=slopes):
            factor = 1.0 + 0.2 * torch.sin(positions @ slopes + positions.roll(1, 0).sum(1))
            moving = {k: v * factor.reshape(-1, *[1] * (v.dim() - 1)) for k, v in more.items()}
            return q * factor[:, None], moving

        def polarisation(positions, cell=cell, periodic=periodic, variables=variables):
            """[3] complex, in fractional directions for the charges of a periodic system, with dipoles apart."""
            charges, moving = variables(positions)
            result = les(positions, cell, latent_charges=charges, **moving)
            total = (charges + result["induced_charges"]).sum(1)
            total = total - total.mean() if remove_mean else total
            dipole = (moving["latent_dipoles"] + result["induced_dipoles"]).sum(1).sum(0)
            if not periodic:
                return (total[:, None] * positions).sum(0).to(torch.complex128), dipole
            phase = torch.exp(2j * np.pi * (positions @ torch.linalg.inv(cell)))
            return (total[:, None] * phase).sum(0) / (2j * np.pi), dipole

        moved = r.clone().requires_grad_(True)
        charges, moving = variables(moved)
        born = les(moved, cell, latent_charges=charges, **moving, compute_energy=False, compute_bec=True)["BEC"]
        step = 1e-5
        for i, axis in ((0, 0), (2, 1), (3, 2)):
            shift = torch.zeros_like(r)
            shift[i, axis] = step
            (ahead, dipole_ahead), (behind, dipole_behind) = polarisation(r + shift), polarisation(r - shift)
            slope = (ahead - behind) / (2.0 * step)
            if periodic:
                phase = torch.exp(2j * np.pi * (r[i] @ torch.linalg.inv(cell)))
                want = cell.T @ (slope * phase.conj()).real
            else:
                want = slope.real
            want = np.sqrt(1.7) * (want + (dipole_ahead - dipole_behind) / (2.0 * step))
            torch.testing.assert_close(born[i, :, axis], want, rtol=1e-6, atol=1e-7)
        only = les(
            moved, cell, latent_charges=charges, **moving, compute_bec=True, bec_output_index=2
        )["BEC"]  # fmt: skip
        torch.testing.assert_close(only, born[:, 2])


def test_energy_in_a_field_falls_by_the_dipoles():
    """−∂E/∂E_ext is the sum of permanent and induced dipoles."""
    positions, cells, charges, batch, more = system()
    field = torch.full((len(cells), 3), 0.1, dtype=torch.float64, requires_grad=True)
    result = Les()(positions, cells, latent_charges=charges, batch=batch, external_field=field, **more)
    (slope,) = torch.autograd.grad(result["E_lr"].sum(), field)
    dipoles = (more["latent_dipoles"] + result["induced_dipoles"]).sum(1)
    torch.testing.assert_close(-slope, torch.zeros_like(slope).index_add(0, batch, dipoles))


def test_shapes_follow_the_charges():
    positions, cells, charges, batch, more = system(1)
    plain = {name: value[:, 0] for name, value in more.items()}
    flat = Les()(positions, cells, latent_charges=charges[:, 0], batch=batch, compute_field=True, **plain)
    channels = Les()(positions, cells, latent_charges=charges, batch=batch, compute_field=True, **more)
    assert flat["induced_charges"].shape == (14,)
    assert flat["induced_dipoles"].shape == flat["field"].shape == (14, 3)
    assert channels["induced_dipoles"].shape == channels["field"].shape == (14, 1, 3)
    torch.testing.assert_close(flat["E_lr"], channels["E_lr"])
    tilted = more["latent_quadrupoles"].clone()
    tilted[:, 0, 0, 1] += 0.3
    tilted[:, 0, 1, 0] -= 0.3
    tilted[:, 0] += 0.7 * torch.eye(3)
    again = Les()(positions, cells, latent_charges=charges, batch=batch, **{**more, "latent_quadrupoles": tilted})
    torch.testing.assert_close(again["E_lr"], channels["E_lr"])  # the symmetric traceless part is used


@pytest.mark.parametrize("scripted", [False, True])
def test_fixed_charges(scripted):
    positions, cells, charges, batch = joined(boxes(n_q=1))
    numbers = torch.tensor([8, 1])[torch.arange(len(batch)) % 2]
    les = Les(
        use_fixed_atomic_charges=True, fixed_atomic_charges={"O": -2.0, 1: 1.0}, fixed_atomic_charges_scaling_factor=0.5
    )
    assert not les.state_dict()
    les = pickle.loads(pickle.dumps(les))
    les = torch.jit.script(les) if scripted else les
    fixed = torch.where(numbers == 8, -1.0, 0.5).double()
    got = les(positions, cells, latent_charges=charges[:, 0], batch=batch, atomic_numbers=numbers)
    want = Les()(positions, cells, latent_charges=charges[:, 0] + fixed, batch=batch)
    torch.testing.assert_close(got["latent_charges"], charges[:, 0] + fixed)
    torch.testing.assert_close(got["E_lr"], want["E_lr"])
    for arguments, message in (
        ({"latent_charges": charges[:, 0]}, "needs atomic_numbers"),
        ({"latent_charges": charges, "atomic_numbers": numbers[:3]}, "atomic_numbers must be"),
        ({"latent_charges": charges, "atomic_numbers": 0 * numbers}, "between 1 and 118"),
        ({"latent_charges": charges, "atomic_numbers": numbers + 1}, "no charge for atomic number 9"),
        ({"latent_charges": charges.expand(-1, 2), "atomic_numbers": numbers}, "one charge channel"),
    ):
        with pytest.raises((ValueError, torch.jit.Error), match=message):
            les(positions, cells, batch=batch, **arguments)


def test_modules_pickled_before_there_were_fixed_charges():
    old = Les(sigma=0.8)
    del old.fixed_charges
    loaded = pickle.loads(pickle.dumps(old))
    positions, cells, charges, batch, _ = system()
    want = Les(sigma=0.8)(positions, cells, latent_charges=charges, batch=batch)["E_lr"]
    torch.testing.assert_close(loaded(positions, cells, latent_charges=charges, batch=batch)["E_lr"], want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_fixed_atomic_charges": True}, "need both"),
        ({"fixed_atomic_charges": {"H": 1.0}}, "need both"),
        ({"use_fixed_atomic_charges": True, "fixed_atomic_charges": {"Xx": 1.0}}, "'Xx' is not an element"),
        ({"use_fixed_atomic_charges": True, "fixed_atomic_charges": {"H": 1.0, 1: 1.0}}, "given twice"),
        ({"use_fixed_atomic_charges": True, "fixed_atomic_charges": {"H": float("nan")}}, "finite number"),
    ],
)
def test_wrong_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        Les(**arguments)


WRONG = {
    "latent_dipoles must be": {"latent_dipoles": torch.zeros(4, 2).double()},
    "latent_dipoles has 3 atoms": {"latent_dipoles": torch.zeros(3, 3).double()},
    "latent_dipoles .* must have the type of the charges": {"latent_dipoles": torch.zeros(4, 3)},
    "latent_quadrupoles must be": {"latent_quadrupoles": torch.zeros(4, 3, 2).double()},
    "latent_quadrupoles has 4 atoms and 2 channels": {"latent_quadrupoles": torch.zeros(4, 2, 3, 3).double()},
    "latent_kappas has 4 atoms and 2 channels": {"latent_kappas": torch.zeros(4, 2).double()},
    "latent_alphas must be .* tensors are not": {"latent_alphas": torch.zeros(4, 3, 3).double()},
    "external_field must be": {"external_field": torch.zeros(3, 3).double(), "latent_alphas": torch.ones(4).double()},
    "external_field acts on": {"external_field": torch.zeros(3).double()},
    "external_field .* must have the type": {"external_field": torch.zeros(3), "latent_alphas": torch.ones(4).double()},
}


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("message", WRONG)
def test_wrong_input(message, scripted):
    les = torch.jit.script(Les()) if scripted else Les()
    with pytest.raises((ValueError, torch.jit.Error), match=message):
        les(
            torch.zeros(4, 3).double(), torch.zeros(2, 3, 3).double(), latent_charges=torch.zeros(4).double(),
            batch=torch.tensor([0, 0, 1, 1]), **WRONG[message],
        )  # fmt: skip


def test_training_reaches_born_charges():
    """In training mode they can be differentiated over weights that charges, dipoles and κ depend on."""
    positions, cells, charges, batch, more = system(1, sizes=((3, True), (2, False)))
    positions.requires_grad_(True)
    les = Les()

    def born(weight):
        factor = 1.0 + weight * torch.sin(positions.sum(1))
        moving = {name: value * factor.reshape(-1, *[1] * (value.dim() - 1)) for name, value in more.items()}
        result = les(
            positions, cells, latent_charges=charges * factor[:, None], batch=batch, compute_energy=False,
            compute_bec=True, **moving,
        )  # fmt: skip
        return result["BEC"]

    assert torch.autograd.gradcheck(born, torch.tensor(0.1, dtype=torch.float64, requires_grad=True))


def test_compiled_equals_eager():
    torch._dynamo.reset()
    compiled = torch.compile(Les(), backend="aot_eager")
    positions, cells, charges, batch, more = system(1)
    positions.requires_grad_(True)
    results = []
    for les in (compiled, Les()):
        energy = les(positions, cells, latent_charges=charges, batch=batch, **more)["E_lr"]
        results.append((energy, *torch.autograd.grad(energy.sum(), positions)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)
