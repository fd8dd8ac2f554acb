"""The exported module of a model with latent variables beyond charges: dipoles, quadrupoles, and what is induced.

The contract is that of ``potential.py`` with ``latent`` [N, num_columns] (``LatentLayout``) in place of ``charge``
[N, n_q], and ``potential`` the derivative of the long-range energy with respect to these columns. What is more:

- Where κ or α answer the potential (``responds``), a second density is spread, reduced over processes and solved:
  ``spread_induced``, ``solve_induced`` and ``gather_induced``, whose results replace those of ``gather``.
- Half of potential times latent *sources* is the energy: ``long_range_energies``.
- Polarisation weights have columns, [K, N, C]. ``gather_response`` makes of them the cotangents [K, N, num_columns] for
  ``pull_back_response`` and derivatives at fixed latent variables; where κ or α answer, it needs a third reduced
  density, of ``spread_response``.
"""

from __future__ import annotations

import math
from typing import Dict, List  # noqa: UP035  (TorchScript knows only these)

import torch
from torch import Tensor

from les_md.electrostatics.latent_layout import LatentLayout
from les_md.electrostatics.multipole_ewald import MultipoleEwald
from les_md.electrostatics.multipole_response import (
    multipole_field_terms,
    multipole_field_weights,
    multipole_polarisation_weights,
)
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.electrostatics.response import born_effective_charges, field_rows
from les_md.potential import LESPotential


