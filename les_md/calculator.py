"""LESCalculator: an exported model in ASE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from les_md.evaluator import PotentialEvaluator
from les_md.model_file import ExportedModel, load, load_bytes


class LESCalculator(Calculator):
    """ASE calculator of an exported model, and the reference for the other engines.

    Parameters
    ----------
    model : path of a file written by ``les-export``, or what ``les_md.load`` returned.
    device : torch device, default "cpu".
    compiled : run the network as ``les-export --compile`` compiled it, as of ``les_md.load``.
    skin : Å added to the cutoff of the neighbour list, so that it need not be searched every step.
    kspace : "ewald" (the model's own sum term by term; over all pairs for an isolated system), "mesh", or "auto" for
        the faster of the two.
    accuracy : relative root-mean-square error of the long-range forces by the mesh.
    slab : take the interaction of slabs across the vacuum along the third cell vector away; needs
        ``pbc=(True, True, False)``. Models are trained without.
    electric_field : [3] V/Å, a uniform field that acts through Born effective charges, F = Z*ᵀ E; None for none. An
        isolated system has the energy −P·E, which is part of ``energy``, ``energies`` and ``stress``. With a periodic
        axis there is none: ``forces`` alone contain the field, so that optimisers that look at energies, and pressure
        control, do not fit. On the unit of latent charges, √ε_∞, see docs/pair_mliap_les.md, Electric field.
    sum_rule : take the mean force of the field off every atom of a periodic system.

    Results (ASE units: eV, Å, elementary charges)
    -------
    ``energy`` = ``free_energy``, ``energies`` [N] (short-range energy of the atom + ½ q φ), ``forces`` [N, 3],
    ``stress`` (Voigt, positive under tension; periodic cells only), ``charges`` [N] ([N, n_q] for several channels),
    ``short_range_energy``, ``long_range_energy``, ``field_energy`` (isolated, in a field), ``dipole`` [3] (e Å;
    isolated systems only). On request, by ``calculator.get_born_effective_charges(atoms)`` or
    ``get_property("born_effective_charges", atoms)``: ``born_effective_charges`` [N, 3, 3], polarisation index first.

    Boundaries: with no periodic axis the charges interact in open space. With any periodic axis the
    long-range sum is the three-dimensional one over ``atoms.cell``, vacuum included, which is what the models were
    trained with.

    Raises
    ------
    ValueError : an element the model does not know, positions that are not finite, a periodic axis without a cell
        vector, ``slab`` or ``sum_rule`` with other boundaries, an ``accuracy`` out of reach, or an energy that is not
        finite (atoms on top of each other).
    """

    implemented_properties = [  # noqa: RUF012, as ASE declares it
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "charges",
        "dipole",
        "short_range_energy",
        "long_range_energy",
        "field_energy",
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
        electric_field: Sequence[float] | None = None,
        sum_rule: bool = False,
        compiled: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(model, ExportedModel):
            model = load(model, device, compiled)
        elif compiled and not model.is_compiled:
            model = load_bytes(model.content, str(model.path), model.device, compiled)
        self.model = model
        self.evaluator = PotentialEvaluator(self.model, skin, kspace, accuracy, slab)
        self.electric_field = None
        if electric_field is not None:
            self.evaluator.check_field()
            self.electric_field = np.array(electric_field, dtype=np.float64)
            if self.electric_field.shape != (3,) or not np.isfinite(self.electric_field).all():
                raise ValueError(f"electric_field must be three finite numbers in V/Å, not {electric_field!r}")
        elif sum_rule:
            raise ValueError("sum_rule is about the forces of a field: give electric_field too")
        self.sum_rule = sum_rule

    def get_born_effective_charges(self, atoms: ase.Atoms | None = None) -> np.ndarray:
        """Born effective charge tensors [N, 3, 3] in e: polarisation index first, displacement index second."""
        return self.get_property("born_effective_charges", atoms)

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)) -> None:
        """Evaluate the model once; Born effective charges only if they are among ``properties``."""
        super().calculate(atoms, properties, system_changes)
        # Whoever calls this directly has not been through ASE's reset: nothing of another structure may stay.
        self.results = {}
        atoms = self.atoms
        self._check_boundaries(atoms)
        configuration = (
            self.evaluator.types_of(atoms.numbers), atoms.get_positions(), atoms.cell.array.copy(), atoms.pbc
        )  # fmt: skip
        if "born_effective_charges" in properties:
            self.results["born_effective_charges"] = self.evaluator.born_effective_charges(*configuration)
        output = self.evaluator.compute(*configuration, self.electric_field, self.sum_rule)
        charges = output["charges"]
        self.results.update(
            energy=output["energy"],
            free_energy=output["energy"],
            energies=output["energies"],
            forces=output["forces"],
            charges=charges[:, 0] if charges.shape[1] == 1 else charges,
            short_range_energy=output["energy"] - output["long_range_energy"] - output["field_energy"],
            long_range_energy=output["long_range_energy"],
        )
        if self.electric_field is not None and not atoms.pbc.any():
            self.results["field_energy"] = output["field_energy"]
        if self.model.has_long_range and not atoms.pbc.any():
            self.results["dipole"] = self.evaluator.dipole_moment_of(output, configuration[1])
        if atoms.cell.rank == 3 and atoms.pbc.any():
            self.results["stress"] = full_3x3_to_voigt_6_stress(output["strain_derivative"] / atoms.get_volume())

    def _check_boundaries(self, atoms: ase.Atoms) -> None:
        if atoms.pbc.any() and atoms.cell.rank < 3:
            raise ValueError(
                "a system with a periodic axis needs three cell vectors (the long-range sum runs over the whole "
                "cell); give the open axes a length with vacuum, or set pbc=False for an isolated system"
            )
        if self.sum_rule and not atoms.pbc.any():
            raise ValueError(
                "sum_rule is for periodic systems: in an isolated one the forces of the field are derivatives of its "
                "energy"
            )
        if self.evaluator.planner.slab and tuple(atoms.pbc) != (True, True, False):
            raise ValueError(f"slab=True needs pbc=(True, True, False), these atoms have {tuple(atoms.pbc)}")
