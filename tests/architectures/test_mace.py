"""MACE and MACE-LES: the published model against its reference, small random ones against mace-torch itself."""

import io
import sys
import types
from pathlib import Path

import ase
import ase.build
import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="mace-torch is not installed")

from e3nn import o3
from mace import modules as mace_modules
from mace.modules.extensions import MACELES

from les_md.architectures import LoadOptions, NoLatentChargesError, UnsupportedModelError, mace
from les_md.checkpoint import read_checkpoint
from les_md.electrostatics.latent_ewald import LatentEwald
from les_md.electrostatics.parameters import NORM_FACTOR_BEFORE_2026, LongRangeParameters
from les_md.layered_evaluation import LayeredEvaluation, WholeEvaluation
from les_md.neighbors import NeighborList
from les_md.potential import LESPotential
from les_md.stand_in import StandIn

NUMBERS = [1, 8, 14]


# ---- models made with mace-torch


class Ewald(torch.nn.Module):
    """Holds the state of les.module.ewald.Ewald and evaluates with les_md."""

    def __init__(self, parameters: LongRangeParameters) -> None:
        super().__init__()
        self.sigma, self.dl, self.norm_factor = parameters.sigma, parameters.dl, parameters.norm_factor
        self.remove_self_interaction = parameters.remove_self_interaction


class BEC(torch.nn.Module):
    def __init__(self, parameters: LongRangeParameters) -> None:
        super().__init__()
        self.remove_mean, self.epsilon_factor = parameters.remove_mean, parameters.epsilon_factor


class Les(torch.nn.Module):
    """What MACELES asks of the package ``les``, which is not installed for tests: storage and the call."""

    parameters_of_sum = LongRangeParameters(sigma=0.9, dl=1.7, remove_self_interaction=False, remove_mean=False)

    def __init__(self, les_arguments: dict) -> None:
        super().__init__()
        self.use_atomwise = False
        self.ewald = Ewald(self.parameters_of_sum)
        self.bec = BEC(self.parameters_of_sum)

    def forward(self, latent_charges, positions, cell, batch, compute_energy, compute_bec, bec_output_index):
        energy = LatentEwald(self.parameters_of_sum).energy(positions, latent_charges[:, None], cell[0])
        return {"E_lr": energy[None], "BEC": None}


@pytest.fixture(autouse=True)
def les_package(monkeypatch):
    """Lets MACELES be built and pickled; the files hold the class paths of the real package."""
    for path, classes in {"les": [Les], "les.les": [Les], "les.module.ewald": [Ewald], "les.module.bec": [BEC]}.items():
        module = types.ModuleType(path)
        for cls in classes:
            setattr(module, cls.__name__, cls)
            if path != "les":
                monkeypatch.setattr(cls, "__module__", path)
        monkeypatch.setitem(sys.modules, path, module)


def make_model(kind=MACELES, seed=3, dtype=torch.float64, **changes) -> torch.nn.Module:
    """A small MACE with random weights."""
    heads = changes.get("heads") or ["Default"]
    arguments = {
        "r_max": 3.7,
        "num_bessel": 5,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls": mace_modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        "interaction_cls_first": mace_modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        "num_interactions": 2,
        "num_elements": len(NUMBERS),
        "hidden_irreps": o3.Irreps("8x0e + 8x1o"),
        "MLP_irreps": o3.Irreps("6x0e"),
        "atomic_energies": np.linspace(-800.0, -7.0, len(heads) * len(NUMBERS)).reshape(len(heads), -1),
        "avg_num_neighbors": 7.0,
        "atomic_numbers": NUMBERS,
        "correlation": 2,
        "gate": torch.nn.functional.silu,
        "radial_MLP": [16, 16],
        "use_reduced_cg": False,
        **changes,
    }
    if kind is not mace_modules.MACE:
        count = len(heads)
        arguments["atomic_inter_scale"] = list(np.linspace(0.7, 1.3, count)) if count > 1 else 0.7
        arguments["atomic_inter_shift"] = list(np.linspace(-0.4, 0.3, count)) if count > 1 else -0.4
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(seed)
    try:
        return kind(**arguments).eval()
    finally:
        torch.set_default_dtype(default)


