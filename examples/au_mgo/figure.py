"""Figure of the latent charges against height, before and after the relaxation."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from relaxation import DIFFERENCES, ELEMENTS, Relaxation, gold

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"O": "tab:red", "Mg": "tab:green", "Al": "tab:purple", "Au": "goldenrod"}


def plot(relaxations: dict[str, Relaxation], path: Path) -> None:
    """Four panels, one a structure: latent charge (e) of every atom against its z (Å), coloured by element.

    Gold is drawn where it was (open) and where it went (filled); the charges of the substrate are those at the end.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9.0, 7.0), sharex=True, sharey=True, layout="constrained")
    for column, (substrate, pair) in enumerate(DIFFERENCES.items()):
        for row, (name, kind) in enumerate(zip(pair, ("wetting", "non-wetting"), strict=True)):
            _panel(axes[row, column], relaxations[name])
            axes[row, column].set_title(f"{name}: {kind}, {substrate}")
    for axis in axes[-1]:
        axis.set_xlabel("z (Å), gold left of the slab")
    for axis in axes[:, 0]:
        axis.set_ylabel("latent charge (e)")
    axes[0, 0].legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: plt.Axes, relaxation: Relaxation) -> None:
    symbols = np.array(relaxation.relaxed.get_chemical_symbols())
    before, after = relaxation.start.positions[:, 2], relaxation.relaxed.positions[:, 2]
    axis.axhline(0.0, color="black", linewidth=0.5)
    for element in ELEMENTS[:-1]:
        chosen = symbols == element
        # Elements that a structure lacks are drawn as nothing, so that one legend serves all panels.
        axis.plot(after[chosen], relaxation.charges_relaxed[chosen], "o", color=COLORS[element], ms=4, label=element)
    mobile = gold(relaxation.relaxed)
    for i in mobile:
        axis.annotate(
            "", (after[i], relaxation.charges_relaxed[i]), (before[i], relaxation.charges_start[i]),
            arrowprops={"arrowstyle": "-", "color": COLORS["Au"]},
        )  # fmt: skip
    axis.plot(
        before[mobile], relaxation.charges_start[mobile], "D", color=COLORS["Au"], ms=8, mfc="none", label="Au, start"
    )
    axis.plot(
        after[mobile], relaxation.charges_relaxed[mobile], "D", color=COLORS["Au"], ms=4, label="Au, relaxed"
    )  # fmt: skip
