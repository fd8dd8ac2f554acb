"""CACE checkpoints of the cace package: whatever the network does not reproduce is refused by its name."""

import types

import pytest
import torch

from les_md.architectures import LoadOptions, UnsupportedModelError, cace
from les_md.stand_in import StandIn


def stand_in(class_path: str, **attributes) -> StandIn:
    """As the restricted unpickler makes it."""
    made = object.__new__(type("Made", (StandIn,), {"class_path": class_path}))
    torch.nn.Module.__init__(made)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def readout(**changes) -> StandIn:
    dense = stand_in("cace.modules.blocks.Dense", linear=torch.nn.Linear(4, 1))
    return stand_in("cace.modules.atomwise.Atomwise", **{"add_linear_nn": True, "outnet": [dense], **changes})


def les(**changes) -> StandIn:
    ewald = types.SimpleNamespace(sigma=1.0, dl=2.0, norm_factor=90.0474, remove_self_interaction=True)
    return stand_in("les.les.Les", **{"atomwise": readout(), "ewald": ewald, **changes})


def message(**changes) -> list:
    settings = {"shared_channels": False, "shared_l": False, "hnet": [None], **changes}
    return [None, None, stand_in("cace.modules.message.MessageBchi", **settings)]


def representation(**changes) -> StandIn:
    attributes = {
        "edge_coding": types.SimpleNamespace(directed=True),
        "cutoff_fn": stand_in("cace.modules.cutoff.PolynomialCutoff", p=6),
        "radial_basis": stand_in("cace.modules.radial.BesselRBF"),
        "message_passing_list": [message()],
        "zs": [1, 8],
        **changes,
    }
    return stand_in("cace.representations.cace_representation.Cace", **attributes)


def potential(outputs=None, **changes) -> StandIn:
    if outputs is None:
        outputs = [readout(), stand_in("cace.modules.les_wrapper.LesWrapper", les=les())]
    attributes = {"representation": representation(), "output_modules": outputs, **changes}
    return stand_in("cace.models.atomistic.NeuralNetworkPotential", **attributes)


def with_les(**changes) -> StandIn:
    return potential([readout(), stand_in("cace.modules.les_wrapper.LesWrapper", les=les(**changes))])


def with_message(*slots) -> StandIn:
    return potential(representation=representation(message_passing_list=[list(slots)]))


def with_representation(**changes) -> StandIn:
    return potential(representation=representation(**changes))


REFUSED = {
    "undirected edge coding": with_representation(edge_coding=types.SimpleNamespace(directed=False)),
    "a cutoff function that is not polynomial": with_representation(cutoff_fn=stand_in("cace.modules.CosineCutoff")),
    "radial functions that are not Bessel": with_representation(radial_basis=stand_in("cace.modules.GaussianRBF")),
    "the A-basis as features": with_representation(keep_node_features_A=True),
    "forwarded features": with_representation(forward_features=["atomic_charge"]),
    "node memory": with_message(stand_in("cace.modules.message.NodeMemory"), None, message()[2]),
    "the Ar message": with_message(None, stand_in("cace.modules.message.MessageAr"), message()[2]),
    "another message than Bchi": with_message(None, None, stand_in("cace.modules.message.MessageOther")),
    "messages shared by channels": with_message(*message(shared_channels=True)),
    "messages shared by degrees": with_message(*message(shared_l=True)),
    "a message network of several layers": with_message(*message(hnet=[None, None])),
    "a readout without its linear part": potential([readout(add_linear_nn=False)]),
    "a residual readout": potential([readout(residual=True)]),
    "batch normalisation": potential([readout(use_batchnorm=True)]),
    "a post-processed energy": potential([readout(post_process=torch.nn.Identity())]),
    "not the sum over atoms": potential([readout(aggregation_mode="avg")]),
    "the LES option use_epsilon_r_scaling": with_les(use_epsilon_r_scaling=True),
    "the LES option use_fixed_atomic_charges": with_les(use_fixed_atomic_charges=True),
    "the LES option use_atomic_alpha": with_les(use_atomic_alpha=True),
    "no charge readout": with_les(atomwise=None),
    "a charge readout without its linear part": with_les(atomwise=readout(add_linear_nn=False)),
    "2 energy and 0 charge readouts": potential([readout(), readout()]),
    "output module cace.modules.dipole.Dipole is": potential([readout(), stand_in("cace.modules.dipole.Dipole")]),
    "a combination of 2 CACE potentials": stand_in(
        "cace.models.combined.CombinePotential", models=[potential(), potential()]
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what):
    assert cace.matches(REFUSED[what])
    with pytest.raises(UnsupportedModelError, match=what):
        cace.load(REFUSED[what], options=LoadOptions(allow_short_range=True))


def test_nothing_else_is_refused():
    """Without any of these the same stand-in is accepted: what fails then is that it holds no weights."""
    with pytest.raises(AttributeError, match="node_embedding_sender"):
        cace.load(potential(), options=LoadOptions())
