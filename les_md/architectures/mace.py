"""MACE and MACE-LES checkpoints, through mace-torch (needed for the export only).

Source: Batatia et al., NeurIPS 2022 (MACE); Kim et al., J. Chem. Theory Comput. (2025), doi 10.1021/acs.jctc.5c01400
(MACE-LES).

    E_i = E0_i + shift + scale · (Σ readouts(h_i) + pair repulsion_i) ,     q_i = Σ charge readouts(h_i)

h_i are the node features of all interactions. MACE without scale and shift has scale 1 and shift 0. E0 and the shift go
into the reference energies, so that they are summed in float64 whatever the network's precision.
"""

from __future__ import annotations

import copy
from typing import Any, Dict, Optional  # noqa: UP035  (the names MACE's own signatures use)

import ase
import numpy as np
import torch
from torch import Tensor

from les_md.architectures.registry import (
    LoadOptions,
    NoLatentChargesError,
    OriginalResult,
    TrainedModel,
    UnsupportedModelError,
)
from les_md.electrostatics.latent_ewald import LatentEwald
from les_md.electrostatics.parameters import NORM_FACTOR_BEFORE_2026, LongRangeParameters

name = "mace"

#: Models whose energy and charges are those above.
_MODELS = ("MACE", "ScaleShiftMACE", "MACELES")

#: Blocks of such models that are understood here. mace-torch (0.3.16) cannot compile attention and gated blocks itself.
_BLOCKS = {
    "LinearNodeEmbeddingBlock", "AtomicEnergiesBlock", "ScaleShiftBlock", "ZBLBasis",
    "RadialEmbeddingBlock", "BesselBasis", "GaussianBasis", "ChebychevBasis", "PolynomialCutoff",
    "AgnesiTransform", "SoftTransform",
    "RealAgnosticInteractionBlock", "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock", "RealAgnosticDensityResidualInteractionBlock", "reshape_irreps",
    "EquivariantProductBasisBlock", "SymmetricContraction", "Contraction",
    "LinearReadoutBlock", "NonLinearReadoutBlock", "NonLinearBiasReadoutBlock",
}  # fmt: skip

_ORIGINAL = "mace-torch's own forward pass in float64, given les_md's long-range energy"


def matches(checkpoint: object) -> bool:
    """Whether a checkpoint is a pickled model of mace-torch."""
    return isinstance(checkpoint, torch.nn.Module) and type(checkpoint).__module__.startswith("mace.")


def load(checkpoint: Any, *, options: LoadOptions) -> TrainedModel:
    """Make a network of the modules of a MACE model.

    Raises
    ------
    NoLatentChargesError : the model has no latent charges and ``options.allow_short_range`` is False.
    UnsupportedModelError : the model has something that is not supported here.
    """
    model = checkpoint
    _require_supported(model)
    les = model._modules.get("les")
    if les is None and not options.allow_short_range:
        raise NoLatentChargesError()
    if les is None and options.norm_factor is not None:
        raise ValueError("a short-range model has no long-range energy: --norm-factor does not apply")
    notes: list[str] = []
    long_range = None if les is None else _long_range(les, options.norm_factor, notes)
    head = _choose_head(model, options.head, notes)

    # Imports e3nn and mace, which are there: the checkpoint is made of them.
    from les_md.architectures.e3nn_code import generate_code
    from les_md.architectures.mace_cuequivariance import convert_to_e3nn
    from les_md.architectures.mace_network import MACENetwork

    stored_dtype = model.r_max.dtype
    if convert_to_e3nn(model):
        notes.append("the modules of cuEquivariance were replaced by e3nn's, with the same weights")
    generate_code(model)
    model.double().eval().requires_grad_(False)
    original = _Original(copy.deepcopy(model), head, long_range)
    reference_energies, rounding = _reference_energies(model, head, stored_dtype)
    if rounding > 1e-5:
        notes.append(
            f"the checkpoint stores atomic energies in {str(stored_dtype).removeprefix('torch.')}: they, not their "
            f"differences, are rounded to {rounding:.1g} eV"
        )
    network = MACENetwork(model, head)
    # In float64, whatever the precision afterwards.
    radial = network.use_splines(options.spline_error) if options.radial == "spline" else {"kind": "exact"}
    return TrainedModel(
        architecture=name,
        network=network.to(options.dtype).eval(),
        atomic_numbers=[int(z) for z in model.atomic_numbers],
        cutoff=network.cutoff,
        num_layers=len(model.interactions),
        reference_energies=reference_energies,
        long_range=long_range,
        num_charges=network.num_charges,
        notes=notes,
        original=original,
        original_description=_ORIGINAL,
        script=_script,
        radial=radial,
    )


def _script(network: torch.nn.Module) -> torch.jit.ScriptModule:
    """TorchScript of a network of e3nn modules, which torch.jit.script alone cannot compile."""
    from e3nn.util import jit

    return jit.script(network, in_place=False)


