"""The history of a training as CSV, JSON and a figure."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from typing import TYPE_CHECKING

from les_md.training.run_folder import RunFolder, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_history(output: RunFolder, history: list[dict]) -> None:
    """Write the lines of ``Trainer.run_epoch`` as CSV and JSON; errors of labels that no frame has are left empty."""
    history = [
        {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in line.items()}
        for line in history
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(output.history_csv, text.getvalue())
    write_text(output.history_json, json.dumps(history, indent=1) + "\n")


def write_figure(output: RunFolder, history: list[dict], best_epoch: int) -> None:
    """Loss, errors of energy and forces (and stress) by epoch, with the epoch that was kept."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("loss", "loss"), ("forces", "forces, RMSE (meV/Å)"), ("energy", "energy, RMSE (meV/atom)")]
    if "validation_stress" in history[0]:
        panels.append(("stress", "stress, RMSE (meV/Å³)"))
    figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _panel(axes, history, name, label, best_epoch)
    partial = output.figure.with_name("loss.part.png")
    figure.savefig(partial, dpi=120)
    os.replace(partial, output.figure)


def _panel(axes: Axes, history: list[dict], name: str, label: str, best_epoch: int) -> None:
    epochs = [line["epoch"] for line in history]
    axes.plot(epochs, [line[f"training_{name}"] for line in history], label="training", color="tab:blue")
    axes.plot(epochs, [line[f"validation_{name}"] for line in history], label="validation", color="tab:orange")
    axes.axvline(best_epoch, color="0.6", linestyle=":", label=f"kept: epoch {best_epoch}")
    axes.set(xlabel="epoch", ylabel=label, yscale="log")
    if name == "loss":
        axes.legend(frameon=False)
