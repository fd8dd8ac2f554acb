"""NequIP and Allegro: the published model against its reference, random ones against nequip itself, now and before."""

import io
import warnings
from pathlib import Path

import ase
import ase.build
import numpy as np
import pytest
import torch

pytest.importorskip("nequip", reason="nequip is not installed")
pytest.importorskip("allegro", reason="nequip-allegro is not installed")

import allegro.model
import e3nn
import nequip.model
from allegro.nn import EdgewiseReduce
from nequip.data import compute_neighborlist_, from_ase
from nequip.nn import ScalarMLP
from nequip.train.ema import EMAWeights
from nequip.utils.dtype import torch_default_dtype
from nequip.utils.global_state import set_global_state

from les_md import LESCalculator, export
from les_md.architectures import LoadOptions, UnsupportedModelError, nequip_configuration
from les_md.architectures import nequip as adapter
from les_md.checkpoint import read_checkpoint
from les_md.checkpoint_errors import CheckpointError
from les_md.electrostatics.latent_ewald import LatentEwald
from les_md.electrostatics.parameters import NORM_FACTOR_BEFORE_2026, LongRangeParameters
from les_md.layered_evaluation import LayeredEvaluation, WholeEvaluation
from les_md.neighbors import NeighborList
from les_md.potential import LESPotential

DATA = Path(__file__).parent / "data"

#: Not in the order of atomic numbers.
TYPES = ["O", "H", "Si"]
LES_ARGS = {"use_atomwise": False, "sigma": 0.9, "dl": 1.7, "remove_self_interaction": False, "remove_mean": False}
PARAMETERS = LongRangeParameters(0.9, 1.7, NORM_FACTOR_BEFORE_2026, False, False)
ZBL = {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": TYPES}

BOTH = {
    "seed": 11,
    "model_dtype": "float64",
    "type_names": TYPES,
    "r_max": 3.7,
    "avg_num_neighbors": 9.0,
    "per_type_energy_scales": {"H": 1.3, "O": 0.8, "Si": 1.7},
    "per_type_energy_shifts": {"H": -13.6, "O": -2043.9, "Si": -7800.0},
}
NEQUIP = {**BOTH, "num_layers": 2, "l_max": 1, "num_features": 4, "radial_mlp_depth": 1, "radial_mlp_width": 8}
ALLEGRO = {
    **BOTH,
    "l_max": 1,
    "num_layers": 2,
    "num_scalar_features": 8,
    "num_tensor_features": 4,
    "scalar_embed_mlp_hidden_layers_width": 8,
    "allegro_mlp_hidden_layers_width": 8,
    "readout_mlp_hidden_layers_width": 6,
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 5},
}

VARIANTS = {
    "one layer": ("nequip", {"num_layers": 1}),
    "three layers, rank two, both parities": ("nequip", {"num_layers": 3, "l_max": 2, "parity": True}),
    "three layers, rank two, natural parity": ("nequip", {"num_layers": 3, "l_max": 2, "parity": False}),
    "scalars": ("nequip", {"l_max": 0}),
    "one scale, one shift": ("nequip", {"per_type_energy_scales": 0.7, "per_type_energy_shifts": -13440.6}),
    "no scale, no shift": ("nequip", {"per_type_energy_scales": None, "per_type_energy_shifts": None}),
    "all trainable": (
        "nequip",
        {
            "bessel_trainable": True,
            "per_type_energy_scales": 1.2,
            "per_type_energy_scales_trainable": True,
            "per_type_energy_shifts_trainable": True,
        },
    ),
    "repulsion": ("nequip", {"pair_potential": {**ZBL, "polynomial_cutoff_p": 8}, "polynomial_cutoff_p": 4}),
    "neighbours by type": ("nequip", {"avg_num_neighbors": {"H": 5.0, "O": 9.0, "Si": 14.0}}),
    "cutoffs by pair of types": (
        "nequip",
        {"per_edge_type_cutoff": {"H": 2.6, "O": {"H": 2.5, "O": 3.7, "Si": 3.1}, "Si": 3.3}},
    ),
    "widths by degree": ("nequip", {"l_max": 2, "num_features": [6, 3, 2], "type_embed_num_features": 5}),
    "readout with a hidden layer": ("nequip", {"readout_mlp_hidden_layers_depth": 1}),
    "Allegro": ("allegro", {}),
    "Allegro, rank two, natural parity": ("allegro", {"l_max": 2, "parity": False, "tp_path_channel_coupling": False}),
    "Allegro, one layer": ("allegro", {"num_layers": 1, "readout_mlp_nonlinearity": None}),
    "Allegro, splines, repulsion": (
        "allegro",
        {
            "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodySplineScalarEmbed", "num_splines": 8,
                                      "spline_span": 4},
            "pair_potential": ZBL,
        },
    ),
    "Allegro, neighbours by type": ("allegro", {"avg_num_neighbors": {"H": 5.0, "O": 9.0, "Si": 14.0}}),
}  # fmt: skip


