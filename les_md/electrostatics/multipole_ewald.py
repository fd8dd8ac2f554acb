r"""The long-range energy of latent charges, dipoles and quadrupoles, and of what these induce.

Kim et al., arXiv:2605.05746. The steps are those of ``latent_ewald.py``, and so are the plan, the densities and their
reduction over processes: the formulas are in ``multipole_*.py``. All sources are Gaussians of the one width σ.

With the permanent sources s and the symmetric matrix A of their interaction, E = ½ sᵀA s − ½ φᵀD φ, where φ = A s are
the values at the atoms (self-interaction removed as in the energy) and D holds κ for charges and α for dipoles: the
induced sources t = −D φ answer once and do not see each other. Then

    ∂E/∂s = A(s + t),   ∂E/∂κ = −½ φ_q²,   ∂E/∂α = −½ |φ_u|²,   dE = ½ sᵀ dA s + tᵀ dA s,   E = ½ sᵀ A(s + t),

so one more round of spread, solve and gather, of t, gives all derivatives.
"""

from __future__ import annotations

from typing import Dict, List  # noqa: UP035  (TorchScript knows only these)

import torch
from torch import Tensor

from les_md.electrostatics.ewald import half_space_limits, reciprocal_values, structure_factor
from les_md.electrostatics.latent_ewald import LatentEwald
from les_md.electrostatics.latent_layout import LatentLayout
from les_md.electrostatics.latent_planner import three_integers
from les_md.electrostatics.mesh import mesh_structure_factor, mesh_values
from les_md.electrostatics.multipole_pairs import multipole_pair_values
from les_md.electrostatics.multipole_reciprocal import combined_structure_factor, expanded_field, wave_vectors
from les_md.electrostatics.multipole_slab import multipole_slab_moments, multipole_slab_values
from les_md.electrostatics.multipole_sources import fixed_multipoles_strain, padded, self_values
from les_md.electrostatics.parameters import LongRangeParameters


