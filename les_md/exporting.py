"""From a trained checkpoint to one exported file, checked against the original before it is written."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ase
import ase.data
import numpy as np
import torch
from ase.stress import voigt_6_to_full_3x3_stress

from les_md import ahead_of_time, compiled_packages, model_file
from les_md.architectures import LoadOptions, TrainedModel, find_architecture
from les_md.check_structures import check_structures
from les_md.checkpoint import FOLDER_FILES, read_checkpoint
from les_md.compiled_potential import CompiledPotential
from les_md.electronegativity import ELECTRONEGATIVITY
from les_md.electrostatics.latent_layout import LatentLayout
from les_md.models import resolve_checkpoint
from les_md.multipole_potential import MultipolePotential
from les_md.potential import FORMAT_VERSION, MULTIPOLE_FORMAT_VERSION, LESPotential

if TYPE_CHECKING:
    from les_md.calculator import LESCalculator

#: Largest accepted difference from the original, relative to the quantity's largest value, by network dtype.
#: Stress is compared with finite differences of the original's energy, which limits its accuracy.
TOLERANCES = {
    "float64": {"energy": 1e-9, "long_range_energy": 1e-9, "forces": 1e-8, "charges": 1e-8, "stress": 1e-5},
    "float32": {"energy": 2e-5, "long_range_energy": 2e-4, "forces": 2e-4, "charges": 2e-4, "stress": 2e-3},
}

#: Relative error of splines of radial functions that is aimed at, by network dtype: below its rounding, or the
#: tolerances.
SPLINE_ERRORS = {"float64": 1e-9, "float32": 1e-7}


class ExportError(ValueError):
    """An exported file does not reproduce its original, or an option does not fit the model."""


@dataclass
class ExportReport:
    """What an export did: where the file is, its metadata, and what the loader decided."""

    path: Path
    metadata: dict
    notes: list[str]


def export(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    dtype: str = "float32",
    norm_factor: float | None = None,
    charge_sign: str = "auto",
    head: str | None = None,
    cutoff: float | None = None,
    short_range: bool = False,
    radial: str = "exact",
    compile: bool = False,
) -> ExportReport:
    """Export a trained checkpoint for LAMMPS, OpenMM and ASE.

    Parameters
    ----------
    checkpoint : file or folder as its training code wrote it, or the name of a bundled model.
    output : file to write; by default the checkpoint's name with the suffix ``.pt``, in the current folder.
    dtype : arithmetic of the network, "float32" or "float64". Sums and electrostatics are always in float64.
    norm_factor : replaces the constant C of the long-range energy (eV Å/e²) that the checkpoint or its age implies.
    charge_sign : the energy is even in the charges, so their overall sign is free. "auto" gives the most
        electronegative element a negative mean charge on a check structure, "keep" keeps the checkpoint's sign,
        "flip" reverses it.
    head : which head of a multi-head model.
    cutoff : Å, for a checkpoint of weights alone that does not store its cutoff.
    short_range : accept a checkpoint without latent charges and export it as a short-range potential.
    radial : "exact", or "spline": radial networks (of MACE) as splines of the distance, faster, with the error in the
        metadata; refused beyond 1e-6.
    compile : put the network, compiled for this version of PyTorch and processors with AVX2, into the file besides.
        Engines run it where they are asked to (``compiled``), everything else runs TorchScript as before. For
        CACE models without message passing, on Linux on x86_64, with a C++ compiler; takes minutes.

    Raises
    ------
    CheckpointError : the checkpoint cannot be read or is unsafe.
    ExportError : the exported file differs from the original by more than rounding; nothing is written.
    CompilationError : ``compile`` for a network or machine that it is not for, or the compiler failed.
    ValueError : an option is wrong.
    """
    if dtype not in TOLERANCES:
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    if charge_sign not in ("auto", "keep", "flip"):
        raise ValueError(f"charge_sign must be auto, keep or flip, got {charge_sign!r}")
    if radial not in ("exact", "spline"):
        raise ValueError(f"radial must be exact or spline, got {radial!r}")
    source = resolve_checkpoint(checkpoint)
    output = Path(output) if output is not None else Path(f"{source.stem}.pt")
    if not output.parent.is_dir():
        raise ValueError(f"the folder {output.parent} of the output file does not exist")
    if output.exists() and output.resolve() == source.resolve():
        raise ValueError(f"the output {output} would overwrite the checkpoint; choose another name with -o")
    digest = _digest(source)
    contents = read_checkpoint(source)
    architecture = find_architecture(contents)
    options = LoadOptions(
        dtype=torch.float64,
        norm_factor=norm_factor,
        head=head,
        cutoff=cutoff,
        allow_short_range=short_range,
        radial=radial,
        spline_error=SPLINE_ERRORS[dtype],
    )
    model = architecture.load(contents, options=options)
    if radial == "spline" and model.radial is None:
        raise ValueError(f"a {model.architecture} model has no radial networks to be splines: --radial does not apply")
    if cutoff is not None and model.cutoff != cutoff:
        raise ValueError(f"the checkpoint stores its cutoff, {model.cutoff:g} Å: --cutoff does not apply")
    elements = [ase.data.chemical_symbols[z] for z in model.atomic_numbers]
    structures = check_structures(
        elements, model.long_range.dl if model.long_range else None, model.cutoff, model.inner_cutoff
    )
    references = {name: _reference(model, atoms) for name, atoms in structures.items()}
    sign, mean_charges = _charge_sign(charge_sign, model, structures, references)

    potential = _potential(model, dtype, sign).eval()
    if compile:
        ahead_of_time.check_network(potential.evaluation)
    module = torch.jit.script(potential)
    metadata = {
        "format_version": MULTIPOLE_FORMAT_VERSION if _beyond_charges(model) else FORMAT_VERSION,
        "architecture": model.architecture,
        "elements": elements,
        "cutoff": model.cutoff,
        "num_layers": model.num_layers,
        "receptive_field": model.num_layers * model.cutoff,
        "dtype": dtype,
        "n_q": model.num_charges,
        "latent": _layout(model).to_dict(),
        "long_range": None if model.long_range is None else {**model.long_range.to_dict(), "charge_sign": sign},
        "mean_charges": mean_charges,
        "radial": model.radial,
        "source": {"name": source.name, "sha256": digest},
        "notes": list(model.notes),
        "versions": _versions(model.architecture),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "self_check": {},
    }
    metadata["self_check"] = _self_check(module, metadata, structures, references, model, sign)
    packages = None
    if compile:
        packages = ahead_of_time.compile_network(potential.evaluation)
        compiled = CompiledPotential(module, compiled_packages.load_functions(packages))
        check = _self_check(compiled, metadata, structures, references, model, sign)
        metadata["compiled"] = {**compiled_packages.target(), "self_check": check["structures"]}
    model_file.write(output, module, metadata, packages)
    return ExportReport(output, metadata, list(model.notes))


def _layout(model: TrainedModel) -> LatentLayout:
    return model.latent or LatentLayout(model.num_charges)


def _beyond_charges(model: TrainedModel) -> bool:
    """Whether there are latent variables other than charges."""
    return _layout(model).has_multipoles or _layout(model).responds


def _potential(model: TrainedModel, dtype: str, sign: float) -> LESPotential:
    network = model.network.to(getattr(torch, dtype)).eval()
    evaluation = None if model.evaluation is None else model.evaluation(network)
    network = model.script(network)
    if model.long_range is not None and _beyond_charges(model):
        return MultipolePotential(network, model.reference_energies, model.long_range, _layout(model), sign)
    return LESPotential(
        network, model.reference_energies, model.long_range, model.num_charges, sign, model.num_layers == 1, evaluation
    )


def ensure_exported(
    model: str | Path, output: str | Path, *, dtype: str = "float64", short_range: bool = False
) -> Path:
    """Path of an exported file: ``model`` itself if it is one, else what ``export`` writes to ``output`` from it.

    Parameters: ``model``, an exported file, a checkpoint, or the name of a bundled model; ``dtype`` and ``short_range``
    as of ``export``, for what is not exported yet.

    Raises: what ``export`` raises; ModelFileError for an exported file that cannot be read.
    """
    if Path(model).is_file() and model_file.is_exported(model):
        model_file.read_metadata(model)
        return Path(model)
    return export(model, output, dtype=dtype, short_range=short_range).path


#: Packages that took part in an export, by architecture.
_PACKAGES = {
    "mace": ("mace-torch", "e3nn"),
    "nequip": ("nequip", "e3nn"),
    "allegro": ("nequip-allegro", "nequip", "e3nn"),
    "chgnet": ("matgl", "chgnet"),
}


def _versions(architecture: str) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "ase": ase.__version__}
    for package in ("les_md", *_PACKAGES.get(architecture, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # only one of several may be needed
            versions[package] = importlib.metadata.version(package)
    return versions


def _digest(source: Path) -> str:
    """SHA-256 of a file, or of the files of a folder one after the other."""
    files = [source / name for name in FOLDER_FILES] if source.is_dir() else [source]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


@dataclass
class _Reference:
    """The original's results on one structure; ``strain_derivative`` by finite differences of its energy."""

    energy: float
    long_range_energy: float
    forces: np.ndarray
    charges: np.ndarray
    strain_derivative: np.ndarray | None