# ---- models made with nequip


class Model:
    """A model of nequip with random weights, and with the charge readout of its LES variant."""

    def __init__(self, kind: str, full: bool = False, **changes) -> None:
        self.kind = kind
        self.configuration = {**(NEQUIP if kind == "nequip" else ALLEGRO), **changes}
        package = nequip.model if kind == "nequip" else allegro.model
        name = f"{'Full' if full else ''}{'NequIPGNN' if kind == 'nequip' else 'Allegro'}Model"
        self.target = f"{kind}.model.{name}"
        dtype = torch.get_default_dtype()
        try:
            set_global_state()
            with torch_default_dtype(torch.float64), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of missing scales and shifts
                torch.manual_seed(self.configuration["seed"])
                self.graph = getattr(package, name)(**self.configuration).eval()
                self.func = self.graph.model.func
                self._append_charges()
        finally:
            torch.set_default_dtype(dtype)

    def _append_charges(self) -> None:
        irreps = self.func.irreps_out
        if self.kind == "nequip":
            readout = ScalarMLP(output_dim=1, field="node_features", out_field="LES_q", irreps_in=irreps)
            self.func.append("latent_charge_readout", readout)
            return
        readout = ScalarMLP(
            output_dim=1,
            hidden_layers_depth=1,
            hidden_layers_width=self.configuration["readout_mlp_hidden_layers_width"],
            field="edge_features",
            out_field="edge_LES_q",
            irreps_in=irreps,
        )
        self.func.append("edge_latent_charge_readout", readout)
        total = EdgewiseReduce(
            field="edge_LES_q",
            out_field="LES_q",
            avg_num_neighbors=self.configuration["avg_num_neighbors"],
            type_names=TYPES,
            irreps_in=readout.irreps_out,
        )
        self.func.append("edge_charge_sum", total)

    def checkpoint(self, style: str = "new", les_args: dict = LES_ARGS, ema: bool = False) -> dict:
        """As nequip's training writes it; ``style`` is "new" (nequip_les), "old" or "short-range"."""
        state = {f"model.sole_model.{key}": value.clone() for key, value in self.graph.state_dict().items()}
        if ema:
            averages = EMAWeights(self.graph, decay=0.99)
            averages.update_parameters(self.graph)
            state.update({f"ema.{key}": value for key, value in averages.state_dict().items()})
        if style == "short-range":
            state = {key: value for key, value in state.items() if "latent_charge_readout" not in key}
            model = {"_target_": self.target, **self.configuration}
        elif style == "old":
            model = {"_target_": self.target, "use_les": True, "les_args": les_args, **self.configuration}
        else:
            section = {"les_args": les_args, "compute_bec": False}
            model = {"_target_": "nequip_les.model.LESModel", "base_model": self.kind, "LES": section}
            model.update(self.configuration)
        information = {"versions": {"nequip": nequip.__version__}}
        return {"epoch": 3, "state_dict": state, "hyper_parameters": {"model": model, "info_dict": information}}

    def evaluate(self, atoms: ase.Atoms, long_range: bool = True) -> dict:
        """Energies, forces, charges of nequip's modules and the direct sum, differentiated over positions."""
        with torch_default_dtype(torch.float64):
            data = compute_neighborlist_(from_ase(atoms), self.configuration["r_max"])
            data["atom_types"] = torch.tensor([TYPES.index(symbol) for symbol in atoms.get_chemical_symbols()])
            positions = data["pos"].requires_grad_(True)
            result = self.func(data)
            energy = result["total_energy"].sum()
            electrostatic = torch.zeros(())
            if long_range:
                cell = torch.tensor(atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3)))
                electrostatic = LatentEwald(PARAMETERS).energy(positions, result["LES_q"], cell)
            total = energy + electrostatic
            forces = torch.zeros_like(positions)
            if total.requires_grad:
                gradient = torch.autograd.grad(total, positions, allow_unused=True)[0]
                forces = forces if gradient is None else -gradient
        charges = result["LES_q"].detach()
        return {"energy": total, "long_range_energy": electrostatic, "forces": forces, "charges": charges}