def saved(model: torch.nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "trained.model"
    torch.save(model, path)
    return path


def crystal() -> ase.Atoms:
    """A small triclinic cell, shorter than the cutoff along one axis."""
    generator = np.random.default_rng(5)
    cell = np.array([[5.1, 0.0, 0.0], [0.6, 4.8, 0.0], [-0.4, 0.5, 3.2]])
    atoms = ase.Atoms("HOSiHOSiHO", cell=cell, pbc=True)
    sites = np.array(list(np.ndindex(2, 2, 2))) / 2.0 + 0.1
    atoms.set_scaled_positions(sites + generator.uniform(-0.05, 0.05, (8, 3)))
    return atoms


def cluster() -> ase.Atoms:
    atoms = ase.build.molecule("H2O2") + ase.Atoms("Si", [[3.0, 0.5, 0.3]])
    atoms.rattle(0.05, seed=4)
    return atoms


def slab() -> ase.Atoms:
    atoms = crystal()
    cell = atoms.cell.array.copy()
    cell[2] = [0.0, 0.0, 14.0]
    atoms.set_cell(cell)
    atoms.pbc = [True, True, False]
    return atoms


def scripted(trained, dtype=torch.float64) -> torch.jit.ScriptModule:
    """The exported module, saved and loaded again."""
    potential = LESPotential(
        trained.script(trained.network.to(dtype)), trained.reference_energies, trained.long_range, trained.num_charges
    )
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(potential.eval()), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.fixture(autouse=True)
def unoptimised_torchscript():
    """Each model runs a few times only, which does not pay for TorchScript's optimisation passes."""
    with torch.jit.optimized_execution(False):
        yield


def inputs(trained, atoms: ase.Atoms, skin: float = 0.5) -> tuple[torch.Tensor, ...]:
    """Arguments of the exported module; edges up to ``skin`` Å beyond the cutoff are among them."""
    pairs = NeighborList(trained.cutoff + skin, skin=0.0)
    index, vectors = pairs.compute(atoms.positions, atoms.cell.array, atoms.pbc)
    kinds = torch.tensor([trained.atomic_numbers.index(z) for z in atoms.numbers])
    cell = torch.tensor(atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3)))
    return torch.tensor(vectors), torch.tensor(index), kinds, torch.tensor(atoms.positions), cell


def evaluate_with_mace(model: torch.nn.Module, atoms: ase.Atoms, head: str | None = None) -> dict:
    """A model that was never saved, through mace-torch's own data pipeline."""
    from mace import data
    from mace.tools import torch_geometric, utils

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        heads = getattr(model, "heads", None) or ["Default"]
        configuration = data.config_from_atoms(atoms, head_name=head or heads[0])
        graph = data.AtomicData.from_config(
            configuration,
            z_table=utils.AtomicNumberTable([int(z) for z in model.atomic_numbers]),
            cutoff=float(model.r_max),
            heads=heads,
        )
        batch = next(iter(torch_geometric.dataloader.DataLoader([graph], batch_size=1))).to_dict()
        return model(batch)
    finally:
        torch.set_default_dtype(default)


def assert_same(got, expected, relative: float) -> None:
    got = got.detach().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0.0, atol=relative * max(np.abs(expected).max(), 1e-3))


def evaluate(module, arguments) -> dict[str, torch.Tensor]:
    """The whole potential with the direct long-range sum; ``arguments`` end with the cell."""
    *graph, cell = arguments
    return module(*graph, module.direct_plan(cell))


# ---- the published model


