"""Tables as papers on LES print them, for any checkpoints: errors with and without LES, Born charges, Au2 on MgO.

    python benchmarks/paper_tables.py water --data water_rpbe_d3.xyz --model MACE=MACE-LES_water.model \
        --model bundled=water_rpbe_d3 --short-range bundled=water_rpbe_d3_short_range --out water.json
    python benchmarks/paper_tables.py dipeptides --data spice_dipeptides_dipolar.xyz --model NAME=FILE
    python benchmarks/paper_tables.py bec --data spice_bec.xyz --known-elements-only --model NAME=FILE
    python benchmarks/paper_tables.py bec --model NAME=FILE --reference NAME=authors_results.npz
    python benchmarks/paper_tables.py au-mgo --data au2_mgo_dft_relaxed.xyz --model NAME=FILE

FILE is a trained checkpoint, an exported file (for NequIP models, which are exported in another environment) or the
name of a bundled model; checkpoints are exported with a float64 network. Markdown goes to the terminal, everything to
``--out`` (.json or .csv). The script cannot know on which frames a model was trained: choose them with ``--frames``.

Errors are root mean squares: of forces over all components (meV/Å), of energies per atom (meV/atom). Models and data
put the zero of energy at different places. "References fitted": for each model one energy an element is fitted to
these very frames, by least squares of the energies per atom, and taken off; for one composition that is one constant,
and the error is the spread about it. "Own references": nothing is fitted, the model's own atomic reference energies
(and those of ``--atomic-energies``) stand; blank for a model that has none.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers
from labelled_frames import LabelledFrames, Selection, read_labelled
from organics_response import statistics
from tqdm import tqdm

from les_md import LESCalculator, load
from les_md.exporting import ensure_exported
from les_md.model_file import ExportedModel
from les_md.training.spice import born_effective_charges

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "au_mgo"))


@dataclass(frozen=True, eq=False)
class Entry:
    """A row of a table: a model by name, with and without LES (at least one of them).

    ``atomic_energies``: eV by element, added to the energies of both.
    """

    name: str
    with_les: ExportedModel | None
    without_les: ExportedModel | None
    atomic_energies: dict[str, float]

    @property
    def variants(self) -> list[tuple[str, ExportedModel]]:
        pairs = (("with", self.with_les), ("without", self.without_les))
        return [(key, model) for key, model in pairs if model is not None]


def named(arguments: list[str], option: str) -> dict[str, str]:
    """NAME=VALUE arguments as a dictionary; ValueError for another form or a name given twice."""
    values: dict[str, str] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if not (name and separator and value):
            raise ValueError(f"{option} {argument}: wanted NAME=VALUE")
        if name in values:
            raise ValueError(f"{option}: {name} is given twice")
        values[name] = value
    return values


def parsed_energies(text: str) -> dict[str, float]:
    """Energies in eV by element from such as ``H:-13.6,O:-2043.9``."""
    energies = {}
    for item in text.split(","):
        element, _, value = item.partition(":")
        try:
            if element not in atomic_numbers:
                raise ValueError
            energies[element] = float(value)
        except ValueError:
            raise ValueError(f"--atomic-energies: {item!r} is not such as H:-13.6 (eV)") from None
    return energies


def read_entries(options: argparse.Namespace, folder: Path) -> list[Entry]:
    """The models of the command line, loaded; checkpoints are exported to ``folder``."""
    with_les, without = named(options.model, "--model"), named(options.short_range, "--short-range")
    extra = named(options.atomic_energies, "--atomic-energies")
    names = list(dict.fromkeys([*with_les, *without]))
    if not names:
        raise ValueError("no models: give at least one --model NAME=FILE")
    unknown = set(extra) - set(names)
    if unknown:
        raise ValueError(f"--atomic-energies: there is no model {', '.join(sorted(unknown))}")
    entries = []
    for i, name in enumerate(names):
        loaded: list[ExportedModel | None] = []
        for files, short_range in ((with_les, False), (without, True)):
            if name not in files:
                loaded.append(None)
                continue
            path = ensure_exported(files[name], folder / f"{i}_{int(short_range)}.pt", short_range=short_range)
            model = load(path)
            if model.has_long_range == short_range:
                found, right = ("has", "--model") if short_range else ("has no", "--short-range")
                raise ValueError(f"{files[name]} {found} a long-range energy: give it as {right}")
            loaded.append(model)
        entries.append(Entry(name, *loaded, parsed_energies(extra[name]) if name in extra else {}))
    return entries


def selection(options: argparse.Namespace, entries: list[Entry]) -> Selection:
    """The frames that the command line asks for."""
    known = [frozenset(model.elements) for entry in entries for _, model in entry.variants]
    elements = frozenset.intersection(*known) if options.known_elements_only else None
    return Selection(options.frames, tuple(options.subset), elements)


def check_elements(data: LabelledFrames, entries: list[Entry]) -> None:
    """ValueError naming the first frame with an element that a model does not know."""
    for entry in entries:
        for _, model in entry.variants:
            for i, atoms in enumerate(data.frames):
                unknown = sorted(set(atoms.symbols) - set(model.elements))
                if unknown:
                    raise ValueError(
                        f"{data.where(i)}: model {entry.name} knows {' '.join(model.elements)}, not "
                        f"{', '.join(unknown)}; choose frames with --frames, or pass --known-elements-only"
                    )


@dataclass(frozen=True)
class Errors:
    """Root mean square errors: meV/Å, meV/atom (None: has no meaning), and how many constants the fit had."""

    forces: float
    energy_fitted: float | None
    energy_own: float | None
    fitted_constants: int


def has_own_references(entry: Entry, model: ExportedModel) -> bool:
    return bool(entry.atomic_energies) or bool((model.module.reference_energies != 0.0).any())


def measure(entry: Entry, model: ExportedModel, data: LabelledFrames, mobile: str | None = None) -> Errors:
    """Errors of one model on these frames; forces on the element ``mobile`` only, if one is named."""
    calculator = LESCalculator(model)
    squares, components, deviations, fractions = 0.0, 0, [], []
    elements = sorted({symbol for atoms in data.frames for symbol in atoms.symbols})
    for atoms in tqdm(data.frames, desc=entry.name, unit="frame", disable=not sys.stderr.isatty()):
        calculator.calculate(atoms.copy(), ["energy", "forces"])
        chosen = np.ones(len(atoms), bool) if mobile is None else atoms.symbols == mobile
        error = (calculator.results["forces"] - atoms.calc.results["forces"])[chosen]
        squares, components = squares + float((error**2).sum()), components + error.size
        counts = np.array([(atoms.symbols == element).sum() for element in elements])
        added = sum(entry.atomic_energies.get(e, 0.0) * n for e, n in zip(elements, counts, strict=True))
        deviations.append((calculator.results["energy"] + added - atoms.calc.results["energy"]) / len(atoms))
        fractions.append(counts / len(atoms))
    deviation, fraction = np.array(deviations), np.array(fractions)
    rank = int(np.linalg.matrix_rank(fraction))
    residual = deviation - fraction @ np.linalg.lstsq(fraction, deviation, rcond=None)[0]
    return Errors(
        forces=1000.0 * float(np.sqrt(squares / components)),
        # With as many constants as frames nothing is left that could be wrong.
        energy_fitted=1000.0 * float(np.sqrt((residual**2).mean())) if len(data.frames) > rank else None,
        energy_own=1000.0 * float(np.sqrt((deviation**2).mean())) if has_own_references(entry, model) else None,
        fitted_constants=rank,
    )


def accuracy_table(options: argparse.Namespace, entries: list[Entry]) -> dict:
    """Force and energy errors: the tables ``water`` and ``dipeptides``."""
    data = read_labelled(options.data, selection(options, entries), ("energy", "forces"))
    check_elements(data, entries)
    rows, fitted = [], 0
    for entry in entries:
        row: dict = {"model": entry.name, "network": network(entry)}
        errors = {key: measure(entry, model, data) for key, model in entry.variants}
        for quantity in ("forces", "energy_fitted", "energy_own"):
            for key in ("with", "without"):
                row[f"{quantity}_{key}_les"] = getattr(errors[key], quantity) if key in errors else None
        fitted = max(error.fitted_constants for error in errors.values())
        rows.append(row)
    atoms = sum(len(frame) for frame in data.frames)
    caption = (
        f"{data.path.name}, {len(data.frames)} frames, {atoms} atoms. Root mean square errors against DFT; forces in "
        f"meV/Å over all components, energies in meV/atom. References fitted: {fitted} constant(s) for each "
        "model, fitted to these frames. Which of the frames the models were trained on is not known to this script."
    )
    header = {
        "model": "model", "network": "network",
        "forces_with_les": "forces, with LES", "forces_without_les": "without",
        "energy_fitted_with_les": "energy (references fitted), with LES", "energy_fitted_without_les": "without",
        "energy_own_with_les": "energy (own references), with LES", "energy_own_without_les": "without",
    }  # fmt: skip
    return {"tables": [(caption, header, rows)], "data": [provenance(data)]}


def born_table(options: argparse.Namespace, entries: list[Entry]) -> dict:
    """Born effective charges against DFT (``--data``) and against the authors' own results (``--reference``)."""
    for entry in entries:
        if entry.with_les is None:
            raise ValueError(f"{entry.name} has no charges, and so no Born effective charges: remove --short-range")
    references = named(options.reference, "--reference")
    unknown = set(references) - {entry.name for entry in entries}
    if unknown:
        raise ValueError(f"--reference: there is no model {', '.join(sorted(unknown))}")
    if options.data is None and not references:
        raise ValueError("nothing to compare with: give --data (DFT) or --reference NAME=FILE.npz")
    header = {
        "model": "model", "against": "against", "frames": "frames", "rmse_all": "RMSE, e", "rmse_diagonal": "diagonal",
        "rmse_off_diagonal": "off-diagonal", "r2_all": "R²", "r2_diagonal": "diagonal",
        "r2_off_diagonal": "off-diagonal", "slope_all": "slope",
    }  # fmt: skip
    rows, sources = [], []
    if options.data is not None:
        data = read_labelled(options.data, selection(options, entries), ("bec",))
        check_elements(data, entries)
        expected = []
        for atoms in data.frames:
            tensors = born_effective_charges(atoms)  # of a file with the displacement first
            expected.append(tensors if options.bec_index == "displacement" else tensors.transpose(0, 2, 1))
        for entry in entries:
            computed = computed_tensors(entry.with_les, data.frames)
            rows.append({"model": entry.name, "against": "DFT", **tensor_errors(expected, computed)})
        sources.append(provenance(data))
    for name, file in references.items():
        model = next(entry.with_les for entry in entries if entry.name == name)
        frames, expected = read_reference(Path(file), model)
        row = tensor_errors(expected, computed_tensors(model, frames))
        rows.append({"model": name, "against": Path(file).name, **row})
    caption = (
        "Born effective charges in e. R² is one less the residual over the variance, slope that of the model against "
        "the reference. The overall sign of a model's charges is the one chosen at export; nothing is fitted."
    )
    return {"tables": [(caption, header, rows)], "data": sources}


