"""LESCalculator: an exported model in ASE."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from les_md.model_file import ExportedModel, load
from les_md.neighbors import NeighborList
from les_md.planner import Planner


class LESCalculator(Calculator):
    """ASE calculator of an exported model, and the reference for the other engines.

    Parameters
    ----------
    model : path of a file written by ``les-export``, or what ``les_md.load`` returned.
    device : torch device, default "cpu".
    skin : Å added to the cutoff of the neighbour list, so that it need not be searched every step.
    kspace : "ewald" (the model's own sum term by term; over all pairs for an isolated system), "mesh", or "auto" for
        the faster of the two.
    accuracy : relative root-mean-square error of the long-range forces by the mesh.
    slab : take the interaction of slabs across the vacuum along the third cell vector away; needs
        ``pbc=(True, True, False)``. Models are trained without.

    Results (ASE units: eV, Å, elementary charges)
    -------
    ``energy`` = ``free_energy``, ``energies`` [N] (short-range energy of the atom + ½ q φ), ``forces`` [N, 3],
    ``stress`` (Voigt, positive under tension; periodic cells only), ``charges`` [N] ([N, n_q] for several channels),
    ``short_range_energy``, ``long_range_energy``. On request, by ``calculator.get_born_effective_charges(atoms)`` or
    ``get_property("born_effective_charges", atoms)``: ``born_effective_charges`` [N, 3, 3], polarisation index first.

    Boundaries: with no periodic axis the charges interact in open space. With any periodic axis the
    long-range sum is the three-dimensional one over ``atoms.cell``, vacuum included, which is what the models were
    trained with.

    Raises
    ------
    ValueError : an element the model does not know, positions that are not finite, a periodic axis without a cell
        vector, ``slab`` with other boundaries, an ``accuracy`` out of reach, or an energy that is not finite (atoms on
        top of each other).
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "charges",
        "short_range_energy",
        "long_range_energy",
        "born_effective_charges",
    ]

    def __init__(
        self,
        model: str | Path | ExportedModel,
        device: str = "cpu",
        skin: float = 0.5,
        kspace: str = "auto",
        accuracy: float = 1e-5,
        slab: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model if isinstance(model, ExportedModel) else load(model, device=device)
        self.device = torch.device(device)
        self.neighbor_list = NeighborList(self.model.cutoff, skin)
        self.planner = Planner(self.model, kspace, accuracy, slab)

    def get_born_effective_charges(self, atoms: ase.Atoms | None = None) -> np.ndarray:
        """Born effective charge tensors [N, 3, 3] in e: polarisation index first, displacement index second."""
        return self.get_property("born_effective_charges", atoms)

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)) -> None:
        """Evaluate the model once; Born effective charges only if they are among ``properties``."""
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        inputs = self._inputs(atoms)
        if "born_effective_charges" in properties:
            if not self.model.has_long_range:
                raise ValueError(f"{self.model.path.name} is a short-range model: it has no Born effective charges")
            self.results["born_effective_charges"] = self.model.module.born_effective_charges(*inputs).cpu().numpy()
        *graph, positions, cell = inputs
        plan = self.planner.plan(positions, cell)
        output = {key: value.cpu().numpy() for key, value in self.model.module(*graph, positions, plan).items()}
        energy = float(output["energies"].sum())
        if not np.isfinite(energy) or not np.isfinite(output["forces"]).all():
            raise ValueError(
                "the model's energy or forces are not finite: check the positions for atoms on top of each other"
            )
        charges = output["charges"]
        long_range = float(output["long_range_energies"].sum())
        self.results.update(
            energy=energy,
            free_energy=energy,
            energies=output["energies"],
            forces=output["forces"],
            charges=charges[:, 0] if charges.shape[1] == 1 else charges,
            short_range_energy=energy - long_range,
            long_range_energy=long_range,
        )
        if atoms.cell.rank == 3 and atoms.pbc.any():
            self.results["stress"] = full_3x3_to_voigt_6_stress(output["strain_derivative"] / atoms.get_volume())

    def _inputs(self, atoms: ase.Atoms) -> tuple[torch.Tensor, ...]:
        """Arguments of the exported module for a configuration, after checking it."""
        types = self.model.types_of(atoms.numbers)
        positions = atoms.get_positions()
        if not np.isfinite(positions).all():
            raise ValueError(
                f"positions of atoms {np.flatnonzero(~np.isfinite(positions).all(1)).tolist()} are not finite"
            )
        if atoms.pbc.any() and atoms.cell.rank < 3:
            raise ValueError(
                "a system with a periodic axis needs three cell vectors (the long-range sum runs over the whole "
                "cell); give the open axes a length with vacuum, or set pbc=False for an isolated system"
            )
        if self.planner.slab and tuple(atoms.pbc) != (True, True, False):
            raise ValueError(f"slab=True needs pbc=(True, True, False), these atoms have {tuple(atoms.pbc)}")
        cell = atoms.cell.array.copy()
        edge_index, edge_vectors = self.neighbor_list.compute(positions, cell, atoms.pbc)
        # An isolated system is told to the model by a cell of zeros.
        long_range_cell = cell if atoms.pbc.any() else np.zeros((3, 3))
        arrays = (edge_vectors, edge_index, types, positions, long_range_cell)
        return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for array in arrays)
