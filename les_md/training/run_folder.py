"""The folder of a training: what lies in it, and whether a training may start, go on, or replace what is there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml

from les_md.training.configuration import TrainingConfiguration, flatten
from les_md.training.record import write_checkpoint
from les_md.training.trainer import TrainingError
from les_md.training.training_data import TrainingData

FORMAT_VERSION = 1


class RunFolder:
    """Paths of everything that a training writes.

    ``checkpoint`` holds the state after the last epoch; ``card`` is written last, so that its presence says that the
    run is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.configuration = path / "configuration.yaml"
        self.split = path / "split.json"
        self.history_csv = path / "history.csv"
        self.history_json = path / "history.json"
        self.figure = path / "loss.png"
        self.weights = path / "model.pth"
        self.model = path / "model.pt"
        self.card = path / "model.md"

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that a training writes."""
        return tuple(value for name, value in vars(self).items() if name != "path")

    def check(self, resume: bool, overwrite: bool) -> None:
        """Whether a training may begin or go on here.

        Raises TrainingError where it holds a run and neither ``resume`` nor ``overwrite`` says what to do with it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError(f"the output {self.path} is not a folder")
        if self.card.is_file() and not (resume or overwrite):
            raise TrainingError(
                f"{self.path} holds a finished run: give --overwrite to replace it, --resume to write its model, card "
                "and figure again, or another output"
            )
        present = [file for file in self.files if file.exists()]
        if present and not (resume or overwrite):
            raise TrainingError(
                f"{self.path} holds an unfinished run ({present[0].name}): give --resume to go on with it, --overwrite "
                "to start again, or another output"
            )

    def open(self, overwrite: bool) -> None:
        """Make the folder, and with ``overwrite`` remove the run that it holds."""
        self.path.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for file in self.files:
                file.unlink(missing_ok=True)

    def write_start(self, configuration: TrainingConfiguration, data: TrainingData) -> None:
        """Write configuration and split, which are known before any training."""
        write_text(
            self.configuration, yaml.safe_dump(plain(configuration.to_dict()), sort_keys=False, allow_unicode=True)
        )
        write_text(self.split, json.dumps(data.split(), indent=1, ensure_ascii=False) + "\n")

    def write_state(self, state: dict, made_with: dict) -> None:
        """Write a checkpoint, whole or not at all."""
        write_checkpoint(self.checkpoint, {"format_version": FORMAT_VERSION, "made_with": made_with, "state": state})

    def read_state(self, made_with: dict) -> dict:
        """The state of the checkpoint.

        Raises TrainingError where it was made with another configuration or other data; the message names what differs.
        """
        stored = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if stored.get("format_version") != FORMAT_VERSION:
            raise TrainingError(f"{self.checkpoint} is of another version of les_md: start again with --overwrite")
        changes = differences(stored["made_with"], made_with)
        if changes:
            raise TrainingError(
                f"the run in {self.path} was started differently, it cannot be resumed:\n"
                + "\n".join(f"  {change}" for change in changes)
                + "\nundo this, or start again with --overwrite or another output"
            )
        return stored["state"]


def made_with(configuration: TrainingConfiguration, data: TrainingData) -> dict:
    """What must not change between the parts of a run: settings, contents of the files, split.

    Where files are called or lie is left out, and so is the output folder.
    """
    settings = flatten(plain(configuration.to_dict()))
    for name in ("output", "data.train", "data.validation", "data.test"):
        if not isinstance(settings[name], float):
            del settings[name]
    repeat = configuration.data.repeat or {}
    settings["data.repeat"] = [repeat.get(name, 1) for name in configuration.data.train]
    return {"settings": settings, "files_sha256": data.digests, "fingerprint": data.fingerprint()}


def differences(before: dict, now: dict) -> list[str]:
    """What differs between two results of ``made_with``, a line each."""
    lines = []
    first, second = before["settings"], now["settings"]
    for name in [*first, *(name for name in second if name not in first)]:
        values = [settings.get(name, "(not there)") for settings in (first, second)]
        if values[0] != values[1]:
            lines.append(f"{name}: {values[0]} in the run, {values[1]} now")
    if before["fingerprint"] == now["fingerprint"]:
        return lines
    first, second = before["files_sha256"], now["files_sha256"]
    for name in [*first, *(name for name in second if name not in first)]:
        values = [f"sha256 {files[name][:12]}…" if name in files else "not there" for files in (first, second)]
        if values[0] != values[1]:
            lines.append(f"data file {name}: {values[0]} in the run, {values[1]} now")
    return lines or ["the division of the frames into training, validation and test"]


def plain(value: Any) -> Any:
    """Nested containers with lists instead of tuples."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the whole file or none."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