class MultipolePotential(LESPotential):
    """``LESPotential`` of a network that returns the columns of ``layout``.

    Parameters: as of ``LESPotential``, and ``layout`` in place of ``num_charges``. ``charge_sign`` is that of charges,
    dipoles and quadrupoles; κ and α have none.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        reference_energies: Tensor,
        long_range: LongRangeParameters,
        layout: LatentLayout,
        charge_sign: float = 1.0,
    ) -> None:
        super().__init__(network, reference_energies, long_range, layout.num_charges, charge_sign)
        self.long_range = MultipoleEwald(long_range, layout)
        self.num_columns: int = layout.num_columns
        self.responds: bool = layout.responds
        signs = torch.ones(layout.num_columns, dtype=torch.float64)
        signs[: layout.num_sources] = charge_sign
        self.register_buffer("column_signs", signs)

    def _signed(self, charge: Tensor) -> Tensor:
        if charge.size(-1) != self.num_columns:
            raise RuntimeError(
                f"the network returns {charge.size(-1)} columns of latent variables, its layout has {self.num_columns}"
            )
        return self.column_signs * charge

    @torch.jit.export
    def long_range_energies(self, latent: Tensor, potential: Tensor) -> Tensor:
        """See ``MultipoleEwald.energies``: [N] eV."""
        return self.long_range.energies(latent, potential)

    @torch.jit.export
    def spread_induced(
        self,
        field: Tensor,
        positions: Tensor,
        latent: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, List[Tensor]]:  # noqa: UP006
        """See ``MultipoleEwald.spread_induced``; for models that respond."""
        return self.long_range.spread_induced(field, positions, latent, plan)

    @torch.jit.export
    def solve_induced(
        self,
        density: Tensor,
        induced_density: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor]:
        """See ``MultipoleEwald.solve_induced``."""
        return self.long_range.solve_induced(density, induced_density, plan)

    @torch.jit.export
    def gather_induced(
        self,
        induced_field: Tensor,
        positions: Tensor,
        latent: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
        state: List[Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``MultipoleEwald.gather_induced``."""
        return self.long_range.gather_induced(induced_field, positions, latent, plan, state)

    @torch.jit.export
    def total_charges(self, latent: Tensor, state: List[Tensor]) -> Tensor:  # noqa: UP006
        """See ``MultipoleEwald.total_charges``."""
        return self.long_range.total_charges(latent, state)

    @torch.jit.export
    def total_dipoles(self, latent: Tensor, state: List[Tensor]) -> Tensor:  # noqa: UP006
        """See ``MultipoleEwald.total_dipoles``."""
        return self.long_range.total_dipoles(latent, state)

    def _compute(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        positions: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
        cell: Tensor,
        field: Tensor,
        has_field: bool,
        sum_rule: bool,
    ) -> Dict[str, Tensor]:  # noqa: UP006
        """As ``LESPotential._compute``, with two results more: ``total_charges`` [N, n_q] in e and ``total_dipoles``
        [N, 3] in e Å (of all channels), induced ones included; ``charges`` [N, n_q] are the permanent ones."""
        positions = positions.data
        energy, latent, state = self.evaluate(edge_vectors, edge_index, types)
        density = self.spread(positions, latent, plan)
        solved, strain_derivative = self.solve(density, plan)
        induced: List[Tensor] = []  # noqa: UP006
        if self.responds:
            induced_density, induced = self.spread_induced(solved, positions, latent, plan)
            induced_field, strain_of_induced = self.solve_induced(density, induced_density, plan)
            potential, forces, strain_of_atoms = self.gather_induced(induced_field, positions, latent, plan, induced)
            strain_of_atoms = strain_of_atoms + strain_of_induced
        else:
            potential, forces, strain_of_atoms = self.gather(solved, positions, latent, plan)
        strain_derivative = strain_derivative + strain_of_atoms
        long_range_energies = self.long_range_energies(latent, potential)
        field_energies = torch.zeros_like(energy)
        total_charges, total_dipoles = self.total_charges(latent, induced), self.total_dipoles(latent, induced)
        ones = torch.ones_like(energy)
        if has_field:
            scaled = math.sqrt(self.long_range.epsilon_factor) * field
            weights, means = self._centred_response_weights(positions, cell, total_charges)
            isolated = self.long_range.is_isolated(cell)
            rows = torch.arange(weights.size(0), device=types.device)
            if isolated:
                weights = self.field_weights(weights, field)
            else:
                rows = self.field_rows(cell, field).nonzero().squeeze(1)
                weights = weights.index_select(0, rows)
            cotangents, explicit = self._response(weights, positions, latent, plan, induced, field)
            if isolated:
                field_energies, of_field, strain_of_field = self.field_terms_of(
                    latent, total_charges, total_dipoles, means[-1], explicit[0], positions, field
                )
                forces, strain_derivative = forces + of_field, strain_derivative + strain_of_field
                pair_gradient = self.pull_back(edge_vectors, edge_index, types, state, ones, potential + cotangents[0])
            else:
                pair_gradient, response = self.pull_back_response(
                    edge_vectors, edge_index, types, state, ones, potential, cotangents
                )
                response = self._at_nodes(response, edge_index, positions.size(0)) + explicit
                pulled_back = torch.zeros([9, positions.size(0), 3], dtype=positions.dtype, device=positions.device)
                pulled_back = pulled_back.index_copy(0, rows, response)
                tensors = self.born_effective_charges_of(total_charges, means[-1], pulled_back, positions, cell)
                of_field = self.field_forces(tensors, field)
                forces = forces + (of_field - of_field.mean(0) if sum_rule else of_field)
            total_dipoles = total_dipoles + self.long_range.dipole_of_field(latent, scaled)
        else:
            pair_gradient = self.pull_back(edge_vectors, edge_index, types, state, ones, potential)
        forces = forces.index_add(0, edge_index[0], pair_gradient).index_add(0, edge_index[1], -pair_gradient)
        # The network's multipoles turn with the structure: only the symmetric part of the sum is a derivative.
        strain = torch.matmul(edge_vectors.transpose(0, 1), pair_gradient)
        strain_derivative = strain_derivative + 0.5 * (strain + strain.transpose(0, 1))
        return {
            "energies": energy + long_range_energies + field_energies,
            "long_range_energies": long_range_energies,
            "field_energies": field_energies,
            "charges": latent[:, : self.num_charges],
            "total_charges": total_charges,
            "total_dipoles": total_dipoles,
            "forces": forces,
            "strain_derivative": strain_derivative,
        }

    @torch.jit.export
    def born_effective_charges(
        self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor, positions: Tensor, cell: Tensor
    ) -> Tensor:
        """Born effective charges Z* [N, 3, 3] in e: polarisation index first, displacement index second.

        The polarisation is that of permanent and induced charges and dipoles, without a field. Costs one forward and
        nine (isolated: three) backward passes of the network.
        """
        return self.born_effective_charges_by(
            edge_vectors, edge_index, types, positions, cell, self.direct_plan(cell)
        )  # fmt: skip

    @torch.jit.export
    def born_effective_charges_by(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        positions: Tensor,
        cell: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> Tensor:
        """``born_effective_charges`` with the ``plan`` of the sum that induces charges and dipoles."""
        _energy, latent, state = self.evaluate(edge_vectors, edge_index, types)
        induced: List[Tensor] = []  # noqa: UP006
        if self.responds:
            solved, _strain = self.solve(self.spread(positions, latent, plan), plan)
            _density, induced = self.spread_induced(solved, positions, latent, plan)
        total_charges = self.total_charges(latent, induced)
        weights, means = self._centred_response_weights(positions, cell, total_charges)
        cotangents, explicit = self._response(weights, positions, latent, plan, induced, torch.zeros_like(cell[0]))
        gradients = self.pull_back_weights(edge_vectors, edge_index, types, state, cotangents)
        pulled_back = self._at_nodes(gradients, edge_index, positions.size(0)) + explicit
        return self.born_effective_charges_of(total_charges, means[-1], pulled_back, positions, cell)

    def _response(
        self,
        weights: Tensor,
        positions: Tensor,
        latent: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
        induced: List[Tensor],  # noqa: UP006
        field: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """``gather_response`` on one process."""
        density = positions
        if self.responds:
            density = self.spread_response(weights, positions, latent, plan)
        return self.gather_response(density, weights, positions, latent, plan, induced, field)

    def _centred_response_weights(
        self, positions: Tensor, cell: Tensor, total_charges: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights = self.polarisation_weights(positions, cell)
        means = self.polarisation_sums(weights, total_charges) / max(positions.size(0), 1)
        return self.centred_weights(weights, means), means

    @torch.jit.export
    def polarisation_weights(self, positions: Tensor, cell: Tensor) -> Tensor:
        """∂P/∂(sources) at fixed mean charge, without √ε, [K, N, C]; C columns: those of charges, then of dipoles.

        K = 3, Cartesian components, of an isolated system (a cell of zeros). Of any other K = 9: the six rows of
        ``response.polarisation_weights`` for charges, then the Cartesian components for dipoles.
        """
        isolated = self.long_range.is_isolated(cell)
        return multipole_polarisation_weights(positions, cell, isolated, self.num_charges, self.long_range.order > 0)

    @torch.jit.export
    def polarisation_sums(self, weights: Tensor, charges: Tensor) -> Tensor:
        """As ``LESPotential.polarisation_sums``; ``charges`` [N, n_q] are ``total_charges``."""
        sums = torch.cat([weights[:, :, 0].sum(1), charges.sum().unsqueeze(0)])
        return sums if self.long_range.remove_mean else torch.zeros_like(sums)

    @torch.jit.export
    def centred_weights(self, weights: Tensor, means: Tensor) -> Tensor:
        """Weights [K, N, C] less their means, the first K of ``means`` [K + 1], in the columns of charges."""
        n = self.num_charges
        return torch.cat([weights[:, :, :n] - means[:-1, None, None], weights[:, :, n:]], dim=2)

    @torch.jit.export
    def field_weights(self, weights: Tensor, field: Tensor) -> Tensor:
        """Derivatives of −P·E [1, N, C] for an isolated system in a ``field`` [3], from weights [3, N, C]."""
        return multipole_field_weights(weights, field, self.long_range.epsilon_factor)

    @torch.jit.export
    def spread_response(
        self,
        weights: Tensor,
        positions: Tensor,
        latent: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> Tensor:
        """See ``MultipoleEwald.spread_response``; for models that respond."""
        return self.long_range.spread_response(weights, positions, latent, plan)

    @torch.jit.export
    def gather_response(
        self,
        density: Tensor,
        weights: Tensor,
        positions: Tensor,
        latent: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
        induced: List[Tensor],  # noqa: UP006
        field: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See ``MultipoleEwald.gather_response``, with √ε times the ``field`` [3] in V/Å."""
        scaled = math.sqrt(self.long_range.epsilon_factor) * field
        return self.long_range.gather_response(density, weights, positions, latent, plan, induced, scaled)

    @torch.jit.export
    def pull_back_weights(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        state: List[Tensor],  # noqa: UP006
        weights: Tensor,
    ) -> Tensor:
        """Derivatives [K, E, 3] of Σ ``weights`` · latent for cotangents [K, N, num_columns]."""
        no_energy = torch.zeros([weights.size(0), types.size(0)], dtype=torch.float64, device=types.device)
        return self._pull_back_all(edge_vectors, edge_index, types, state, no_energy, weights)

    @torch.jit.export
    def pull_back_response(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        state: List[Tensor],  # noqa: UP006
        energy_cotangent: Tensor,
        charge_cotangent: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """``pull_back`` and ``pull_back_weights`` together."""
        no_energy = torch.zeros_like(energy_cotangent).expand(weights.size(0), -1)
        energy_cotangents = torch.cat([energy_cotangent.unsqueeze(0), no_energy])
        cotangents = torch.cat([charge_cotangent.unsqueeze(0), weights])
        all_of_them = self._pull_back_all(edge_vectors, edge_index, types, state, energy_cotangents, cotangents)
        return all_of_them[0], all_of_them[1:]

    @torch.jit.export
    def born_effective_charges_of(
        self, charges: Tensor, mean_charge: Tensor, pulled_back: Tensor, positions: Tensor, cell: Tensor
    ) -> Tensor:
        """See ``response.born_effective_charges``, with ``charges`` those of ``total_charges``, and ``pulled_back``
        [K, N, 3] what ``gather_response`` and ``pull_back_response`` gave for the rows of ``polarisation_weights``."""
        isolated, factor = self.long_range.is_isolated(cell), self.long_range.epsilon_factor
        rows = 3 if isolated else 6
        tensors = born_effective_charges(
            charges, mean_charge, pulled_back[:rows], positions, cell, isolated, factor
        )  # fmt: skip
        if not isolated:
            tensors = tensors + math.sqrt(factor) * pulled_back[rows:].permute(1, 0, 2)
        return tensors

    @torch.jit.export
    def field_terms_of(
        self,
        latent: Tensor,
        charges: Tensor,
        dipoles: Tensor,
        mean_charge: Tensor,
        explicit: Tensor,
        positions: Tensor,
        field: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``multipole_response.multipole_field_terms``; for an isolated system."""
        scaled = math.sqrt(self.long_range.epsilon_factor) * field
        of_field = self.long_range.dipole_of_field(latent, scaled)
        return multipole_field_terms(charges, dipoles + 0.5 * of_field, mean_charge, explicit, positions, scaled)

    @torch.jit.export
    def field_rows(self, cell: Tensor, field: Tensor) -> Tensor:
        """Which of the nine ``polarisation_weights`` of a periodic system a field needs, [9] bool."""
        along = field.abs() > 1e-14 * torch.linalg.norm(field)
        return torch.cat([field_rows(cell, field), along & (self.long_range.order > 0)])
