"""A MACE model as a network over edge vectors, layer by layer; imports e3nn."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from les_md.architectures.mace_first_layer import MOST_SPECIES, FirstMessages
from les_md.architectures.mace_layers import EdgeGroups, Edges, MACELayer, Messages, SplinesOfEdges
from les_md.architectures.radial_spline import RadialSplineError, radial_spline
from les_md.architectures.registry import UnsupportedModelError

#: Functions, over all pairs of elements, that are made into splines at most: 50 MB in float32 with 2,048 intervals.
MOST_SPLINES = 1024


class MACENetwork(torch.nn.Module):
    """Short-range energies and latent charges of one head, over edge vectors, layer by layer.

    Takes over the modules of ``model`` and changes them: what other heads need is lost.
    """

    def __init__(self, model: torch.nn.Module, head: int) -> None:
        super().__init__()
        self.head = head
        self.cutoff = float(model.r_max)
        self.num_elements = len(model.atomic_numbers)
        self.register_buffer("atomic_numbers", model.atomic_numbers)
        self.node_embedding = model.node_embedding
        self.spherical_harmonics = model.spherical_harmonics
        self.radial_embedding = model.radial_embedding
        self.edge_groups = EdgeGroups()
        self.most_species: int = MOST_SPECIES
        first = FirstMessages(
            Messages(model.interactions[0]),
            model.interactions[0].conv_tp,
            model.interactions[0].linear,
            self.node_embedding(torch.eye(self.num_elements, dtype=torch.float64)),
        )
        messages = [first, *map(Messages, model.interactions[1:])]
        self.layers = torch.nn.ModuleList(map(MACELayer, model.interactions, model.products, messages))
        self.num_layers: int = len(self.layers)
        self.has_splines: bool = False
        # Transforms of the distance depend on both elements: each pair of them has functions of its own.
        first, second = torch.triu_indices(self.num_elements, self.num_elements)
        kinds = torch.zeros([self.num_elements, self.num_elements], dtype=torch.int64)
        if hasattr(self.radial_embedding, "distance_transform"):
            kinds[first, second] = kinds[second, first] = torch.arange(len(first))
        self.num_kinds: int = int(kinds.max()) + 1
        self.register_buffer("kind_of_pair", kinds)
        charge_readouts = list(model._modules.get("les_readouts", []))
        self.num_charges: int = 1 if charge_readouts else 0
        for readout in (*model.readouts, *charge_readouts):
            _keep_one_head(readout, head)
        # A single readout reads the last layer; otherwise each layer has its own.
        before = [_NoReadout(head + 1) for _ in range(self.num_layers - len(model.readouts))]
        self.readouts = torch.nn.ModuleList([*before, *model.readouts])
        before = [_NoReadout(head + 1) for _ in range(self.num_layers - len(charge_readouts))]
        self.charge_readouts = torch.nn.ModuleList([*before, *charge_readouts])
        self.has_repulsion = hasattr(model, "pair_repulsion")
        self.repulsion = PairRepulsion(model.pair_repulsion_fn if self.has_repulsion else None, model.atomic_numbers)
        scale = torch.atleast_1d(model.scale_shift.scale) if hasattr(model, "scale_shift") else torch.ones(1)
        self.register_buffer("scale", scale[head if len(scale) > 1 else 0].clone())

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [N] (without reference energies) and charge [N, n_q], in the network's dtype.

        Parameters: ``edge_vectors`` [E, 3] Å from centre to neighbour, ``edge_index`` [2, E] (centre, neighbour),
        ``types`` [N].
        """
        features = self.initial_features(types)
        energy = features.new_zeros(types.size(0))
        charge = features.new_zeros((types.size(0), self.num_charges))
        for number in range(self.num_layers):
            features, layer_energy, layer_charge = self.layer(
                number, features, types, edge_vectors, edge_index, types.size(0)
            )
            energy, charge = energy + layer_energy, charge + layer_charge
        return energy, charge

    @torch.jit.export
    def initial_features(self, types: Tensor) -> Tensor:
        """Features [N, F] of the nodes before the first layer; independent of the geometry."""
        return self.node_embedding(self._node_attributes(types))

    @torch.jit.export
    def layer(
        self, number: int, features: Tensor, types: Tensor, edge_vectors: Tensor, edge_index: Tensor, num_centres: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer for the first ``num_centres`` (n) of N nodes, where all edges start.

        Parameters as in ``forward``, and ``features`` [N, F] after the layer before.
        Returns features [n, F'], and what the layer adds to energy [n] and charge [n, n_q].
        """
        edges = self._edges(number, edge_vectors, edge_index, types, num_centres)
        energy = features.new_zeros(num_centres)
        charge = features.new_zeros((num_centres, self.num_charges))
        if self.has_repulsion and number == 0:
            pairs = torch.stack([edges.neighbour, edges.centre])
            energy = energy + self.repulsion(edges.lengths[:, 0], pairs, types, num_centres)
        node_attributes = self._node_attributes(types)
        # TorchScript unrolls this loop: the modules of a list may be of different kinds.
        for i, (layer, readout, charge_readout) in enumerate(
            zip(self.layers, self.readouts, self.charge_readouts)  # noqa: B905
        ):
            if i == number:
                features = layer(features, types, node_attributes, num_centres, edges)
                energy = energy + readout(features)[:, self.head]
                if self.num_charges > 0:
                    charge = charge + charge_readout(features)[:, self.head].unsqueeze(1)
        return features, self.scale * energy, charge

    def _node_attributes(self, types: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(types, self.num_elements).to(self.scale.dtype)

    def _edges(self, number: int, edge_vectors: Tensor, edge_index: Tensor, types: Tensor, num_centres: int) -> Edges:
        """What layer ``number`` needs of the edges within the cutoff, in groups."""
        # The pair repulsion has a range of its own, which may be longer; and edges that do nothing still cost time.
        within = torch.linalg.vector_norm(edge_vectors.detach(), dim=1) < self.cutoff
        kept = within.nonzero()[:, 0]
        key, num_keys = edge_index[0].index_select(0, kept), num_centres
        species = key.new_zeros([0])
        if number == 0:
            kind = types.index_select(0, edge_index[1].index_select(0, kept))
            is_there = torch.bincount(kind, minlength=self.num_elements) > 0
            present = is_there.nonzero()[:, 0]
            if present.size(0) <= self.most_species:
                species, num_keys = present, num_centres * present.size(0)
                key = key * present.size(0) + (is_there.cumsum(0) - 1).index_select(0, kind)
        edge, key_of_group = self.edge_groups(key, num_keys)
        centre_of_group = key_of_group
        if species.size(0) > 0:
            centre_of_group = torch.div(key_of_group, species.size(0), rounding_mode="floor")
        # An empty place gets an edge of twice the cutoff to node 0, which has no weight.
        place = torch.cat([kept, kept.new_full([1], edge_vectors.size(0))]).index_select(0, edge)
        empty = edge_vectors.new_zeros([1, 3])
        empty[0, 0] = 2.0 * self.cutoff
        # MACE sends from neighbour to centre, along the vector from the sender to the receiver.
        vectors = -torch.cat([edge_vectors, empty]).index_select(0, place).to(self.scale.dtype)
        neighbour = torch.cat([edge_index[1], edge_index.new_zeros([1])]).index_select(0, place)
        centre = centre_of_group.unsqueeze(1).expand(-1, self.edge_groups.size).reshape(-1)
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        kinds = species.new_zeros([0])
        radial: Tensor = lengths.new_zeros([0])
        cutoff: Optional[Tensor] = None  # noqa: UP045
        if self.has_splines:
            if self.num_kinds > 1:
                kinds = self.kind_of_pair[types.index_select(0, centre), types.index_select(0, neighbour)]
        else:
            radial, cutoff = self.radial_embedding(
                lengths, self._node_attributes(types), torch.stack([neighbour, centre]), self.atomic_numbers
            )
        harmonics = self.spherical_harmonics(vectors)
        return Edges(
            neighbour, centre, centre_of_group, species, key_of_group, lengths, harmonics, radial, cutoff, kinds
        )

    @torch.jit.unused
    def use_splines(self, target: float) -> dict:
        """Replace all radial networks by splines of the distance, while the network is in float64.

        ``target``: relative error to reach, see ``radial_spline``. Returns the record for the metadata.

        Raises RadialSplineError if no spline is close enough, or the tables would take too much memory.
        """
        errors = []
        layers = []

        def spline(of_edges: torch.nn.Module, weights: Tensor) -> SplinesOfEdges:
            def function(distances: Tensor, kind: int) -> Tensor:
                return of_edges(self._edges_of_kind(distances, kind))

            num_functions = function(torch.ones([1, 1], dtype=torch.float64), 0).size(1)
            if self.num_kinds * num_functions > MOST_SPLINES:
                raise RadialSplineError(
                    f"the radial functions of {self.num_kinds} pairs of elements would be too large as splines: export "
                    "the model with --radial exact"
                )
            made, error = radial_spline(function, lambda h: h @ weights, self.cutoff, self.num_kinds, target=target)
            errors.append(error)
            return SplinesOfEdges(made)

        for layer in self.layers:
            messages = layer.messages.usual if isinstance(layer.messages, FirstMessages) else layer.messages
            neighbor_sum = messages.neighbor_sum
            hidden = spline(neighbor_sum.hidden, torch.cat(neighbor_sum.path_weights(), dim=1))
            one = torch.ones([1, 1], dtype=torch.float64)
            layers.append((layer, neighbor_sum, hidden, spline(layer.density, one) if layer.has_density else None))
        # Nothing is replaced before everything is there.
        for layer, neighbor_sum, hidden, density in layers:
            neighbor_sum.hidden = hidden
            if density is not None:
                layer.density = density
        self.has_splines = True
        return {
            "kind": "spline",
            "intervals": [error.intervals for error in errors],
            "value_error": max(error.value for error in errors),
            "derivative_error": max(error.derivative for error in errors),
        }

    @torch.jit.unused
    def _edges_of_kind(self, distances: Tensor, kind: int) -> Edges:
        """Edges of these lengths [M, 1] of one class, with nothing but their radial functions."""
        first, second = (int(i) for i in (self.kind_of_pair == kind).nonzero()[0])
        types = torch.tensor([first, second])
        centre = torch.zeros([len(distances)], dtype=torch.int64)
        neighbour, none = centre + 1, centre[:0]
        radial, cutoff = self.radial_embedding(
            distances, self._node_attributes(types), torch.stack([neighbour, centre]), self.atomic_numbers
        )
        return Edges(neighbour, centre, none, none, none, distances, distances, radial, cutoff, none)


class PairRepulsion(torch.nn.Module):
    """Ziegler–Biersack–Littmark repulsion under a polynomial cutoff at the sum of the covalent radii.

    With the constants of MACE's ``ZBLBasis`` (zeros without one), whose own code rounds one to torch's default dtype.
    """

    def __init__(self, basis: torch.nn.Module | None, atomic_numbers: Tensor) -> None:
        super().__init__()
        z = atomic_numbers.double()
        if basis is None:
            power, radii, screening, factor, exponent = torch.ones_like(z), torch.ones_like(z), torch.zeros(4), 1.0, 6
        else:
            power = z ** float(basis.a_exp)
            radii = basis.covalent_radii[atomic_numbers].double()
            screening, factor, exponent = basis.c, 0.529 * float(basis.a_prefactor), int(basis.p)
        self.exponent: int = exponent
        self.register_buffer("screening", screening.double())
        self.register_buffer("decay", torch.tensor([3.2, 0.9423, 0.4028, 0.2016], dtype=torch.float64))
        self.register_buffer("length", factor / (power[:, None] + power[None, :]))
        self.register_buffer("strength", 14.3996 * z[:, None] * z[None, :])
        self.register_buffer("range", radii[:, None] + radii[None, :])

    def forward(self, lengths: Tensor, edge_index: Tensor, types: Tensor, num_centres: int) -> Tensor:
        """Half of each pair's energy on its receiver, [n], from ``lengths`` [E] Å and (sender, receiver) [2, E]."""
        first, second = types[edge_index[0]], types[edge_index[1]]
        reduced = lengths / self.length[first, second]
        screening = (self.screening * torch.exp(-self.decay * reduced[:, None])).sum(1)
        x = lengths / self.range[first, second]
        p = self.exponent
        envelope = 1.0 + x**p * (-0.5 * (p + 1) * (p + 2) + x * (float(p * (p + 2)) - 0.5 * p * (p + 1) * x))
        pairs = 0.5 * self.strength[first, second] / lengths * screening
        pairs = torch.where(x < 1.0, pairs * envelope, torch.zeros_like(pairs))
        return lengths.new_zeros(num_centres).index_add(0, edge_index[1], pairs)


class _NoReadout(torch.nn.Module):
    """Of a layer that nothing is read from."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads: int = heads

    def forward(self, features: Tensor) -> Tensor:
        return features.new_zeros((features.size(0), self.heads))


def _keep_one_head(readout: torch.nn.Module, head: int) -> None:
    """Let the hidden channels of other heads have no weight, in place of MACE's mask over them."""
    num_heads = int(getattr(readout, "num_heads", 1))
    if num_heads <= 1:
        return
    for linear in (getattr(readout, name, None) for name in ("linear_mid", "linear_2")):
        if linear is None:
            continue
        inputs, outputs = linear.irreps_in, linear.irreps_out
        if any(mul_ir.ir.l > 0 for mul_ir in inputs) or len(linear.instructions) != 1 + int(linear.bias_numel > 0):
            raise UnsupportedModelError("several heads with a readout that is not made of scalars are not supported")
        weight = linear.weight.view(inputs.dim, outputs.dim)
        channels = inputs.dim // num_heads
        weight[: head * channels] = 0.0
        weight[(head + 1) * channels :] = 0.0
