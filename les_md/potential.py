"""The exported module: one TorchScript file that holds all physics of a model.

Engines hand over neighbours and box, call ``evaluate``, ``spread``, ``solve``, ``gather`` (with a ``plan`` of the
long-range sum for the present box) and ``pull_back`` with the potential, and put energy, forces, virial and charges
where they belong. ``forward`` does exactly this for one process.

The split rule: with φ = ∂E_lr/∂q, one vector–Jacobian product of (energy, charge) with the cotangents (1, φ) gives the
derivative of the whole energy with respect to the edge vectors; the long-range part adds its explicit forces and strain
derivative. The network never sees positions or cell, the long-range solver never sees the network.
"""

from __future__ import annotations

from typing import Dict, List, Optional  # noqa: UP035  (TorchScript knows only these)

import torch
from torch import Tensor

from les_md.electrostatics.latent_ewald import LatentEwald
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.electrostatics.response import (
    born_effective_charges,
    field_forces,
    field_rows,
    field_terms,
    polarisation_sums,
    polarisation_weights,
)
from les_md.layered_evaluation import LayeredEvaluation, WholeEvaluation

#: Version of the exported file's contract that is written. 2: long-range sums follow a plan.
#: 3: ``evaluate`` and ``pull_back``. 4: ``pull_back_response`` and the other parts of Born charges on many processes.
FORMAT_VERSION = 4

#: Version that is written of models with latent variables beyond charges (``multipole_potential.py``): readers of
#: version 4 would take all columns for charges.
MULTIPOLE_FORMAT_VERSION = 5

#: Versions that are read. A file of version 3 does all but the electrical response in LAMMPS.
READABLE_VERSIONS = (3, 4, 5)