def computed_tensors(model: ExportedModel, frames: list) -> list[np.ndarray]:
    """Born effective charges [N, 3, 3] of each frame, polarisation index first."""
    calculator = LESCalculator(model)
    progress = tqdm(frames, desc=model.path.name, unit="frame", disable=not sys.stderr.isatty())
    return [calculator.get_born_effective_charges(atoms.copy()) for atoms in progress]


def read_reference(path: Path, model: ExportedModel) -> tuple[list, list[np.ndarray]]:
    """Structures and Born charges (the model's sign) of an .npz with ``<frame>/numbers``, ``positions``, ``cell``,
    ``pbc`` and ``bec`` (polarisation index first, sign of the checkpoint).

    Raises FileNotFoundError, or ValueError for a file without these.
    """
    import ase

    if not path.is_file():
        raise FileNotFoundError(f"no such reference file: {path}")
    contents = np.load(path, allow_pickle=False)
    if not isinstance(contents, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} is no .npz archive")
    names = sorted({key.split("/")[0] for key in contents.files if key.endswith("/bec")})
    if not names:
        raise ValueError(f"{path} holds no Born effective charges (keys <frame>/bec)")
    missing = [f"{n}/{k}" for n in names for k in ("numbers", "positions", "cell", "pbc") if f"{n}/{k}" not in contents]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    frames = [ase.Atoms(*(contents[f"{n}/{k}"] for k in ("numbers", "positions")), cell=contents[f"{n}/cell"],
                        pbc=contents[f"{n}/pbc"]) for n in names]  # fmt: skip
    sign = model.metadata["long_range"]["charge_sign"]
    return frames, [sign * contents[f"{name}/bec"].reshape(-1, 3, 3) for name in names]


