"""NequIP and Allegro models as networks over edge vectors, layer by layer; imports e3nn and nequip."""

from __future__ import annotations

from typing import Dict  # noqa: UP035  (TorchScript knows only this)

import torch
from e3nn.util.jit import compile_mode
from nequip.nn import PerTypeScaleShift
from nequip.nn.embedding import BesselEdgeLengthEncoding, EdgeLengthNormalizer
from nequip.nn.pair_potential import ZBL
from torch import Tensor

#: Modules whose numbers nequip keeps in float64 whatever the dtype of a model.
_ALWAYS_DOUBLE = (EdgeLengthNormalizer, BesselEdgeLengthEncoding, PerTypeScaleShift)


class _Network(torch.nn.Module):
    """What both networks share: how edges enter nequip's modules, and their mixture of dtypes.

    Lengths, Bessel functions, spherical harmonics and energy scales are evaluated in float64, all else in the dtype of
    the network: so nequip does, and its modules hold the dtype as an attribute.

    Parameters: ``cutoff`` in Å, the longest of a model.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff: float = cutoff
        #: Tells the network's dtype.
        self.register_buffer("one", torch.ones((), dtype=torch.float64))

    def _apply(self, fn, recurse: bool = True):
        exact = [
            (module, name, tensor)
            for module in self.modules()
            for name, tensor in [*module._buffers.items(), *module._parameters.items()]
            if isinstance(module, _ALWAYS_DOUBLE) or (isinstance(module, ZBL) and name == "_qqr2exesquare")
        ]
        exact = [(module, name, tensor.detach().clone()) for module, name, tensor in exact if tensor is not None]
        super()._apply(fn, recurse)
        for module, name, tensor in exact:
            changed = getattr(module, name)
            changed.data = tensor.to(changed.device)
        for module in self.modules():
            for name in ("_output_dtype", "model_dtype"):
                if name in module.__dict__:
                    setattr(module, name, self.one.dtype)
        return self

    def _graph(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        """What nequip's modules take, with the edges within the cutoff only."""
        within = torch.linalg.vector_norm(edge_vectors.detach(), dim=1) < self.cutoff
        kept = within.nonzero()[:, 0]
        return {
            "pos": edge_vectors.new_zeros([types.size(0), 3]),  # only their number is used
            "atom_types": types,
            "edge_index": edge_index.index_select(1, kept),
            "edge_vectors": edge_vectors.index_select(0, kept).to(torch.float64),
        }


class _Nothing(torch.nn.Module):
    """Takes the place of a part that a model does not have."""

    def forward(self, data: Dict[str, Tensor]) -> Dict[str, Tensor]:  # noqa: UP006
        return data


