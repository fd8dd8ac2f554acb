"""What TorchForce evaluates, frozen as it freezes it, against LESCalculator; needs no openmm-torch."""

import functools

import numpy as np
import pytest
import torch

from les_md.openmm.torch_module import (
    IsolatedFieldModule,
    PeriodicFieldModule,
    TorchForceModule,
    configure_executor,
    module_class,
)
from les_md.openmm.units import EV_TO_KJ_PER_MOL, VOLT_PER_NANOMETER
from tests.architectures.small_models import export_small_model
from tests.openmm.conftest import (
    KJ_PER_MOL,
    NANOMETER,
    assert_same,
    cluster,
    cubic_water,
    loaded,
    reference,
    small_cell,
    tilted_water,
)

CONFIGURATIONS = {
    "cubic": cubic_water,
    "triclinic": tilted_water,
    "cell below the cutoff": small_cell,
    "isolated": cluster,
}


@pytest.fixture(autouse=True)
def executor():
    """As the backend sets it."""
    before = torch.jit.set_fusion_strategy([("DYNAMIC", 0)])
    torch.jit.set_fusion_strategy(before)
    configure_executor()
    yield
    torch.jit.set_fusion_strategy(before)


def frozen(model, atoms, **options):
    """The module for these atoms, frozen as TorchForce does it when a Context is made; made once for all tests."""
    return _frozen(model, tuple(atoms.numbers), bool(atoms.pbc.all()), **options)


@functools.cache
def _frozen(model, numbers, periodic, **options):
    module = TorchForceModule(loaded(model), loaded(model).types_of(np.array(numbers)), periodic, **options)
    return torch.jit.freeze(torch.jit.script(module).eval())


def evaluate(module, atoms, dtype=torch.float64):
    """Energy and forces, with positions as TorchForce hands them over: they ask for a derivative."""
    positions = torch.from_numpy(atoms.positions / NANOMETER).to(dtype).requires_grad_(True)
    box = (torch.from_numpy(atoms.cell.array / NANOMETER).to(dtype),) if atoms.pbc.all() else ()
    energy, forces = module(positions, *box)
    assert energy.dtype == torch.float64 and energy.shape == () and not energy.requires_grad
    assert forces.dtype == dtype and forces.is_contiguous() and not forces.requires_grad
    return energy.item(), forces.numpy()


def test_unit():
    assert pytest.approx(KJ_PER_MOL, rel=1e-15) == EV_TO_KJ_PER_MOL


def assert_agrees_while_moving(module, model, atoms, steps):
    """Also with atoms outside of the box."""
    for step in range(steps):
        assert_same(evaluate(module, atoms), reference(model, atoms))
        atoms.rattle(0.02, seed=step)
        if atoms.pbc.all():
            atoms.positions[step % 3] += np.array([3, -2, 1]) @ atoms.cell.array
            atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("model", ["one channel", "two layers"])
def test_frozen_agrees_with_the_calculator(models, model, name):
    atoms = CONFIGURATIONS[name]()
    assert_agrees_while_moving(frozen(models[model], atoms), models[model], atoms, 3)


@pytest.mark.parametrize("sum_rule", [False, True])
@pytest.mark.parametrize("name", ["cubic", "triclinic", "isolated"])
@pytest.mark.parametrize("model", ["one channel", "two layers"])
def test_field(models, model, name, sum_rule):
    """Frozen, in fields that come as arguments, as TorchForce hands its global parameters over."""
    atoms = CONFIGURATIONS[name]()
    if sum_rule and not atoms.pbc.all():
        pytest.skip("the sum rule is for periodic systems")
    exported = loaded(models[model])
    kind = PeriodicFieldModule if atoms.pbc.all() else IsolatedFieldModule
    module = kind(exported, exported.types_of(atoms.numbers), bool(atoms.pbc.all()), sum_rule=sum_rule)
    module = torch.jit.freeze(torch.jit.script(module).eval())
    for field in ([0.0, 0.0, 0.0], [1.3, -2.4, 3.1], [0.0, 0.0, -5.0]):  # V/nm
        positions = torch.from_numpy(atoms.positions / NANOMETER).requires_grad_(True)
        box = (torch.from_numpy(atoms.cell.array / NANOMETER),) if atoms.pbc.all() else ()
        arguments = [torch.tensor(VOLT_PER_NANOMETER * component, dtype=torch.float64) for component in field]
        energy, forces = module(positions, *box, *arguments)
        expected = reference(
            models[model], atoms, electric_field=tuple(np.array(field) / NANOMETER), sum_rule=sum_rule
        )  # fmt: skip
        assert_same((energy.item(), forces.numpy()), expected)
        atoms.rattle(0.02, seed=3)


@pytest.fixture(scope="module")
def multipole_models(tmp_path_factory):
    """With latent dipoles and quadrupoles, and with induced charges and dipoles besides."""
    folder = tmp_path_factory.mktemp("multipole_models")
    return {name: export_small_model(name, folder / f"{name}.pt") for name in ("multipoles", "responding")}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("model", ["multipoles", "responding"])
def test_multipoles(multipole_models, model, name):
    atoms = CONFIGURATIONS[name]()
    exported = loaded(multipole_models[model])
    kind = module_class(exported, bool(atoms.pbc.all()), False)
    module = kind(exported, exported.types_of(atoms.numbers), bool(atoms.pbc.all()))
    module = torch.jit.freeze(torch.jit.script(module).eval())
    assert_agrees_while_moving(module, multipole_models[model], atoms, 2)


@pytest.mark.parametrize("name", ["triclinic", "isolated"])
@pytest.mark.parametrize("model", ["multipoles", "responding"])
def test_multipoles_in_a_field(multipole_models, model, name):
    test_field(multipole_models, model, name, False)