def of_variant(variant: str) -> Model:
    kind, changes = VARIANTS[variant]
    return Model(kind, **changes)


def loaded(checkpoint: dict, tmp_path: Path, dtype=torch.float64, **options):
    """A checkpoint through a file, as the export loads it."""
    path = tmp_path / "best.ckpt"
    torch.save(checkpoint, path)
    contents = read_checkpoint(path)
    assert adapter.matches(contents)
    return adapter.load(contents, options=LoadOptions(dtype=dtype, **options))


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


def unscripted(trained) -> LESPotential:
    """The exported module before it is scripted, which takes seconds."""
    return LESPotential(trained.network, trained.reference_energies, trained.long_range, trained.num_charges).eval()


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


def evaluate(module, arguments) -> dict[str, torch.Tensor]:
    """The whole potential with the direct long-range sum; ``arguments`` end with the cell."""
    *graph, cell = arguments
    return module(*graph, module.direct_plan(cell))


def assert_same(got, expected, relative: float) -> None:
    got = got.detach().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0.0, atol=relative * max(np.abs(expected).max(), 1e-3))


# ---- the published model


@pytest.mark.parametrize(("dtype", "relative", "energy"), [(torch.float64, 1e-8, 1e-12), (torch.float32, 5e-6, 2e-7)])
def test_published_water_model(shared, dtype, relative, energy):
    checkpoint = read_checkpoint(shared / "models" / "nequiples_water_nl3_l1.ckpt")
    assert adapter.matches(checkpoint)
    trained = adapter.load(checkpoint, options=LoadOptions(dtype=dtype))
    assert trained.long_range == LongRangeParameters(norm_factor=90.0474)
    assert (trained.atomic_numbers, trained.num_layers, trained.cutoff, trained.num_charges) == ([1, 8], 3, 4.5, 1)
    assert trained.architecture == "nequip"
    assert any("90.0474" in note and "2025-05-15" in note for note in trained.notes)
    assert any("EMA" in note for note in trained.notes)
    # One shift for all types.
    assert trained.reference_energies.tolist() == [-4.877335431303888] * 2
    module = scripted(trained, dtype)
    reference = np.load(shared / "reference" / "nequiples_water_nl3_l1.npz")
    want = {key.split("/")[1]: reference[key] for key in reference}
    atoms = ase.Atoms(want["numbers"], want["positions"], cell=want["cell"], pbc=want["pbc"])
    result = evaluate(module, inputs(trained, atoms))
    charges = want["charges"].reshape(-1, 1)
    assert_same(result["energies"].sum(), want["energy"], energy)
    assert_same(result["long_range_energies"].sum(), want["les_energy"], relative)
    assert_same(result["forces"], want["forces"], relative)
    assert_same(result["charges"], charges, relative)
    assert_same(result["strain_derivative"] / atoms.get_volume(), want["stress_finite_difference"], relative)
    if dtype is torch.float64:
        original = trained.original(atoms)
        assert_same(original.energy, want["energy"], 1e-13)
        assert_same(original.long_range_energy, want["les_energy"], 1e-12)
        assert_same(original.forces, want["forces"], 1e-12)
        assert_same(original.charges, charges, 1e-12)


# ---- checkpoints written by versions that are not installed


@pytest.mark.parametrize("variant", ["even", "parity", "defaults"])
@pytest.mark.parametrize("version", ["0.7.0", "0.15.0"])
def test_older_versions(version, variant, tmp_path):
    stored = read_checkpoint(DATA / f"nequip_{version}.ckpt")[variant]
    trained = adapter.load(stored["checkpoint"], options=LoadOptions())
    assert sum("EMA" in note for note in trained.notes) == (variant == "even")
    arguments = inputs(trained, crystal())
    module = scripted(trained)
    energy, charges = module.short_range(*arguments[:3])
    assert_same(energy.sum(), stored["energy"], 1e-13)
    assert_same(charges, stored["charges"], 1e-12)
    vectors, index = arguments[0].requires_grad_(True), arguments[1]
    energy, _charges = module.short_range(vectors, *arguments[1:3])
    gradient = torch.autograd.grad(energy.sum(), vectors)[0]
    forces = torch.zeros(8, 3, dtype=torch.float64).index_add(0, index[0], gradient).index_add(0, index[1], -gradient)
    assert_same(forces, stored["forces"], 1e-11)