def _reference(model: TrainedModel, atoms: ase.Atoms) -> _Reference:
    result = model.original(atoms)
    strain_derivative = _strain_derivative(model, atoms) if atoms.pbc.any() else None
    return _Reference(result.energy, result.long_range_energy, result.forces, result.charges, strain_derivative)


def _strain_derivative(model: TrainedModel, atoms: ase.Atoms, step: float = 1e-4) -> np.ndarray:
    """dE/dε [3, 3] in eV of the original by central differences."""
    derivative = np.zeros((3, 3))
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        for sign in (-1.0, 1.0):
            deformation = np.eye(3)
            deformation[a, b] += 0.5 * sign * step
            deformation[b, a] += 0.5 * sign * step
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
            derivative[a, b] += sign * model.original(strained).energy / (2.0 * step)
        derivative[b, a] = derivative[a, b]
    return derivative


def _charge_sign(
    choice: str, model: TrainedModel, structures: dict[str, ase.Atoms], references: dict[str, _Reference]
) -> tuple[float, dict[str, float]]:
    """Sign of the charges, and the mean charge of each element on the check structure with this sign."""
    if model.long_range is None:
        if choice != "auto":
            raise ValueError("a short-range model has no charges: --charge-sign does not apply")
        return 1.0, {}
    name = "water" if "water" in structures else "packed crystal"
    symbols = np.array(structures[name].get_chemical_symbols())
    charges = references[name].charges.sum(1)
    means = {symbol: float(charges[symbols == symbol].mean()) for symbol in sorted(set(symbols.tolist()))}
    sign = -1.0 if choice == "flip" else 1.0
    if choice == "auto":
        # Elements without an electronegativity are not used to fix the sign.
        known = [symbol for symbol in means if symbol in ELECTRONEGATIVITY]
        if known and means[max(known, key=ELECTRONEGATIVITY.__getitem__)] > 0.0:
            sign = -1.0
    return sign, {symbol: sign * mean for symbol, mean in means.items()}