def tensor_errors(expected: list[np.ndarray], computed: list[np.ndarray]) -> dict:
    """Statistics over all components, the diagonal ones and the others."""
    reference, model = np.concatenate(expected), np.concatenate(computed)
    diagonal = np.eye(3, dtype=bool)
    row: dict = {"frames": len(expected)}
    for part, mask in (("all", np.ones((3, 3), bool)), ("diagonal", diagonal), ("off_diagonal", ~diagonal)):
        values = statistics(reference[:, mask].ravel(), model[:, mask].ravel())
        row |= {f"{quantity}_{part}": value for quantity, value in values.items()}
    return row


def gold_table(options: argparse.Namespace, entries: list[Entry]) -> dict:
    """Au2 on MgO(001): errors, and wetting energies before and after the relaxation in LAMMPS."""
    from curvature import curvatures, stationary_point
    from relaxation import DIFFERENCES, STRUCTURES, read_structures, relax, wetting_energies

    structures = read_structures(options.data)
    data = read_labelled(options.data, Selection(), ("energy", "forces"))
    check_elements(data, entries)
    in_mev = {name: 1000.0 * atoms.get_potential_energy() for name, atoms in structures.items()}
    rows: list[dict] = [{"model": "DFT", **{f"{s}_given": e for s, e in wetting_energies(in_mev).items()}}]
    moves: list[dict] = []
    for entry in entries:
        for key, model in entry.variants:
            label = entry.name if key == "with" else f"{entry.name}, without LES"
            calculator = LESCalculator(model, kspace="ewald")
            errors = measure(entry, model, data, mobile="Au")
            row = {"model": label, "forces": errors.forces, "energy_fitted": errors.energy_fitted}
            energies: dict[str, dict[str, float]] = {"given": {}, "stationary": {}, "relaxed": {}}
            for name in STRUCTURES:
                atoms = structures[name]
                folder = options.work / f"{label.replace('/', '_')}_{name}"
                relaxation = relax(model.path, atoms, folder, options.force_tolerance)
                energies["given"][name] = 1000.0 * relaxation.energy_start
                energies["relaxed"][name] = 1000.0 * relaxation.energy_relaxed
                moves.append(
                    {
                        "model": label,
                        "structure": name,
                        "gain": energies["relaxed"][name] - energies["given"][name],
                        "displacement": relaxation.displacement,
                        "largest_force": relaxation.largest_force,
                        "steps": relaxation.steps,
                        "curvature_start": float(curvatures(calculator, relaxation.start)[0]),
                        "curvature_relaxed": float(curvatures(calculator, relaxation.relaxed)[0]),
                    }
                )
                try:
                    nearest = stationary_point(calculator, atoms)
                except RuntimeError as error:
                    print(f"note: {label}: {error}", file=sys.stderr)
                    energies["stationary"][name] = np.nan
                else:
                    energies["stationary"][name] = 1000.0 * calculator.get_property("energy", nearest)
            for stage, values in energies.items():
                differences = wetting_energies(values).items()
                row |= {f"{s}_{stage}": None if np.isnan(value) else value for s, value in differences}
            rows.append(row)
    stages = {"given": "DFT geometry", "stationary": "next stationary point", "relaxed": "relaxed in LAMMPS"}
    header = {
        "model": "model",
        "forces": "forces on Au, meV/Å",
        "energy_fitted": "energy (references fitted), meV/atom",
    }
    header |= {f"{s}_{stage}": f"{s}: {words}" for s in DIFFERENCES for stage, words in stages.items()}
    caption = (
        f"{data.path.name}: E(wetting) − E(non-wetting) in meV. DFT geometry: as given. Next stationary point: where "
        "the model's forces on gold vanish, by Newton's method, minimum or not. Relaxed: gold in LAMMPS, substrate "
        f"frozen, until no force component exceeds {options.force_tolerance:g} eV/Å. Forces on the frozen atoms are "
        "not in the data. Two constants were fitted to the four energies."
    )
    moved = {
        "model": "model", "structure": "structure", "gain": "energy gained, meV", "displacement": "Au moved, Å",
        "largest_force": "largest force left, eV/Å", "steps": "steps",
        "curvature_start": "lowest curvature before, eV/Å²", "curvature_relaxed": "after",
    }  # fmt: skip
    second = (
        "The relaxations. Curvature: the lowest eigenvalue of the energy's second derivatives over the coordinates of "
        "gold; a negative one tells that the structure is no minimum of the model."
    )
    return {"tables": [(caption, header, rows), (second, moved, moves)], "data": [provenance(data)]}