@pytest.mark.parametrize("variant", ["even", "defaults"])
def test_version_is_found_from_the_weights(variant):
    stored = read_checkpoint(DATA / "nequip_0.15.0.ckpt")[variant]
    stored["checkpoint"]["hyper_parameters"]["info_dict"] = {}
    trained = adapter.load(stored["checkpoint"], options=LoadOptions())
    assert sum("EMA" in note for note in trained.notes) == (variant == "even")
    energy, _charges = trained.network(*inputs(trained, crystal())[:3])
    shifts = trained.reference_energies[[TYPES.index(symbol) for symbol in crystal().get_chemical_symbols()]]
    assert_same(energy.sum() + shifts.sum(), stored["energy"], 1e-13)


def test_version_that_is_needed_but_not_known(tmp_path):
    stored = read_checkpoint(DATA / "nequip_0.15.0.ckpt")["parity"]["checkpoint"]
    stored["hyper_parameters"]["info_dict"] = {}
    with pytest.raises(UnsupportedModelError, match="does not say which nequip wrote it"):
        adapter.load(stored, options=LoadOptions())
    ordered = Model("nequip", num_layers=3, l_max=2).checkpoint()
    ordered["hyper_parameters"]["info_dict"] = {}
    with pytest.raises(UnsupportedModelError, match="does not say which nequip wrote it"):
        loaded(ordered, tmp_path)


# ---- random models


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_nequip(variant, tmp_path):
    model = of_variant(variant)
    trained = loaded(model.checkpoint(), tmp_path)
    assert trained.long_range == PARAMETERS
    assert trained.atomic_numbers == [8, 1, 14]
    assert trained.architecture == model.kind
    assert trained.num_layers == (model.configuration["num_layers"] if model.kind == "nequip" else 1)
    module = scripted(trained)
    for atoms in (crystal(), cluster()):
        want = model.evaluate(atoms)
        got = evaluate(module, inputs(trained, atoms))
        original = trained.original(atoms)
        assert_same(got["energies"].sum(), want["energy"], 1e-12)
        assert_same(got["forces"], want["forces"], 1e-10)
        assert_same(got["long_range_energies"].sum(), want["long_range_energy"], 1e-10)
        assert_same(got["charges"], want["charges"], 1e-10)
        assert_same(original.energy, want["energy"], 1e-13)
        assert_same(original.forces, want["forces"], 1e-11)
        assert_same(original.charges, want["charges"], 1e-12)
        assert_same(original.long_range_energy, want["long_range_energy"], 1e-12)


@pytest.mark.parametrize("variant", ["one layer", "Allegro, rank two, natural parity"])
def test_both_styles_and_short_range(variant, tmp_path):
    model = of_variant(variant)
    new, old = (loaded(model.checkpoint(style), tmp_path) for style in ("new", "old"))
    assert new.long_range == old.long_range == PARAMETERS
    arguments = inputs(new, crystal())[:3]
    for got, expected in zip(old.network(*arguments), new.network(*arguments), strict=True):
        assert torch.equal(got, expected)
    short = loaded(model.checkpoint("short-range"), tmp_path, allow_short_range=True)
    assert (short.long_range, short.num_charges) == (None, 0)
    want = model.evaluate(crystal(), long_range=False)
    got = evaluate(unscripted(short), inputs(short, crystal()))
    assert_same(got["energies"].sum(), want["energy"], 1e-12)
    assert_same(got["forces"], want["forces"], 1e-10)
    assert got["charges"].shape == (8, 0)
    assert_same(short.original(crystal()).forces, want["forces"], 1e-11)


def test_energy_model(tmp_path):
    """Until 0.15, models without forces were builders of their own, with one module less around the energy."""
    model = of_variant("one layer")
    checkpoint = model.checkpoint("short-range")
    checkpoint["hyper_parameters"]["model"]["_target_"] = "nequip.model.NequIPGNNEnergyModel"
    checkpoint["state_dict"] = {
        key.replace(".model.func.", ".model."): v for key, v in checkpoint["state_dict"].items()
    }
    trained = loaded(checkpoint, tmp_path, allow_short_range=True)
    assert_same(trained.original(crystal()).energy, model.evaluate(crystal(), long_range=False)["energy"], 1e-13)


