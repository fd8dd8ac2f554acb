"""What an architecture provides, and how it is found.

An architecture is a module or object with a ``name``, ``matches(checkpoint)`` and ``load(checkpoint, options=...)``,
registered under the entry-point group ``les_md.architectures``; other packages register theirs in the same way.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import ase
import numpy as np
import torch
from torch import Tensor

from les_md.electrostatics.latent_layout import LatentLayout
from les_md.electrostatics.parameters import LongRangeParameters

ENTRY_POINT_GROUP = "les_md.architectures"


class UnsupportedModelError(ValueError):
    """A checkpoint uses something that would change the physics if it were left out; the message names it."""


class NoLatentChargesError(ValueError):
    """A checkpoint has no latent charges."""

    def __init__(self) -> None:
        super().__init__(
            "this checkpoint has no latent charges, so there is no long-range energy to export. If a short-range "
            "potential is what you want, say so with --short-range (in Python: short_range=True)"
        )


@dataclass(frozen=True)
class LoadOptions:
    """Choices of the user.

    Attributes
    ----------
    dtype : of the network's parameters.
    norm_factor : replaces the constant C of the long-range energy, eV Å/e²; None: the checkpoint's, or its age's.
    head : which head of a multi-head model.
    cutoff : Å, for a checkpoint that does not store its own.
    allow_short_range : accept a checkpoint without latent charges.
    radial : "exact", or "spline": radial networks as splines of the distance, or raise ValueError. An architecture
        without a choice ignores it.
    spline_error : error of the splines to reach, relative to the functions.
    """

    dtype: torch.dtype = torch.float64
    norm_factor: float | None = None
    head: str | None = None
    cutoff: float | None = None
    allow_short_range: bool = False
    radial: str = "exact"
    spline_error: float = 1e-9


@dataclass(frozen=True)
class OriginalResult:
    """What the original gives for one structure: eV, eV/Å [N, 3], e [N, n_q]."""

    energy: float
    long_range_energy: float
    forces: np.ndarray
    charges: np.ndarray


@dataclass
class TrainedModel:
    """What an architecture makes of a checkpoint.

    Attributes
    ----------
    network : ``forward(edge_vectors [E, 3] float64, edge_index [2, E], types [N]) -> (energy [N], charge [N, n_q])``;
        casts to its own dtype, excludes reference energies, and gives edges beyond the cutoff exactly no weight.
        A network that passes messages should also offer its layers one by one, which are then evaluated in blocks of
        atoms: an attribute ``num_layers``, and the exported methods ``initial_features(types) -> features [N, F]``,
        independent of the geometry, and ``layer(number, features [N, F], types [N], edge_vectors, edge_index,
        num_centres: int) -> (features [n, F'], energy [n], charge [n, n_q])``, for the first n = ``num_centres`` of the
        N nodes, where all given edges start; energy and charge are what this layer adds to them.
    atomic_numbers : in type order.  cutoff : Å.
    num_layers : message-passing depth; atoms further than ``num_layers * cutoff`` do not matter to the network.
    reference_energies : [types] float64, eV.
    long_range : None for a short-range model (then ``num_charges`` is 0).
    notes : what the loader decided, for the user.
    original : evaluates the original on its own path in float64, honouring positions, cell and boundaries afresh at
        each call; its energy includes the long-range energy.
    original_description : says what that path is.
    script : turns the network into a ScriptModule.
    radial : how the radial networks are evaluated, for the metadata: {"kind": "exact"}, or "spline" and its errors;
        None if the architecture has no choice.
    inner_cutoff : Å, a shorter cutoff of some parts of the network (0: there is none): a check needs closer atoms then.
    latent : the columns that the network returns in place of ``charge [N, n_q]`` where it has latent variables beyond
        charges; None: charges alone.
    evaluation : makes of the network, in its final dtype, a module with the methods of
        ``layered_evaluation.WholeEvaluation``, which knows its derivative; None: automatic differentiation.

    Raises ValueError if ``latent`` has not ``num_charges`` charges.
    """

    architecture: str
    network: torch.nn.Module
    atomic_numbers: list[int]
    cutoff: float
    num_layers: int
    reference_energies: Tensor
    long_range: LongRangeParameters | None
    num_charges: int
    original: Callable[[ase.Atoms], OriginalResult]
    original_description: str
    notes: list[str] = field(default_factory=list)
    script: Callable[[torch.nn.Module], torch.jit.ScriptModule] = torch.jit.script
    radial: dict | None = None
    inner_cutoff: float = 0.0
    latent: LatentLayout | None = None
    evaluation: Callable[[torch.nn.Module], torch.nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.latent is None:
            self.latent = LatentLayout(self.num_charges)
        if self.latent.num_charges != self.num_charges:
            raise ValueError(
                f"num_charges is {self.num_charges}, the layout of latent variables has {self.latent.num_charges}"
            )


class Architecture(Protocol):
    """The contract of an architecture."""

    name: str

    def matches(self, checkpoint: object) -> bool:
        """Whether ``load`` understands this checkpoint; must not raise."""
        ...

    def load(self, checkpoint: Any, *, options: LoadOptions) -> TrainedModel:
        """Make a network of the checkpoint, or raise UnsupportedModelError or NoLatentChargesError."""
        ...


def architectures() -> dict[str, Architecture]:
    """All registered architectures, by name of their entry point.

    An architecture whose own package is not installed is imported only when a checkpoint needs it: its module must
    import without that package.
    """
    return {entry.name: entry.load() for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def find_architecture(checkpoint: object) -> Architecture:
    """The architecture of a checkpoint as ``read_checkpoint`` returned it.

    Raises UnsupportedModelError naming the known architectures.
    """
    known = architectures()
    for architecture in known.values():
        if architecture.matches(checkpoint):
            return architecture
    kind = getattr(checkpoint, "class_path", None) or f"{type(checkpoint).__module__}.{type(checkpoint).__qualname__}"
    raise UnsupportedModelError(
        f"no architecture knows this checkpoint (it holds a {kind}); known: {', '.join(sorted(known)) or 'none'}"
    )
