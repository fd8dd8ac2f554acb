"""``les_md.Les``, the batched module for training, against the reference library's numbers and ``LatentEwald``."""

import json

import numpy as np
import pytest
import torch

from les_md import Les
from les_md.charge_head import LatentChargeHead
from les_md.electrostatics import LatentEwald, LongRangeParameters
from les_md.electrostatics.padded_groups import padded_groups
from tests.electrostatics.test_reference import CASES, relative_error

#: Every set of parameters of the reference cases.
ARGUMENTS = (
    {}, {"remove_self_interaction": False}, {"sigma": 1.5, "dl": 1.5}, {"sigma": 0.7, "dl": 1.0},
    {"epsilon_factor": 2.0}, {"remove_mean": False},
)  # fmt: skip


@pytest.fixture(scope="module")
def references(shared):
    file = np.load(shared / "reference" / "ewald.npz")
    cases = {case: {} for case in CASES}
    for key in file.files:
        case, name = key.split("/")
        cases[case][name] = file[key]
    return cases


def make(arguments: dict, scripted: bool = False) -> torch.nn.Module:
    les = Les(**arguments)
    return torch.jit.script(les) if scripted else les


def joined(configurations):
    """One batch of (positions, cell, charges) each: positions, cells, charges, batch."""
    counts = torch.tensor([len(r) for r, _, _ in configurations])
    return (
        torch.cat([r for r, _, _ in configurations]),
        torch.stack([cell for _, cell, _ in configurations]),
        torch.cat([q for _, _, q in configurations]),
        torch.repeat_interleave(torch.arange(len(configurations)), counts),
    )