def test_full_configuration(tmp_path):
    changes = {
        "irreps_edge_sh": "0e + 1o", "type_embed_num_features": 5, "radial_mlp_depth": [1, 2],
        "radial_mlp_width": [6, 7], "feature_irreps_hidden": ["4x0e + 3x0o + 2x1o", "4x0e"], "convnet_resnet": True,
    }  # fmt: skip
    full = {key: value for key, value in NEQUIP.items() if key not in ("num_layers", "l_max", "num_features")}
    model = Model.__new__(Model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "NEQUIP", full)
        model.__init__("nequip", full=True, **changes)
    trained = loaded(model.checkpoint("old"), tmp_path)
    want = model.evaluate(crystal())
    got = evaluate(unscripted(trained), inputs(trained, crystal()))
    assert_same(got["energies"].sum(), want["energy"], 1e-12)
    assert_same(got["forces"], want["forces"], 1e-10)


@pytest.mark.parametrize("variant", ["three layers, rank two, natural parity", "repulsion", "Allegro"])
def test_finite_differences(variant, tmp_path):
    trained = loaded(of_variant(variant).checkpoint(), tmp_path)
    trained.reference_energies = torch.zeros_like(trained.reference_energies)  # they limit the accuracy
    module = unscripted(trained)
    atoms, step = crystal(), 1e-4
    forces = evaluate(module, inputs(trained, atoms))["forces"].numpy()
    for atom, axis in ((0, 0), (3, 1), (5, 2)):
        energies = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(float(evaluate(module, inputs(trained, moved))["energies"].sum()))
        assert -(energies[1] - energies[0]) / (2 * step) == pytest.approx(forces[atom, axis], abs=1e-6)


@pytest.mark.parametrize(
    "variant", ["three layers, rank two, both parities", "repulsion", "Allegro", "Allegro, splines, repulsion"]
)
def test_edges_beyond_the_cutoff_contribute_nothing(variant, tmp_path):
    trained = loaded(of_variant(variant).checkpoint(), tmp_path)
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


@pytest.mark.parametrize("variant", ["one layer", "repulsion", "Allegro", "Allegro, splines, repulsion"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_edges(variant, dtype, tmp_path):
    model = of_variant(variant)
    trained = loaded(model.checkpoint(), tmp_path, dtype)
    module = scripted(trained, dtype)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    for atoms in (ase.Atoms("O", [[0.1, 0.2, 0.3]]), ase.Atoms("OH", [[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]])):
        want = model.evaluate(atoms)
        got = evaluate(module, inputs(trained, atoms))
        assert_same(got["energies"].sum(), want["energy"], tolerance)
        assert_same(got["charges"], want["charges"], tolerance)
        assert_same(got["forces"], want["forces"], tolerance)
        assert_same(trained.original(atoms).energy, want["energy"], 1e-13)


@pytest.mark.parametrize("variant", ["three layers, rank two, both parities", "Allegro"])
def test_single_precision(variant, tmp_path):
    trained = loaded(of_variant(variant).checkpoint(), tmp_path)
    exact = evaluate(scripted(trained), inputs(trained, crystal()))
    got = evaluate(scripted(trained, torch.float32), inputs(trained, crystal()))
    assert got["charges"].dtype is torch.float64
    assert_same(got["energies"].sum(), exact["energies"].sum(), 1e-9)  # mostly reference energies
    assert_same(got["forces"], exact["forces"], 1e-5)
    assert_same(got["charges"], exact["charges"], 1e-5)
    names = {type(module).__name__: tensor.dtype for module in trained.network.modules() for tensor in module.buffers()}
    assert names["PerTypeScaleShift"] is torch.float64
    # There and back again: what is exact stays so.
    bessel = [module for module in trained.network.modules() if type(module).__name__ == "BesselEdgeLengthEncoding"]
    assert bessel[0].bessel_weights.tolist() == [[float(n + 1) for n in range(bessel[0].num_bessels)]]
    assert bessel[0]._output_dtype is torch.float32


@pytest.mark.parametrize("variant", ["three layers, rank two, both parities", "repulsion", "Allegro"])
def test_layers_in_blocks(variant, tmp_path):
    trained = loaded(of_variant(variant).checkpoint(), tmp_path)
    vectors, index, kinds, *_ = inputs(trained, crystal().repeat((2, 1, 2)))
    network = trained.script(trained.network)
    layered, whole = LayeredEvaluation(network, block_size=7, whole_up_to=0), WholeEvaluation(network)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((32,), (32, 1))]
    results = []
    for evaluation in (layered, whole):
        energy, charge, state = evaluation(vectors, index, kinds)
        pulled = evaluation.pull_back(vectors, index, kinds, state, *cotangents)
        results.append((energy, charge, pulled))
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected, 1e-11)