@pytest.mark.parametrize(("dtype", "relative", "energy"), [(torch.float64, 1e-8, 1e-10), (torch.float32, 5e-6, 2e-7)])
def test_published_water_model(shared, dtype, relative, energy):
    checkpoint = read_checkpoint(shared / "models" / "maceles_water_nl1_l0.model")
    assert mace.matches(checkpoint)
    trained = mace.load(checkpoint, options=LoadOptions(dtype=dtype))
    assert trained.long_range == LongRangeParameters(norm_factor=90.0474, remove_self_interaction=False)
    assert (trained.atomic_numbers, trained.num_layers, trained.cutoff, trained.num_charges) == ([1, 8], 2, 4.5, 1)
    module = scripted(trained, dtype)
    reference = np.load(shared / "reference" / "maceles_water_nl1_l0.npz")
    for frame in "01":
        want = {key[2:]: reference[key] for key in reference if key.startswith(frame)}
        atoms = ase.Atoms(want["numbers"], want["positions"], cell=want["cell"], pbc=want["pbc"])
        arguments = inputs(trained, atoms)
        result = evaluate(module, arguments)
        assert_same(result["energies"].sum(), want["energy"], energy)
        assert_same(result["long_range_energies"].sum(), want["les_energy"], relative)
        assert_same(result["forces"], want["forces"], relative)
        assert_same(result["charges"][:, 0], want["charges"], relative)
        assert_same(result["strain_derivative"] / atoms.get_volume(), want["stress"], relative)
        assert_same(module.born_effective_charges(*arguments), want["bec"], relative)
        if dtype is torch.float64:
            original = trained.original(atoms)
            assert_same(original.energy, want["energy"], 1e-12)
            assert_same(original.long_range_energy, want["les_energy"], 1e-12)
            assert_same(original.forces, want["forces"], 1e-12)
            assert_same(original.charges[:, 0], want["charges"], 1e-12)


# ---- random models

BLOCKS = mace_modules.interaction_classes

VARIANTS = {
    "one layer, scalars": {"num_interactions": 1, "hidden_irreps": o3.Irreps("8x0e")},
    "two layers, scalars": {"hidden_irreps": o3.Irreps("8x0e"), "correlation": 3},
    "three layers, rank two": {"num_interactions": 3, "hidden_irreps": o3.Irreps("4x0e + 4x1o + 4x2e")},
    "repulsion": {"pair_repulsion": True},
    "Agnesi": {"distance_transform": "Agnesi", "pair_repulsion": True},
    "Soft": {"distance_transform": "Soft"},
    "Gaussian basis": {"radial_type": "gaussian"},
    "no residual in the first layer": {"interaction_cls_first": BLOCKS["RealAgnosticInteractionBlock"]},
    "density": {
        "interaction_cls_first": BLOCKS["RealAgnosticDensityInteractionBlock"],
        "interaction_cls": BLOCKS["RealAgnosticDensityResidualInteractionBlock"],
    },
    "one atomic-number-agnostic product": {"use_agnostic_product": True},
    "tanh gate": {"gate": torch.tanh},
    "no products": {"correlation": 1},
    "products of four": {"correlation": 4, "max_ell": 1},
}


CASES = [(MACELES, variant) for variant in VARIANTS]
CASES += [(mace_modules.ScaleShiftMACE, "repulsion"), (mace_modules.MACE, "repulsion")]


