"""What LES infers from energies and forces alone: Born effective charges, dipoles and charges beside the true ones.

    python benchmarks/inferred_response.py organics --data DIR --out OUT
    python benchmarks/inferred_response.py organics --data DIR --out OUT --model NAME=FILE --all-frames
    python benchmarks/inferred_response.py salt --out OUT

``organics``: Born charges and dipoles of SPICE molecules (files ``spice_bec.xyz`` and ``spice_dipeptides_dipolar.xyz``
of the folder) against density functional theory, on the frames that the model's own record names as held out
(``--all-frames`` where it has none: training frames may be among them). Beside the model stand two things that can be
said without it: zero, which is what a short-range model says, and each element's mean Born charge on the training
frames, the same for every atom of the element. Also: latent charges by bonding environment.

``salt``: charges and Born charges of the bundled model of a molten salt against those of the force field that made its
energies and forces, on trajectories that it never saw.

Nothing is fitted to what is compared; the sign of the charges is the one that les-export chooses. Tables (Markdown),
figures, and everything as JSON, go to the folder OUT.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from bonding_environments import environments
from organics_response import statistics
from tqdm import tqdm

from les_md import LESCalculator, load
from les_md.exporting import ensure_exported
from les_md.models import resolve_checkpoint
from les_md.training.organics import read, split, write_parts
from les_md.training.spice import Sample, born_effective_charges

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ELEMENTS = ("H", "C", "N", "O")
COLOURS = {"H": "tab:gray", "C": "black", "N": "tab:blue", "O": "tab:red"}
DIAGONAL = np.eye(3, dtype=bool)
#: Environments of fewer atoms are left out of the figure and the table.
FEWEST = 10


@dataclass(frozen=True, eq=False)
class Frame:
    """Reference and model for one structure; Born charges [N, 3, 3] in e are None where there is no reference."""

    symbols: np.ndarray
    environments: list[str]
    subset: str
    charges: np.ndarray
    dipole: np.ndarray
    model_dipole: np.ndarray
    born: np.ndarray | None
    model_born: np.ndarray | None
    mean_charge_dipole: np.ndarray  # of the elements' mean Born charges as charges


def held_out(samples: list[Sample], data: Path, model: str) -> tuple[list[int], list[int]]:
    """Indices of the training and the test frames by the record inside a checkpoint.

    A training of the recipe records SHA-256 of the files that ``organics.write_parts`` made from ``data``: they are
    made anew here, and where they are the same to the byte, the parts are those of ``organics.split``. Raises
    ValueError if there is no record, or one of other files.
    """
    try:
        contents = torch.load(resolve_checkpoint(model), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):  # a pickled module, an exported file: there is no record in them
        contents = None
    record = contents.get("training", {}).get("split") if isinstance(contents, dict) else None
    if record is None:
        raise ValueError(f"{model} does not say on which frames it was trained: pass --all-frames, which may be them")
    with tempfile.TemporaryDirectory() as temporary:
        write_parts(data, Path(temporary))
        ours = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(temporary).iterdir()}
    other = sorted(name for name, digest in record["files_sha256"].items() if ours.get(name) != digest)
    if other:
        raise ValueError(
            f"{model} was trained on files that the recipe does not make from these data ({other[0]} differs): pass "
            "--all-frames, which may be its training frames"
        )
    parts = split(samples)
    return parts["train"], parts["test"]


def mean_born(samples: list[Sample]) -> dict[str, float]:
    """Mean of a third of the trace of the Born charge of each element, e."""
    of_element: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        if "bec" not in sample.atoms.arrays:
            continue
        traces = np.trace(born_effective_charges(sample.atoms), axis1=1, axis2=2) / 3.0
        for element in set(sample.atoms.symbols):
            of_element.setdefault(element, []).append(traces[sample.atoms.symbols == element])
    return {element: float(np.concatenate(values).mean()) for element, values in of_element.items()}


def evaluate(samples: list[Sample], calculator: LESCalculator, means: dict[str, float]) -> list[Frame]:
    """Model and references of each sample."""
    frames = []
    for sample in tqdm(samples, unit="frame", disable=not sys.stderr.isatty()):
        atoms = sample.atoms.copy()
        atoms.calc = calculator
        charges = atoms.get_charges().reshape(len(atoms), -1).sum(1)
        labelled = "bec" in sample.atoms.arrays
        of_elements = np.array([means[symbol] for symbol in atoms.symbols])
        frames.append(
            Frame(
                symbols=np.array(atoms.get_chemical_symbols()),
                environments=environments(atoms),
                subset=sample.subset,
                charges=charges,
                dipole=np.array(sample.atoms.calc.results["dipole"]),  # e Å in both files
                model_dipole=calculator.get_property("dipole", atoms),
                born=born_effective_charges(sample.atoms) if labelled else None,
                model_born=calculator.get_born_effective_charges(atoms) if labelled else None,
                mean_charge_dipole=(of_elements - of_elements.mean()) @ atoms.positions,
            )
        )
    return frames


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def stacked(frames: list[Frame], name: str, element: str | None = None) -> np.ndarray:
    """[n, 3, 3] of all atoms, or those of one element, of frames with reference."""
    chosen = [frame for frame in frames if frame.born is not None]
    return np.concatenate(
        [getattr(f, name)[np.ones(len(f.symbols), bool) if element is None else f.symbols == element] for f in chosen]
    )


def born_rows(frames: list[Frame], means: dict[str, float]) -> list[dict]:
    """Of each element and of all: errors of the model, of the elements' means and of zero.

    R² is one less the residual over the variance about the mean of the very values compared: of the isotropic part (a
    third of the trace), and of all nine components. For one element, the elements' means have about 0 in the first.
    The median error of the isotropic part does not know of single atoms that are far off.
    """
    rows = []
    for element in (*ELEMENTS, None):
        reference, model = stacked(frames, "born", element), stacked(frames, "model_born", element)
        if not len(reference):
            continue
        symbols = np.concatenate([f.symbols for f in frames if f.born is not None])
        symbols = symbols if element is None else symbols[symbols == element]
        of_means = np.array([means[symbol] for symbol in symbols])[:, None, None] * np.eye(3)
        row: dict = {"element": element or "all", "atoms": len(reference)}
        for name, values in (("model", model), ("means", of_means), ("zero", np.zeros_like(model))):
            row[f"rmse_{name}"] = root_mean_square(values - reference)
            row[f"r2_{name}"] = r_squared(reference, values)
            isotropic = [np.trace(tensors, axis1=1, axis2=2) / 3.0 for tensors in (reference, values)]
            row[f"r2_isotropic_{name}"] = r_squared(*isotropic)
            row[f"median_{name}"] = float(np.median(np.abs(isotropic[1] - isotropic[0])))
        row["r2_off_diagonal_model"] = r_squared(reference[:, ~DIAGONAL], model[:, ~DIAGONAL])
        rows.append(row)
    return rows


def r_squared(reference: np.ndarray, values: np.ndarray) -> float:
    """One less the residual over the variance."""
    return 1.0 - float(((values - reference) ** 2).sum() / ((reference - reference.mean()) ** 2).sum())


def dipole_rows(frames: list[Frame]) -> list[dict]:
    """Of each subset and of all: errors over components, e Å, of the model, of elements' mean charges and of zero."""
    subsets = sorted({frame.subset for frame in frames})
    rows = []
    for subset in (*subsets, None):
        chosen = [frame for frame in frames if subset in (None, frame.subset)]
        reference = np.array([frame.dipole for frame in chosen])
        row: dict = {"subset": (subset or "all").replace("_", " "), "frames": len(chosen)}
        for name, values in (
            ("model", np.array([frame.model_dipole for frame in chosen])),
            ("means", np.array([frame.mean_charge_dipole for frame in chosen])),
            ("zero", np.zeros_like(reference)),
        ):
            row[f"rmse_{name}"] = root_mean_square(values - reference)
            row[f"r2_{name}"] = r_squared(reference, values)
        row["slope"] = statistics(reference.ravel(), np.array([frame.model_dipole for frame in chosen]).ravel())[
            "slope"
        ]
        rows.append(row)
    return rows