@pytest.mark.parametrize("name", ["triclinic", "isolated"])
def test_specialised_code(models, name):
    """A System that is read by a program without les_md is evaluated by what TorchScript makes of the first steps."""
    torch.jit.set_fusion_strategy([("STATIC", 2), ("DYNAMIC", 10)])  # torch's default
    _frozen.cache_clear()
    atoms = CONFIGURATIONS[name]()
    assert_agrees_while_moving(frozen(models["one channel"], atoms), models["one channel"], atoms, 5)
    _frozen.cache_clear()


@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
@pytest.mark.parametrize("name", ["triclinic", "isolated"])
def test_long_range_solvers(models, name, kspace):
    atoms = CONFIGURATIONS[name]()
    options = {"kspace": kspace, "accuracy": 1e-4}
    module = frozen(models["one channel"], atoms, **options)
    assert_same(evaluate(module, atoms), reference(models["one channel"], atoms, **options))


@pytest.mark.parametrize("model, tolerance", [("float32", 1e-5), ("short range", 1e-9)])
@pytest.mark.parametrize("name", ["cubic", "isolated"])
def test_other_models(models, model, tolerance, name):
    atoms = CONFIGURATIONS[name]()
    module = frozen(models[model], atoms)
    for _ in range(3):
        assert_same(evaluate(module, atoms), reference(models[model], atoms), tolerance)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_subset(models, name):
    """In any order; particles that the model does not see may be anywhere, and feel nothing."""
    atoms = CONFIGURATIONS[name]()
    number = len(atoms) + 5
    particles = np.random.default_rng(0).permutation(number)[: len(atoms)]
    module = frozen(models["one channel"], atoms, particles=tuple(particles), num_particles=number)
    system = atoms.__class__(positions=np.full((number, 3), 1e6), cell=atoms.cell, pbc=atoms.pbc)
    system.positions[particles] = atoms.positions
    energy, forces = evaluate(module, system)
    assert_same((energy, forces[particles]), reference(models["one channel"], atoms))
    assert not np.delete(forces, particles, axis=0).any()


def test_single_precision_of_the_platform(models):
    """Forces in the precision of the positions, which is what TorchForce reads on a GPU."""
    atoms = cubic_water()
    module = frozen(models["one channel"], atoms)
    assert_same(evaluate(module, atoms, torch.float32), reference(models["one channel"], atoms), 1e-4)


def test_one_atom_alone(models):
    """No pair, no derivative."""
    atoms = cluster()[:1]
    module = frozen(models["one channel"], atoms)
    energy, forces = evaluate(module, atoms)
    assert_same((energy, forces), reference(models["one channel"], atoms))
    assert not forces.any()


@pytest.mark.parametrize("name", ["cubic", "isolated"])
def test_result_depends_on_positions_and_box_alone(models, name):
    """To the last bit, whatever was evaluated before."""
    atoms = CONFIGURATIONS[name]()
    module = frozen(models["one channel"], atoms, kspace="mesh")
    first = evaluate(module, atoms)
    for seed in range(4):
        other = atoms.copy()
        other.rattle(0.3, seed=seed)
        evaluate(module, other)
    again = evaluate(module, atoms)
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1], again[1])


def test_positions_off_by_a_lattice_vector_or_rotated(models):
    """Same energy; forces rotate."""
    atoms = tilted_water()
    module = frozen(models["one channel"], atoms)
    energy, forces = evaluate(module, atoms)
    moved = atoms.copy()
    moved.positions += np.random.default_rng(0).integers(-9, 9, (len(atoms), 3)) @ atoms.cell.array
    assert_same(evaluate(module, moved), (energy, forces))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    rotated = atoms.copy()
    rotated.set_cell(atoms.cell.array @ rotation)
    rotated.positions = atoms.positions @ rotation
    assert_same(evaluate(module, rotated), (energy, forces @ rotation))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda atoms: atoms.positions.__setitem__(0, np.nan), "positions are not finite"),
        (lambda atoms: atoms.positions.fill(1.0), "on top of each other"),
        (lambda atoms: atoms.set_cell(np.diag([5.0, 5.0, 0.0])), "singular"),
        (lambda atoms: atoms.set_pbc(False), "if and only if"),
        (lambda atoms: atoms.__delitem__(0), "24 particles, the System has 23"),
    ],
    ids=["not finite", "on top of each other", "singular box", "no box", "another number"],
)
def test_errors_while_running(models, change, message):
    """Frozen code says what is wrong, and goes on with the next configuration."""
    atoms = cubic_water()
    module = frozen(models["one channel"], atoms)
    wrong = atoms.copy()
    change(wrong)
    for _ in range(3):
        with pytest.raises(torch.jit.Error, match=message):
            evaluate(module, wrong)
        assert_same(evaluate(module, atoms), reference(models["one channel"], atoms))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"types": [0, 2]}, "types 0 to 1"),
        ({"types": [0, -1]}, "types 0 to 1"),
        ({"particles": [0]}, "one index for each type"),
        ({"particles": [1, 1]}, "each once"),
        ({"particles": [-1, 0]}, "none negative"),
        ({"particles": [0, 3], "num_particles": 3}, "index 3"),
        ({"kspace": "pme"}, "kspace"),
        ({"accuracy": 1e-30, "kspace": "mesh"}, "accuracy"),
    ],
)
def test_wrong_arguments(models, options, message):
    with pytest.raises(ValueError, match=message):
        TorchForceModule(loaded(models["one channel"]), **{"types": [0, 1], "periodic": True, **options})