@pytest.mark.parametrize(("kind", "variant"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_agrees_with_mace(kind, variant, tmp_path):
    model = make_model(kind, **VARIANTS[variant])
    options = LoadOptions(dtype=torch.float64, allow_short_range=kind is not MACELES)
    trained = mace.load(read_checkpoint(saved(model, tmp_path)), options=options)
    assert (trained.long_range is not None) == (kind is MACELES)
    assert trained.num_layers == len(model.interactions)
    module = scripted(trained)
    for atoms in (crystal(), cluster()):
        want = evaluate_with_mace(model, atoms)
        got = evaluate(module, inputs(trained, atoms))
        original = trained.original(atoms)
        assert_same(got["energies"].sum(), want["energy"][0], 1e-12)
        assert_same(got["forces"], want["forces"], 1e-10)
        assert_same(original.energy, want["energy"][0], 1e-14)
        assert_same(original.forces, want["forces"], 1e-12)
        if kind is MACELES:
            assert_same(got["long_range_energies"].sum(), want["les_energy"][0], 1e-10)
            assert_same(got["charges"][:, 0], want["latent_charges"], 1e-10)
            assert_same(original.charges[:, 0], want["latent_charges"], 1e-12)
            assert_same(original.long_range_energy, want["les_energy"][0], 1e-12)


@pytest.mark.parametrize(("kind", "layers"), [(MACELES, 2), (mace_modules.MACE, 1)])
def test_each_of_several_heads(kind, layers, tmp_path):
    model = make_model(kind, heads=["dft", "cc"], num_interactions=layers, pair_repulsion=True)
    path = saved(model, tmp_path)
    options = {"dtype": torch.float64, "allow_short_range": True}
    with pytest.raises(ValueError, match="dft, cc"):
        mace.load(read_checkpoint(path), options=LoadOptions(**options))
    with pytest.raises(ValueError, match=r"no head 'hf'.*dft, cc"):
        mace.load(read_checkpoint(path), options=LoadOptions(head="hf", **options))
    for head in model.heads:
        trained = mace.load(read_checkpoint(path), options=LoadOptions(head=head, **options))
        assert any(head in note for note in trained.notes)
        atoms = crystal()
        want = evaluate_with_mace(model, atoms, head)
        got = evaluate(scripted(trained), inputs(trained, atoms))
        assert_same(got["energies"].sum(), want["energy"][0], 1e-12)
        assert_same(got["forces"], want["forces"], 1e-10)
        assert_same(trained.original(atoms).energy, want["energy"][0], 1e-14)


@pytest.mark.parametrize("variant", ["repulsion", "Agnesi", "density"])
def test_edges_beyond_the_cutoff_contribute_nothing(variant, tmp_path):
    model = make_model(**VARIANTS[variant])
    trained = mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions(dtype=torch.float64))
    vectors, index, kinds, _positions, _cell = inputs(trained, crystal(), skin=0.0)
    wide_vectors, wide_index, *_ = inputs(trained, crystal(), skin=1.5)
    beyond = wide_vectors.norm(dim=1) > trained.cutoff
    assert int(beyond.sum()) > 50
    module = scripted(trained)
    alone = module.short_range(vectors, index, kinds)
    with_skin = module.short_range(
        torch.cat([vectors, wide_vectors[beyond]]), torch.cat([index, wide_index[:, beyond]], dim=1), kinds
    )
    assert torch.equal(alone[0], with_skin[0])
    assert torch.equal(alone[1], with_skin[1])


@pytest.mark.parametrize("variant", ["repulsion", "density"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_isolated_atom(variant, dtype, tmp_path):
    model = make_model(**VARIANTS[variant])
    trained = mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions(dtype=dtype))
    atoms = ase.Atoms("O", [[0.1, 0.2, 0.3]])
    want = evaluate_with_mace(model, atoms)
    got = evaluate(scripted(trained, dtype), inputs(trained, atoms))
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    assert_same(got["energies"].sum(), want["energy"][0], tolerance)
    assert got["forces"].abs().max() == 0.0
    assert_same(got["charges"][:, 0], want["latent_charges"], tolerance)


def test_forces_and_strain_are_derivatives(tmp_path):
    trained = mace.load(
        read_checkpoint(saved(make_model(pair_repulsion=True), tmp_path)), options=LoadOptions(dtype=torch.float64)
    )
    module = scripted(trained)

    def energy(atoms: ase.Atoms) -> float:
        return float(evaluate(module, inputs(trained, atoms))["energies"].sum())

    atoms, step = crystal(), 1e-4
    result = evaluate(module, inputs(trained, atoms))
    for atom, axis in ((0, 0), (3, 1), (7, 2)):
        moved = [atoms.copy(), atoms.copy()]
        moved[0].positions[atom, axis] += step
        moved[1].positions[atom, axis] -= step
        slope = (energy(moved[0]) - energy(moved[1])) / (2 * step)
        force, scale = float(result["forces"][atom, axis]), float(result["forces"].abs().max())
        assert -slope == pytest.approx(force, abs=2e-6 * scale)
    for a, b in ((0, 0), (1, 2)):
        strained = []
        for sign in (1.0, -1.0):
            deformation = np.eye(3)
            deformation[a, b] += 0.5 * sign * step
            deformation[b, a] += 0.5 * sign * step
            strained.append(atoms.copy())
            strained[-1].set_cell(atoms.cell.array @ deformation, scale_atoms=True)
        slope = (energy(strained[0]) - energy(strained[1])) / (2 * step)
        scale = float(result["strain_derivative"].abs().max())
        assert slope == pytest.approx(float(result["strain_derivative"][a, b]), abs=2e-6 * scale)


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("variant", ["three layers, rank two", "no residual in the first layer", "density"])
def test_in_blocks(variant, frozen, tmp_path):
    """Blocks of 5 out of 19 atoms, some without neighbours, edges in any order: as all atoms at once."""
    model = make_model(**VARIANTS[variant], pair_repulsion=True)
    trained = mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions(dtype=torch.float64))
    atoms = crystal() + cluster()
    far = np.random.default_rng(2).uniform(0, 4, (6, 3)) + np.array([0.0, 0.0, 30.0])
    far[-3:] += np.outer([1, 2, 3], [20.0, 0.0, 0.0])
    atoms += ase.Atoms("OHSiOHSi", far)
    atoms.pbc = False
    vectors, index, kinds, *_ = inputs(trained, atoms)
    shuffled = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(1))
    vectors, index = vectors[shuffled], index[:, shuffled]
    assert len(torch.unique(index[0])) < len(atoms) == 19
    arguments = (vectors, index, kinds)
    generator = torch.Generator().manual_seed(2)
    cotangents = [torch.randn(19, n, dtype=torch.float64, generator=generator) for n in (1, trained.num_charges)]
    cotangents[0] = cotangents[0][:, 0]
    results = []
    for in_blocks in (False, True):
        network = trained.script(trained.network)  # each its own, as freezing changes it
        evaluation = LayeredEvaluation(network, 5, whole_up_to=0) if in_blocks else WholeEvaluation(network)
        module = torch.jit.script(evaluation.eval())
        if frozen:
            with torch.jit.optimized_execution(True):
                module = torch.jit.freeze(module, preserved_attrs=["pull_back", "pull_back_all"])
        energy, charge, state = module(*arguments)
        assert not energy.requires_grad and not charge.requires_grad
        gradient = module.pull_back(*arguments, state, *cotangents)
        assert torch.equal(module.pull_back(*arguments, state, *cotangents), gradient)
        several = [torch.stack([3.0 * c.roll(1, 0), torch.zeros_like(c), c]) for c in cotangents]
        gradients = module.pull_back_all(*arguments, state, *several)
        assert gradients.shape == (3, *gradient.shape)
        assert_same(gradients[2], gradient, 1e-14)
        assert not gradients[1].any()
        results.append((energy, charge, gradient, gradients[0]))
    for whole, blocks in zip(*results, strict=True):
        assert whole.abs().max() > 1e-3
        assert_same(blocks, whole, 1e-12)
    assert len(state) == 1 + trained.num_layers  # features, no tape