class MultipoleEwald(LatentEwald):
    """``LatentEwald`` for a layout with more than charges.

    What is ``charges`` [N, n_q] there is ``latent`` [N, num_columns] here, and ``potential`` the derivative of the
    energy with respect to these columns. An isolated system is summed over all pairs: it has no mesh.

    Parameters: ``layout`` of the latent variables.
    """

    def __init__(self, parameters: LongRangeParameters, layout: LatentLayout) -> None:
        super().__init__(parameters)
        self.num_charges: int = layout.num_charges
        self.has_dipoles: bool = layout.dipoles
        self.has_quadrupoles: bool = layout.quadrupoles
        self.has_kappas: bool = layout.kappas
        self.has_alphas: bool = layout.alphas
        self.responds: bool = layout.responds
        self.num_latent_sources: int = layout.num_sources
        self.order: int = 2 if layout.quadrupoles else 1 if layout.dipoles or layout.alphas else 0
        # Factors k of the sources weigh short waves more, whose relative error on the mesh is larger. Measured, on
        # random systems, randomly turned molecules and water, up to 1.9 (dipoles alone) and 7.9 (quadrupoles alone) of
        # what the estimate for charges says.
        self.periodic_error_factor = (1.0, 2.5, 10.0)[self.order]

    def _plan_periodic(
        self, cell: Tensor, kset_cell: Tensor, num_atoms: int, kspace: str, accuracy: float, slab: bool
    ) -> Dict[str, Tensor]:  # noqa: UP006
        plan = self._plan_charges(cell, kset_cell, num_atoms, kspace, accuracy, slab)
        plan["waves"] = wave_vectors(cell, half_space_limits(plan["weight"]))
        return plan

    def _plan_isolated(
        self, cell: Tensor, bounds: Tensor, num_atoms: int, kspace: str, accuracy: float
    ) -> Dict[str, Tensor]:  # noqa: UP006
        if kspace == "mesh":
            raise RuntimeError(
                "an isolated system of latent dipoles, quadrupoles, kappas or alphas has no mesh: use kspace auto or "
                "ewald, the sum over all pairs"
            )
        return {"solver": torch.tensor(2), "cell": cell}

    def sources_of(self, latent: Tensor) -> Tensor:
        """Permanent sources [N, M] from the latent variables: dipoles of zero where only α asks for the field."""
        n = self.num_charges
        parts = [latent[:, :n]]
        if self.has_dipoles:
            parts.append(latent[:, n : 4 * n])
        elif self.order > 0:
            parts.append(torch.zeros([latent.size(0), 3 * n], dtype=latent.dtype, device=latent.device))
        if self.has_quadrupoles:
            parts.append(latent[:, self.num_latent_sources - 6 * n : self.num_latent_sources])
        return torch.cat(parts, dim=1)

    def _columns_of(self, values: Tensor) -> Tensor:
        """Derivatives with respect to the latent sources from those with respect to all sources [N, M]."""
        n = self.num_charges
        if self.has_dipoles or self.order == 0:
            return values[:, : self.num_latent_sources]
        return torch.cat([values[:, :n], values[:, 4 * n :]], dim=1)

    @torch.jit.export
    def spread(self, positions: Tensor, charges: Tensor, plan: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
        """As ``LatentEwald.spread``, of the permanent sources."""
        return self._spread_sources(positions, self.sources_of(charges), plan)

    def _spread_sources(self, positions: Tensor, sources: Tensor, plan: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
        solver = int(plan["solver"].item())
        if solver == 2:
            return torch.cat([positions, sources], dim=1).reshape(-1)
        cell = plan["cell"]
        if solver == 1:
            rows = mesh_structure_factor(
                positions, sources, cell, three_integers(plan["shape"]), plan["polynomials"], plan["deconvolution"]
            )
        else:
            rows = structure_factor(positions, sources, cell, half_space_limits(plan["weight"]))
        density = combined_structure_factor(rows, plan["waves"], self.num_charges).reshape(-1)
        if bool(plan["slab"].item()):
            moments = multipole_slab_moments(positions, sources, self.num_charges, cell)
            density = torch.cat([density, moments.reshape(-1)])
        return density

    def _values(
        self,
        field: Tensor,
        positions: Tensor,
        source_columns: int,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor]:
        """Values [N, M] of ``self.order`` of a field, self-interaction included, and their gradients [N, M, 3].

        ``source_columns`` of the sources that the field is of.
        """
        solver = int(plan["solver"].item())
        if solver == 2:
            atoms = field.reshape(-1, 3 + source_columns)
            return multipole_pair_values(
                positions, atoms[:, :3], atoms[:, 3:], self.num_charges, self.order, self.sigma, self.norm_factor
            )
        cell, weight, waves = plan["cell"], plan["weight"], plan["waves"]
        moments = 3 * self.num_charges if bool(plan["slab"].item()) else 0
        half_space = field[: field.size(0) - moments].reshape(
            self.num_charges, weight.size(0), weight.size(1), weight.size(2), 2
        )
        rows = expanded_field(half_space, waves, self.order)
        if solver == 1:
            values, gradients = mesh_values(
                rows, positions, cell, three_integers(plan["shape"]), plan["polynomials"], plan["deconvolution"]
            )
        else:
            values, gradients = reciprocal_values(rows, positions, cell)
        if moments > 0:
            slab_moment = field[field.size(0) - moments :].reshape(self.num_charges, 3)
            slab_values, slab_gradients = multipole_slab_values(
                slab_moment, positions, self.order, cell, self.norm_factor
            )
            values, gradients = values + slab_values, gradients + slab_gradients
        return values, gradients

    def _strain_of_atoms(
        self,
        positions: Tensor,
        centre: Tensor,
        forces: Tensor,
        sources: Tensor,
        values: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> Tensor:
        """What atoms add to the strain derivative: all of it in an isolated system, elsewhere what ``solve`` lacks."""
        if int(plan["solver"].item()) != 2:
            return fixed_multipoles_strain(sources, values, self.num_charges)
        strain = -torch.matmul((positions - centre).transpose(0, 1), forces)
        return 0.5 * (strain + strain.transpose(0, 1))

    @torch.jit.export
    def gather(
        self,
        field: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``LatentEwald.gather``, of the permanent sources alone; potential [N, num_sources]."""
        sources = self.sources_of(charges)
        values, gradients = self._values(field, positions, sources.size(1), plan)
        forces = -(sources[:, :, None] * gradients).sum(1)
        centre = self._centre(field, sources.size(1), plan)
        strain_derivative = self._strain_of_atoms(positions, centre, forces, sources, values, plan)
        return self._columns_of(self._permanent_values(values, sources)), forces, strain_derivative

    def _permanent_values(self, values: Tensor, sources: Tensor) -> Tensor:
        """What induces: values without those of the atom's own sources, unless the energy has these."""
        if self.remove_self_interaction:
            return values - self_values(sources, self.num_charges, self.sigma, self.norm_factor)
        return values

    def _induced_sources(self, values: Tensor, latent: Tensor) -> Tensor:
        """Induced charges and, where there is α, dipoles: [N, n_q] or [N, 4 n_q]."""
        n, at = self.num_charges, self.num_latent_sources
        charges = torch.zeros_like(values[:, :n])
        if self.has_kappas:
            charges = -latent[:, at : at + n] * values[:, :n]
        if not self.has_alphas:
            return charges
        alphas = latent[:, latent.size(1) - n :].repeat_interleave(3, dim=1)
        return torch.cat([charges, -alphas * values[:, n : 4 * n]], dim=1)

    @torch.jit.export
    def spread_induced(
        self,
        field: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, List[Tensor]]:  # noqa: UP006
        """What the field of ``solve`` induces, spread like other sources: the density, and a state for
        ``gather_induced``.

        Densities of N processes are reduced as those of ``spread``.
        """
        sources = self.sources_of(charges)
        values, gradients = self._values(field, positions, sources.size(1), plan)
        induced = self._induced_sources(self._permanent_values(values, sources), charges)
        centre = self._centre(field, sources.size(1), plan)
        return self._spread_sources(positions, induced, plan), [values, gradients, sources, induced, centre]

    @torch.jit.export
    def solve_induced(
        self,
        density: Tensor,
        induced_density: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor]:
        """The field of the induced sources, and what they add to the strain derivative of ``solve``, [3, 3] eV.

        Parameters: densities of all atoms, that of ``spread`` and that of ``spread_induced``.
        """
        field, of_induced = self.solve(induced_density, self.num_charges, plan)
        if int(plan["solver"].item()) == 2:
            return field, of_induced
        # The derivative of tᵀA s, from those of the squares of s + t, s and t
        _field, of_both = self.solve(density + induced_density, self.num_charges, plan)
        _field, of_permanent = self.solve(density, self.num_charges, plan)
        return field, of_both - of_permanent - of_induced

    @torch.jit.export
    def gather_induced(
        self,
        induced_field: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
        state: List[Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``gather``, of permanent and induced sources together.

        Returns: derivative of the energy with respect to all latent variables [N, num_columns], forces [N, 3] eV/Å at
        fixed latent variables, and what these atoms add to the strain derivative [3, 3] eV.
        """
        values, gradients, sources, induced, centre = state[0], state[1], state[2], state[3], state[4]
        columns = sources.size(1)
        of_induced, gradients_of_induced = self._values(induced_field, positions, induced.size(1), plan)
        all_induced = padded(induced, columns)
        both = sources + all_induced
        forces = -(both[:, :, None] * gradients + sources[:, :, None] * gradients_of_induced).sum(1)
        if int(plan["solver"].item()) == 2:
            strain_derivative = self._strain_of_atoms(positions, centre, forces, sources, values, plan)
        else:
            strain_derivative = fixed_multipoles_strain(both, values, self.num_charges)
            strain_derivative = strain_derivative + fixed_multipoles_strain(sources, of_induced, self.num_charges)
        permanent = self._permanent_values(values, sources)
        parts = [self._columns_of(permanent + self._permanent_values(of_induced, all_induced))]
        n = self.num_charges
        if self.has_kappas:
            parts.append(-0.5 * permanent[:, :n] ** 2)
        if self.has_alphas:
            parts.append(-0.5 * (permanent[:, n : 4 * n] ** 2).reshape(-1, n, 3).sum(2))
        return torch.cat(parts, dim=1), forces, strain_derivative

    @torch.jit.export
    def total_charges(self, charges: Tensor, state: List[Tensor]) -> Tensor:  # noqa: UP006
        """Permanent and induced charges [N, n_q] from latent variables and the state of ``spread_induced`` (or []).

        Where no charges are induced these are the permanent ones.
        """
        permanent = charges[:, : self.num_charges]
        return permanent + state[3][:, : self.num_charges] if self.has_kappas else permanent

    @torch.jit.export
    def total_dipoles(self, charges: Tensor, state: List[Tensor]) -> Tensor:  # noqa: UP006
        """The same for dipoles, of all channels together, [N, 3]."""
        n = self.num_charges
        dipoles = torch.zeros([charges.size(0), 3], dtype=charges.dtype, device=charges.device)
        if self.has_dipoles:
            dipoles = dipoles + charges[:, n : 4 * n].reshape(-1, n, 3).sum(1)
        if self.has_alphas:
            dipoles = dipoles + state[3][:, n : 4 * n].reshape(-1, n, 3).sum(1)
        return dipoles

    @torch.jit.export
    def dipole_of_field(self, charges: Tensor, field: Tensor) -> Tensor:
        """Dipoles α E [N, 3] that a uniform ``field`` [3] induces."""
        if not self.has_alphas:
            return torch.zeros([charges.size(0), 3], dtype=charges.dtype, device=charges.device)
        return charges[:, charges.size(1) - self.num_charges :].sum(1, keepdim=True) * field

    # ---- Derivatives of a linear function G = Σ w·(s + t) of permanent and induced sources, such as the polarisation:
    # with τ = −D w, dG = w·ds + τᵀ d(A s) − (w·φ) dD. Weights w [K, N, C] are in the columns of charges and, where
    # there are any dipoles, of these.

    def _test_sources(self, weights: Tensor, latent: Tensor) -> Tensor:
        """τ of one row of weights [N, C]: [N, n_q] or [N, 4 n_q]."""
        n, at = self.num_charges, self.num_latent_sources
        charges = torch.zeros_like(weights[:, :n])
        if self.has_kappas:
            charges = -latent[:, at : at + n] * weights[:, :n]
        if not self.has_alphas:
            return charges
        alphas = latent[:, latent.size(1) - n :].repeat_interleave(3, dim=1)
        return torch.cat([charges, -alphas * weights[:, n : 4 * n]], dim=1)

    @torch.jit.export
    def spread_response(
        self,
        weights: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> Tensor:
        """Densities of τ of all rows of ``weights`` [K, N, C], one flat vector, reduced as that of ``spread`` is."""
        tests = [self._test_sources(row, charges) for row in weights]
        if int(plan["solver"].item()) == 2:
            return torch.cat([positions, torch.cat(tests, dim=1)], dim=1).reshape(-1)
        return torch.cat([self._spread_sources(positions, test, plan) for test in tests])

    @torch.jit.export
    def gather_response(
        self,
        density: Tensor,
        weights: Tensor,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
        state: List[Tensor],  # noqa: UP006
        field: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of Σ w·(s + t) for each row of weights, t that of ``spread_induced`` and ½ α ``field`` [3].

        Parameters: ``density`` of all atoms as ``spread_response`` gives it, ``state`` of ``spread_induced``; neither
        is looked at where nothing is induced.

        Returns: with respect to the latent variables [K, N, num_columns], and to positions at fixed latent variables
        [K, N, 3].
        """
        n = self.num_charges
        cotangents: list[Tensor] = []
        explicit: list[Tensor] = []
        columns = n if self.order == 0 else 4 * n if self.order == 1 else 10 * n
        for k in range(weights.size(0)):
            direct = padded(weights[k], columns)
            if not self.responds:
                cotangents.append(self._columns_of(direct))
                explicit.append(torch.zeros_like(positions))
                continue
            test = self._test_sources(weights[k], charges)
            values, gradients, sources = state[0], state[1], state[2]
            if int(plan["solver"].item()) == 2:
                atoms = density.reshape(-1, 3 + weights.size(0) * test.size(1))
                at = 3 + k * test.size(1)
                of_test = torch.cat([atoms[:, :3], atoms[:, at : at + test.size(1)]], dim=1).reshape(-1)
            else:
                size = density.size(0) // weights.size(0)
                of_test, _strain = self.solve(density[k * size : (k + 1) * size], n, plan)
            answer, gradients_of_answer = self._values(of_test, positions, test.size(1), plan)
            test = padded(test, columns)
            parts = [self._columns_of(direct + self._permanent_values(answer, test))]
            permanent = self._permanent_values(values, sources)
            if self.has_kappas:
                parts.append(-weights[k][:, :n] * permanent[:, :n])
            if self.has_alphas:
                against = permanent[:, n : 4 * n].reshape(-1, n, 3) - 0.5 * field
                parts.append(-(weights[k][:, n : 4 * n].reshape(-1, n, 3) * against).sum(2))
            cotangents.append(torch.cat(parts, dim=1))
            explicit.append((sources[:, :, None] * gradients_of_answer + test[:, :, None] * gradients).sum(1))
        return torch.stack(cotangents), torch.stack(explicit)

    def _centre(self, field: Tensor, source_columns: int, plan: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
        """Mean position [3] of all atoms of an isolated system."""
        if int(plan["solver"].item()) != 2:
            return torch.zeros(3, dtype=field.dtype, device=field.device)
        return field.reshape(-1, 3 + source_columns)[:, :3].mean(0)

    @torch.jit.export
    def energy(self, positions: Tensor, charges: Tensor, cell: Tensor) -> Tensor:
        """As ``LatentEwald.energy``."""
        energies, _potential, _forces, _strain = self.forward(positions, charges, self.direct_plan(cell))
        return energies.sum()

    def forward(
        self,
        positions: Tensor,
        charges: Tensor,
        plan: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As ``LatentEwald.forward``: energy per atom is half of sources times ``potential``."""
        density = self.spread(positions, charges, plan)
        field, strain_derivative = self.solve(density, self.num_charges, plan)
        if self.responds:
            induced_density, state = self.spread_induced(field, positions, charges, plan)
            induced_field, strain_of_induced = self.solve_induced(density, induced_density, plan)
            potential, forces, strain_of_atoms = self.gather_induced(induced_field, positions, charges, plan, state)
            strain_derivative = strain_derivative + strain_of_induced
        else:
            potential, forces, strain_of_atoms = self.gather(field, positions, charges, plan)
        return self.energies(charges, potential), potential, forces, strain_derivative + strain_of_atoms

    @torch.jit.export
    def energies(self, charges: Tensor, potential: Tensor) -> Tensor:
        """Energy per atom [N] in eV: half of the latent sources times their ``potential``."""
        sources = self.num_latent_sources
        return 0.5 * (charges[:, :sources] * potential[:, :sources]).sum(1)