# ---- weights


@pytest.mark.parametrize("variant", ["all trainable", "Allegro"])
def test_averaged_weights(variant, tmp_path):
    """With EMA weights the others do not matter, and where they have changed places the others count."""
    model = of_variant(variant)
    want = model.evaluate(crystal())
    checkpoint = model.checkpoint(ema=True)
    state = checkpoint["state_dict"]
    parameters = [f"model.sole_model.{key}" for key, _value in model.graph.named_parameters()]
    for key in parameters:
        state[key] = state[key] + 0.5
    trained = loaded(checkpoint, tmp_path)
    assert any("averaged weights (EMA) are used" in note for note in trained.notes)
    assert_same(evaluate(unscripted(trained), inputs(trained, crystal()))["forces"], want["forces"], 1e-10)
    # The order of parameters is the one of the file.
    moved = {key: state.pop(key) for key in list(state) if "readout" in key}
    averages = {key: value for key, value in state.items() if key.startswith("ema.")}
    ordered = [key for key in [*state, *moved] if key in parameters]
    checkpoint["state_dict"] = {**{k: v for k, v in state.items() if k not in averages}, **moved, **averages}
    for number, key in enumerate(ordered):
        checkpoint["state_dict"][f"ema.ema_weight_{number}"] = averages[f"ema.ema_weight_{parameters.index(key)}"]
    trained = loaded(checkpoint, tmp_path)
    assert_same(evaluate(unscripted(trained), inputs(trained, crystal()))["forces"], want["forces"], 1e-10)

    swapped = model.checkpoint(ema=True)
    swapped["state_dict"]["ema._extra_state"]["is_holding_ema_weights"] = False
    for key in [key for key in swapped["state_dict"] if key.startswith("ema.ema_weight")]:
        swapped["state_dict"][key] = swapped["state_dict"][key] + 0.5
    trained = loaded(swapped, tmp_path)
    assert any("in place of the others" in note for note in trained.notes)
    assert_same(evaluate(unscripted(trained), inputs(trained, crystal()))["forces"], want["forces"], 1e-10)


def test_averages_that_do_not_fit(tmp_path):
    checkpoint = Model("nequip").checkpoint(ema=True)
    checkpoint["state_dict"].pop("ema.ema_weight_2")
    with pytest.raises(CheckpointError, match="averaged weights"):
        loaded(checkpoint, tmp_path)
    checkpoint = Model("nequip").checkpoint(ema=True)
    checkpoint["state_dict"]["ema.ema_weight_0"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match="averaged weights"):
        loaded(checkpoint, tmp_path)


def test_order_of_types(tmp_path):
    """Only the order of the types and of the rows that belong to them differs."""
    model = of_variant("one layer")
    checkpoint = model.checkpoint()
    state, settings = checkpoint["state_dict"], checkpoint["hyper_parameters"]["model"]
    settings["type_names"] = [TYPES[i] for i in (1, 2, 0)]
    for key in state:
        if key.endswith(("type_embed.embed_module.weight", "scale_shift.scales", "scale_shift.shifts")):
            state[key] = state[key][[1, 2, 0]]
    trained = loaded(checkpoint, tmp_path)
    assert trained.atomic_numbers == [1, 14, 8]
    got = evaluate(unscripted(trained), inputs(trained, crystal()))
    want = model.evaluate(crystal())
    assert_same(got["energies"].sum(), want["energy"], 1e-13)
    assert_same(got["forces"], want["forces"], 1e-10)