def test_blocks_that_nothing_depends_on_are_skipped(tmp_path):
    """Cotangents of the first atoms alone, as of a process and its halo: the same gradient from fewer layers."""
    model = make_model(num_interactions=3, hidden_irreps=o3.Irreps("3x0e"))
    trained = mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions(dtype=torch.float64))
    atoms = ase.Atoms("HOSi" * 8, [[1.9 * i, 0.3 * (i % 2), 0.2 * (i % 3)] for i in range(24)])  # a chain
    graph = inputs(trained, atoms)[:3]
    energy_cotangent = torch.zeros(24, dtype=torch.float64)
    energy_cotangent[:2] = 1.0
    charge_cotangent = torch.zeros(24, 1, dtype=torch.float64)
    charge_cotangent[1] = -0.7
    whole = WholeEvaluation(trained.network)
    expected = whole.pull_back(*graph, whole(*graph)[2], energy_cotangent, charge_cotangent)
    evaluation = LayeredEvaluation(trained.network, block_size=2, whole_up_to=0)
    state = evaluation(*graph)[2]
    evaluated = []
    layer = trained.network.layer
    trained.network.layer = lambda number, *arguments: evaluated.append(number) or layer(number, *arguments)
    assert_same(evaluation.pull_back(*graph, state, energy_cotangent, charge_cotangent), expected, 1e-12)
    # Of twelve blocks, an atom's neighbours within 3.7 Å being the one before and the one after.
    assert [evaluated.count(number) for number in (2, 1, 0)] == [1, 2, 2]


def test_original_takes_the_cell_of_each_call(tmp_path):
    model = make_model()
    trained = mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions(dtype=torch.float64))
    module = scripted(trained)
    for atoms in (crystal(), slab(), cluster(), crystal()):
        before = atoms.copy()
        original = trained.original(atoms)
        got = evaluate(module, inputs(trained, atoms))
        assert_same(got["energies"].sum(), original.energy, 1e-12)
        assert_same(got["long_range_energies"].sum(), original.long_range_energy, 1e-10)
        assert_same(got["forces"], original.forces, 1e-10)
        assert before == atoms


