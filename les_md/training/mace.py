"""Training of MACE-LES models by mace-torch with ``les_md.Les``: the program ``les-mace-train``.

mace-torch (0.3.16) has the model (``MACELES``) but takes the long-range energy from a package ``les``, which it imports
when a model is made. Here that import finds ``les_md.Les``, and mace-torch's own training program does the rest, with
all of its options. Two things of mace-torch are put right while it trains, so that what is trained is what exported
files compute:

- MACELES gives the long-range energy positions and cell without the strain, so that its stress lacks a term. Here both
  are strained: stress is the derivative of the energy, and can be trained on.
- Lattice vectors along open directions of slabs and wires are replaced by very long ones. Here the long-range energy
  is that of the structure's own box.

The trained model loads wherever les_md and mace-torch are installed (``torch.load``, mace-torch's calculator); there
mace-torch's stress is its own again, while files of ``les-export`` have the full one.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Dict  # noqa: UP035  (TorchScript knows only Dict)

import mace.data.atomic_data
import mace.modules.extensions
import numpy as np
import torch
from mace.modules.utils import GraphContext
from mace.modules.utils import prepare_graph as prepare_graph_without_strain
from torch import Tensor

from les_md.les import Les
from les_md.training.les_arguments import les_of_arguments

#: Arguments of les that MACELES itself reads.
_READ_BY_MACE = ("compute_bec", "bec_output_index")


def les_of_mace(les_arguments: Mapping[str, Any] | None) -> Les:
    """The long-range energy with the ``les_arguments`` of a MACE-LES model, which may be None.

    Raises
    ------
    ValueError : an argument that MACE-LES has no use for, an unknown one, or a wrong value.
    """
    arguments = dict(les_arguments or {})
    if not isinstance(arguments.get("compute_bec", False), bool):
        raise ValueError(f"les_arguments: compute_bec must be true or false, not {arguments['compute_bec']!r}")
    if arguments.get("bec_output_index") not in (None, 0, 1, 2):
        raise ValueError(f"les_arguments: bec_output_index must be 0, 1 or 2, not {arguments['bec_output_index']!r}")
    return les_of_arguments(arguments, _READ_BY_MACE)


@contextmanager
def mace_with_les(les_arguments: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within it, mace-torch makes and evaluates MACE-LES models with ``les_md.Les`` as described above.

    Parameters: ``les_arguments`` of models that are made without any, as mace-torch does when it converts a model (for
    cuEquivariance) whose arguments it does not remember.

    Raises
    ------
    ValueError : ``les_arguments`` do not fit, see ``les_of_mace``.
    """
    les_of_mace(les_arguments)
    defaults = les_arguments

    def make(les_arguments: Mapping[str, Any] | None = None) -> Les:
        # What MACELES gives when it got none
        without = les_arguments is None or dict(les_arguments) == {"use_atomwise": False}
        return les_of_mace(defaults if without else les_arguments)

    package = types.ModuleType("les")
    package.Les = make
    extensions, atomic_data = mace.modules.extensions, mace.data.atomic_data
    before = sys.modules.get("les"), extensions.prepare_graph, atomic_data.get_neighborhood
    sys.modules["les"] = package
    extensions.prepare_graph = prepare_graph
    atomic_data.get_neighborhood = _in_own_box(atomic_data.get_neighborhood)
    try:
        yield
    finally:
        extensions.prepare_graph, atomic_data.get_neighborhood = before[1:]
        if before[0] is None:
            del sys.modules["les"]
        else:
            sys.modules["les"] = before[0]


def prepare_graph(
    data: Dict[str, Tensor],  # noqa: UP006
    compute_virials: bool = False,
    compute_stress: bool = False,
    compute_displacement: bool = False,
    lammps_mliap: bool = False,
) -> GraphContext:
    """mace-torch's own, with positions and cell strained like the edges, so that all of the energy feels the strain.

    The strain is zero: no value changes, and derivatives over strained positions are forces as well.
    """
    context = prepare_graph_without_strain(
        data,
        compute_virials=compute_virials,
        compute_stress=compute_stress,
        compute_displacement=compute_displacement,
        lammps_mliap=lammps_mliap,
    )
    displacement = context.displacement
    if displacement is None or not (compute_virials or compute_stress or compute_displacement):
        return context
    strain = 0.5 * (displacement + displacement.transpose(-1, -2))
    cell = context.cell.view(-1, 3, 3)
    return GraphContext(
        context.is_lammps,
        context.num_graphs,
        context.num_atoms_arange,
        context.displacement,
        data["positions"],
        context.vectors,
        context.lengths,
        (cell + torch.matmul(cell, strain)).view(context.cell.shape),
        context.node_heads,
        context.interaction_kwargs,
    )


def _in_own_box(get_neighborhood: Any) -> Any:
    """mace-torch's neighbour search, but the cell of a slab or a wire stays as it is."""

    def search(positions: Any, cutoff: float, pbc: Any = None, cell: Any = None, *args: Any, **kwargs: Any) -> tuple:
        own = None if cell is None else np.array(cell, dtype=float)
        found = get_neighborhood(positions, cutoff, pbc, cell, *args, **kwargs)
        if own is None or pbc is None or all(pbc) or not any(pbc):
            return found
        if abs(np.linalg.det(own)) <= 1e-6 * np.linalg.norm(own, axis=1).prod():
            raise ValueError(
                "a structure periodic along some directions needs three independent lattice vectors: the long-range "
                "energy is that of its whole box, vacuum included"
            )
        return (*found[:3], own)

    return search


def main(arguments: Sequence[str] | None = None) -> None:
    """``les-mace-train``: the arguments are those of ``mace_run_train``; the model is MACELES."""
    from mace import tools
    from mace.cli.run_train import run

    parser = tools.build_default_arg_parser()
    parser.prog = "les-mace-train"
    parser.set_defaults(model="MACELES")
    options = parser.parse_args(arguments)
    if options.model != "MACELES":
        parser.error(f"it trains --model MACELES, not {options.model}; use mace_run_train for other models")
    try:
        les_of_mace(options.les_arguments)
    except ValueError as error:
        parser.error(str(error))
    with mace_with_les(options.les_arguments):
        run(options)


if __name__ == "__main__":
    main()
