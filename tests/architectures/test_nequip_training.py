"""``les_md.training.nequip.LESModel``: nequip trains NequIP-LES and Allegro-LES on ``les_md.Les``, and les-export."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

pytest.importorskip("nequip", reason="nequip is not installed")

from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.utils.global_state import set_global_state

from les_md import LESCalculator, export, model_file
from les_md.training.nequip import LESModel

PROGRAMS = Path(sys.executable).parent
OPTIONS = {
    "seed": 1, "model_dtype": "float64", "type_names": ["H", "O"], "r_max": 3.5, "avg_num_neighbors": 12.0,
    "per_type_energy_shifts": {"H": -5.7, "O": -2.85}, "per_type_energy_scales": {"H": 1.0, "O": 1.0},
}  # fmt: skip
SMALL = {
    "nequip": {"num_layers": 2, "l_max": 1, "num_features": 4, "radial_mlp_depth": 1, "radial_mlp_width": 8},
    "allegro": {
        "num_layers": 1, "l_max": 1, "parity": True, "num_scalar_features": 8, "num_tensor_features": 4,
        "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
    },
}  # fmt: skip
LES = {"les_args": {"sigma": 0.9, "dl": 1.8, "remove_self_interaction": False}}

CONFIGURATION = """
run: [train]
data:
  _target_: nequip.data.datamodule.ASEDataModule
  seed: 1
  split_dataset: {file_path: train.xyz, train: 11, val: 3}
  transforms:
    - _target_: nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper
      model_type_names: [H, O]
    - _target_: nequip.data.transforms.NeighborListTransform
      r_max: 3.5
  train_dataloader: {_target_: torch.utils.data.DataLoader, batch_size: 2}
  val_dataloader: {_target_: torch.utils.data.DataLoader, batch_size: 3}
trainer:
  _target_: lightning.Trainer
  accelerator: cpu
  max_epochs: 15
  enable_progress_bar: false
  logger:
    _target_: lightning.pytorch.loggers.CSVLogger
    save_dir: log
    name: run
    version: one
  callbacks:
    - _target_: lightning.pytorch.callbacks.ModelCheckpoint
      monitor: val0_epoch/weighted_sum
      dirpath: .
      filename: best
training_module:
  _target_: nequip.train.EMALightningModule
  ema_decay: 0.5
  loss:
    _target_: nequip.train.EnergyForceLoss
    per_atom_energy: true
    coeffs: {total_energy: 1.0, forces: 1.0}
  val_metrics:
    _target_: nequip.train.EnergyForceMetrics
    coeffs: {total_energy_rmse: 1.0, forces_rmse: 1.0}
  optimizer: {_target_: torch.optim.Adam, lr: 0.02}
  model:
    _target_: les_md.training.nequip.LESModel
