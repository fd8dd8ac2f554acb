"""Latent Ewald Summation as a module that any potential can call in training: batches, second derivatives, scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Dict, Optional  # noqa: UP035  (TorchScript knows only these)

import torch
from torch import Tensor

from les_md.charge_head import LatentChargeHead
from les_md.electrostatics.batched_ewald import (
    batched_phases,
    batched_reciprocal_energy,
    batched_reciprocal_potential,
    batched_reciprocal_weights,
    batched_structure_factor,
    batched_wave_vector_limits,
)
from les_md.electrostatics.batched_isolated import batched_pair_potential
from les_md.electrostatics.batched_multipole_sums import (
    batched_multipole_sums,
    dipoles_in_external_field,
    induced_multipoles,
)
from les_md.electrostatics.batched_response import batched_born_effective_charges
from les_md.electrostatics.isolated import gaussian_self_potential
from les_md.electrostatics.latent_inputs import (
    field_of_configurations,
    quadrupoles_of_channels,
    scalars_of_channels,
    vectors_of_channels,
)
from les_md.electrostatics.padded_groups import (
    Arrangement,
    padded_atoms,
    padded_groups,
    pairs_of_isolated,
    self_interaction_sign,
)
from les_md.electrostatics.parameters import NORM_FACTOR_2026, LongRangeParameters
from les_md.fixed_charges import FixedAtomicCharges


class Les(torch.nn.Module):
    """Long-range energy of latent charges for batches of configurations (Cheng, npj Comput. Mater. 11, 80 (2025)).

    The sum is exact and truncated as ``les_md`` runs it in MD: over the wave vectors |k| ≤ 2π/dl with
    |n_a| ≤ max(1, ⌊|h_a|/dl⌋) for a configuration with any periodic axis, over all pairs for an isolated one; both
    kinds, and any sizes and cells, may stand in one batch. Energies are functions of positions, cell and charges that
    can be differentiated twice: forces and stress are derivatives of the energy that the caller takes, and can be
    trained on. The module has no parameters of its own but those of a charge head, works in float32 and float64, on
    any device, and scripts.

    Besides charges, atoms may have latent dipoles and quadrupoles, and a softness κ and polarisability α by which
    charges and dipoles are induced, once: Δq = −κ φ and Δu = α E with potential and field of the permanent sources,
    which lower the energy by ½ κ φ² + ½ α E² (Kim et al., arXiv:2605.05746; ``docs/theory.md``).

    Parameters
    ----------
    sigma : width of the Gaussian charges, Å.
    dl : resolution of the reciprocal sum, Å.
    norm_factor : the constant C in eV Å/e²: 90.4756, or 90.0474 to go on with models of before April 2026.
    remove_self_interaction : subtract the interaction of each Gaussian with itself.
    remove_mean : subtract the mean charge of each configuration in the polarisation.
    epsilon_factor : the polarisation is multiplied by the square root of this.
    use_atomwise : make charges of descriptors, by a ``LatentChargeHead``, instead of getting them from the caller.
    n_in : length of the descriptors; needed with ``use_atomwise``.
    n_layers, n_hidden, add_linear_nn, output_scaling_factor, num_charges : of the charge head.
    use_fixed_atomic_charges : add a fixed charge of its element to the charge of each atom (one channel only).
    fixed_atomic_charges : those charges in e, by symbol or atomic number; needed with ``use_fixed_atomic_charges``.
        (The library ``les`` has a table of one typical oxidation state for each element, halved by a scaling factor of
        0.5. Which oxidation state is typical depends on the material, so here they have to be given.)
    fixed_atomic_charges_scaling_factor : the fixed charges are multiplied by this.

    Raises
    ------
    ValueError : a parameter is not a positive number, or ``use_atomwise`` and ``n_in``, or
        ``use_fixed_atomic_charges`` and ``fixed_atomic_charges``, do not go together.
    """

    def __init__(
        self,
        sigma: float = 1.0,
        dl: float = 2.0,
        norm_factor: float = NORM_FACTOR_2026,
        remove_self_interaction: bool = True,
        remove_mean: bool = True,
        epsilon_factor: float = 1.0,
        use_atomwise: bool = False,
        n_in: int | None = None,
        n_layers: int = 3,
        n_hidden: int | Sequence[int] = (32, 16),
        add_linear_nn: bool = True,
        output_scaling_factor: float = 0.1,
        num_charges: int = 1,
        use_fixed_atomic_charges: bool = False,
        fixed_atomic_charges: Mapping[int | str, float] | None = None,
        fixed_atomic_charges_scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        LongRangeParameters(sigma, dl, norm_factor, remove_self_interaction, remove_mean, epsilon_factor)  # checks
        self.sigma: float = float(sigma)
        self.dl: float = float(dl)
        self.norm_factor: float = float(norm_factor)
        self.remove_self_interaction: bool = bool(remove_self_interaction)
        self.remove_mean: bool = bool(remove_mean)
        self.epsilon_factor: float = float(epsilon_factor)
        if use_atomwise != (n_in is not None):
            raise ValueError("a charge head needs both use_atomwise=True and n_in, the length of the descriptors")
        self.atomwise: LatentChargeHead | None = None
        if n_in is not None:
            self.atomwise = LatentChargeHead(
                n_in, n_layers, n_hidden, add_linear_nn, output_scaling_factor, num_charges
            )
        if use_fixed_atomic_charges != (fixed_atomic_charges is not None):
            raise ValueError("fixed charges need both use_fixed_atomic_charges=True and fixed_atomic_charges")
        self.fixed_charges = None
        if fixed_atomic_charges is not None:
            self.fixed_charges = FixedAtomicCharges(fixed_atomic_charges, fixed_atomic_charges_scaling_factor)

    def __setstate__(self, state: dict) -> None:
        """Modules pickled before there were fixed charges have none."""
        if "fixed_charges" not in state and "fixed_charges" not in state["_modules"]:
            state = {**state, "fixed_charges": None}
        super().__setstate__(state)

    def forward(
        self,
        positions: Tensor,
        cell: Tensor,
        desc: Optional[Tensor] = None,  # noqa: UP045
        latent_charges: Optional[Tensor] = None,  # noqa: UP045
        batch: Optional[Tensor] = None,  # noqa: UP045
        pbc: Optional[Tensor] = None,  # noqa: UP045
        compute_energy: bool = True,
        compute_potential: bool = False,
        compute_bec: bool = False,
        bec_output_index: Optional[int] = None,  # noqa: UP045
        latent_dipoles: Optional[Tensor] = None,  # noqa: UP045
        latent_quadrupoles: Optional[Tensor] = None,  # noqa: UP045
        latent_kappas: Optional[Tensor] = None,  # noqa: UP045
        latent_alphas: Optional[Tensor] = None,  # noqa: UP045
        atomic_numbers: Optional[Tensor] = None,  # noqa: UP045
        external_field: Optional[Tensor] = None,  # noqa: UP045
        compute_field: bool = False,
    ) -> Dict[str, Optional[Tensor]]:  # noqa: UP006, UP045
        """Energies of B configurations with N atoms in all.

        Parameters
        ----------
        positions : [N, 3] Å.
        cell : [B, 3, 3] Å (or [3, 3]), rows are lattice vectors; zeros for an isolated configuration.
        desc : [N, n_in], what the charge head makes charges of.
        latent_charges : [N] or [N, n_q] e, instead of ``desc``. Channels never mix; their energies add up.
        batch : [N] int64, the configuration of each atom, in any order; not needed for a single configuration.
        pbc : [B, 3] bool (or [3]); a configuration without periodic axis is isolated whatever its cell. Without it the
            cell decides. Configurations that are periodic along some axes are summed like periodic ones.
        compute_energy, compute_potential, compute_bec, compute_field : what is wanted.
        bec_output_index : the only polarisation axis (0, 1, 2) wanted of the Born effective charges.
        latent_dipoles : [N, 3] or [N, n_q, 3] e Å.
        latent_quadrupoles : [N, 3, 3] or [N, n_q, 3, 3] e Å², of which the symmetric traceless part is used.
        latent_kappas, latent_alphas : [N] or [N, n_q], softness κ in e²/eV and isotropic polarisability α in e² Å²/eV;
            both are meant to be ≥ 0. Polarisability tensors [N, 3, 3] are not taken.
        atomic_numbers : [N], only needed with ``use_fixed_atomic_charges``.
        external_field : uniform field on the dipoles, [3] or [B, 3] in V/Å: it adds to E, so that Δu = α (E + E_ext),
            and −u·E_ext to the energy. Charges do not feel it: in a periodic cell they have no energy in a uniform
            field, their force is that of the Born effective charges.

        Returns
        -------
        A dictionary; what was not asked for is None.

        E_lr : [B] eV.
        latent_charges : as given, or of the charge head, with the fixed charges, e.
        potential : φ of the permanent sources in eV/e, shaped like the charges: ∂E_lr/∂q where nothing is induced.
        field : E of the permanent sources, with ``external_field``, in eV/(e Å), [N, n_q, 3] ([N, 3] if the charges
            are [N]): −∂E_lr/∂u where nothing is induced.
        induced_charges, induced_dipoles : Δq in e, shaped like the charges, and Δu in e Å, shaped like the field; None
            without κ or α, or if none of energy, potential, field and Born charges was asked for.
        BEC : [N, 3, 3] e, polarisation index first ([N, 3] with ``bec_output_index``), of the polarisation
            Σ (q + Δq − mean) r + Σ (u + Δu). ``positions`` must require a gradient and the latent variables be
            functions of them. In training mode it can be differentiated further.

        Raises
        ------
        ValueError (RuntimeError from a script) : shapes, types, configuration indices or cells that do not fit.
        """
        if latent_charges is None:
            if desc is None:
                raise ValueError("give latent_charges, or desc to a module with a charge head (use_atomwise=True)")
            latent_charges = self._charges_of(desc)
        charges = latent_charges[:, None] if latent_charges.dim() == 1 else latent_charges
        if self.fixed_charges is not None:
            if atomic_numbers is None:
                raise ValueError("a module with use_fixed_atomic_charges=True needs atomic_numbers")
            if charges.dim() == 2 and charges.size(0) == positions.size(0):  # (others are refused below)
                charges = self.fixed_charges(charges, atomic_numbers)
                latent_charges = charges.reshape(latent_charges.shape)
        if cell.dim() == 2:
            cell = cell[None]
        if batch is None:
            if cell.size(0) != 1:
                raise ValueError("several cells need batch, the configuration of each atom")
            batch = torch.zeros(positions.size(0), dtype=torch.int64, device=positions.device)
        self._check(positions, cell, charges, batch)
        isolated = (cell == 0.0).flatten(1).all(1)
        if pbc is not None:
            if pbc.dtype != torch.bool or pbc.numel() != 3 * cell.size(0):
                raise ValueError("pbc must hold three booleans for each of the cells")
            open_axes = ~pbc.reshape(-1, 3).to(cell.device).any(1)
            if bool((isolated & ~open_axes).any().item()):
                raise ValueError("a configuration with a periodic axis has a cell of zeros: give its cell")
            isolated = open_axes
        num_configurations = cell.size(0)
        counts = torch.zeros(num_configurations, dtype=torch.int64, device=cell.device)
        counts = counts.index_add(0, batch, torch.ones_like(batch))

        # Empty tensors stand for what there is none of.
        dipoles, quadrupoles = charges.new_zeros([0, 0, 3]), charges.new_zeros([0, 0, 3, 3])
        kappas, alphas = charges.new_zeros([0, 0]), charges.new_zeros([0, 0])
        if latent_dipoles is not None:
            dipoles = vectors_of_channels(latent_dipoles, charges)
        if latent_quadrupoles is not None:
            quadrupoles = quadrupoles_of_channels(latent_quadrupoles, charges)
        if latent_kappas is not None:
            kappas = scalars_of_channels("latent_kappas", latent_kappas, charges)
        if latent_alphas is not None:
            alphas = scalars_of_channels("latent_alphas", latent_alphas, charges)
        if external_field is not None:
            if latent_dipoles is None and latent_alphas is None:
                raise ValueError("external_field acts on latent_dipoles and through latent_alphas: give either")
            external_field = field_of_configurations(external_field, num_configurations, charges)
        responds = latent_kappas is not None or latent_alphas is not None
        has_multipoles = latent_dipoles is not None or latent_quadrupoles is not None

        energy: Optional[Tensor] = None  # noqa: UP045
        potential: Optional[Tensor] = None  # noqa: UP045
        field: Optional[Tensor] = None  # noqa: UP045
        induced_charges: Optional[Tensor] = None  # noqa: UP045
        induced_dipoles: Optional[Tensor] = None  # noqa: UP045
        all_charges, all_dipoles = charges.sum(1), dipoles.sum(1)
        vector_shape = [charges.size(0), 3] if latent_charges.dim() == 1 else [charges.size(0), charges.size(1), 3]
        if has_multipoles or responds or compute_field:
            if compute_energy or compute_potential or compute_field or (compute_bec and responds):
                energies, potentials, fields = batched_multipole_sums(
                    positions,
                    charges,
                    dipoles,
                    quadrupoles,
                    batch,
                    isolated,
                    counts,
                    self._arranged(cell, batch, isolated, counts),
                    self.sigma,
                    self.dl,
                    self.norm_factor,
                    self.remove_self_interaction,
                    compute_potential or compute_field or responds,
                )
                if external_field is not None:
                    energies, fields = dipoles_in_external_field(energies, fields, dipoles, external_field, batch)
                if responds:
                    of_induced, delta_q, delta_u = induced_multipoles(potentials, fields, kappas, alphas)
                    energies = energies.index_add(0, batch, of_induced)
                    if latent_kappas is not None:
                        induced_charges = delta_q.reshape(latent_charges.shape)
                        all_charges = all_charges + delta_q.sum(1)
                    if latent_alphas is not None:
                        induced_dipoles = delta_u.reshape(vector_shape)
                        all_dipoles = delta_u.sum(1) if latent_dipoles is None else all_dipoles + delta_u.sum(1)
                if compute_energy:
                    energy = energies
                if compute_potential:
                    potential = potentials.reshape(latent_charges.shape)
                if compute_field:
                    field = fields.reshape(vector_shape)
        elif compute_energy or compute_potential:
            energies, potentials = self._sums(positions, cell, charges, batch, isolated, counts, compute_potential)
            if compute_energy:
                energy = energies
            if compute_potential:
                potential = potentials.reshape(latent_charges.shape)
        born: Optional[Tensor] = None  # noqa: UP045
        if compute_bec:
            if not (positions.requires_grad and torch.is_grad_enabled()):
                raise ValueError("Born effective charges need positions that require a gradient, not under no_grad")
            born = batched_born_effective_charges(
                all_charges,
                all_dipoles,
                positions,
                cell,
                isolated,
                batch,
                counts,
                self.remove_mean,
                self.epsilon_factor,
                self.training,
            )
            if bec_output_index is not None:
                if bec_output_index < 0 or bec_output_index > 2:
                    raise ValueError(f"bec_output_index must be 0, 1 or 2, not {bec_output_index}")
                born = born[:, bec_output_index]
        return {
            "E_lr": energy,
            "latent_charges": latent_charges,
            "induced_charges": induced_charges,
            "induced_dipoles": induced_dipoles,
            "potential": potential,
            "field": field,
            "BEC": born,
        }

    def _charges_of(self, descriptors: Tensor) -> Tensor:
        if self.atomwise is None:
            raise ValueError("no charge head: make the module with use_atomwise=True and n_in, or give latent_charges")
        return self.atomwise(descriptors)

    def _check(self, positions: Tensor, cell: Tensor, charges: Tensor, batch: Tensor) -> None:
        num_atoms = positions.size(0)
        if positions.dim() != 2 or positions.size(1) != 3:
            raise ValueError(f"positions must be [N, 3], not {list(positions.shape)}")
        if cell.dim() != 3 or cell.size(1) != 3 or cell.size(2) != 3:
            raise ValueError(f"cell must be [B, 3, 3] or [3, 3], not {list(cell.shape)}")
        if charges.dim() != 2 or charges.size(0) != num_atoms:
            raise ValueError(f"charges must be [{num_atoms}] or [{num_atoms}, n_q], not {list(charges.shape)}")
        if batch.dim() != 1 or batch.size(0) != num_atoms or batch.dtype != torch.int64:
            raise ValueError(f"batch must be [{num_atoms}] of type int64, not {list(batch.shape)} of {batch.dtype}")
        if positions.dtype != cell.dtype or positions.dtype != charges.dtype or not positions.is_floating_point():
            raise ValueError(
                f"positions ({positions.dtype}), cell ({cell.dtype}) and charges ({charges.dtype}) must have one "
                "floating-point type"
            )
        if bool(((batch < 0) | (batch >= cell.size(0))).any().item()):
            raise ValueError(f"batch holds indices outside 0 to {cell.size(0) - 1}: one cell for each configuration")

    def _sums(
        self,
        positions: Tensor,
        cell: Tensor,
        charges: Tensor,
        batch: Tensor,
        isolated: Tensor,
        counts: Tensor,
        compute_potential: bool,
    ) -> tuple[Tensor, Tensor]:
        """Energies [B] and, if wanted, potential [N, n_q]."""
        arranged = self._arranged(cell, batch, isolated, counts)
        # Sign of the self-interaction: the reciprocal sum has it, the sum over pairs has not.
        sign = self_interaction_sign(isolated, self.remove_self_interaction, charges.dtype)
        self_potential = gaussian_self_potential(self.sigma, self.norm_factor)
        potential = (self_potential * sign).index_select(0, batch)[:, None] * charges
        energy = torch.zeros(cell.size(0), dtype=charges.dtype, device=charges.device)
        energy = energy.index_add(0, batch, 0.5 * (charges * potential).sum(1))
        # (without anything to sum, an empty list still makes the energy a function of the positions)
        if arranged.num_pairs > 0 or len(arranged.groups) == 0:
            first, second = pairs_of_isolated(batch, isolated, counts, arranged.order, arranged.num_pairs)
            of_pairs = batched_pair_potential(positions, charges, first, second, self.sigma, self.norm_factor)
            energy = energy.index_add(0, batch, 0.5 * (charges * of_pairs).sum(1))
            if compute_potential:
                potential = potential + of_pairs

        for group, size in arranged.groups:
            chosen, atoms, inside = padded_atoms(group, size[0], counts, arranged.order)
            group_cells = arranged.cells.index_select(0, chosen)
            group_positions = positions.index_select(0, atoms).reshape(len(group), size[0], 3)
            group_charges = charges.index_select(0, atoms).reshape(len(group), size[0], -1) * inside[:, :, None]
            weight = batched_reciprocal_weights(
                group_cells, arranged.limits.index_select(0, chosen), size[1:], self.sigma, self.dl, self.norm_factor
            )
            plane, column = batched_phases(group_positions, group_cells, size[1:])
            structure = batched_structure_factor(group_charges, plane, column, size[1:])
            energy = energy.index_add(0, chosen, batched_reciprocal_energy(structure, weight))
            if compute_potential:
                padded = batched_reciprocal_potential(structure, weight, plane, column) * inside[:, :, None]
                potential = potential.index_add(0, atoms, padded.flatten(0, 1))
        return energy, potential

    def _arranged(self, cell: Tensor, batch: Tensor, isolated: Tensor, counts: Tensor) -> Arrangement:
        """What is summed together."""
        order = torch.argsort(batch, stable=True)
        limits = batched_wave_vector_limits(cell, self.dl)
        # The order of the lattice vectors is free: with the longest one last, least is padded and kept.
        limits, axes = torch.sort(limits, dim=1, stable=True)
        cell = torch.gather(cell, 1, axes[:, :, None].expand(-1, -1, 3))
        # The only numbers that have to reach the host: sizes decide about shapes.
        if torch.jit.is_scripting():
            groups, num_pairs = self._groups(cell, isolated, counts, limits)
        else:
            groups, num_pairs = _groups_outside_graphs(self, cell, isolated, counts, limits)
        return Arrangement(order, limits, cell, groups, num_pairs)

    def _groups(
        self, cell: Tensor, isolated: Tensor, counts: Tensor, limits: Tensor
    ) -> tuple[list[tuple[list[int], list[int]]], int]:
        """Periodic configurations in groups of one padded size; number of pairs of the isolated ones."""
        edges = torch.linalg.vector_norm(cell.detach(), dim=2)
        regular = torch.abs(torch.linalg.det(cell.detach())) > 1e-6 * edges.prod(1)
        singular = ~(isolated | regular)
        work = counts * (limits + 1).prod(1)
        table = torch.cat([counts[:, None], limits, isolated[:, None].long(), singular[:, None].long()], dim=1)
        by_work = torch.argsort(work, descending=True)
        rows: list[list[int]] = torch.cat([by_work[:, None], table.index_select(0, by_work)], dim=1).tolist()
        members: list[int] = []
        sizes: list[list[int]] = []
        num_pairs = 0
        for row in rows:
            if row[6] == 1:
                raise ValueError(
                    f"the cell of configuration {row[0]} is singular; a configuration without a periodic axis has a "
                    "cell of zeros, one with any has three independent lattice vectors"
                )
            if row[5] == 1:
                num_pairs += row[1] * (row[1] - 1) // 2
            elif row[1] > 0:
                members.append(row[0])
                sizes.append(row[1:5])
        return padded_groups(members, sizes), num_pairs


#: Where torch.compile breaks its graph: what follows is compiled for sizes, not for how they were found.
_groups_outside_graphs = torch.compiler.disable(Les._groups)
