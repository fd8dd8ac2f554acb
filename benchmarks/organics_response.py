"""Dipoles and Born effective charges of the organics model against DFT, on frames that training never saw.

    python benchmarks/organics_response.py --data DIR --figure docs/figures/organics_response.png

With ``--tables`` it prints the tables of the model's card: this one, and the errors stored with the checkpoint.

Neither dipoles nor Born effective charges were trained on, and nothing is fitted here: the sign of the charges is the
one that les-export chooses (the most electronegative element is negative).
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch

from les_md import LESCalculator, export
from les_md.models import resolve_checkpoint
from les_md.training.organics import read, split
from les_md.training.spice import born_effective_charges

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def statistics(data: np.ndarray, model: np.ndarray) -> dict[str, float]:
    """R² (1 − residual over variance), root mean square error, and slope of the regression of model on data."""
    residual = float(((model - data) ** 2).sum())
    return {
        "r2": 1.0 - residual / float(((data - data.mean()) ** 2).sum()),
        "rmse": float(np.sqrt(residual / data.size)),
        "slope": float(np.polyfit(data, model, 1)[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Dipoles and Born effective charges of the organics model.")
    parser.add_argument("--model", default="organics_wb97m", help="checkpoint or bundled model")
    parser.add_argument("--data", type=Path, required=True, help="folder with the two data files")
    parser.add_argument("--part", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--tables", action="store_true", help="print the tables of the model's card")
    parser.add_argument("--figure", type=Path, help="write a figure to this file")
    options = parser.parse_args()
    samples = read(options.data)
    dipoles: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    born: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.pt"
        export(options.model, file, dtype="float64")
        calculator = LESCalculator(file)
        for index in split(samples)[options.part]:
            sample = samples[index]
            atoms = sample.atoms.copy()
            atoms.calc = calculator
            charges = atoms.get_charges()
            # The molecules are neutral; as in the model's polarisation, the mean charge is taken off.
            dipole = (charges - charges.mean()) @ atoms.positions
            # In e·Å in both sets: the model's card says how this was found for the second, which states no unit.
            dipoles.setdefault(sample.subset, []).append((sample.atoms.calc.results["dipole"], dipole))
            if "bec" in sample.atoms.arrays:
                reference = born_effective_charges(sample.atoms)
                born.setdefault(sample.subset, []).append((reference, calculator.get_born_effective_charges(atoms)))
    diagonal = np.eye(3, dtype=bool)
    summary: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    summary["dipole"] = joined([pair for subset in dipoles.values() for pair in subset])
    reference, model = stacked([pair for subset in born.values() for pair in subset])
    summary["Born, all components"] = reference.ravel(), model.ravel()
    summary["Born, diagonal"] = reference[:, diagonal].ravel(), model[:, diagonal].ravel()
    summary["Born, off-diagonal"] = reference[:, ~diagonal].ravel(), model[:, ~diagonal].ravel()
    rows = [(f"dipole, {name}", joined(pairs), len(pairs)) for name, pairs in sorted(dipoles.items())]
    for name, pairs in sorted(born.items()):
        both = stacked(pairs)
        rows.append((f"Born, {name}", (both[0].ravel(), both[1].ravel()), len(pairs)))
    rows.extend((name, pair, 0) for name, pair in summary.items())
    if options.tables:
        print_errors(errors_by_subset(torch.load(resolve_checkpoint(options.model), weights_only=True)["training"]))
        print("\n| | R² | RMSE | slope of the model against DFT |\n| --- | --- | --- | --- |")
    for name, (data, values), count in rows:
        s = statistics(data, values)
        unit = "e·Å" if name.startswith("dipole") else "e"
        label = f"{name.replace('_', ' ')} ({f'{count} frames' if count else 'all frames'})"
        if options.tables:
            print(f"| {label} | {s['r2']:.2f} | {s['rmse']:.2f} {unit} | {s['slope']:.3f} |")
        else:
            print(f"{label:44s} R² {s['r2']:7.4f}  RMSE {s['rmse']:.4f} {unit}  slope {s['slope']:.3f}")
    if options.figure is not None:
        draw(options.figure, dipoles, summary)


def errors_by_subset(training: dict) -> dict[str, dict[str, dict]]:
    """Errors by part and subset of a checkpoint: as stored, or from those by file of a training of the recipe."""
    if "errors_by_file" not in training:
        return training["errors"]
    found: dict[str, dict[str, dict]] = {}
    for part, files in training["errors_by_file"].items():
        sources = [source["file"] for source in training["split"]["frames"][part]]
        found[part] = {
            file.removeprefix(f"{part}_").removesuffix(".xyz"): error | {"frames": sources.count(file)}
            for file, error in files.items()
        }
        found[part]["all"] = training["errors"][part] | {"frames": len(sources)}
    return found


def print_errors(errors: dict[str, dict[str, dict]]) -> None:
    """The root mean square errors of each subset and part, as a table."""
    print("| subset | training: forces | energy | validation: forces | energy | test: forces | energy |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for subset in errors["train"]:
        cells = [subset.replace("_", " ")]
        for part in ("train", "validation", "test"):
            error = errors[part][subset]
            cells.extend([f"{error['forces']:.0f} ({error['frames']})", f"{error['energy']:.1f}"])
        print(f"| {' | '.join(cells)} |")


def joined(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """All components, data and model."""
    return np.concatenate([data.ravel() for data, _ in pairs]), np.concatenate([model.ravel() for _, model in pairs])


def stacked(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Tensors of all atoms [N, 3, 3], data and model."""
    return np.concatenate([data for data, _ in pairs]), np.concatenate([model for _, model in pairs])


def draw(path: Path, dipoles: dict, summary: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Parity of dipole components by subset, and of Born effective charges."""
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 4.4), layout="constrained")
    for name, pairs in sorted(dipoles.items()):
        data, model = joined(pairs)
        axes[0].plot(data, model, ".", markersize=4, label=name.replace("_", " "))
    for name, label in (("Born, diagonal", "diagonal"), ("Born, off-diagonal", "off-diagonal")):
        data, model = summary[name]
        axes[1].plot(
            data, model, ".", markersize=2, alpha=0.5, label=f"{label}, R² {statistics(data, model)['r2']:.3f}"
        )
    r2 = statistics(*summary["dipole"])["r2"]
    axes[0].set(xlabel="DFT dipole component (e Å)", ylabel="latent charges (e Å)", title=f"dipoles, R² {r2:.3f}")
    axes[1].set(xlabel="DFT Born effective charge (e)", ylabel="latent charges (e)", title="Born effective charges")
    for axis in axes:
        low, high = axis.dataLim.intervalx
        axis.plot((low, high), (low, high), "k-", linewidth=0.7)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
