"""NequIP-LES and Allegro-LES models for training by nequip (0.19), as a ``_target_`` of its configuration.

    training_module:
      model:
        _target_: les_md.training.nequip.LESModel
        base_model: nequip            # or allegro
        LES:
          les_args: {sigma: 1.0}      # optional, see docs/training.md
        ...                           # the options of nequip's NequIPGNNModel, or of AllegroModel

The checkpoints that ``nequip-train`` writes are read by ``les-export``. The energy is that of the base model plus the
long-range energy of the latent charges, which are a linear map of the last node features (NequIP), or a sum over edges
of a small network of the edge features (Allegro); Kim et al., J. Chem. Theory Comput. (2025), doi
10.1021/acs.jctc.5c01400.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from nequip.data import AtomicDataDict
from nequip.model.utils import model_builder
from nequip.nn import ForceStressOutput, GraphModel, GraphModuleMixin

from les_md.architectures.nequip import charge_modules
from les_md.training.les_arguments import les_of_arguments


class LongRangeEnergy(GraphModuleMixin, torch.nn.Module):
    """Adds the long-range energy of the charges ``LES_q`` to the total energy.

    A frame without periodic axis is isolated, whatever its cell.
    """

    def __init__(self, les_arguments: Mapping[str, Any], irreps_in: dict) -> None:
        super().__init__()
        self.les = les_of_arguments(les_arguments)
        energy = AtomicDataDict.TOTAL_ENERGY_KEY
        self._init_irreps(
            irreps_in=irreps_in,
            required_irreps_in=["LES_q", energy],
            irreps_out={energy: irreps_in[energy], "LES_energy": irreps_in[energy]},
        )

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        positions = data[AtomicDataDict.POSITIONS_KEY]
        batch = data.get(AtomicDataDict.BATCH_KEY)
        if batch is None:
            batch = torch.zeros(positions.size(0), dtype=torch.int64, device=positions.device)
        energy = data[AtomicDataDict.TOTAL_ENERGY_KEY]
        cell = data.get(AtomicDataDict.CELL_KEY)
        if cell is None:
            cell = positions.new_zeros([energy.size(0), 3, 3])
        long_range = self.les(
            positions,
            cell.view(-1, 3, 3),
            latent_charges=data["LES_q"].to(positions.dtype),
            batch=batch,
            pbc=data.get(AtomicDataDict.PBC_KEY),
        )["E_lr"][:, None]
        data["LES_energy"] = long_range
        data[AtomicDataDict.TOTAL_ENERGY_KEY] = energy + long_range.to(energy.dtype)
        return data


class GraphModelWithBoundaries(GraphModel):
    """nequip's outermost module, which also hands the boundaries of a frame to the model."""

    def __init__(self, model: GraphModuleMixin, model_config=None, model_input_fields=None) -> None:
        fields = {**(model_input_fields or {}), AtomicDataDict.PBC_KEY: None}
        super().__init__(model=model, model_config=model_config, model_input_fields=fields)


def _no_compiled_training(*args: Any, **kwargs: Any) -> None:
    raise ValueError("compile_mode: a model with long-range energy trains with compile_mode: eager only")


@model_builder(wrapper_class=GraphModelWithBoundaries, compile_wrapper_class=_no_compiled_training)
def LESModel(base_model: str = "nequip", LES: Mapping[str, Any] | None = None, **options: Any) -> GraphModel:
    """A NequIP or Allegro model with latent charges and their long-range energy.

    Parameters
    ----------
    base_model : "nequip" or "allegro".
    LES : ``les_args``, a table of sigma, dl, norm_factor, remove_self_interaction, remove_mean, epsilon_factor.
    options : of ``nequip.model.NequIPGNNModel`` or ``allegro.model.AllegroModel``.

    Raises
    ------
    ValueError : an unknown base model, or an argument of LES that is unknown, wrong or without use.
    """
    section = dict(LES or {})
    les_arguments = dict(section.pop("les_args", None) or {})
    if section:
        raise ValueError(f"LES: unknown option {', '.join(section)}; known is les_args")
    if base_model == "nequip":
        from nequip.model import NequIPGNNModel as build
    elif base_model == "allegro":
        from allegro.model import AllegroModel as build
    else:
        raise ValueError(f"base_model must be nequip or allegro, not {base_model!r}")
    base = build(**options)
    energy_model = base.func
    readout, total = charge_modules(base_model, options, energy_model.irreps_out)
    if total is None:
        energy_model.append("latent_charge_readout", readout)
    else:
        energy_model.append("edge_latent_charge_readout", readout)
        energy_model.append("latent_charge_sum", total)
    energy_model.append("latent_ewald_sum", LongRangeEnergy(les_arguments, energy_model.irreps_out))
    return ForceStressOutput(energy_model, base.do_derivatives)