def network(entry: Entry) -> str:
    """Architecture, cutoff, layers and arithmetic in words."""
    m = entry.variants[0][1].metadata
    return f"{m['architecture']}, {m['cutoff']:g} Å, {m['num_layers']} layer(s), {m['dtype']}"


def provenance(data: LabelledFrames) -> dict:
    return {"file": data.path.name, "sha256": data.sha256, "frames": data.numbers}


def markdown(header: dict[str, str], rows: list[dict]) -> str:
    """A table in Markdown: what a row does not have is blank."""
    lines = [f"| {' | '.join(header.values())} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(cell(key, row.get(key)) for key in header)} |" for row in rows]
    return "\n".join(lines)


def cell(key: str, value: object) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if value != 0.0 and abs(value) < 1e-3:
        return f"{value:.0e}"
    if key.startswith(("rmse", "r2", "slope", "energy_", "displacement", "curvature")):
        return f"{value:.3f}"
    return f"{value:.1f}"


def write(path: Path, table: str, result: dict, entries: list[Entry]) -> None:
    """All digits: JSON with data, models and metadata, or the (first) table's rows as CSV."""
    if path.suffix == ".csv":
        _, header, rows = result["tables"][0]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(header), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return
    content = {
        "table": table,
        "data": result["data"],
        "models": {entry.name: {key: model.metadata for key, model in entry.variants} for entry in entries},
        "atomic_energies": {entry.name: entry.atomic_energies for entry in entries if entry.atomic_energies},
        "tables": [{"caption": caption, "rows": rows} for caption, _, rows in result["tables"]],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False))