def _require_supported(model: torch.nn.Module) -> None:
    kind = type(model)
    if kind.__name__ not in _MODELS or not kind.__module__.startswith("mace.modules."):
        raise UnsupportedModelError(
            f"the MACE model {kind.__module__}.{kind.__name__} is not supported; supported are {', '.join(_MODELS)}"
        )
    if "joint_embedding" in model._modules:
        inputs = ", ".join(model.__dict__.get("embedding_specs", {})) or "further inputs"
        raise UnsupportedModelError(
            f"the MACE model has embeddings of {inputs}, which no engine provides: not supported"
        )
    for path, module in model.named_modules():
        block = type(module)
        if module is not model and block.__module__.startswith("mace.") and block.__name__ not in _BLOCKS:
            way_out = ": merge it with mace.modules.lora.merge_lora_weights" if "LoRA" in block.__name__ else ""
            raise UnsupportedModelError(
                f"the MACE model has a {block.__name__} ({path}), which is not supported{way_out}"
            )
        # What mace-torch puts on modules of cuEquivariance and OpenEquivariance that sum over neighbours themselves.
        for attribute in ("conv_fusion", "forward"):
            if attribute in module.__dict__:
                raise UnsupportedModelError(
                    f"{path} of the MACE model is accelerated with conv_fusion, which is not supported; convert the "
                    "model where it was trained with `mace_cueq_to_e3nn MODEL --output_model e3nn.model "
                    "--return_model`, or with `python -m mace.cli.convert_oeq_e3nn` and the same options"
                )


def _choose_head(model: torch.nn.Module, wanted: str | None, notes: list[str]) -> int:
    """Index of the head to export."""
    heads = [str(head) for head in getattr(model, "heads", None) or ["default"]]
    if wanted is None and len(heads) > 1:
        raise ValueError(f"the model has several heads, choose one with --head: {', '.join(heads)}")
    if wanted is not None and wanted not in heads:
        raise ValueError(f"the model has no head {wanted!r}; it has {', '.join(heads)}")
    if len(heads) > 1:
        notes.append(f"head {wanted!r} out of {', '.join(heads)}")
    return 0 if wanted is None else heads.index(wanted)


def _reference_energies(model: torch.nn.Module, head: int, stored_dtype: torch.dtype) -> tuple[Tensor, float]:
    """E0 plus shift per element [types] in eV, and how far they may be rounded."""
    energies = torch.atleast_2d(model.atomic_energies_fn.atomic_energies).double()
    energies = energies[head if len(energies) > 1 else 0]
    rounding = torch.finfo(stored_dtype).eps * float(energies.abs().max())
    if hasattr(model, "scale_shift"):
        shift = torch.atleast_1d(model.scale_shift.shift).double()
        energies = energies + shift[head if len(shift) > 1 else 0]
    return energies, rounding


#: Attributes of the ``les`` modules that are understood here, or do not matter: MACE-LES hands over the charges of its
#: own readouts, so the readout of ``les`` and ``use_atomwise`` change nothing.
_LES_ATTRIBUTES = {
    "Les": {
        "sigma", "dl", "remove_mean", "epsilon_factor", "remove_self_interaction", "norm_factor",
        "n_layers", "n_hidden", "add_linear_nn", "output_scaling_factor", "use_atomwise",
    },
    "Ewald": {
        "sigma", "dl", "remove_self_interaction", "norm_factor", "sigma_sq_half", "twopi", "twopi_sq", "k_sq_max",
    },
    "BEC": {"remove_mean", "epsilon_factor", "normalization_factor"},
}  # fmt: skip

#: The class of models trained with les_md's own long-range energy, which holds all parameters itself.
_OWN_LES = "les_md.les.Les"


def _long_range(les: Any, norm_factor: float | None, notes: list[str]) -> LongRangeParameters:
    """Parameters of the long-range energy from the stored ``les`` modules."""
    modules = {"Les": les, "Ewald": les.get("ewald"), "BEC": les.get("bec")}
    if modules["Ewald"] is None and les.class_path != _OWN_LES:
        raise UnsupportedModelError("the les module of the MACE model has no Ewald sum")
    for child in les._modules:
        if child not in ("atomwise", "ewald", "bec"):
            raise UnsupportedModelError(
                f"the les module of the MACE model has a part {child!r}, which is not supported"
            )
    for kind, module in modules.items():
        if module is not None:
            _require_known(module, _LES_ATTRIBUTES[kind])

    def stored(attribute: str, default: Any, *owners: str) -> Any:
        for owner in owners:
            if modules[owner] is not None and modules[owner].get(attribute) is not None:
                return modules[owner].get(attribute)
        return default

    in_checkpoint = stored("norm_factor", None, "Ewald", "Les")
    if norm_factor is not None:
        from_checkpoint = "none" if in_checkpoint is None else f"{float(in_checkpoint):g}"
        notes.append(f"norm_factor set to {norm_factor:g} by the user, {from_checkpoint} in the checkpoint")
    elif in_checkpoint is None:
        notes.append(
            f"the checkpoint stores no norm_factor: taken as {NORM_FACTOR_BEFORE_2026:g}, as in code of that time"
        )
    if stored("remove_self_interaction", None, "Ewald", "Les") is None:
        notes.append("the checkpoint does not say whether the self-interaction is removed: taken as removed")
    constant = norm_factor if norm_factor is not None else in_checkpoint
    return LongRangeParameters(
        sigma=float(stored("sigma", 1.0, "Ewald", "Les")),
        dl=float(stored("dl", 2.0, "Ewald", "Les")),
        norm_factor=NORM_FACTOR_BEFORE_2026 if constant is None else float(constant),
        remove_self_interaction=bool(stored("remove_self_interaction", True, "Ewald", "Les")),
        remove_mean=bool(stored("remove_mean", True, "BEC", "Les")),
        epsilon_factor=float(stored("epsilon_factor", 1.0, "BEC", "Les")),
    )


