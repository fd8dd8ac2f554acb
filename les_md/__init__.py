"""Molecular dynamics with long-range machine-learning potentials (Latent Ewald Summation)."""

import importlib

__version__ = "0.1.0"

# Resolved on first use: LAMMPS imports les_md.lammps at every start and must not wait for torch.
_PUBLIC = {
    "LESCalculator": "les_md.calculator",
    "LESForce": "les_md.openmm",
    "Les": "les_md.les",
    "export": "les_md.exporting",
    "load": "les_md.model_file",
}
__all__ = ["LESCalculator", "LESForce", "Les", "__version__", "export", "load"]


def __getattr__(name: str):
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