def environment_rows(frames: list[Frame]) -> list[dict]:
    """Latent charges by bonding environment, and, where there are references, a third of the Born charges' traces."""
    names = sorted(
        {name for frame in frames for name in frame.environments}, key=lambda n: (*ELEMENTS, n[0]).index(n[0])
    )
    rows = []
    for name in names:
        charges, traces, model_traces = [], [], []
        for frame in frames:
            mask = np.array([each == name for each in frame.environments])
            charges.append(frame.charges[mask])
            if frame.born is not None:
                traces.append(np.trace(frame.born[mask], axis1=1, axis2=2) / 3.0)
                model_traces.append(np.trace(frame.model_born[mask], axis1=1, axis2=2) / 3.0)
        charge, trace, model_trace = (np.concatenate(v) if v else np.zeros(0) for v in (charges, traces, model_traces))
        if len(charge) < FEWEST:
            continue
        row = {"environment": name, "atoms": len(charge), "charge": float(charge.mean()), "spread": float(charge.std())}
        if len(trace) >= FEWEST:
            row |= {"born": float(trace.mean()), "model_born": float(model_trace.mean())}
        rows.append({**row, "charges": charge})
    return rows


def between_environments(rows: list[dict], element: str | None = None) -> float | None:
    """Correlation over environments of the mean latent charge with the mean Born charge (a third of the trace)."""
    chosen = [row for row in rows if "born" in row and element in (None, row["environment"][0])]
    if len(chosen) < 3:
        return None
    return float(np.corrcoef([row["charge"] for row in chosen], [row["born"] for row in chosen])[0, 1])