@compile_mode("script")
class NequIPNetwork(_Network):
    """Short-range energies and latent charges of a NequIP model, over edge vectors, layer by layer.

    Takes over the modules of nequip's ``energy_model``, whose energy shifts must be zero, and of ``charge_readout``
    (None for a short-range model).
    """

    def __init__(self, energy_model: torch.nn.Module, charge_readout: torch.nn.Module | None, cutoff: float) -> None:
        super().__init__(cutoff)
        parts = energy_model._modules
        self.type_embedding = parts["type_embed"].embed_module
        self.edge_embedding = torch.nn.ModuleList(
            parts[name] for name in ("spharm", "edge_norm", "bessel_encode", "factor")
        )
        names = [name for name in parts if name.endswith("_convnet")]
        self.layers = torch.nn.ModuleList(_Convolution(parts[name]) for name in names)
        self.num_layers: int = len(self.layers)
        self.energy_readout = parts["per_atom_energy_readout"].mlp_module
        self.scale = parts["per_type_energy_scale_shift"]
        self.has_repulsion = "pair_potential" in parts
        self.repulsion = parts["pair_potential"] if self.has_repulsion else _Nothing()
        self.num_charges: int = 0 if charge_readout is None else 1
        self.charge_readout = torch.nn.Identity() if charge_readout is None else charge_readout.mlp_module

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [N] (without reference energies) and charge [N, n_q].

        Parameters: ``edge_vectors`` [E, 3] Å from centre to neighbour, ``edge_index`` [2, E] (centre, neighbour),
        ``types`` [N].
        """
        features = self.initial_features(types)
        edges = self._edges(edge_vectors, edge_index, types)
        energy = edge_vectors.new_zeros(types.size(0))
        charge = features.new_zeros((types.size(0), self.num_charges))
        for number in range(self.num_layers):
            features, layer_energy, layer_charge = self._run_layer(number, features, types, types.size(0), edges)
            energy, charge = energy + layer_energy, charge + layer_charge
        return energy, charge

    @torch.jit.export
    def initial_features(self, types: Tensor) -> Tensor:
        """Features [N, F] of the nodes before the first layer; independent of the geometry."""
        return self.type_embedding(types)

    @torch.jit.export
    def layer(
        self, number: int, features: Tensor, types: Tensor, edge_vectors: Tensor, edge_index: Tensor, num_centres: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer for the first ``num_centres`` (n) of N nodes, where all edges start.

        Parameters as in ``forward``, and ``features`` [N, F] after the layer before.
        Returns features [n, F'], and what the layer adds to energy [n] and charge [n, n_q].
        """
        return self._run_layer(number, features, types, num_centres, self._edges(edge_vectors, edge_index, types))

    def _edges(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        """What all layers need of the edges."""
        edges = self._graph(edge_vectors, edge_index, types)
        for part in self.edge_embedding:
            edges = part(edges)
        return edges

    def _run_layer(
        self,
        number: int,
        features: Tensor,
        types: Tensor,
        num_centres: int,
        edges: Dict[str, Tensor],  # noqa: UP006
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``layer``, with the edges prepared."""
        energy = edges["edge_vectors"].new_zeros(num_centres)
        charge = features.new_zeros((num_centres, self.num_charges))
        if self.has_repulsion and number == 0:
            data = edges.copy()
            data["atomic_energy"] = edges["edge_vectors"].new_zeros((types.size(0), 1))
            energy = energy + self.repulsion(data)["atomic_energy"][:num_centres, 0]
        node_attributes = self.type_embedding(types)
        # TorchScript unrolls this loop: the modules of a list may be of different kinds.
        for i, layer in enumerate(self.layers):
            if i == number:
                features = layer(features, node_attributes, types, num_centres, edges)
        if number == self.num_layers - 1:
            readout: Dict[str, Tensor] = {  # noqa: UP006
                "atom_types": types[:num_centres],
                "atomic_energy": self.energy_readout(features),
            }
            energy = energy + self.scale(readout)["atomic_energy"][:, 0]
            if self.num_charges > 0:
                charge = charge + self.charge_readout(features)
        return features, energy, charge


class _Convolution(torch.nn.Module):
    """nequip's ConvNetLayer and its InteractionBlock for the first nodes only, which those offer under LAMMPS only."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        block = layer.conv
        self.linear_before = block.linear_1
        self.normalisation = block.avg_num_neighbors_norm
        self.radial = block.edge_mlp
        self.product = block.tp_scatter
        self.linear_after = block.linear_2
        self.has_self_connection: bool = block.sc is not None
        self.self_connection = block.sc if block.sc is not None else _NoSelfConnection()
        self.nonlinearity = layer.equivariant_nonlin
        self.residual: bool = bool(layer.resnet)

    def forward(
        self,
        features: Tensor,
        node_attributes: Tensor,
        types: Tensor,
        num_centres: int,
        edges: Dict[str, Tensor],  # noqa: UP006
    ) -> Tensor:
        """Features [n, F'] of the first ``num_centres`` (n) nodes from ``features`` [N, F] of all."""
        data: Dict[str, Tensor] = {  # noqa: UP006
            "node_features": self.linear_before(features),
            "atom_types": types,
        }
        messages = self.product(
            self.normalisation(data)["node_features"],
            edges["edge_attrs"],
            self.radial(edges["edge_embedding"]),
            edges["edge_index"][0],
            edges["edge_index"][1],
        )
        after = self.linear_after(messages[:num_centres])
        if self.has_self_connection:
            after = after + self.self_connection(features[:num_centres], node_attributes[:num_centres])
        after = self.nonlinearity(after)
        if self.residual:
            after = features[:num_centres] + after
        return after


class _NoSelfConnection(torch.nn.Module):
    """Never called: takes the place of a self-connection that a layer does not have."""

    def forward(self, features: Tensor, node_attributes: Tensor) -> Tensor:
        return features


@compile_mode("script")
class AllegroNetwork(_Network):
    """Short-range energies and latent charges of an Allegro model, over edge vectors.

    All of it is one layer: what a node gets depends on the edges that start there and on nothing else.

    Takes over the modules of nequip's ``energy_model``, whose energy shifts must be zero, and of ``charge_readout`` and
    ``charge_sum`` (None for a short-range model).
    """

    def __init__(
        self,
        energy_model: torch.nn.Module,
        charge_readout: torch.nn.Module | None,
        charge_sum: torch.nn.Module | None,
        cutoff: float,
    ) -> None:
        super().__init__(cutoff)
        self.num_layers: int = 1
        self.parts = torch.nn.ModuleList(
            part for name, part in energy_model._modules.items() if name != "total_energy_sum"
        )
        self.num_charges: int = 0 if charge_readout is None else 1
        self.charge_readout = _Nothing() if charge_readout is None else charge_readout
        self.charge_sum = _Nothing() if charge_sum is None else charge_sum

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [N] (without reference energies) and charge [N, n_q]; parameters as in ``NequIPNetwork``."""
        data = self._graph(edge_vectors, edge_index, types)
        for part in self.parts:
            data = part(data)
        energy = data["atomic_energy"][:, 0]
        if self.num_charges == 0:
            return energy, self.one.new_zeros((types.size(0), 0))
        data = self.charge_sum(self.charge_readout(data))
        return energy, data["LES_q"]

    @torch.jit.export
    def initial_features(self, types: Tensor) -> Tensor:
        """Features [N, 0]: there is nothing that nodes know before the first layer."""
        return self.one.new_zeros((types.size(0), 0))

    @torch.jit.export
    def layer(
        self, number: int, features: Tensor, types: Tensor, edge_vectors: Tensor, edge_index: Tensor, num_centres: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``NequIPNetwork.layer``; ``number`` is 0."""
        energy, charge = self.forward(edge_vectors, edge_index, types)
        return features[:num_centres], energy[:num_centres], charge[:num_centres]
