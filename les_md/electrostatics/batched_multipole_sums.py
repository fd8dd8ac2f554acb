r"""Energy, potential and field of latent charges, dipoles and quadrupoles of a batch, and what they induce.

Charges and dipoles are induced once, by the permanent sources alone (Kim et al., arXiv:2605.05746):

    Δq = −κ φ,   Δu = α E,   E_induced = −½ κ φ² − ½ α E²

φ and E are those of the energy: without the interaction of a source with itself where that is removed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from les_md.electrostatics.batched_ewald import (
    batched_phases,
    batched_reciprocal_energy,
    batched_reciprocal_potential,
    batched_reciprocal_weights,
)
from les_md.electrostatics.batched_multipoles import (
    batched_multipole_pairs,
    batched_multipole_structure_factor,
    packed_sources,
    potential_and_field_factors,
)
from les_md.electrostatics.padded_groups import Arrangement, padded_atoms, pairs_of_isolated, self_interaction_sign
from les_md.electrostatics.smeared_multipoles import multipole_self_factors


def batched_multipole_sums(
    positions: Tensor,
    charges: Tensor,
    dipoles: Tensor,
    quadrupoles: Tensor,
    batch: Tensor,
    isolated: Tensor,
    counts: Tensor,
    arranged: Arrangement,
    sigma: float,
    dl: float,
    norm_factor: float,
    remove_self_interaction: bool,
    with_potential: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies [B] eV of permanent sources and, if wanted, their potential [N, n_q] eV/e and field [N, n_q, 3].

    Parameters
    ----------
    positions, charges : [N, 3] Å, [N, n_q] e.
    dipoles, quadrupoles : [N, n_q, 3] e Å, [N, n_q, 3, 3] e Å² (traceless); or none, [0, n_q, ...].
    batch : [N], the configuration of each atom.
    isolated, counts : [B] bool, [B] atoms of each configuration.
    with_potential : whether potential and field (eV/(e Å)) are wanted.
    """
    num_channels = charges.size(1)
    sources = packed_sources(charges, dipoles, quadrupoles)
    of_charge, of_dipole, of_quadrupole = multipole_self_factors(sigma, norm_factor)
    sign = self_interaction_sign(isolated, remove_self_interaction, charges.dtype).index_select(0, batch)[:, None]
    own = of_charge * charges.square()
    potential = 2.0 * of_charge * sign * charges
    field = charges.new_zeros([charges.size(0), num_channels, 3])
    if dipoles.size(0) > 0:
        own = own + of_dipole * dipoles.square().sum(-1)
        field = -2.0 * of_dipole * sign[:, :, None] * dipoles
    if quadrupoles.size(0) > 0:  # (a traceless one has no potential and no field at its own site)
        own = own + of_quadrupole * quadrupoles.square().sum(-1).sum(-1)
    energy = torch.zeros(counts.size(0), dtype=charges.dtype, device=charges.device)
    energy = energy.index_add(0, batch, (sign * own).sum(1))

    # (without anything to sum, an empty list still makes the energy a function of the positions)
    if arranged.num_pairs > 0 or len(arranged.groups) == 0:
        first, second = pairs_of_isolated(batch, isolated, counts, arranged.order, arranged.num_pairs)
        of_pairs, pair_potential, pair_field = batched_multipole_pairs(
            positions, charges, dipoles, quadrupoles, first, second, sigma, norm_factor, with_potential
        )
        energy = energy.index_add(0, batch.index_select(0, first), of_pairs)
        if with_potential:
            potential, field = potential + pair_potential, field + pair_field

    for group, size in arranged.groups:
        chosen, atoms, inside = padded_atoms(group, size[0], counts, arranged.order)
        cells, limits = arranged.cells.index_select(0, chosen), arranged.limits.index_select(0, chosen)
        group_positions = positions.index_select(0, atoms).reshape(len(group), size[0], 3)
        # Padding repeats an atom, with sources of zero.
        group_sources = sources.index_select(0, atoms).reshape(len(group), size[0], -1, num_channels)
        group_sources = group_sources * inside[:, :, None, None]
        weight = batched_reciprocal_weights(cells, limits, size[1:], sigma, dl, norm_factor)
        plane, column = batched_phases(group_positions, cells, size[1:])
        structure = batched_multipole_structure_factor(group_sources, plane, column, cells, size[1:])
        energy = energy.index_add(0, chosen, batched_reciprocal_energy(structure, weight))
        if with_potential:
            factors = potential_and_field_factors(structure, cells, size[1:])
            padded = batched_reciprocal_potential(factors, weight, plane, column) * inside[:, :, None]
            values = padded.reshape(-1, 4, num_channels)
            potential = potential.index_add(0, atoms, values[:, 0])
            field = field.index_add(0, atoms, values[:, 1:].transpose(1, 2))
    return energy, potential, field


def dipoles_in_external_field(
    energy: Tensor, field: Tensor, dipoles: Tensor, external_field: Tensor, batch: Tensor
) -> tuple[Tensor, Tensor]:
    """Energies with −u·E_ext of the permanent dipoles, and the field at the atoms with E_ext.

    Parameters: ``external_field`` [B, 3] eV/(e Å); ``dipoles`` may be empty; others as above.
    """
    at_atoms = external_field.index_select(0, batch)[:, None, :]
    if dipoles.size(0) > 0:
        energy = energy.index_add(0, batch, -(dipoles * at_atoms).sum(-1).sum(-1))
    return energy, field + at_atoms


def induced_multipoles(
    potential: Tensor, field: Tensor, kappas: Tensor, alphas: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies [N] eV of what is induced, Δq [N, n_q] e and Δu [N, n_q, 3] e Å.

    Parameters: ``kappas`` [N, n_q] e²/eV and ``alphas`` [N, n_q] e² Å²/eV, or none, [0, n_q] (then Δq, Δu are empty).
    """
    energy = potential.new_zeros([potential.size(0)])
    charges, dipoles = potential.new_zeros([0, 0]), potential.new_zeros([0, 0, 3])
    if kappas.size(0) > 0:
        charges = -kappas * potential
        energy = energy + 0.5 * (charges * potential).sum(1)
    if alphas.size(0) > 0:
        dipoles = alphas[:, :, None] * field
        energy = energy - 0.5 * (dipoles * field).sum(-1).sum(-1)
    return energy, charges, dipoles
