r"""CHGNet in MatGL's layout, with a latent-charge readout, written over edge vectors.

Source: Deng et al., Nat. Mach. Intell. 5, 1031 (2023) (CHGNet); Zhong et al., arXiv:2504.05169 (latent charges).

Features live on atoms x_i, on directed bonds e_ij (atom i is updated with it, j is its neighbour) and on angles
a_ijk between the bonds i–j and j–k at their common atom j. A block is

    x_i   ← x_i   + W Σ_j g(x_j, e_ij, x_i) w(r_ij)                   over all neighbours within the cutoff
    e_ij  ← e_ij  + W Σ_k g(e_jk, a_ijk, x_j, e_ij) w'(r_jk) w'(r_ij)  over bonds within the three-body cutoff, k ≠ i
    a_ijk ← a_ijk + g(e_jk, a_ijk, x_j, e_ij)

with gated perceptrons g; the last block is its first line only. Energy and charge are perceptrons of x_i. MatGL writes
bond i–j the other way round, from the neighbour to the atom that receives the message.

e_ij needs the edges of j, so that b blocks need the edges of all atoms up to b − 1 bonds away: b layers. An edge needs
its reverse only to leave it out of the sum over k, so that the reverse may be missing where j has no edges at all.

Lengths, angles and their basis functions are evaluated in float64: the angle is the arc cosine of a number that may be
close to ±1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

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
class CHGNetConfiguration:
    """Sizes and options of a CHGNet in MatGL's layout.

    Attributes
    ----------
    atomic_numbers : elements in type order.
    cutoff, three_body_cutoff : Å; bonds up to the second take part in angles (0: there are no angles).
    cutoff_exponent : of the polynomial envelope.
    num_blocks : the receptive field is ``num_blocks`` cutoffs.
    max_n, max_f : number of radial functions, highest frequency of the angular ones.
    atom_width, bond_width, angle_width : number of features.
    atom_hidden, bond_hidden, angle_hidden : hidden widths of the gated perceptrons; angle_hidden None: angles are not
        updated.
    bond_update_hidden : hidden widths of a further update of bonds from their atoms; None: there is none.
    readout_hidden, charge_hidden : hidden widths of the readouts.
    num_charges : latent charge channels n_q; 0 for a short-range model.
    activation : a name in ``chgnet_layers.ACTIVATIONS``.
    layer_norm, normalise_hidden : layer normalisation of features and of the perceptrons' outputs; of hidden layers.
    atom_bond_weights, three_body_weights : whether messages are weighted by w, w'.
    layer_three_body_weights : whether each layer has a further w' of its own.
    nonlinear_bond_embedding, nonlinear_angle_embedding : whether these embeddings end with an activation.
    gated_readout : whether the energy readout is a gated perceptron.
    energy_scale : factor of the energy.
    """

    atomic_numbers: tuple[int, ...]
    cutoff: float
    three_body_cutoff: float = 3.0
    cutoff_exponent: int = 5
    num_blocks: int = 4
    max_n: int = 9
    max_f: int = 4
    atom_width: int = 64
    bond_width: int = 64
    angle_width: int = 64
    atom_hidden: tuple[int, ...] = (64,)
    bond_hidden: tuple[int, ...] = (64,)
    angle_hidden: tuple[int, ...] | None = ()
    bond_update_hidden: tuple[int, ...] | None = None
    readout_hidden: tuple[int, ...] = (64, 64)
    charge_hidden: tuple[int, ...] = (64, 64)
    num_charges: int = 1
    activation: str = "swish"
    layer_norm: bool = False
    normalise_hidden: bool = False
    atom_bond_weights: bool = True
    three_body_weights: bool = True
    layer_three_body_weights: bool = False
    nonlinear_bond_embedding: bool = False
    nonlinear_angle_embedding: bool = False
    gated_readout: bool = False
    energy_scale: float = 1.0

    def to_dict(self) -> dict:
        return asdict(self)


class CHGNetNetwork(torch.nn.Module):
    """Short-range energies and latent charges of a CHGNet in MatGL's layout."""

    def __init__(self, configuration: CHGNetConfiguration) -> None:
        super().__init__()
        c = configuration
        self.cutoff: float = float(c.cutoff)
        self.three_body_cutoff: float = float(c.three_body_cutoff)
        self.num_charges: int = c.num_charges
        self.energy_scale: float = float(c.energy_scale)
        self.has_angles: bool = c.three_body_cutoff > 0.0 and c.num_blocks > 1
        self.has_atom_weights: bool = c.atom_bond_weights
        self.has_three_body_weights: bool = c.three_body_weights

        self.bond_expansion = RadialBasis(c.max_n, c.cutoff, c.cutoff_exponent, of_value=True)
        self.threebody_bond_expansion = RadialBasis(
            c.max_n, c.three_body_cutoff if c.three_body_cutoff > 0.0 else 1.0, c.cutoff_exponent, of_value=True
        )
        self.angle_expansion = AngularBasis(c.max_f)
        self.atom_embedding = torch.nn.Embedding(len(c.atomic_numbers), c.atom_width)
        self.bond_embedding = Perceptron([c.max_n, c.bond_width], c.activation, c.nonlinear_bond_embedding, False)
        self.angle_embedding = Perceptron(
            [2 * c.max_f + 1, c.angle_width], c.activation, c.nonlinear_angle_embedding, False
        )
        # Those that a model lacks are there all the same, for TorchScript, and are not used.
        self.atom_bond_weights = torch.nn.Linear(c.max_n, c.atom_width, bias=False)
        self.bond_bond_weights = torch.nn.Linear(c.max_n, c.bond_width, bias=False)
        self.threebody_bond_weights = torch.nn.Linear(c.max_n, c.bond_width, bias=False)
        self.atom_graph_layers = torch.nn.ModuleList(AtomLayer(c) for _ in range(c.num_blocks))
        self.bond_graph_layers = torch.nn.ModuleList(
            BondLayer(c, updates_angles=c.angle_hidden is not None and i < c.num_blocks - 2)
            if self.has_angles and i < c.num_blocks - 1
            else NoBondLayer()
            for i in range(c.num_blocks)
        )
        widths = [c.atom_width, *c.readout_hidden, 1]
        self.final_layer = (
            GatedPerceptron(widths, c.activation, activate_last=False)
            if c.gated_readout
            else Perceptron(widths, c.activation, activate_last=False)
        )
        self.latent_charge_readout = Perceptron(
            [c.atom_width, *c.charge_hidden, max(1, c.num_charges)], "silu", activate_last=False
        )

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [N] (without reference energies) and charge [N, n_q].

        Parameters: ``edge_vectors`` [E, 3] Å from centre to neighbour, ``edge_index`` [2, E] (centre, neighbour),
        ``types`` [N]. Edges beyond the cutoff contribute exactly nothing.

        Raises RuntimeError if a bond that takes part in angles is given in one direction only.
        """
        dtype = self.atom_embedding.weight.dtype
        vectors = edge_vectors.to(torch.float64)
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        kept = (lengths.detach() < self.cutoff).nonzero()[:, 0]
        vectors, lengths = vectors.index_select(0, kept), lengths.index_select(0, kept)
        centre, neighbour = edge_index[0].index_select(0, kept), edge_index[1].index_select(0, kept)

        expansion = self.bond_expansion(lengths).to(dtype)
        atoms = self.atom_embedding(types)
        bonds = self.bond_embedding(expansion)
        atom_weights = self.atom_bond_weights(expansion) if self.has_atom_weights else torch.ones_like(bonds[:, :1])
        bond_weights = self.bond_bond_weights(expansion) if self.has_atom_weights else torch.ones_like(bonds[:, :1])

        # Bonds within the three-body cutoff, and pairs of them: from the atom to its neighbour, and on from there.
        inner = torch.zeros([0], dtype=torch.int64, device=vectors.device)
        b, a, apex = inner, inner, inner
        inner_expansion = expansion[:0]
        angles = expansion[:0]
        inner_weights = expansion[:0]
        if self.has_angles:
            inner = (lengths.detach() <= self.three_body_cutoff).nonzero()[:, 0]
            inner_vectors, inner_lengths = vectors.index_select(0, inner), lengths.index_select(0, inner)
            b, a = self._pairs(
                inner_vectors.detach(),
                inner_lengths.detach(),
                centre.index_select(0, inner),
                neighbour.index_select(0, inner),
                torch.zeros_like(types, dtype=torch.bool).index_fill(0, centre, True),
            )
            apex = neighbour.index_select(0, inner).index_select(0, b)
            inner_expansion = self.threebody_bond_expansion(inner_lengths).to(dtype)
            cosine = -(inner_vectors.index_select(0, a) * inner_vectors.index_select(0, b)).sum(1) / (
                inner_lengths.index_select(0, a) * inner_lengths.index_select(0, b)
            )
            angles = self.angle_embedding(self.angle_expansion(cosine).to(dtype))
            inner_weights = self.threebody_bond_weights(inner_expansion)
            if not self.has_three_body_weights:
                inner_weights = torch.ones_like(inner_weights)

        for atom_layer, bond_layer in zip(self.atom_graph_layers, self.bond_graph_layers):  # noqa: B905
            atoms, bonds = atom_layer(atoms, bonds, centre, neighbour, atom_weights, bond_weights)
            bonds, angles = bond_layer(atoms, bonds, angles, inner, b, a, apex, inner_expansion, inner_weights)

        energy = self.energy_scale * self.final_layer(atoms)[:, 0]
        if self.num_charges == 0:
            return energy, energy.new_zeros((types.size(0), 0))
        return energy, self.latent_charge_readout(atoms)

    def _pairs(
        self, vectors: Tensor, lengths: Tensor, centre: Tensor, neighbour: Tensor, has_edges: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pairs (b, a) of bonds, a starting where b ends and not going back; without a tape."""
        b, a = pairs_from(centre, neighbour, has_edges.size(0))
        back = are_reverse(b, a, vectors, centre, neighbour)
        found = torch.zeros_like(centre).index_add(0, b, back.to(torch.int64))
        check_reverses(found, lengths, neighbour, has_edges, self.three_body_cutoff)
        onward = back.logical_not().nonzero()[:, 0]
        return b.index_select(0, onward), a.index_select(0, onward)