def _require_known(module: torch.nn.Module, known: set[str]) -> None:
    """Refuse options of ``les`` that are switched on and not known here."""
    plain = set(torch.nn.Module().__dict__)
    stored = {**module.__dict__, **module._parameters, **module._buffers}
    for attribute, value in stored.items():
        if attribute in plain or attribute in known or value is None:
            continue
        if isinstance(value, (bool, int, float, str, list, tuple, dict)) and not value:
            continue
        shown = repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__
        raise UnsupportedModelError(f"the option {attribute} = {shown} of {module!r} is not supported")


class _LatentEwaldOfMACE(torch.nn.Module):
    """Takes the place of ``les`` in MACE's forward pass, with the arguments that MACE gives it."""

    def __init__(self, long_range: LongRangeParameters) -> None:
        super().__init__()
        self.ewald = LatentEwald(long_range)

    def forward(
        self,
        latent_charges: Tensor,
        positions: Tensor,
        cell: Tensor,
        batch: Optional[Tensor] = None,  # noqa: UP045
        compute_energy: bool = True,
        compute_bec: bool = False,
        bec_output_index: Optional[int] = None,  # noqa: UP045
    ) -> Dict[str, Optional[Tensor]]:  # noqa: UP006, UP045
        """One configuration: charges [N], positions [N, 3], cell [1, 3, 3] (zeros: isolated)."""
        energy = self.ewald.energy(positions, latent_charges.reshape(-1, 1), cell[0])
        return {"E_lr": energy.reshape(1), "latent_charges": latent_charges, "BEC": None}


class _Original:
    """Evaluates a MACE model in mace-torch's own forward pass and neighbour list.

    MACE replaces the lattice vectors of open directions by long ones; here the long-range energy gets the structure's
    own cell. Stress is left to finite differences of the energy: mace-torch's own lacks the strain derivative of the
    long-range energy.
    """

    def __init__(self, model: torch.nn.Module, head: int, long_range: LongRangeParameters | None) -> None:
        self.model = model
        self.head = head
        if long_range is not None:
            model.les = _LatentEwaldOfMACE(long_range)
            model.compute_bec = False
        self.has_long_range = long_range is not None
        self.types = {int(z): i for i, z in enumerate(model.atomic_numbers)}

    def __call__(self, atoms: ase.Atoms) -> OriginalResult:
        # Some constants of MACE are made in torch's default dtype when they are used; its calculator sets it as well.
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return self._evaluate(atoms)
        finally:
            torch.set_default_dtype(default)

    def _evaluate(self, atoms: ase.Atoms) -> OriginalResult:
        from mace.data.neighborhood import get_neighborhood

        positions, cell = atoms.get_positions(), np.array(atoms.cell.array)
        edge_index, shifts, unit_shifts, _cell = get_neighborhood(
            positions, float(self.model.r_max), tuple(bool(p) for p in atoms.pbc), cell.copy()
        )
        types = torch.tensor([self.types[int(z)] for z in atoms.numbers])
        data = {
            "positions": torch.tensor(positions),
            "node_attrs": torch.nn.functional.one_hot(types, len(self.types)).double(),
            "edge_index": torch.tensor(edge_index, dtype=torch.int64),
            "shifts": torch.tensor(shifts),
            "unit_shifts": torch.tensor(unit_shifts, dtype=torch.float64),
            "cell": torch.tensor(cell),
            "pbc": torch.tensor(np.array(atoms.pbc)).reshape(1, 3),
            "batch": torch.zeros(len(atoms), dtype=torch.int64),
            "ptr": torch.tensor([0, len(atoms)]),
            "head": torch.tensor([self.head]),
        }
        result = self.model(data, compute_force=True)
        charges = result["latent_charges"] if self.has_long_range else torch.zeros(len(atoms), 0)
        return OriginalResult(
            energy=float(result["energy"].detach()),
            long_range_energy=float(result["les_energy"].detach()) if self.has_long_range else 0.0,
            forces=result["forces"].detach().numpy(),
            charges=charges.detach().reshape(len(atoms), -1).double().numpy(),
        )