"""


@pytest.fixture(scope="module", autouse=True)
def nequip_state():
    """Data are in the default type: nequip makes it float64 once a process, and other tests set it back."""
    set_global_state()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def water(seed: int, periodic: bool = True) -> ase.Atoms:
    rng = np.random.default_rng(seed)
    atoms = ase.Atoms()
    for site in np.ndindex(2, 2, 2):
        molecule = ase.build.molecule("H2O")
        molecule.euler_rotate(*rng.uniform(0.0, 360.0, 3))
        molecule.rattle(0.03, rng=rng)
        molecule.translate(3.15 * np.array(site) + rng.uniform(-0.15, 0.15, 3) - molecule.get_center_of_mass())
        atoms += molecule
    atoms.set_cell([6.3 + 0.1 * (seed % 4), 6.3, 6.4])  # that of an isolated frame must not matter
    atoms.pbc = periodic
    return atoms


def graph(atoms: ase.Atoms) -> dict:
    data = compute_neighborlist_(from_ase(atoms), 3.5)
    data["atom_types"] = torch.tensor([["H", "O"].index(symbol) for symbol in atoms.get_chemical_symbols()])
    return data


def evaluate(model: torch.nn.Module, frames: list[ase.Atoms]) -> dict:
    return model(AtomicDataDict.batched_from_list([graph(atoms) for atoms in frames]))


def need(base_model: str) -> None:
    if base_model == "allegro":
        pytest.importorskip("allegro", reason="nequip-allegro is not installed")


@pytest.mark.parametrize("base_model", ["nequip", "allegro"])
def test_training_and_export(base_model, tmp_path):
    """From an extended XYZ file by nequip-train; the exported file has the energy and forces of nequip's own module."""
    need(base_model)
    assert importlib.util.find_spec("les") is None
    export("water_rpbe_d3", tmp_path / "labels.pt", dtype="float64")
    calculator = LESCalculator(tmp_path / "labels.pt")
    frames = []
    for seed in range(14):
        atoms = water(seed, periodic=seed % 5 != 4)
        atoms.calc = calculator
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    ase.io.write(tmp_path / "train.xyz", frames)
    model = {"base_model": base_model, "LES": LES, **OPTIONS, **SMALL[base_model]}
    lines = [f"    {name}: {json.dumps(value)}\n" for name, value in model.items()]
    (tmp_path / "water.yaml").write_text(CONFIGURATION + "".join(lines))
    done = subprocess.run(
        [PROGRAMS / "nequip-train", "-cp", tmp_path, "-cn", "water.yaml", f"hydra.run.dir={tmp_path}"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = np.genfromtxt(tmp_path / "log" / "run" / "one" / "metrics.csv", delimiter=",", names=True)
    name = next(name for name in table.dtype.names if name.startswith("val0_epoch") and "forces_rmse" in name)
    errors = table[name][np.isfinite(table[name])]
    assert errors[-1] < 0.8 * errors[0]

    export(tmp_path / "best.ckpt", tmp_path / "water.pt", dtype="float64")
    stored = model_file.load(tmp_path / "water.pt").metadata["long_range"]
    assert {name: stored[name] for name in LES["les_args"]} == LES["les_args"]
    assert stored["norm_factor"] == 90.4756
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=False)
    theirs = LESModel(**model)
    state = checkpoint["state_dict"]
    prefix = "model.sole_model."
    theirs.load_state_dict({key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)})
    names = [name for name, _ in theirs.named_parameters()]
    parameters = dict(theirs.named_parameters())
    order = [key[len(prefix) :] for key in state if key.startswith(prefix) and key[len(prefix) :] in names]
    with torch.no_grad():
        for number, name in enumerate(order):
            parameters[name].copy_(state[f"ema.ema_weight_{number}"])
    theirs.eval()
    held_out = [water(20), water(21, periodic=False)]
    result = evaluate(theirs, held_out)
    ours = LESCalculator(tmp_path / "water.pt")
    for i, atoms in enumerate(held_out):
        atoms.calc = ours
        assert atoms.get_potential_energy() == pytest.approx(result["total_energy"][i].item(), rel=1e-10)
        forces = result["forces"][24 * i : 24 * (i + 1)].detach().numpy()
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0.0, atol=1e-9)
        assert ours.results["long_range_energy"] == pytest.approx(result["LES_energy"][i].item(), rel=1e-9)
    held_out[0].calc = ours
    stress = result["stress"][0].detach().numpy()
    np.testing.assert_allclose(held_out[0].get_stress(voigt=False), stress, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("base_model", ["nequip", "allegro"])
def test_a_batch_is_its_frames_and_charges_are_trained(base_model):
    need(base_model)
    model = LESModel(base_model=base_model, **OPTIONS, **SMALL[base_model])
    frames = [water(0), water(1, periodic=False), water(2)]
    together = evaluate(model, frames)
    alone = [evaluate(model, [atoms]) for atoms in frames]
    for name in ("total_energy", "LES_energy", "forces"):
        torch.testing.assert_close(together[name], torch.cat([each[name] for each in alone]), rtol=1e-10, atol=1e-9)
    together["forces"].square().sum().backward()
    charges = [p for name, p in model.named_parameters() if "latent_charge_readout" in name]
    assert charges and all(float(p.grad.abs().sum()) > 0.0 for p in charges)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_model": "mace"}, "base_model must be nequip or allegro"),
        ({"LES": {"compute_bec": True}}, "unknown option compute_bec"),
        ({"LES": {"les_args": {"use_atomwise": True}}}, "use_atomwise belongs to a charge head"),
        ({"LES": {"les_args": {"use_dipole": True}}}, "use_dipole asks for latent dipoles"),
        ({"compile_mode": "compile"}, "compile_mode"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LESModel(**{**OPTIONS, **SMALL["nequip"], **arguments})