class AngularBasis(torch.nn.Module):
    """cos(f_0 θ), sin(f_1 θ), cos(f_1 θ), … over π, with trained frequencies f."""

    def __init__(self, max_f: int) -> None:
        super().__init__()
        self.frequencies = torch.nn.Parameter(torch.arange(max_f + 1).to(torch.get_default_dtype()))

    def forward(self, cosine: Tensor) -> Tensor:
        """[A, 2 max_f + 1] from the ``cosine`` [A] of the angle, float64."""
        # The limit is MatGL's; it has the angle's derivative end a little before 180°.
        theta = torch.acos(cosine.clamp(-1.0 + 1e-7, 1.0 - 1e-7))
        phase = theta[:, None] * self.frequencies.to(theta.dtype)
        cos, sin = torch.cos(phase), torch.sin(phase)
        both = torch.stack([sin[:, 1:], cos[:, 1:]], dim=2).flatten(1)
        return torch.cat([cos[:, :1], both], dim=1) / math.pi


class AtomLayer(torch.nn.Module):
    """First line of a block, and where there is one the update of bonds from their atoms."""

    def __init__(self, configuration: CHGNetConfiguration) -> None:
        super().__init__()
        c = configuration
        num_inputs = 2 * c.atom_width + c.bond_width
        norm = {"normalise_last": c.layer_norm, "normalise_hidden": c.layer_norm and c.normalise_hidden}
        self.updates_bonds: bool = c.bond_update_hidden is not None
        self.node_update_func = GatedPerceptron([num_inputs, *c.atom_hidden, c.atom_width], c.activation, **norm)
        self.node_out_func = torch.nn.Linear(c.atom_width, c.atom_width, bias=False)
        self.edge_update_func = (
            GatedPerceptron([num_inputs, *c.bond_update_hidden, c.bond_width], c.activation, **norm)
            if c.bond_update_hidden is not None
            else torch.nn.Identity()
        )
        self.atom_norm = torch.nn.LayerNorm(c.atom_width) if c.layer_norm else torch.nn.Identity()
        self.bond_norm = torch.nn.LayerNorm(c.bond_width) if c.layer_norm else torch.nn.Identity()

    def forward(
        self,
        atoms: Tensor,
        bonds: Tensor,
        centre: Tensor,
        neighbour: Tensor,
        atom_weights: Tensor,
        bond_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Atoms [N, F] and bonds [E, F'] after the layer."""
        of_neighbour, of_centre = atoms.index_select(0, neighbour), atoms.index_select(0, centre)
        if self.updates_bonds:
            update = self.edge_update_func(torch.cat([of_neighbour, bonds, of_centre], dim=1))
            bonds = bonds + update * bond_weights
        messages = self.node_update_func(torch.cat([of_neighbour, bonds, of_centre], dim=1)) * atom_weights
        sums = torch.zeros_like(atoms).index_add(0, centre, messages)
        return self.atom_norm(atoms + self.node_out_func(sums)), self.bond_norm(bonds)


class BondLayer(torch.nn.Module):
    """Second and third line of a block."""

    def __init__(self, configuration: CHGNetConfiguration, updates_angles: bool) -> None:
        super().__init__()
        c = configuration
        num_inputs = 2 * c.bond_width + c.angle_width + c.atom_width
        norm = {"normalise_last": c.layer_norm, "normalise_hidden": c.layer_norm and c.normalise_hidden}
        # The last layer's angles are used nowhere.
        self.updates_angles: bool = updates_angles
        self.has_weights: bool = c.layer_three_body_weights
        self.node_update_func = GatedPerceptron([num_inputs, *c.bond_hidden, c.bond_width], c.activation, **norm)
        self.node_out_func = torch.nn.Linear(c.bond_width, c.bond_width, bias=False)
        self.node_weight_func = (
            torch.nn.Linear(c.max_n, c.bond_width) if c.layer_three_body_weights else torch.nn.Identity()
        )
        self.edge_update_func = (
            GatedPerceptron([num_inputs, *c.angle_hidden, c.angle_width], c.activation, **norm)
            if c.angle_hidden is not None
            else torch.nn.Identity()
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
        expansion: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Bonds [E, F'] and angles [A, F''] after the layer.

        Parameters: ``inner`` [I], the bonds that take part; b, a [A], pairs of these; ``apex`` [A], their common atom;
        ``expansion``, ``weights`` [I, …] of these bonds.
        """
        features = bonds.index_select(0, inner)
        of_apex = atoms.index_select(0, apex)
        inputs = torch.cat([features.index_select(0, a), angles, of_apex, features.index_select(0, b)], dim=1)
        if self.has_weights:
            weights = weights * self.node_weight_func(expansion)
        messages = self.node_update_func(inputs) * weights.index_select(0, a) * weights.index_select(0, b)
        sums = torch.zeros_like(features).index_add(0, b, messages)
        features = features + self.node_out_func(sums)
        if self.updates_angles:
            inputs = torch.cat([features.index_select(0, a), angles, of_apex, features.index_select(0, b)], dim=1)
            angles = angles + self.edge_update_func(inputs)
        return bonds.index_copy(0, inner, features), angles


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
        expansion: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return bonds, angles
