"""``les_arguments`` of other packages' training configurations, checked: what is not understood is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from les_md.les import Les

_NUMBERS = ("sigma", "dl", "norm_factor", "epsilon_factor")
_SWITCHES = ("remove_self_interaction", "remove_mean")
#: Of a charge head inside ``les``, which models with a charge readout of their own do not use.
_OF_CHARGE_HEAD = ("n_layers", "n_hidden", "add_linear_nn", "output_scaling_factor", "n_in", "num_charges")

#: Of latent variables beyond charges, which need heads that these models have not.
_BEYOND_CHARGES = (
    "use_dipole",
    "use_quad",  # MACE-LES
    "use_quadrupole",  # NequIP-LES
    "use_induced_charge",
    "use_induced_dipole",
    "use_anisotropic_polarizability",
    "use_atomic_alpha",
    "use_epsilon_r_scaling",
    "use_fixed_atomic_charges",
)
_OF_FIXED_CHARGES = ("fixed_atomic_charges", "fixed_atomic_charges_scaling_factor")


def les_of_arguments(arguments: Mapping[str, Any], read_elsewhere: tuple[str, ...] = ()) -> Les:
    """The long-range energy for a model that has a charge readout of its own.

    Parameters: ``read_elsewhere``, names of arguments that the model itself reads.

    Raises
    ------
    ValueError : an argument that such a model has no use for, an unknown one, or a wrong value.
    """
    chosen = {}
    for name, value in arguments.items():
        if name in ("use_atomwise", *_BEYOND_CHARGES) and value is False:
            continue
        if name in (*_BEYOND_CHARGES, *_OF_FIXED_CHARGES):
            raise ValueError(
                f"les_arguments: {name} asks for latent dipoles, quadrupoles, induced or fixed charges, which this "
                "model does not have; les-train trains models with them"
            )
        if name in (*_OF_CHARGE_HEAD, "use_atomwise"):
            raise ValueError(
                f"les_arguments: {name} belongs to a charge head that this model, which has a charge readout of its "
                "own, does not use; leave it out"
            )
        if name not in (*_NUMBERS, *_SWITCHES, *read_elsewhere):
            known = ", ".join((*_NUMBERS, *_SWITCHES, *read_elsewhere))
            raise ValueError(f"les_arguments: unknown argument {name}; known are {known} and use_atomwise: false")
        if name in _SWITCHES and not isinstance(value, bool):
            raise ValueError(f"les_arguments: {name} must be true or false, not {value!r}")
        if name in _NUMBERS and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"les_arguments: {name} must be a number, not {value!r}")
        if name not in read_elsewhere:
            chosen[name] = value
    return Les(**chosen)