def _is_local(
    module: torch.jit.ScriptModule | CompiledPotential,
    calculator: LESCalculator,
    atoms: ase.Atoms,
    tolerances: dict[str, float],
) -> bool:
    """Whether Born charges from the derivative of the sum of all charges are those from one of each weight."""
    tensors = []
    for is_local in (False, True):
        module.is_local = is_local
        calculator.calculate(atoms, ["born_effective_charges"])
        tensors.append(calculator.results["born_effective_charges"])
    general, short = tensors
    return bool(np.abs(short - general).max() <= tolerances["charges"] * max(np.abs(general).max(), 1e-3))


def _self_check(
    module: torch.jit.ScriptModule | CompiledPotential,
    metadata: dict,
    structures: dict[str, ase.Atoms],
    references: dict[str, _Reference],
    model: TrainedModel,
    sign: float,
) -> dict:
    """Compare the scripted module with the original; returns the differences or raises ExportError."""
    from les_md.calculator import LESCalculator

    exported = model_file.ExportedModel(Path("model in memory"), module, metadata)
    calculator = LESCalculator(exported, kspace="ewald")
    tolerances = TOLERANCES[metadata["dtype"]]
    results: dict = {"reference": model.original_description, "tolerances": tolerances, "structures": {}}
    failures = []
    for name, atoms in structures.items():
        reference = references[name]
        calculator.calculate(atoms, ["energy"])
        got = calculator.results
        count = len(atoms)
        # Energies per atom are compared in units of the largest of an atom without its reference energy, which
        # must not hide differences, and at least an eV.
        isolated_atoms = model.reference_energies.numpy()[exported.types_of(atoms.numbers)]
        atomic_energy = max(1.0, float(np.abs(got["energies"] - isolated_atoms).max()))
        quantities = {
            "energy": (np.array((got["energy"] - reference.energy) / count), atomic_energy),
            "forces": (got["forces"] - reference.forces, np.abs(reference.forces).max()),
        }
        if model.long_range is not None:
            charges = sign * reference.charges
            quantities["long_range_energy"] = (
                np.array((got["long_range_energy"] - reference.long_range_energy) / count),
                atomic_energy,
            )
            quantities["charges"] = (got["charges"].reshape(charges.shape) - charges, np.abs(charges).max())
        if reference.strain_derivative is not None:
            stress = reference.strain_derivative / atoms.get_volume()
            ours = voigt_6_to_full_3x3_stress(got["stress"])
            quantities["stress"] = (ours - stress, np.abs(stress).max())
        differences = {}
        for quantity, (difference, scale) in quantities.items():
            largest = float(np.abs(difference).max())
            differences[quantity] = largest
            if not largest <= tolerances[quantity] * max(scale, 1e-3):
                failures.append(f"{quantity} on {name}: differs by {largest:.3g}, its size is {scale:.3g}")
        results["structures"][name] = differences
        if model.long_range is not None and module.is_local and not _is_local(module, calculator, atoms, tolerances):
            failures.append(
                f"Born charges on {name}: energies and charges depend on more than the edges of their atom, though the "
                "architecture says num_layers = 1"
            )
    if failures:
        raise ExportError(
            "the exported model does not reproduce the original, nothing was written:\n  " + "\n  ".join(failures)
        )
    return results