class LESPotential(torch.nn.Module):
    """A short-range network and its long-range energy.

    Parameters
    ----------
    network : scripts; ``network(edge_vectors, edge_index, types) -> (energy [N], charge [N, n_q])``, and perhaps
        layers: see ``architectures.registry.TrainedModel``.
    reference_energies : [number of types] float64, eV; added to the network's energies in float64.
    long_range : parameters of the long-range energy; None for a short-range model (n_q = 0).
    num_charges : n_q.
    charge_sign : +1 or −1, the overall sign of the charges, which the energy leaves open.
    is_local : whether energy and charges of an atom depend on the edges from that atom alone, as without message
        passing. Born charges then take one backward pass.
    evaluation : of the network, where it is not to be differentiated automatically (see
        ``architectures.registry.TrainedModel``).
    """

    def __init__(
        self,
        network: torch.nn.Module,
        reference_energies: Tensor,
        long_range: Optional[LongRangeParameters],  # noqa: UP045
        num_charges: int,
        charge_sign: float = 1.0,
        is_local: bool = False,
        evaluation: Optional[torch.nn.Module] = None,  # noqa: UP045
    ) -> None:
        super().__init__()
        if (long_range is None) != (num_charges == 0):
            raise ValueError("a model has long-range parameters if and only if it has charges")
        self.network = network
        if evaluation is None:
            evaluation = LayeredEvaluation(network) if hasattr(network, "layer") else WholeEvaluation(network)
        self.evaluation = evaluation
        self.register_buffer("reference_energies", reference_energies.to(torch.float64))
        self.has_long_range: bool = long_range is not None
        self.long_range = LatentEwald(long_range or LongRangeParameters())
        self.num_charges: int = num_charges
        self.charge_sign: float = float(charge_sign)
        self.is_local: bool = bool(is_local)

    @torch.jit.export
    def short_range(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Short-range energy [N] in eV and latent charge [N, n_q] in e of every node, float64.

        Parameters
        ----------
        edge_vectors : [E, 3] float64, Å, r_neighbour − r_centre.
        edge_index : [2, E] int64; row 0 the centre, row 1 the neighbour.
        types : [N] int64, index into the model's elements.

        Edges beyond the cutoff contribute exactly nothing.
        """
        energy, charge = self.network(edge_vectors, edge_index, types)
        return energy.to(torch.float64) + self.reference_energies[types], self._signed(charge.to(torch.float64))

    @torch.jit.export
    def evaluate(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor, List[Tensor]]:  # noqa: UP006
        """``short_range`` without a tape, and what ``pull_back`` needs to know of it."""
        energy, charge, state = self.evaluation(edge_vectors, edge_index, types)
        energy = energy.to(torch.float64) + self.reference_energies[types]
        return energy, self._signed(charge.to(torch.float64)), state

    def _signed(self, charge: Tensor) -> Tensor:
        """Latent variables, or cotangents of these, [..., n_q] with the overall sign that the export chose."""
        return self.charge_sign * charge

    @torch.jit.export
    def pull_back(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        state: List[Tensor],  # noqa: UP006
        energy_cotangent: Tensor,
        charge_cotangent: Tensor,
    ) -> Tensor:
        """Vector–Jacobian product of (energy, charge) on the edge vectors, [E, 3] float64, eV/Å.

        Parameters: those of ``evaluate`` and the state that it returned; ``energy_cotangent`` [N],
        ``charge_cotangent`` [N, n_q], float64.
        """
        return self.evaluation.pull_back(
            edge_vectors, edge_index, types, state, energy_cotangent, self._signed(charge_cotangent)
        )

    @torch.jit.export
    def plan(
        self,
        cell: Tensor,
        kset_cell: Tensor,
        bounds: Tensor,
        num_atoms: int,
        kspace: str,
        accuracy: float,
        slab: bool,
    ) -> Dict[str, Tensor]:  # noqa: UP006
        """See ``LatentEwald.plan``; nothing to plan for a short-range model."""
        if not self.has_long_range:
            empty: Dict[str, Tensor] = {}  # noqa: UP006
            return empty
        return self.long_range.plan(cell, kset_cell, bounds, num_atoms, kspace, accuracy, slab)

    @torch.jit.export
    def direct_plan(self, cell: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        """See ``LatentEwald.direct_plan``."""
        return self.plan(cell, cell, torch.zeros([2, 3], dtype=cell.dtype, device=cell.device), 0, "ewald", 0.0, False)

    @torch.jit.export
    def describe(self, plan: Dict[str, Tensor]) -> str:  # noqa: UP006
        """See ``LatentEwald.describe``."""
        return self.long_range.describe(plan) if self.has_long_range else "short range only"

    @torch.jit.export
    def spread(self, positions: Tensor, charges: Tensor, plan: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
        """See ``LatentEwald.spread``."""
        return self.long_range.spread(positions, charges, plan)

    @torch.jit.export
    def solve(self, density: Tensor, plan: Dict[str, Tensor]) -> tuple[Tensor, Tensor]:  # noqa: UP006
        """See ``LatentEwald.solve``."""
        return self.long_range.solve(density, self.num_charges, plan)

    @torch.jit.export
    def gather(
        self,
        field: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``LatentEwald.gather``."""
        return self.long_range.gather(field, positions, charges, plan)

    @torch.jit.export
    def mesh_coordinates(self, positions: Tensor, plan: Dict[str, Tensor]) -> tuple[Tensor, List[int]]:  # noqa: UP006
        """See ``LatentEwald.mesh_coordinates``. This and the next three are for engines with operators of their own."""
        return self.long_range.mesh_coordinates(positions, plan)

    @torch.jit.export
    def density_of_mesh(
        self,
        mesh: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> Tensor:
        """See ``LatentEwald.density_of_mesh``."""
        return self.long_range.density_of_mesh(mesh, positions, charges, plan)

    @torch.jit.export
    def mesh_of_field(self, field: Tensor, plan: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
        """See ``LatentEwald.mesh_of_field``."""
        return self.long_range.mesh_of_field(field, self.num_charges, plan)

    @torch.jit.export
    def gather_from_values(
        self,
        values: Tensor,
        derivatives: Tensor,
        field: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``LatentEwald.gather_from_values``."""
        return self.long_range.gather_from_values(values, derivatives, field, positions, charges, plan)

    def forward(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        positions: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> Dict[str, Tensor]:  # noqa: UP006
        """Everything of one configuration, on one process.

        Parameters as in ``short_range``, and ``positions`` [N, 3] Å, ``plan`` as ``plan`` returned it.

        Returns
        -------
        ``energies``, ``long_range_energies`` [N] eV (per atom; the first includes the second), ``charges`` [N, n_q] e,
        ``forces`` [N, 3] eV/Å, ``strain_derivative`` [3, 3] eV (dE/dε; divide by the volume for the stress).
        """
        cell = torch.zeros([3, 3], dtype=positions.dtype, device=positions.device)
        return self._compute(edge_vectors, edge_index, types, positions, plan, cell, cell[0], False, False)

    @torch.jit.export
    def in_field(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        positions: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
        cell: Tensor,
        field: Tensor,
        sum_rule: bool,
    ) -> Dict[str, Tensor]:  # noqa: UP006
        """``forward`` in a uniform electric field.

        Further parameters: ``cell`` [3, 3] Å that ``plan`` is for (zeros: isolated), ``field`` [3] V/Å, ``sum_rule``:
        whether the mean force of the field is taken off in a periodic system.

        ``energies``, ``forces`` and ``strain_derivative`` of an isolated system contain the energy −P·E, which
        ``field_energies`` [N] has alone; of a periodic one, ``forces`` alone contain the field, as Z*ᵀ E.
        """
        if not self.has_long_range:
            raise RuntimeError("a short-range model has no charges for an electric field to act on")
        has_field = bool((field != 0.0).any().item())
        return self._compute(edge_vectors, edge_index, types, positions, plan, cell, field, has_field, sum_rule)

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
        energy, charges, state = self.evaluate(edge_vectors, edge_index, types)
        long_range_energies, field_energies = torch.zeros_like(energy), torch.zeros_like(energy)
        potential = torch.zeros_like(charges)
        forces = torch.zeros_like(positions)
        strain_derivative = torch.zeros([3, 3], dtype=positions.dtype, device=positions.device)
        if self.has_long_range:
            long_range_energies, potential, forces, strain_derivative = self.long_range(
                positions.detach(), charges, plan
            )
        ones = torch.ones_like(energy)
        if has_field and not self.long_range.is_isolated(cell):
            weights, means = self._centred_weights(positions, cell, charges)
            rows = self.field_rows(cell, field).nonzero().squeeze(1)
            pair_gradient, response = self.pull_back_response(
                edge_vectors, edge_index, types, state, ones, potential, weights.index_select(0, rows)
            )
            pulled_back = torch.zeros([6, positions.size(0), 3], dtype=positions.dtype, device=positions.device)
            pulled_back = pulled_back.index_copy(0, rows, self._at_nodes(response, edge_index, positions.size(0)))
            tensors = self.born_effective_charges_of(charges, means[-1], pulled_back, positions, cell)
            of_field = self.field_forces(tensors, field)
            forces = forces + (of_field - of_field.mean(0) if sum_rule else of_field)
        else:
            if has_field:
                weights, means = self._centred_weights(positions, cell, charges)
                field_energies, of_charges, of_field, strain_of_field = self.field_terms(
                    charges, means[-1], weights, positions, field
                )
                potential = potential + of_charges.unsqueeze(1)
                forces = forces + of_field
                strain_derivative = strain_derivative + strain_of_field
            pair_gradient = self.pull_back(edge_vectors, edge_index, types, state, ones, potential)
        forces = forces.index_add(0, edge_index[0], pair_gradient).index_add(0, edge_index[1], -pair_gradient)
        strain = torch.matmul(edge_vectors.transpose(0, 1), pair_gradient)
        # The energy is invariant under rotations, so only rounding makes this unsymmetric.
        strain_derivative = strain_derivative + 0.5 * (strain + strain.transpose(0, 1))
        return {
            "energies": energy + long_range_energies + field_energies,
            "long_range_energies": long_range_energies,
            "field_energies": field_energies,
            "charges": charges,
            "forces": forces,
            "strain_derivative": strain_derivative,
        }

    def _centred_weights(self, positions: Tensor, cell: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
        """``polarisation_weights`` less their means, and the means of weights and charges, on one process."""
        weights = self.polarisation_weights(positions, cell)
        means = self.polarisation_sums(weights, charges) / max(positions.size(0), 1)
        return weights - means[:-1].unsqueeze(1), means

    def _at_nodes(self, response: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
        """Derivatives by node [K, N, 3] from those by edge [K, E, 3]."""
        at_nodes = torch.zeros([response.size(0), num_nodes, 3], dtype=response.dtype, device=response.device)
        return at_nodes.index_add(1, edge_index[1], response).index_add(1, edge_index[0], -response)

    @torch.jit.export
    def born_effective_charges(
        self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor, positions: Tensor, cell: Tensor
    ) -> Tensor:
        """Born effective charges Z* [N, 3, 3] in e: polarisation index first, displacement index second.

        Costs one forward and six (isolated: three; without message passing: one) backward passes of the network.
        """
        _energy, charge, state = self.evaluate(edge_vectors, edge_index, types)
        weights, means = self._centred_weights(positions, cell, charge)
        gradients = self.pull_back_weights(edge_vectors, edge_index, types, state, weights)
        pulled_back = self._at_nodes(gradients, edge_index, positions.size(0))
        return self.born_effective_charges_of(charge, means[-1], pulled_back, positions, cell)

    @torch.jit.export
    def polarisation_weights(self, positions: Tensor, cell: Tensor) -> Tensor:
        """See ``response.polarisation_weights``: [3, N] (isolated, a cell of zeros) or [6, N] (any other cell)."""
        return polarisation_weights(positions, cell, self.long_range.is_isolated(cell))

    @torch.jit.export
    def polarisation_sums(self, weights: Tensor, charges: Tensor) -> Tensor:
        """See ``response.polarisation_sums``; sums of N processes add up."""
        return polarisation_sums(weights, charges, self.long_range.remove_mean)

    @torch.jit.export
    def pull_back_weights(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        state: List[Tensor],  # noqa: UP006
        weights: Tensor,
    ) -> Tensor:
        """Derivatives [K, E, 3] of Σ_j ``weights``[:, j] q_j, in e/Å times the unit of ``weights`` [K, N].

        Other parameters as in ``pull_back``. A node whose charge belongs to another process has weights of zero.
        """
        no_energy = torch.zeros([1, types.size(0)], dtype=torch.float64, device=types.device)
        if self.is_local:
            mine = (weights != 0.0).any(0).to(torch.float64)
            of_sum = self._pull_back_all(
                edge_vectors, edge_index, types, state, no_energy, mine[None, :, None].repeat(1, 1, self.num_charges)
            )
            return weights.index_select(1, edge_index[0]).unsqueeze(2) * of_sum
        cotangents = weights.unsqueeze(2).repeat(1, 1, self.num_charges)
        return self._pull_back_all(
            edge_vectors, edge_index, types, state, no_energy.expand(weights.size(0), -1), cotangents
        )

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
        """``pull_back`` and ``pull_back_weights`` together, which costs less than one after the other."""
        if self.is_local:
            energy_cotangents = torch.stack([energy_cotangent, torch.zeros_like(energy_cotangent)])
            mine = (weights != 0.0).any(0).to(torch.float64).unsqueeze(1)
            cotangents = torch.stack([charge_cotangent, mine.expand_as(charge_cotangent)])
            both = self._pull_back_all(edge_vectors, edge_index, types, state, energy_cotangents, cotangents)
            return both[0], weights.index_select(1, edge_index[0]).unsqueeze(2) * both[1]
        no_energy = torch.zeros_like(energy_cotangent).expand(weights.size(0), -1)
        energy_cotangents = torch.cat([energy_cotangent.unsqueeze(0), no_energy])
        of_weights = weights.unsqueeze(2).expand(-1, -1, self.num_charges)
        cotangents = torch.cat([charge_cotangent.unsqueeze(0), of_weights])
        all_of_them = self._pull_back_all(edge_vectors, edge_index, types, state, energy_cotangents, cotangents)
        return all_of_them[0], all_of_them[1:]

    def _pull_back_all(
        self,
        edge_vectors: Tensor,
        edge_index: Tensor,
        types: Tensor,
        state: List[Tensor],  # noqa: UP006
        energy_cotangents: Tensor,
        charge_cotangents: Tensor,
    ) -> Tensor:
        return self.evaluation.pull_back_all(
            edge_vectors, edge_index, types, state, energy_cotangents, self._signed(charge_cotangents)
        )

    @torch.jit.export
    def born_effective_charges_of(
        self, charges: Tensor, mean_charge: Tensor, pulled_back: Tensor, positions: Tensor, cell: Tensor
    ) -> Tensor:
        """See ``response.born_effective_charges``."""
        return born_effective_charges(
            charges,
            mean_charge,
            pulled_back,
            positions,
            cell,
            self.long_range.is_isolated(cell),
            self.long_range.epsilon_factor,
        )

    @torch.jit.export
    def field_terms(
        self, charges: Tensor, mean_charge: Tensor, weights: Tensor, positions: Tensor, field: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See ``response.field_terms``; for an isolated system."""
        return field_terms(charges, mean_charge, weights, positions, field, self.long_range.epsilon_factor)

    @torch.jit.export
    def field_rows(self, cell: Tensor, field: Tensor) -> Tensor:
        """See ``response.field_rows``; for a periodic system."""
        return field_rows(cell, field)

    @torch.jit.export
    def field_forces(self, tensors: Tensor, field: Tensor) -> Tensor:
        """See ``response.field_forces``; for a periodic system."""
        return field_forces(tensors, field)
