r"""CHGNet in the layout of the package chgnet, written over edge vectors: a short-range potential.

Source: Deng et al., Nat. Mach. Intell. 5, 1031 (2023).

Here both directions of a bond share their features, and a bond takes part in the angles at both of its ends:

    x_i   ← x_i   + W Σ_j g(x_i, e_ij, x_j) w(r_ij)                      over all neighbours within the cutoff
    e_ij  ← e_ij  + W (m_ij + m_ji) ,   m_ij = Σ_k g(e_ij, e_ik, a_jik, x_i) w'(r_ij) w'(r_ik)       over k ≠ j
    a_jik ← a_jik + g(e_ij, e_ik, a_jik, x_i)

with bonds in the second and third line up to the bond cutoff; the last block is its first line only. Each direction of
a bond keeps a copy of the features, and m_ji comes from the other one, found by its reversed vector. As in MatGL's
layout, b blocks need the edges of all atoms up to b − 1 bonds away, and the other direction may be missing where the
neighbour has no edges at all. (The package leaves the second line out of a structure that has no angle; here
its constant part, which only models of version 0.2.0 have, is there always.)

Lengths, angles and their basis functions are evaluated in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from les_md.architectures.chgnet_layers import (
    GatedPerceptron,
    Perceptron,
    RadialBasis,
    are_reverse,
    check_reverses,
    pairs_from,
)


@dataclass(frozen=True)
class UndirectedConfiguration:
    """Sizes and options of a CHGNet in the layout of the package chgnet.

    Attributes
    ----------
    num_types : number of elements.
    cutoff, bond_cutoff : Å; bonds up to the second take part in angles.
    cutoff_exponent : of the polynomial envelope.
    num_blocks : the receptive field is ``num_blocks`` cutoffs.
    num_radial, num_frequencies : radial functions; frequencies of the angular functions.
    atom_width, bond_width, angle_width : number of features.
    atom_hidden, bond_hidden, angle_hidden, readout_hidden : hidden widths.
    activation : a name in ``chgnet_layers.ACTIVATIONS``.
    layer_norm, readout_norm : layer normalisation in the gated perceptrons, and before the readout.
    output_bias : whether the map W has a constant part.
    """

    num_types: int
    cutoff: float
    bond_cutoff: float
    cutoff_exponent: int
    num_blocks: int
    num_radial: int
    num_frequencies: int
    atom_width: int
    bond_width: int
    angle_width: int
    atom_hidden: tuple[int, ...]
    bond_hidden: tuple[int, ...]
    angle_hidden: tuple[int, ...]
    readout_hidden: tuple[int, ...]
    activation: str
    layer_norm: bool
    readout_norm: bool
    output_bias: bool


class UndirectedCHGNetNetwork(torch.nn.Module):
    """Short-range energies of a CHGNet in the layout of the package chgnet."""

    def __init__(self, configuration: UndirectedConfiguration) -> None:
        super().__init__()
        c = configuration
        self.cutoff: float = float(c.cutoff)
        self.bond_cutoff: float = float(c.bond_cutoff)
        self.bond_expansion_atoms = RadialBasis(c.num_radial, c.cutoff, c.cutoff_exponent, of_value=False)
        self.bond_expansion_bonds = RadialBasis(c.num_radial, c.bond_cutoff, c.cutoff_exponent, of_value=False)
        self.angle_expansion = UndirectedAngularBasis(c.num_frequencies)
        self.atom_embedding = torch.nn.Embedding(c.num_types, c.atom_width)
        self.bond_embedding = torch.nn.Linear(c.num_radial, c.bond_width, bias=False)
        self.angle_embedding = torch.nn.Linear(2 * c.num_frequencies + 1, c.angle_width, bias=False)
        self.atom_weights = torch.nn.Linear(c.num_radial, c.atom_width, bias=False)
        self.bond_weights = torch.nn.Linear(c.num_radial, c.bond_width, bias=False)
        self.atom_layers = torch.nn.ModuleList(UndirectedAtomLayer(c) for _ in range(c.num_blocks))
        self.bond_layers = torch.nn.ModuleList(
            UndirectedBondLayer(c, updates_angles=i < c.num_blocks - 2) if i < c.num_blocks - 1 else NoBondLayer()
            for i in range(c.num_blocks)
        )
        self.readout_norm = torch.nn.LayerNorm(c.atom_width) if c.readout_norm else torch.nn.Identity()
        self.readout = Perceptron([c.atom_width, *c.readout_hidden, 1], c.activation, activate_last=False)

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [N] (without reference energies) and charge [N, 0].

        Parameters and errors as of ``CHGNetNetwork``.
        """
        dtype = self.atom_embedding.weight.dtype
        vectors = edge_vectors.to(torch.float64)
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        kept = (lengths.detach() < self.cutoff).nonzero()[:, 0]
        vectors, lengths = vectors.index_select(0, kept), lengths.index_select(0, kept)
        centre, neighbour = edge_index[0].index_select(0, kept), edge_index[1].index_select(0, kept)

        expansion = self.bond_expansion_atoms(lengths).to(dtype)
        atoms = self.atom_embedding(types)
        bonds = self.bond_embedding(expansion)
        atom_weights = self.atom_weights(expansion)

        inner = (lengths.detach() < self.bond_cutoff).nonzero()[:, 0]
        inner_vectors, inner_lengths = vectors.index_select(0, inner), lengths.index_select(0, inner)
        inner_centre = centre.index_select(0, inner)
        reverse, has_reverse = self._reverses(
            inner_vectors.detach(),
            inner_lengths.detach(),
            inner_centre,
            neighbour.index_select(0, inner),
            torch.zeros_like(types, dtype=torch.bool).index_fill(0, centre, True),
        )
        b, a = pairs_from(inner_centre, inner_centre, types.size(0))
        others = (b != a).nonzero()[:, 0]
        b, a = b.index_select(0, others), a.index_select(0, others)
        apex = inner_centre.index_select(0, b)
        cosine = (inner_vectors.index_select(0, a) * inner_vectors.index_select(0, b)).sum(1) / (
            inner_lengths.index_select(0, a) * inner_lengths.index_select(0, b)
        )
        angles = self.angle_embedding(self.angle_expansion(cosine).to(dtype))
        weights = self.bond_weights(self.bond_expansion_bonds(inner_lengths).to(dtype))

        for atom_layer, bond_layer in zip(self.atom_layers, self.bond_layers):  # noqa: B905
            atoms = atom_layer(atoms, bonds, centre, neighbour, atom_weights)
            bonds, angles = bond_layer(atoms, bonds, angles, inner, b, a, apex, reverse, has_reverse, weights)
        energy = self.readout(self.readout_norm(atoms))[:, 0]
        return energy, energy.new_zeros((types.size(0), 0))

    def _reverses(
        self, vectors: Tensor, lengths: Tensor, centre: Tensor, neighbour: Tensor, has_edges: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The other direction of each bond [B], and whether there is one (else the bond itself is given)."""
        b, a = pairs_from(centre, neighbour, has_edges.size(0))
        matches = are_reverse(b, a, vectors, centre, neighbour).nonzero()[:, 0]
        b, a = b.index_select(0, matches), a.index_select(0, matches)
        found = torch.zeros_like(centre).index_add(0, b, torch.ones_like(b))
        check_reverses(found, lengths, neighbour, has_edges, self.bond_cutoff)
        itself = torch.arange(centre.size(0), device=centre.device)
        return itself.index_copy(0, b, a), found > 0


class UndirectedAngularBasis(torch.nn.Module):
    """1/√2, sin(f_n θ), cos(f_n θ) over √π, with trained frequencies f."""

    def __init__(self, num_frequencies: int) -> None:
        super().__init__()
        self.frequencies = torch.nn.Parameter(torch.arange(1, num_frequencies + 1).to(torch.get_default_dtype()))
        #: Rounded as in the models' training.
        self.constant: float = float(1.0 / torch.sqrt(torch.tensor(2.0, dtype=torch.float32)))

    def forward(self, cosine: Tensor) -> Tensor:
        """[A, 1 + 2 n] from the ``cosine`` [A] of the angle, float64."""
        # The factor, which keeps the derivative finite, belongs to the trained model.
        theta = torch.acos(cosine * (1.0 - 1e-6))
        phase = theta[:, None] * self.frequencies.to(theta.dtype)
        constant = torch.full_like(theta[:, None], self.constant)
        return torch.cat([constant, torch.sin(phase), torch.cos(phase)], dim=1) / math.sqrt(math.pi)


class UndirectedAtomLayer(torch.nn.Module):
    """First line of a block."""

    def __init__(self, configuration: UndirectedConfiguration) -> None:
        super().__init__()
        c = configuration
        self.message = GatedPerceptron(
            [2 * c.atom_width + c.bond_width, *c.atom_hidden, c.atom_width], c.activation, normalise_last=c.layer_norm
        )
        self.out = torch.nn.Linear(c.atom_width, c.atom_width, bias=c.output_bias)

    def forward(self, atoms: Tensor, bonds: Tensor, centre: Tensor, neighbour: Tensor, atom_weights: Tensor) -> Tensor:
        """Atoms [N, F] after the layer."""
        inputs = torch.cat([atoms.index_select(0, centre), bonds, atoms.index_select(0, neighbour)], dim=1)
        messages = self.message(inputs) * atom_weights
        return atoms + self.out(torch.zeros_like(atoms).index_add(0, centre, messages))


class UndirectedBondLayer(torch.nn.Module):
    """Second and third line of a block."""

    def __init__(self, configuration: UndirectedConfiguration, updates_angles: bool) -> None:
        super().__init__()
        c = configuration
        num_inputs = 2 * c.bond_width + c.angle_width + c.atom_width
        # The last layer's angles are used nowhere.
        self.updates_angles: bool = updates_angles
        self.message = GatedPerceptron(
            [num_inputs, *c.bond_hidden, c.bond_width], c.activation, normalise_last=c.layer_norm
        )
        self.has_constant: bool = c.output_bias
        self.out = torch.nn.Linear(c.bond_width, c.bond_width, bias=c.output_bias)
        self.angle_update = GatedPerceptron(
            [num_inputs, *c.angle_hidden, c.angle_width], c.activation, normalise_last=c.layer_norm
        )

    def forward(
        self,
        atoms: Tensor,
        bonds: Tensor,
        angles: Tensor,
        inner: Tensor,
        b: Tensor,
        a: Tensor,
        apex: Tensor,
        reverse: Tensor,
        has_reverse: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Bonds [E, F'] and angles [A, F''] after the layer.

        Parameters: ``inner`` [I], the bonds that take part; b, a [A], pairs of these that start at ``apex`` [A];
        ``reverse`` [I], the other direction of each, which ``has_reverse`` [I]; ``weights`` [I, F'].
        """
        of_apex = atoms.index_select(0, apex)
        features = bonds.index_select(0, inner)
        inputs = torch.cat([features.index_select(0, b), features.index_select(0, a), angles, of_apex], dim=1)
        messages = self.message(inputs) * weights.index_select(0, b) * weights.index_select(0, a)
        sums = torch.zeros_like(features).index_add(0, b, messages)
        sums = sums + sums.index_select(0, reverse) * has_reverse[:, None].to(sums.dtype)
        update = self.out(sums)
        if self.has_constant:  # which bonds beyond the bond cutoff get too
            constant = self.out(torch.zeros_like(bonds[:1]))
            bonds, update = bonds + constant, update - constant
        bonds = bonds.index_add(0, inner, update)
        if self.updates_angles:
            features = bonds.index_select(0, inner)
            inputs = torch.cat([features.index_select(0, b), features.index_select(0, a), angles, of_apex], dim=1)
            angles = angles + self.angle_update(inputs)
        return bonds, angles


class NoBondLayer(torch.nn.Module):
    """In place of the bond layer of the last block."""

    def forward(
        self,
        atoms: Tensor,
        bonds: Tensor,
        angles: Tensor,
        inner: Tensor,
        b: Tensor,
        a: Tensor,
        apex: Tensor,
        reverse: Tensor,
        has_reverse: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return bonds, angles