def boxes(seed: int = 0, sizes=((7, True), (3, False), (12, True), (1, True), (5, False), (1, False)), n_q: int = 2):
    """Small configurations, periodic (of all shapes) or isolated."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    configurations = []
    for num_atoms, periodic in sizes:
        cell = torch.diag(6.0 + 1.5 * normal(3).abs()) + 0.5 * normal(3, 3) if periodic else torch.zeros(3, 3).double()
        configurations.append((4.0 * normal(num_atoms, 3), cell, normal(num_atoms, n_q)))
    return configurations


def evaluate(les, positions, cells, charges, batch, **more):
    """Everything that the module and derivatives of its energy give, as a dictionary of tensors."""
    positions = positions.clone().requires_grad_(True)
    strain = torch.zeros(len(cells), 3, 3, dtype=cells.dtype, requires_grad=True)
    deformation = torch.eye(3, dtype=cells.dtype) + 0.5 * (strain + strain.transpose(1, 2))
    strained = torch.einsum("ix,ixy->iy", positions, deformation[batch])
    result = les(
        strained, cells @ deformation, latent_charges=charges, batch=batch, compute_potential=True, **more
    )  # fmt: skip
    gradient, stress = torch.autograd.grad(result["E_lr"].sum(), [positions, strain])
    moving = charges * (1.0 + 0.1 * torch.sin(positions.sum(1))).reshape(-1, *[1] * (charges.dim() - 1))
    born = les(positions, cells, latent_charges=moving, batch=batch, compute_energy=False, compute_bec=True, **more)
    return {
        "energy": result["E_lr"].detach(),
        "potential": result["potential"].detach(),
        "forces": -gradient,
        "strain_derivative": stress,
        "bec": born["BEC"].detach(),
    }


def assert_equal(got: dict, want: dict, relative: float) -> None:
    for name, value in want.items():
        error = float((got[name] - value).abs().max()) / max(1e-300, float(value.abs().max()))
        assert error < relative, (name, error)


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_each_case_alone(references, case, scripted):
    data = references[case]
    les = make(json.loads(str(data["args"])), scripted)
    charges = torch.tensor(data["charges"])
    got = evaluate(
        les, torch.tensor(data["positions"]), torch.tensor(data["cell"])[None], charges,
        torch.zeros(len(charges), dtype=torch.int64),
    )  # fmt: skip
    for name in ("potential", "forces", "bec"):
        assert got[name].shape == data[name].shape
        assert relative_error(got[name], data[name]) < 1e-9, name
    assert relative_error(got["energy"][0], data["energy"]) < 1e-9
    assert relative_error(got["strain_derivative"][0], data["strain_derivative"]) < 1e-9


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_all_cases_in_one_batch(references, arguments, scripted):
    """Thirteen configurations at once: those with these parameters against the reference, all against LatentEwald."""
    configurations = [
        (torch.tensor(data["positions"]), torch.tensor(data["cell"]), torch.tensor(data["charges"])[:, None])
        for data in references.values()
    ]
    got = evaluate(make(arguments, scripted), *joined(configurations))
    parameters = LongRangeParameters(**arguments)
    long_range = LatentEwald(parameters)
    counts = [len(r) for r, _, _ in configurations]
    potential, forces, bec = (got[name].split(counts) for name in ("potential", "forces", "bec"))
    matched = 0
    for i, ((case, data), (r, cell, q)) in enumerate(zip(references.items(), configurations, strict=True)):
        energies, phi, f, strain_derivative = long_range(r, q, long_range.direct_plan(cell))
        want = {"energy": energies.sum(), "potential": phi, "forces": f, "strain_derivative": strain_derivative}
        mine = {
            "energy": got["energy"][i],
            "potential": potential[i],
            "forces": forces[i],
            "strain_derivative": got["strain_derivative"][i],
        }
        assert_equal(mine, want, 1e-12)
        if LongRangeParameters(**json.loads(str(data["args"]))) == parameters:
            matched += 1
            assert relative_error(got["energy"][i], data["energy"]) < 1e-9, case
            assert relative_error(potential[i][:, 0], data["potential"]) < 1e-9, case
            assert relative_error(forces[i], data["forces"]) < 1e-9, case
            assert relative_error(got["strain_derivative"][i], data["strain_derivative"]) < 1e-9, case
            assert relative_error(bec[i], data["bec"]) < 1e-9, case
    assert matched >= 1


def test_the_parameter_sets_are_those_of_the_references(references):
    theirs = {LongRangeParameters(**json.loads(str(data["args"]))) for data in references.values()}
    assert theirs == {LongRangeParameters(**arguments) for arguments in ARGUMENTS}


@pytest.mark.parametrize("remove_self_interaction", [True, False])
def test_batch_equals_configurations_one_by_one(remove_self_interaction):
    les = Les(remove_self_interaction=remove_self_interaction)
    configurations = boxes()
    whole = evaluate(les, *joined(configurations))
    long_range = LatentEwald(LongRangeParameters(remove_self_interaction=remove_self_interaction))
    counts = [len(r) for r, _, _ in configurations]
    for i, (r, cell, q) in enumerate(configurations):
        alone = evaluate(les, r, cell[None], q, torch.zeros(len(r), dtype=torch.int64))
        torch.testing.assert_close(alone["energy"][0], whole["energy"][i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone["energy"][0], long_range.energy(r, q, cell), rtol=1e-12, atol=1e-12)
        for name in ("potential", "forces", "bec"):
            torch.testing.assert_close(alone[name], whole[name].split(counts)[i], rtol=1e-11, atol=1e-11)


def test_analytic_potential_is_the_derivative_of_the_energy():
    positions, cells, charges, batch = joined(boxes())
    charges.requires_grad_(True)
    result = Les()(positions, cells, latent_charges=charges, batch=batch, compute_potential=True)
    (derivative,) = torch.autograd.grad(result["E_lr"].sum(), charges)
    torch.testing.assert_close(result["potential"], derivative, rtol=1e-12, atol=1e-12)
    per_atom = 0.5 * (charges * result["potential"]).sum(1)
    sums = torch.zeros(len(cells), dtype=torch.float64).index_add(0, batch, per_atom)
    torch.testing.assert_close(result["E_lr"], sums, rtol=1e-12, atol=1e-12)


def test_channels_do_not_mix():
    positions, cells, charges, batch = joined(boxes(n_q=3))
    les = Les()
    together = les(positions, cells, latent_charges=charges, batch=batch)["E_lr"]
    apart = sum(les(positions, cells, latent_charges=charges[:, c], batch=batch)["E_lr"] for c in range(3))
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scripted", [False, True])
def test_second_derivatives(scripted):
    """Finite differences of first and second derivatives over positions, cells and charges at once."""
    positions, cells, charges, batch = joined(boxes(sizes=((3, True), (3, False), (2, True)), n_q=1))
    les = make({}, scripted)

    def energies(r, h, q):
        h = torch.where((cells == 0.0).flatten(1).all(1)[:, None, None], cells, h)
        result = les(r, h, latent_charges=q, batch=batch, compute_potential=True)
        return result["E_lr"], result["potential"]

    inputs = tuple(x.clone().requires_grad_(True) for x in (positions, cells, charges))
    assert torch.autograd.gradcheck(energies, inputs, atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradgradcheck(energies, inputs, atol=1e-6, rtol=1e-5)


def test_stress_is_the_finite_strain_derivative():
    positions, cells, charges, batch = joined(boxes())
    les = Les()
    got = evaluate(les, positions, cells, charges, batch)["strain_derivative"]
    step = 1e-5
    for x, y in ((0, 0), (1, 2), (2, 0)):
        energies = []
        for sign in (1.0, -1.0):
            strain = torch.eye(3, dtype=torch.float64)
            strain[x, y] += 0.5 * sign * step
            strain[y, x] += 0.5 * sign * step
            energies.append(les(positions @ strain, cells @ strain, latent_charges=charges, batch=batch)["E_lr"])
        difference = (energies[0] - energies[1]) / (2.0 * step)
        torch.testing.assert_close(got[:, x, y], difference, rtol=1e-6, atol=1e-6)


def test_single_precision(references):
    """Against float64: energies to 1e-6 of the largest, potential, forces and Born charges to 3e-6 of their largest."""
    configurations = [
        (torch.tensor(data["positions"]), torch.tensor(data["cell"]), torch.tensor(data["charges"])[:, None])
        for data in references.values()
    ]
    inputs = joined(configurations)
    double = evaluate(Les(), *inputs)
    single = evaluate(Les(), *(x.float() if x.is_floating_point() else x for x in inputs))
    assert single["energy"].dtype == torch.float32
    counts = [len(r) for r, _, _ in configurations]
    for i in range(len(counts)):
        error = abs(float(single["energy"][i] - double["energy"][i]))
        assert error < 1e-6 * float(double["energy"].abs().max())
        for name in ("potential", "forces", "bec"):
            want = double[name].split(counts)[i]
            assert float((single[name].split(counts)[i] - want).abs().max()) < 3e-6 * float(want.abs().max()), name


def test_edge_on_a_multiple_of_dl_in_single_precision():
    """A rotated cell in float32 keeps the wave vectors on the border, as it does in float64."""
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    positions = 8.0 * torch.rand(20, 3, generator=generator, dtype=torch.float64)
    charges = torch.randn(20, generator=generator, dtype=torch.float64)
    cell = 8.0 * torch.eye(3, dtype=torch.float64)
    les = Les()
    want = les(positions, cell, latent_charges=charges)["E_lr"]
    rotated = les((positions @ rotation).float(), (cell @ rotation).float(), latent_charges=charges.float())["E_lr"]
    torch.testing.assert_close(rotated.double(), want, rtol=1e-5, atol=1e-5)


def test_scripted_and_saved_equals_eager(tmp_path):
    """The first runs are not yet those of the optimised script, which must not be bound to the sizes it saw."""
    torch.jit.script(Les(sigma=0.8, dl=1.7)).save(tmp_path / "les.pt")
    loaded = torch.jit.load(tmp_path / "les.pt")
    for seed in range(4):
        inputs = joined(boxes(seed, sizes=((7 + seed, True), (3, False), (12, True), (9 - 2 * seed, True))))
        assert_equal(evaluate(loaded, *inputs), evaluate(Les(sigma=0.8, dl=1.7), *inputs), 1e-12)


def test_compiled_equals_eager():
    """Sizes decide about shapes, so that the graph breaks where they reach the host; results are the same."""
    torch._dynamo.reset()
    compiled = torch.compile(Les(), backend="aot_eager")
    for seed in (0, 1):
        positions, cells, charges, batch = joined(boxes(seed))
        positions.requires_grad_(True)
        results = []
        for les in (compiled, Les()):
            energy = les(positions, cells, latent_charges=charges, batch=batch)["E_lr"]
            results.append((energy, *torch.autograd.grad(energy.sum(), positions)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_order_of_configurations_and_atoms_does_not_matter():
    configurations = boxes()
    positions, cells, charges, batch = joined(configurations)
    want = evaluate(Les(), positions, cells, charges, batch)
    turned = torch.tensor([3, 5, 0, 4, 2, 1])
    got = evaluate(Les(), *joined([configurations[i] for i in turned]))
    torch.testing.assert_close(got["energy"], want["energy"][turned], rtol=1e-12, atol=1e-12)
    mixed = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    got = evaluate(Les(), positions[mixed], cells, charges[mixed], batch[mixed])
    torch.testing.assert_close(got["energy"], want["energy"], rtol=1e-12, atol=1e-12)
    for name in ("potential", "forces", "bec"):
        torch.testing.assert_close(got[name], want[name][mixed], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scripted", [False, True])
def test_configurations_without_atoms_and_with_one(scripted):
    configurations = boxes(sizes=((0, True), (1, False), (0, False), (4, True), (1, True), (0, True)))
    got = evaluate(make({}, scripted), *joined(configurations))
    assert got["energy"][[0, 1, 2, 5]].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert got["energy"][3] != 0.0
    assert got["energy"][4] != 0.0  # the images of a lone periodic charge
    with_self = Les(remove_self_interaction=False)
    charge = float(configurations[1][2].square().sum())
    energy = with_self(configurations[1][0], configurations[1][1], latent_charges=configurations[1][2])["E_lr"]
    assert float(energy) == pytest.approx(with_self.norm_factor * charge / (2.0 * np.pi) ** 1.5, rel=1e-12)
    positions, cells, charges, batch = joined(boxes(sizes=((0, True), (0, False))))
    for q in (charges, charges[:, 0]):
        assert evaluate(make({}, scripted), positions, cells, q, batch)["energy"].tolist() == [0.0, 0.0]


def test_boundaries():
    """pbc makes a configuration isolated whatever its cell; mixed boundaries are summed as periodic."""
    r, cell, q = boxes(sizes=((6, True),))[0]
    les = Les()

    def energy(h, axes):
        pbc = None if axes is None else torch.tensor(axes)
        return float(les(r, h, latent_charges=q, pbc=pbc)["E_lr"])

    assert energy(cell, [False] * 3) == energy(torch.zeros_like(cell), None)
    assert energy(cell, [True, True, False]) == energy(cell, None) != energy(cell, [False] * 3)


def test_groups_pad_little_and_hold_every_configuration_once():
    sizes = [[400, 8, 9, 9], [380, 8, 8, 9], [40, 3, 3, 5], [38, 3, 3, 4], [4, 2, 2, 2]]
    groups = padded_groups([3, 1, 4, 0, 2], sizes)
    assert [member for members, _ in groups for member in members] == [3, 1, 4, 0, 2]
    assert groups[0] == ([3, 1], [400, 8, 9, 9])
    assert len(groups) < len(sizes)  # small ones are not worth a product of their own
    equal = padded_groups(list(range(8)), [[192, 6, 6, 6]] * 8)
    assert equal == [(list(range(8)), [192, 6, 6, 6])]


def test_training_reaches_born_charges():
    """In training mode, Born charges of charges that depend on weights can be differentiated over them."""
    positions, cells, charges, batch = joined(boxes(sizes=((4, True), (3, False)), n_q=1))
    positions.requires_grad_(True)
    les = Les()

    def loss(weight):
        q = charges[:, 0] * (1.0 + weight * torch.sin(positions.sum(1)))
        return les(positions, cells, latent_charges=q, batch=batch, compute_energy=False, compute_bec=True)["BEC"]

    assert torch.autograd.gradcheck(loss, torch.tensor(0.1, dtype=torch.float64, requires_grad=True))
    only = les(
        positions, cells, latent_charges=charges, batch=batch, compute_bec=True, bec_output_index=1
    )["BEC"]  # fmt: skip
    assert only.shape == (7, 3)
    with pytest.raises(ValueError, match="bec_output_index must be"):
        les(positions, cells, latent_charges=charges, batch=batch, compute_bec=True, bec_output_index=3)
    assert bool((only[:, [0, 2]] == 0.0).all())  # charges that do not move: the charge times the unit tensor


def test_charge_head():
    torch.manual_seed(0)
    les = Les(use_atomwise=True, n_in=5, num_charges=2).double()
    positions, cells, _, batch = joined(boxes())
    descriptors = torch.randn(len(batch), 5, dtype=torch.float64)
    result = les(positions, cells, desc=descriptors, batch=batch)
    assert result["latent_charges"].shape == (len(batch), 2)
    result["E_lr"].sum().backward()
    assert all(parameter.grad is not None for parameter in les.parameters())
    again = torch.jit.script(les)(positions, cells, desc=descriptors, batch=batch)
    torch.testing.assert_close(again["E_lr"], result["E_lr"], rtol=1e-12, atol=1e-12)
    head = LatentChargeHead(5, n_layers=2, n_hidden=7, add_linear_nn=False, output_scaling_factor=2.0).double()
    x = torch.nn.functional.silu(descriptors @ head.layers[0].weight.T + head.layers[0].bias)
    torch.testing.assert_close(torch.jit.script(head)(descriptors), head(descriptors))
    torch.testing.assert_close(head(descriptors), 2.0 * (x @ head.layers[1].weight.T + head.layers[1].bias))


WRONG = {
    "positions must be": {"positions": torch.zeros(4, 2).double()},
    "charges must be": {"latent_charges": torch.zeros(3).double()},
    "batch must be .* of type int64": {"batch": torch.zeros(4)},
    "batch must be .4.": {"batch": torch.zeros(3, dtype=torch.int64)},
    "indices outside 0 to 1": {"batch": torch.tensor([0, 0, 1, 2])},
    "indices outside 0 to": {"batch": torch.tensor([0, 0, 1, -1])},
    "one floating-point type": {"cell": torch.zeros(2, 3, 3)},
    "cell must be": {"cell": torch.zeros(2, 3).double()[None].expand(2, 2, 3)},
    "several cells need batch": {"batch": None},
    "cell of configuration 1 is singular": {
        "cell": torch.stack([torch.eye(3).double() * 5.0, torch.diag(torch.tensor([5.0, 5.0, 0.0])).double()])
    },
    "has a cell of zeros: give its cell": {"pbc": torch.tensor([[False] * 3, [True] * 3])},
    "three booleans": {"pbc": torch.tensor([True])},
    "give latent_charges": {"latent_charges": None},
    "no charge head": {"latent_charges": None, "desc": torch.zeros(4, 5).double()},
    "positions that require a gradient": {"compute_bec": True},
}


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("message", WRONG)
def test_wrong_input(message, scripted):
    right = {
        "positions": torch.zeros(4, 3).double(),
        "cell": torch.zeros(2, 3, 3).double(),
        "latent_charges": torch.zeros(4).double(),
        "batch": torch.tensor([0, 0, 1, 1]),
    }
    with pytest.raises((ValueError, torch.jit.Error), match=message):
        make({}, scripted)(**{**right, **WRONG[message]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0}, "sigma must be a positive number"),
        ({"norm_factor": float("nan")}, "norm_factor must be"),
        ({"use_atomwise": True}, "n_in"),
        ({"n_in": 4}, "use_atomwise"),
        ({"use_atomwise": True, "n_in": 4, "n_hidden": (8,)}, "3 layers need 2 widths"),
    ],
)
def test_wrong_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        Les(**arguments)