TABLES = {"water": accuracy_table, "dipeptides": accuracy_table, "bec": born_table, "au-mgo": gold_table}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--model", action="append", default=[], metavar="NAME=FILE", help="a model with LES")
    shared.add_argument(
        "--short-range", action="append", default=[], metavar="NAME=FILE",
        help="a model without LES: the twin of the --model of this name, or one on its own",
    )  # fmt: skip
    shared.add_argument("--out", type=Path, help="write the results to this .json or .csv file, too")
    atomic = argparse.ArgumentParser(add_help=False)
    atomic.add_argument(
        "--atomic-energies", action="append", default=[], metavar="NAME=H:E,O:E",
        help="atomic reference energies (eV) that a model was trained with and does not hold: added to its energies",
    )  # fmt: skip
    frames = argparse.ArgumentParser(add_help=False)
    frames.add_argument("--frames", help="numbers and ranges, such as 5,15,16 or 0:10 (default: all)")
    frames.add_argument("--subset", action="append", default=[], help="only frames of this 'subset' (repeatable)")
    frames.add_argument(
        "--known-elements-only", action="store_true", help="leave out frames with an element that a model does not know"
    )
    parser = argparse.ArgumentParser(
        description="Tables of errors of LES models, as papers print them.",
        epilog="\n".join(__doc__.splitlines()[10:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tables = parser.add_subparsers(dest="table", required=True)
    for name in ("water", "dipeptides"):
        table = tables.add_parser(name, parents=[shared, atomic, frames], help="force and energy errors")
        table.add_argument("--data", type=Path, required=True, help="extended XYZ with energies (eV) and forces (eV/Å)")
    table = tables.add_parser("bec", parents=[shared, frames], help="Born effective charges")
    table.add_argument("--data", type=Path, help="extended XYZ with 'bec', 9 values an atom, e")
    table.add_argument(
        "--bec-index", choices=("displacement", "polarisation"), default="displacement",
        help="which index is first in the data's tensors (default: displacement, as in spice_bec.xyz)",
    )  # fmt: skip
    table.add_argument(
        "--reference", action="append", default=[], metavar="NAME=FILE.npz", help="Born charges computed by the authors"
    )
    table.set_defaults(atomic_energies=[])
    table = tables.add_parser("au-mgo", parents=[shared], help="Au2 on MgO(001), relaxed in LAMMPS")
    table.add_argument("--data", type=Path, required=True, help="the four structures, au2_mgo_dft_relaxed.xyz")
    table.add_argument("--force-tolerance", type=float, default=1e-5, help="on gold, eV/Å (default: 1e-5)")
    table.set_defaults(atomic_energies=[])
    options = parser.parse_args(arguments)
    if options.out is not None and options.out.suffix not in (".json", ".csv"):
        parser.error(f"--out {options.out}: wanted a .json or .csv file")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.out is not None and not options.out.parent.is_dir():
            raise ValueError(f"the folder {options.out.parent} of --out does not exist")
        with tempfile.TemporaryDirectory() as temporary:
            options.work = Path(temporary)
            entries = read_entries(options, options.work)
            result = TABLES[options.table](options, entries)
        if options.out is not None:
            write(options.out, options.table, result, entries)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for caption, header, rows in result["tables"]:
        print(f"{caption}\n\n{markdown(header, rows)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
