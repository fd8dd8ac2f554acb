"""The card of a trained model: data, split, errors, settings, versions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import yaml
from ase.data import chemical_symbols

from les_md.training.configuration import TrainingConfiguration
from les_md.training.deviations import Deviations, together
from les_md.training.networks import beyond_charges, description
from les_md.training.run_folder import plain
from les_md.training.training_data import describe

if TYPE_CHECKING:
    from les_md.training.trainer import Trainer
    from les_md.training.training_run import Preparation


def model_card(
    configuration: TrainingConfiguration,
    preparation: Preparation,
    trainer: Trainer,
    by_file: dict[str, dict[str, Deviations]],
    metadata: dict,
    record: dict,
) -> str:
    """The card as Markdown.

    Parameters: deviations of the kept weights by part, ``by_file``; ``metadata`` of the exported file; ``record`` as of
    ``record.circumstances``.
    """
    data = preparation.data
    deviations = {part: together(files.values()) for part, files in by_file.items()}
    symbols = [chemical_symbols[z] for z in data.atomic_numbers]
    lines = ["# Model card: `model.pt`", "", *_summary(configuration, preparation, trainer, metadata, symbols)]
    lines += ["", "## Data", "", "| file | sha256 |", "| --- | --- |"]
    lines += [f"| `{name}` | `{digest}` |" for name, digest in data.digests.items()]
    lines += ["", "`split.json` lists the frames of each part.", "", "```", describe(data, configuration.model.cutoff)]
    lines += ["```", "", "## Errors", "", *_errors(data.frames, deviations, symbols)]
    if any(len(files) > 1 for files in by_file.values()):
        lines += ["", *_errors_by_file(by_file)]
    if not data.frames["test"]:
        lines += [
            "",
            "There are no test frames. The validation frames chose the weights, so their errors are too low a guess of "
            "those on new frames.",
        ]
    lines += ["", "## Self-check of the exported file", "", f"Against {metadata['self_check']['reference']}:", ""]
    lines += [
        f"- {name}: "
        + ", ".join(f"{quantity.replace('_', ' ')} {value:.1e}" for quantity, value in differences.items())
        for name, differences in metadata["self_check"]["structures"].items()
    ]
    lines += ["", "(largest differences, in eV/atom, eV/Å, e, eV/Å³)", "", "## Settings", "", "```yaml"]
    lines += [yaml.safe_dump(plain(configuration.to_dict()), sort_keys=False, allow_unicode=True).rstrip(), "```", ""]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
    lines += [f"Made on {record['date']} with {versions}, {record['threads']} threads.", ""]
    lines += [
        "## What it is not for",
        "",
        "Structures unlike the training frames: the ranges above say what the model has seen. Errors on frames of the "
        "same kind say nothing about others; try simulations before you rely on them.",
        "",
    ]
    return "\n".join(lines)


def _summary(
    configuration: TrainingConfiguration,
    preparation: Preparation,
    trainer: Trainer,
    metadata: dict,
    symbols: list[str],
) -> list[str]:
    long_range = metadata["long_range"]
    parameters = sum(parameter.numel() for parameter in trainer.parameters)
    if long_range is None:
        charges = "none: a short-range model"
    else:
        means = ", ".join(f"{symbol} {charge:+.3f}" for symbol, charge in metadata["mean_charges"].items())
        charges = (
            f"σ = {long_range['sigma']:g} Å, dl = {long_range['dl']:g} Å, C = {long_range['norm_factor']:g} eV Å/e², "
            f"{metadata['n_q']} charge(s) an atom{beyond_charges(preparation.network, symbols)}; "
            f"mean charges on a check structure: {means}"
        )
    stopped = "stopped early" if trainer.stopped_early else "all epochs"
    return [
        "| | |",
        "| --- | --- |",
        f"| architecture | {description(preparation.network, parameters)} |",
        f"| long range | {charges} |",
        f"| elements | {', '.join(symbols)} |",
        f"| arithmetic | {configuration.dtype} |",
        f"| trained for | {trainer.epoch} epochs ({stopped}), {trainer.seconds:.0f} s; averaged weights of epoch "
        f"{trainer.best.epoch} |",
    ]


def _errors(frames: dict, deviations: dict[str, Deviations], symbols: list[str]) -> list[str]:
    stress = any(not math.isnan(each.rmse()["stress"]) for each in deviations.values())
    header = ["frames", "energy, meV/atom", "forces, meV/Å", *(f"forces on {symbol}" for symbol in symbols)]
    header += ["stress, meV/Å³"] if stress else []
    lines = ["Root mean square errors, mean absolute errors in brackets.", "", f"| {' | '.join(header)} |"]
    lines.append("| " + " | ".join("---" for _ in header) + " |")
    for part, each in deviations.items():
        rmse, mae, by_type = each.rmse(), each.mae(), each.forces_by_type()
        cells = [f"{part} ({len(frames[part])})"]
        cells += [f"{_number(rmse[name])} ({_number(mae[name])})" for name in ("energy", "forces")]
        cells += [_number(by_type.get(kind, math.nan)) for kind in range(len(symbols))]
        cells += [f"{_number(rmse['stress'])} ({_number(mae['stress'])})"] if stress else []
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _errors_by_file(by_file: dict[str, dict[str, Deviations]]) -> list[str]:
    lines = ["| file | energy, meV/atom | forces, meV/Å |", "| --- | --- | --- |"]
    for files in by_file.values():
        for file, each in files.items():
            rmse, mae = each.rmse(), each.mae()
            cells = [f"{_number(rmse[name])} ({_number(mae[name])})" for name in ("energy", "forces")]
            lines.append(f"| {file} | {' | '.join(cells)} |")
    return lines


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:#.3g}".rstrip(".")
