"""Command lines: ``les-export`` and ``les-md``."""

from __future__ import annotations

import argparse
import sys

from les_md import __version__
from les_md.analysis.commands import add_commands as add_analysis_commands


def export_parser() -> argparse.ArgumentParser:
    """The options of ``les-export``."""
    parser = argparse.ArgumentParser(
        prog="les-export",
        description="Export a trained LES checkpoint to one TorchScript file for LAMMPS, OpenMM and ASE. The file is "
        "compared with the original before it is written.",
    )
    parser.add_argument(
        "checkpoint", help="trained checkpoint (file or folder), or the name of a bundled model (see: les-md models)"
    )
    parser.add_argument("-o", "--output", metavar="OUT.pt", help="file to write (default: the checkpoint's name, .pt)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="arithmetic of the network (default: float32)",
    )
    parser.add_argument(
        "--norm-factor",
        type=float,
        metavar="C",
        help="constant of the long-range energy in eV Å/e², instead of the one stored in the checkpoint or implied by "
        "its age",
    )
    parser.add_argument(
        "--charge-sign",
        choices=("auto", "keep", "flip"),
        default="auto",
        help="overall sign of the charges, which the energy leaves open; auto (default): the most electronegative "
        "element is negative; keep or flip: relative to the checkpoint",
    )
    parser.add_argument("--head", help="which head of a multi-head model")
    parser.add_argument(
        "--cutoff", type=float, metavar="R", help="cutoff in Å of a checkpoint that holds weights alone"
    )
    parser.add_argument(
        "--short-range",
        action="store_true",
        help="accept a checkpoint without latent charges, as a short-range potential",
    )
    parser.add_argument(
        "--radial",
        choices=("exact", "spline"),
        default="exact",
        help="radial networks (of MACE) as they are (default), or as splines of the distance, somewhat faster; their "
        "error is recorded, and refused beyond 1e-6",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="put the network, compiled for this version of PyTorch and processors with AVX2, into the file besides; "
        "engines run it where they are asked to (compiled=True; in LAMMPS, compiled yes). For CACE models without "
        "message passing, on Linux on x86_64; needs a C++ compiler, and minutes",
    )
    return parser


def export_main(arguments: list[str] | None = None) -> int:
    """``les-export CHECKPOINT``: export a trained checkpoint and print what was done."""
    return _run(_export, export_parser().parse_args(arguments))