# ---- figures


def draw_born(path: Path, frames: list[Frame], means: dict[str, float]) -> None:
    """Parity of Born charges, one panel for each element."""
    present = [element for element in ELEMENTS if len(stacked(frames, "born", element))]
    figure, axes = plt.subplots(1, len(present), figsize=(3.4 * len(present), 3.6), layout="constrained", squeeze=False)
    for axis, element in zip(axes[0], present, strict=True):
        reference, model = stacked(frames, "born", element), stacked(frames, "model_born", element)
        for mask, colour, label in ((~DIAGONAL, "tab:orange", "off-diagonal"), (DIAGONAL, "tab:blue", "diagonal")):
            axis.plot(reference[:, mask].ravel(), model[:, mask].ravel(), ".", markersize=2, alpha=0.4, color=colour,
                      label=f"{label}, R² {r_squared(reference[:, mask], model[:, mask]):.2f}")  # fmt: skip
        axis.axhline(means[element], color="tab:green", linewidth=0.8, label="element's mean")
        low, high = axis.dataLim.intervalx
        axis.plot((low, high), (low, high), "k-", linewidth=0.7)
        axis.set(title=f"{element}, {len(reference)} atoms", xlabel="DFT Born charge / e")
        axis.legend(fontsize=7, loc="upper left")
    axes[0][0].set_ylabel("inferred / e")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_dipoles(path: Path, frames: list[Frame]) -> None:
    """Parity of dipole components by subset."""
    figure, axis = plt.subplots(figsize=(5, 4.4), layout="constrained")
    for subset in sorted({frame.subset for frame in frames}):
        chosen = [frame for frame in frames if frame.subset == subset]
        axis.plot(np.array([f.dipole for f in chosen]).ravel(), np.array([f.model_dipole for f in chosen]).ravel(), ".",
                  markersize=4, label=subset.replace("_", " "))  # fmt: skip
    low, high = axis.dataLim.intervalx
    axis.plot((low, high), (low, high), "k-", linewidth=0.7)
    r2 = r_squared(np.array([f.dipole for f in frames]), np.array([f.model_dipole for f in frames]))
    axis.set(xlabel="DFT dipole component / e Å", ylabel="inferred / e Å", title=f"{len(frames)} frames, R² {r2:.2f}")
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_environments(path: Path, rows: list[dict]) -> None:
    """Distribution of latent charges in each bonding environment, and the mean Born charge of DFT."""
    figure, axis = plt.subplots(figsize=(7.5, 0.3 * len(rows) + 1.2), layout="constrained")
    for place, row in enumerate(rows):
        parts = axis.violinplot(row["charges"], [place], orientation="horizontal", widths=0.8, showextrema=False)
        for body in parts["bodies"]:
            body.set_color(COLOURS.get(row["environment"][0], "tab:purple"))
        if "born" in row:
            axis.plot(row["born"], place, "k|", markersize=12)
    axis.plot([], [], "k|", markersize=12, label="DFT Born charge, mean third of the trace")
    axis.set_yticks(range(len(rows)), [f"{row['environment']} ({row['atoms']})" for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("latent charge / e")
    axis.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_salt(path: Path, rows: list[dict], charges: dict[str, np.ndarray], traces: dict[str, np.ndarray]) -> None:
    """Inferred against true charge of each species; the spread over ions of latent and of Born charges."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for i, row in enumerate(rows):
        true, species = row["true"], row["species"]
        axes[0].errorbar(true, row["mean"], row["deviation"], fmt="o", color=f"C{i}", capsize=4, label=species)
        axes[1].hist(charges[species] / true, 30, color=f"C{i}", histtype="step", label=f"{species}, latent charge")
        axes[1].hist(
            traces[species] / true, 30, color=f"C{i}", histtype="stepfilled", alpha=0.4, label=f"{species}, Born charge"
        )
    line = np.array([-1.2, 2.2])
    axes[0].plot(line, line, "k-", linewidth=0.7)
    axes[0].set(xlabel="charge of the force field / e", ylabel="latent charge / e")
    axes[1].axvline(1.0, color="k", linewidth=0.7)
    axes[1].set(xlabel="inferred / charge of the force field", ylabel="ions")
    for axis in axes:
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- tables


def table(header: dict[str, str], rows: list[dict]) -> str:
    """Markdown; numbers with two or three digits after the point, – where a row has none."""
    lines = [f"| {' | '.join(header.values())} |", f"|{' --- |' * len(header)}"]
    for row in rows:
        cells = []
        for key in header:
            value = row.get(key)
            digits = 2 if key.startswith(("r2", "slope")) else 3
            cells.append("–" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


BORN_HEADER = {
    "element": "element", "atoms": "atoms", "rmse_model": "RMSE, e: model", "rmse_means": "element's mean",
    "rmse_zero": "zero", "r2_model": "R²: model", "r2_means": "element's mean",
    "r2_off_diagonal_model": "R², off-diagonal: model", "r2_isotropic_model": "R², trace/3: model",
    "r2_isotropic_means": "element's mean", "median_model": "median error of trace/3, e: model",
    "median_means": "element's mean",
}  # fmt: skip
DIPOLE_HEADER = {
    "subset": "subset", "frames": "frames", "rmse_model": "RMSE, e Å: model", "rmse_means": "elements' mean charges",
    "rmse_zero": "zero", "r2_model": "R²: model", "r2_means": "elements' mean charges", "slope": "slope of the model",
}  # fmt: skip
ENVIRONMENT_HEADER = {
    "environment": "environment", "atoms": "atoms", "charge": "latent charge, e: mean", "spread": "deviation",
    "model_born": "inferred Born charge", "born": "DFT Born charge",
}  # fmt: skip
SALT_HEADER = {
    "species": "ion", "count": "ions", "true": "true charge, e", "mean": "latent charge: mean",
    "deviation": "deviation", "lowest": "lowest", "highest": "highest", "ratio": "latent/true",
    "born_mean": "inferred Born charge: mean", "born_deviation": "deviation",
    "born_rmse": "RMSE against the true one, nine components",
}  # fmt: skip


def organics(options: argparse.Namespace) -> dict:
    """Figures and results of SPICE molecules."""
    name, _, file = options.model.rpartition("=")
    name = name or file
    samples = read(options.data)
    if options.all_frames:
        training = chosen = list(range(len(samples)))
    else:
        training, chosen = held_out(samples, options.data, file)
    means = mean_born([samples[i] for i in training])
    if options.frames is not None:  # of each subset
        subsets = [samples[i].subset for i in chosen]
        chosen = [i for k, i in enumerate(chosen) if subsets[:k].count(subsets[k]) < options.frames]
    with tempfile.TemporaryDirectory() as temporary:
        model = load(ensure_exported(file, Path(temporary) / "model.pt"))
    if not model.has_long_range:
        raise ValueError(f"{name} is a short-range model: it infers no charges, dipoles or Born effective charges")
    unknown = {s for i in chosen for s in samples[i].atoms.symbols} - set(model.elements)
    if unknown:
        raise ValueError(f"{name} does not know {', '.join(sorted(unknown))}")
    frames = evaluate([samples[i] for i in chosen], LESCalculator(model), means)
    born, dipoles, around = born_rows(frames, means), dipole_rows(frames), environment_rows(frames)
    draw_born(options.out / "inferred_born.png", frames, means)
    draw_dipoles(options.out / "inferred_dipoles.png", frames)
    draw_environments(options.out / "inferred_charges.png", around)
    correlation = {e or "all": between_environments(around, e) for e in (None, *ELEMENTS)}
    print(f"{name}, {len(frames)} frames, {'of all of the data' if options.all_frames else 'never trained on'}\n")
    of = "all frames" if options.all_frames else "training frames"
    print(f"mean Born charges ({of}): {', '.join(f'{e} {v:+.3f}' for e, v in sorted(means.items()))} e\n")
    for header, rows in ((BORN_HEADER, born), (DIPOLE_HEADER, dipoles), (ENVIRONMENT_HEADER, around)):
        print(table(header, rows) + "\n")
    words = [f"{key} {value:.2f}" for key, value in correlation.items() if value is not None]
    print(f"correlation over environments of mean latent charge and mean DFT Born charge: {', '.join(words)}")
    plain = [{key: value for key, value in row.items() if key != "charges"} for row in around]
    return {"model": name, "frames": [samples[i].source for i in chosen], "means": means, "born": born,
            "dipoles": dipoles, "environments": plain, "correlation": correlation}  # fmt: skip


def salt(options: argparse.Namespace) -> dict:
    """Figure and results of the molten salt; needs OpenMM."""
    from les_md.training.molten_salt import CHARGES, structures, trajectory

    labelled = structures("test") if options.frames is None else trajectory(11, options.frames)
    with tempfile.TemporaryDirectory() as temporary:
        calculator = LESCalculator(load(ensure_exported(options.model, Path(temporary) / "model.pt")))
    charges: dict[str, list] = {species: [] for species in CHARGES}
    tensors: dict[str, list] = {species: [] for species in CHARGES}
    for atoms in labelled:
        calculator.calculate(atoms.copy())
        charge, born = calculator.results["charges"], calculator.get_born_effective_charges(atoms.copy())
        for species in CHARGES:
            mask = atoms.symbols == species
            charges[species].append(charge.reshape(len(atoms), -1).sum(1)[mask])
            tensors[species].append(born[mask])
    rows, inferred = [], {species: np.concatenate(values) for species, values in charges.items()}
    isotropic = {}
    for species, true in CHARGES.items():
        values, born = inferred[species], np.concatenate(tensors[species])
        traces = isotropic[species] = np.trace(born, axis1=1, axis2=2) / 3.0
        rows.append({
            "species": species, "count": len(values), "true": true, "mean": float(values.mean()),
            "deviation": float(values.std()), "lowest": float(values.min()), "highest": float(values.max()),
            "ratio": float(values.mean()) / true, "born_mean": float(traces.mean()),
            "born_deviation": float(traces.std()), "born_rmse": root_mean_square(born - true * np.eye(3)),
        })  # fmt: skip
    draw_salt(options.out / "inferred_salt.png", rows, inferred, isotropic)
    print(f"{options.model}, {len(labelled)} frames of trajectories that were not trained on\n")
    print(table(SALT_HEADER, rows))
    return {"model": options.model, "frames": len(labelled), "salt": rows}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What LES infers from energies and forces alone.")
    commands = parser.add_subparsers(dest="command", required=True)
    of_organics = commands.add_parser("organics", help="Born charges, dipoles, charges of SPICE molecules")
    of_organics.add_argument("--data", type=Path, required=True, help="folder with the two SPICE files")
    of_organics.add_argument(
        "--model", default="organics_wb97m", help="[NAME=]checkpoint, exported file or bundled model"
    )
    of_organics.add_argument("--all-frames", action="store_true", help="all frames, whatever was trained on")
    of_organics.add_argument("--frames", type=int, help="so many frames of each subset only")
    of_salt = commands.add_parser("salt", help="a molten salt of known charges")
    of_salt.add_argument("--model", default="molten_salt_chgnet", help="checkpoint, exported file or bundled model")
    of_salt.add_argument("--frames", type=int, help="so many frames only")
    for command in (of_organics, of_salt):
        command.add_argument("--out", type=Path, required=True, help="folder for figures and JSON")
    options = parser.parse_args(arguments)
    if options.frames is not None and options.frames < 1:
        parser.error("--frames must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        results = organics(options) if options.command == "organics" else salt(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (options.out / f"{options.command}.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