def test_float32_checkpoint_and_atomic_energies(tmp_path):
    model = make_model(dtype=torch.float32, atomic_energies=np.array([-13.5, -2043.9, -70045.3]))
    trained = mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions(dtype=torch.float64))
    assert any("float32" in note for note in trained.notes)
    assert trained.reference_energies.dtype == torch.float64
    # The constants inside e3nn's code were rounded to float32 when the model was made.
    want = evaluate_with_mace(model.double(), crystal())
    got = evaluate(scripted(trained), inputs(trained, crystal()))
    assert_same(got["energies"].sum(), want["energy"][0], 1e-14)
    assert_same(got["forces"], want["forces"], 1e-10)


def test_long_range_parameters(tmp_path, monkeypatch):
    model = make_model()
    path = saved(model, tmp_path)
    trained = mace.load(read_checkpoint(path), options=LoadOptions())
    assert trained.long_range == Les.parameters_of_sum
    trained = mace.load(read_checkpoint(path), options=LoadOptions(norm_factor=1.0))
    assert trained.long_range.norm_factor == 1.0
    assert any("norm_factor" in note for note in trained.notes)
    model.les.ewald.__dict__.pop("norm_factor")
    model.les.ewald.__dict__.pop("remove_self_interaction")
    trained = mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions())
    assert trained.long_range.norm_factor == NORM_FACTOR_BEFORE_2026
    assert trained.long_range.remove_self_interaction is True
    assert sum("norm_factor" in note or "self-interaction" in note for note in trained.notes) == 2


def test_les_is_a_stand_in_even_if_the_package_is_there(tmp_path):
    checkpoint = read_checkpoint(saved(make_model(), tmp_path))
    assert isinstance(checkpoint.les, StandIn)
    assert checkpoint.les.ewald.class_path == "les.module.ewald.Ewald"


# ---- refusals


def test_without_charges(tmp_path):
    path = saved(make_model(mace_modules.ScaleShiftMACE), tmp_path)
    with pytest.raises(NoLatentChargesError, match="--short-range"):
        mace.load(read_checkpoint(path), options=LoadOptions())
    with pytest.raises(ValueError, match="--norm-factor"):
        mace.load(read_checkpoint(path), options=LoadOptions(norm_factor=90.0, allow_short_range=True))


@pytest.mark.parametrize("where", ["les", "ewald", "bec"])
def test_unknown_options_of_les_are_refused(where, tmp_path):
    model = make_model()
    owner = model.les if where == "les" else getattr(model.les, where)
    owner.use_atomic_alpha = False
    owner.use_epsilon_r_scaling = True
    with pytest.raises(UnsupportedModelError, match="use_epsilon_r_scaling = True"):
        mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions())


def test_unknown_parts_of_les_are_refused(tmp_path):
    model = make_model()
    model.les.polarisation = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match="polarisation"):
        mace.load(read_checkpoint(saved(model, tmp_path)), options=LoadOptions())


def test_other_models_are_refused(tmp_path):
    model = make_model(mace_modules.MACE)
    model.__class__ = mace_modules.AtomicDipolesMACE
    checkpoint = read_checkpoint(saved(model, tmp_path))
    assert mace.matches(checkpoint)
    with pytest.raises(UnsupportedModelError, match="AtomicDipolesMACE"):
        mace.load(checkpoint, options=LoadOptions(allow_short_range=True))


@pytest.mark.parametrize(
    "block", ["RealAgnosticAttResidualInteractionBlock", "RealAgnosticResidualNonLinearInteractionBlock"]
)
def test_blocks_that_do_not_compile_are_refused(block, tmp_path):
    path = saved(make_model(interaction_cls=BLOCKS[block]), tmp_path)
    with pytest.raises(UnsupportedModelError, match=block):
        mace.load(read_checkpoint(path), options=LoadOptions())


def test_embeddings_are_refused(tmp_path):
    specs = {"total_charge": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}}
    path = saved(make_model(mace_modules.ScaleShiftMACE, embedding_specs=specs), tmp_path)
    with pytest.raises(UnsupportedModelError, match="total_charge"):
        mace.load(read_checkpoint(path), options=LoadOptions(allow_short_range=True))


def test_other_checkpoints_do_not_match():
    for checkpoint in (None, {"model": 1}, torch.nn.Linear(1, 1), o3.Linear("0e", "0e")):
        assert not mace.matches(checkpoint)