def main_parser() -> argparse.ArgumentParser:
    """The commands of ``les-md`` and their options."""
    parser = argparse.ArgumentParser(prog="les-md", description="Long-range machine-learning potentials in MD.")
    parser.add_argument("--version", action="version", version=f"les_md {__version__}", help="print the version")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="print what an exported file holds")
    info.add_argument("file", help="written by les-export")
    info.add_argument("--json", action="store_true", help="print the metadata as JSON")
    info.set_defaults(function=_info)
    models = commands.add_parser("models", help="list the bundled models")
    models.set_defaults(function=_models)
    build = commands.add_parser("build", help="compile the LAMMPS plugin now instead of at the first use")
    build.add_argument("--force", action="store_true", help="compile again even if the plugin is up to date")
    build.set_defaults(function=_build)
    doctor = commands.add_parser(
        "doctor", help="what is installed, what works (by a box of water in every engine), and what to do"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(function=_doctor)
    add_analysis_commands(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """``les-md``: exported files, bundled models, the LAMMPS plugin, what works here, spectra, dielectric constants."""
    options = main_parser().parse_args(arguments)
    return _run(options.function, options)


def _run(function, options: argparse.Namespace) -> int:
    try:
        return function(options) or 0
    except (ValueError, OSError, RuntimeError) as error:
        # Every error that a user can cause says in its message what is wrong and what to do.
        print(f"error: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("error: there is not enough memory for this", file=sys.stderr)
        return 1


def _export(options: argparse.Namespace) -> None:
    import warnings

    from les_md.exporting import export

    # What e3nn, mace and pymatgen warn of when they are imported and used concerns their authors, not our user.
    warnings.filterwarnings("ignore", message="Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD detected")
    warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support instance-level annotations")
    warnings.filterwarnings("ignore", message="No Pauling electronegativity for")
    # ... and PyTorch of its own use of itself.
    warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    report = export(
        options.checkpoint,
        options.output,
        dtype=options.dtype,
        norm_factor=options.norm_factor,
        charge_sign=options.charge_sign,
        head=options.head,
        cutoff=options.cutoff,
        short_range=options.short_range,
        radial=options.radial,
        compile=options.compile,
    )
    print_metadata(report.metadata)
    print(f"\nwritten to {report.path}")


def _info(options: argparse.Namespace) -> None:
    import json

    from les_md.model_file import read_metadata

    metadata = read_metadata(options.file)
    if options.json:
        print(json.dumps(metadata, indent=1, ensure_ascii=False))
    else:
        print_metadata(metadata)


def _models(_options: argparse.Namespace) -> None:
    from les_md.models import bundled_models

    for name, path in bundled_models().items():
        print(f"{name:32s} {path}")


def _build(options: argparse.Namespace) -> None:
    from les_md import lammps

    print(lammps.build(force=options.force))


def _doctor(options: argparse.Namespace) -> int:
    from les_md.doctor import FAILED, diagnose, print_report

    findings = diagnose()
    print_report(findings, options.json)
    return int(any(finding.status == FAILED for finding in findings))


def _differences(differences: dict[str, float]) -> str:
    """Of a self-check on one structure, with units."""
    units = {"energy": "eV/atom", "long_range_energy": "eV/atom", "forces": "eV/Å", "charges": "e", "stress": "eV/Å³"}
    return ", ".join(f"{q.replace('_', ' ')} {value:.1e} {units[q]}" for q, value in differences.items())


def print_metadata(metadata: dict) -> None:
    """Print metadata as a table for people."""
    from les_md.electrostatics.latent_layout import LatentLayout

    rows = [
        ("model", f"{metadata['source']['name']}  (sha256 {metadata['source']['sha256'][:12]}…)"),
        ("architecture", metadata["architecture"]),
        ("elements", " ".join(metadata["elements"])),
        (
            "cutoff",
            f"{metadata['cutoff']:g} Å, {metadata['num_layers']} layer(s), "
            f"receptive field {metadata['receptive_field']:g} Å",
        ),
        ("network dtype", metadata["dtype"]),
        ("file format", str(metadata["format_version"])),
    ]
    radial = metadata.get("radial")
    if radial is not None:
        splines = ""
        if radial["kind"] == "spline":
            splines = (
                f" of {max(radial['intervals'])} intervals, relative error {radial['value_error']:.1g}, of the "
                f"derivatives {radial['derivative_error']:.1g}"
            )
        rows.append(("radial networks", radial["kind"] + splines))
    long_range = metadata["long_range"]
    if long_range is None:
        rows.append(("long range", "none: a short-range potential"))
    else:
        rows += [
            ("charge channels", str(metadata["n_q"])),
            ("latent variables", str(LatentLayout.from_metadata(metadata))),
            ("long range", f"sigma {long_range['sigma']:g} Å, dl {long_range['dl']:g} Å"),
            ("norm_factor", f"{long_range['norm_factor']:g} eV Å/e²"),
            ("self-interaction", "removed" if long_range["remove_self_interaction"] else "kept"),
            ("charge sign", f"{long_range['charge_sign']:+g} relative to the checkpoint"),
        ]
        means = ", ".join(f"{symbol} {value:+.3f}" for symbol, value in metadata["mean_charges"].items())
        rows.append(("mean charges", f"{means} e (on a check structure)"))
    rows += [("note", note) for note in metadata["notes"]]
    rows.append(("made with", ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())))
    rows.append(("made at", metadata["created"]))
    check = metadata["self_check"]
    rows.append(("self-check", f"against {check['reference']}"))
    rows += [(f"  {name}", _differences(each)) for name, each in check["structures"].items()]
    compiled = metadata.get("compiled")
    if compiled is not None:
        made_for = f"for torch {compiled['torch']}, {compiled['device']} {compiled['processor']}, {compiled['system']}"
        rows.append(("compiled", made_for))
        rows += [(f"  {name}", _differences(each)) for name, each in compiled["self_check"].items()]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        print(f"{label:{width}s}  {text}")