def test_damaged_weights(tmp_path):
    model = Model("nequip")
    readout = "model.sole_model.model.func.per_atom_energy_readout.mlp_module.mlp.0.weight"
    checkpoint = model.checkpoint()
    checkpoint["state_dict"].pop(readout)
    with pytest.raises(CheckpointError, match="no weights per_atom_energy_readout"):
        loaded(checkpoint, tmp_path)
    checkpoint = model.checkpoint()
    checkpoint["state_dict"][readout] = torch.zeros(9, 1)
    with pytest.raises(CheckpointError, match=r"the shape \(9, 1\)"):
        loaded(checkpoint, tmp_path)
    checkpoint = model.checkpoint()
    checkpoint["state_dict"] = {f"model.{i}.{k}": v for i in "ab" for k, v in checkpoint["state_dict"].items()}
    with pytest.raises(UnsupportedModelError, match=r"no single model; it holds model\.a, model\.b"):
        loaded(checkpoint, tmp_path)
    checkpoint = model.checkpoint()
    checkpoint["hyper_parameters"]["model"]["num_features"] = 5
    with pytest.raises(CheckpointError, match="the configuration asks for"):
        loaded(checkpoint, tmp_path)
    checkpoint["hyper_parameters"]["model"]["num_features"] = "many"
    with pytest.raises(CheckpointError, match="num_features"):
        loaded(checkpoint, tmp_path)


def test_weights_of_other_heads_are_refused(tmp_path):
    """Even if the configuration does not mention them."""
    checkpoint = Model("nequip").checkpoint()
    checkpoint["state_dict"]["model.sole_model.model.func.latent_dipole_readout.linear.weight"] = torch.zeros(4)
    with pytest.raises(UnsupportedModelError, match="weights of latent_dipole_readout"):
        loaded(checkpoint, tmp_path)
    checkpoint = Model("nequip").checkpoint()
    with pytest.raises(UnsupportedModelError, match="weights of latent_charge_readout"):
        checkpoint["hyper_parameters"]["model"] = {"_target_": "nequip.model.NequIPGNNModel", **NEQUIP}
        loaded(checkpoint, tmp_path, allow_short_range=True)


def test_global_state_is_left_alone(tmp_path):
    checkpoint = Model("allegro").checkpoint()
    before = (torch.get_default_dtype(), dict(e3nn.get_optimization_defaults()), torch.random.get_rng_state())
    trained = loaded(checkpoint, tmp_path)
    trained.original(cluster())
    assert torch.get_default_dtype() is before[0]
    assert e3nn.get_optimization_defaults() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])
    broken = Model("nequip").checkpoint()
    broken["hyper_parameters"]["model"]["per_edge_type_cutoff"] = {"H": -1.0}
    with pytest.raises(CheckpointError, match="cannot build the model"):
        loaded(broken, tmp_path)
    assert torch.get_default_dtype() is before[0]
    assert e3nn.get_optimization_defaults() == before[1]


def test_old_nequip_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(nequip, "__version__", "0.17.1")
    checkpoint = Model("nequip").checkpoint()
    with pytest.raises(CheckpointError, match=r"needs nequip 0\.19 or newer, 0\.17\.1 is installed"):
        loaded(checkpoint, tmp_path)


# ---- the whole way


@pytest.mark.parametrize(("variant", "dtype"), [("one scale, one shift", "float32"), ("Allegro", "float64")])
def test_export(variant, dtype, tmp_path):
    model = of_variant(variant)
    torch.save(model.checkpoint(), tmp_path / "best.ckpt")
    report = export(tmp_path / "best.ckpt", tmp_path / "model.pt", dtype=dtype, charge_sign="keep")
    assert report.metadata["architecture"] == model.kind
    assert report.metadata["elements"] == TYPES
    assert {"nequip", "e3nn"} <= set(report.metadata["versions"])
    assert "nequip's own" in report.metadata["self_check"]["reference"]
    atoms = crystal()
    calculator = LESCalculator(report.path, kspace="ewald")
    want = model.evaluate(atoms)
    calculator.calculate(atoms, ["energy"])
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    assert_same(calculator.results["forces"], want["forces"], tolerance)
    assert_same(calculator.results["charges"].reshape(-1, 1), want["charges"], tolerance)


def test_versions_that_matter():
    """The rules change at versions, not at dates: 0.16.0 reordered features."""
    assert nequip_configuration.version_of("0.16.0") == (0, 16) > nequip_configuration.version_of("0.15.9+local")
    assert nequip_configuration.version_of(None) is None
