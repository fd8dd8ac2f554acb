"""What configurations of NequIP and Allegro models say, and which are refused: needs neither of the packages."""

import sys

import pytest
import torch

from les_md.architectures import LoadOptions, NoLatentChargesError, UnsupportedModelError, nequip
from les_md.architectures.nequip_configuration import long_range_parameters, understand
from les_md.checkpoint import read_checkpoint
from les_md.checkpoint_errors import CheckpointError
from les_md.electrostatics.parameters import LongRangeParameters

NEQUIP = {"_target_": "nequip.model.NequIPGNNModel", "type_names": ["O", "H"], "r_max": 4.0, "avg_num_neighbors": 9.0}
OLD = {**NEQUIP, "use_les": True, "les_args": {"use_atomwise": False, "sigma": 0.9, "dl": 1.5}}
NEW = {
    **NEQUIP,
    "_target_": "nequip_les.model.LESModel",
    "base_model": "nequip",
    "LES": {"les_args": OLD["les_args"], "compute_bec": True, "bec_output_index": None},
}
ALLEGRO = {
    "_target_": "allegro.model.AllegroModel",
    "type_names": ["O", "H"],
    "r_max": 4.0,
    "l_max": 1,
    "avg_num_neighbors": 9.0,
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8},
}
ALLEGRO_LES = {**ALLEGRO, "_target_": "nequip_les.model.LESModel", "base_model": "allegro", "LES": NEW["LES"]}


def checkpoint(configuration: dict, **information) -> dict:
    return {
        "state_dict": {"model.sole_model.model.func.x": torch.zeros(1)},
        "hyper_parameters": {"model": configuration, "info_dict": information},
    }


def trained_on(day: str) -> dict:
    """As nequip stores it: callbacks write into the folder of the run, which is named after the day."""
    return {"trainer": {"callbacks": [{"dirpath": f"/runs/outputs/{day}/15-05-48", "filename": "best"}]}}


def test_matches():
    assert nequip.matches(checkpoint(OLD))
    assert nequip.matches(checkpoint({"_target_": "some.other.Model"}))
    for other in (None, [], {}, {"state_dict": {}}, {"state_dict": {}, "hyper_parameters": 3}, torch.nn.Linear(1, 1)):
        assert not nequip.matches(other)
    assert not nequip.matches({"state_dict": {}, "hyper_parameters": {"model": {"_target_": 3}}})


@pytest.mark.parametrize(
    ("configuration", "kind", "les"),
    [
        (NEQUIP, "nequip", None),
        ({**NEQUIP, "use_les": False, "les_args": {"sigma": 1.0}}, "nequip", None),
        (OLD, "nequip", OLD["les_args"]),
        (NEW, "nequip", OLD["les_args"]),
        ({**OLD, "_target_": "nequip_les.model.LESModel"}, "nequip", OLD["les_args"]),
        (ALLEGRO, "allegro", None),
        (ALLEGRO_LES, "allegro", OLD["les_args"]),
        ({**NEW, "LES": {"les_args": None}}, "nequip", {}),
        (
            {
                "_target_": "nequip.model.modify",
                "modifiers": [{"modifier": "enable_OpenEquivariance"}],
                "model": OLD,
            },
            "nequip",
            OLD["les_args"],
        ),
    ],
)
def test_styles_of_configurations(configuration, kind, les):
    settings = understand(configuration, {"versions": {"nequip": "0.12.1"}})
    assert (settings.kind, settings.full, settings.les) == (kind, False, les)
    assert settings.elements == [8, 1]
    assert settings.version == (0, 12)
    assert not {"LES", "les_args", "use_les", "base_model"} & set(settings.options)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"_target_": "nequip.model.ModelFromPackage"}, "nequip.model.ModelFromPackage"),
        ({"_target_": "os.system"}, "os.system"),
        ({"base_model": "mace"}, "mace"),
        ({"bessel_shape": 3}, "bessel_shape = 3"),
        ({"categorical_graph_field_embed": [{"field": "spin"}]}, "categorical_graph_field_embed"),
        ({"convnet_nonlinearity_type": "norm"}, "convnet_nonlinearity_type = 'norm'"),
        ({"readout_mlp_nonlinearity": "sigmoid"}, "readout_mlp_nonlinearity = 'sigmoid'"),
        ({"readout_mlp_nonlinearity": ["silu"]}, "readout_mlp_nonlinearity"),
        ({"pair_potential": {"_target_": "nequip.nn.pair_potential.LennardJones"}}, "LennardJones"),
        ({"pair_potential": {"_target_": "os.system", "command": "true"}}, "os.system"),
        ({"pair_potential": ["nequip.nn.pair_potential.ZBL"]}, "pair_potential"),
        ({"pair_potential": {"_target_": "nequip.nn.pair_potential.ZBL", "units": "real"}}, "units = 'real'"),
        (
            {"pair_potential": {"_target_": "nequip.nn.pair_potential.ZBL", "units": {"_target_": "os.getcwd"}}},
            "units = os.getcwd",
        ),
        (
            {"pair_potential": {"_target_": "nequip.nn.pair_potential.ZBL", "polynomial_cutoff_p": "${oc.env:HOME}"}},
            "polynomial_cutoff_p",
        ),
        ({"LES": {"les_args": {}, "use_magnets": True}}, "use_magnets"),
        ({"LES": "yes"}, "LES = 'yes'"),
        ({"LES": {"les_args": [1]}}, "les_args"),
        ({"type_names": ["O", "Xq"]}, "Xq"),
        ({"type_names": ["O", "O"]}, "several types of O"),
    ],
)
def test_refusals(changes, named):
    configuration = {**NEW, **changes}
    if not configuration["_target_"].startswith("nequip_les"):
        configuration.pop("base_model")
        configuration.pop("LES")
    with pytest.raises(UnsupportedModelError) as caught:
        nequip.load(checkpoint(configuration), options=LoadOptions(allow_short_range=True))
    assert named in str(caught.value)


def test_options_that_are_switched_off_are_accepted():
    settings = understand({**NEW, "pair_potential": None, "some_new_option": False, "another": None}, {})
    assert "some_new_option" not in settings.options


def test_other_modifiers_are_refused():
    configuration = {"_target_": "nequip.model.modify", "modifiers": [{"modifier": "add_magnets"}], "model": OLD}
    with pytest.raises(UnsupportedModelError, match="add_magnets"):
        understand(configuration, {})


def test_optimiser_that_holds_weights_is_refused():
    information = {"training_module": {"_target_": "nequip.train.ScheduleFreeLightningModule"}}
    with pytest.raises(UnsupportedModelError, match="ScheduleFree"):
        understand(OLD, information)


@pytest.mark.parametrize(
    "option",
    [
        "use_dipole",
        "use_quadrupole",
        "use_induced_charge",
        "use_induced_dipole",
        "use_anisotropic_polarizability",
        "use_fixed_atomic_charges",
        "use_atomic_alpha",
        "use_epsilon_r_scaling",
        "use_something_new",
    ],
)
@pytest.mark.parametrize("configuration", [OLD, NEW, ALLEGRO_LES], ids=["old", "new", "allegro"])
def test_extended_heads_are_refused(option, configuration):
    les = {"sigma": 1.0, "kappa_scale": 0.1, "alpha_irreps": "0e+1o+2e", option: True}
    changed = {**configuration, **({"les_args": les} if configuration is OLD else {"LES": {"les_args": les}})}
    with pytest.raises(UnsupportedModelError, match=f"{option} = True"):
        nequip.load(checkpoint(changed), options=LoadOptions())
    les[option] = False
    understood = understand(changed, {})
    assert long_range_parameters(understood.les, 90.0, {}, []).sigma == 1.0


def test_long_range_parameters():
    notes = []
    stored = {
        "sigma": 0.8, "dl": 1.6, "remove_mean": False, "epsilon_factor": 1.7, "remove_self_interaction": False,
        "norm_factor": 3.0, "N_max": 10, "is_periodic": True, "distribute_lr_energy": True, "n_hidden": [32, 16],
    }  # fmt: skip
    expected = LongRangeParameters(0.8, 1.6, 3.0, False, False, 1.7)
    assert long_range_parameters(stored, None, {}, notes) == expected
    assert notes == []
    assert long_range_parameters(stored, 5.0, {}, notes).norm_factor == 5.0
    assert "by the user, 3 in the checkpoint" in notes[0]
    notes.clear()
    assert long_range_parameters({"is_periodic": False}, 90.0, {}, notes) == LongRangeParameters(norm_factor=90.0)
    assert any("is_periodic" in note for note in notes)
    with pytest.raises(CheckpointError, match="sigma must be a positive number"):
        long_range_parameters({"sigma": "1.0"}, None, {}, [])


@pytest.mark.parametrize(
    ("information", "expected", "said"),
    [
        (trained_on("2025-05-15"), 90.0474, "2025-05-15"),
        (trained_on("2026-03-31"), 90.0474, "2026-03-31"),
        (trained_on("2026-04-01"), 90.4756, "--norm-factor 90.0474"),
        ({}, 90.0474, "--norm-factor 90.4756"),
        (trained_on("2025-13-45"), 90.0474, "does not say when"),
    ],
)
def test_norm_factor_by_age(information, expected, said):
    notes = []
    assert long_range_parameters({}, None, information, notes).norm_factor == expected
    assert len(notes) == 1
    assert said in notes[0]


def test_elements_of_types():
    def elements(type_names, mapper):
        data = {"transforms": [{"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", **mapper}]}
        return understand({**OLD, "type_names": type_names}, {"data": {"train": [data]}}).elements

    assert elements(["Si", "O", "H"], {"chemical_symbols": ["Si", "O", "H"]}) == [14, 8, 1]
    assert elements(["a", "b"], {"chemical_symbols": ["Au", "Mg"]}) == [79, 12]
    names = {"model_type_names": ["myO", "myH"]}
    assert elements(["myO", "myH"], {**names, "chemical_species_to_atom_type_map": {"H": "myH", "O": "myO"}}) == [8, 1]
    with pytest.raises(UnsupportedModelError, match="'any' stands for several elements"):
        elements(["any"], {**names, "chemical_species_to_atom_type_map": {"H": "any", "O": "any"}})
    with pytest.raises(UnsupportedModelError, match="several types of C"):
        elements(["C3", "C4"], {"chemical_symbols": ["C", "C"]})


def test_without_charges():
    with pytest.raises(NoLatentChargesError, match="--short-range"):
        nequip.load(checkpoint(NEQUIP), options=LoadOptions())
    with pytest.raises(ValueError, match="--norm-factor"):
        nequip.load(checkpoint(NEQUIP), options=LoadOptions(norm_factor=90.0, allow_short_range=True))


def test_heads_do_not_apply():
    with pytest.raises(ValueError, match="--head"):
        nequip.load(checkpoint(OLD), options=LoadOptions(head="dft"))


@pytest.mark.parametrize("missing", ["r_max", "type_names"])
def test_incomplete_configurations(missing):
    with pytest.raises(CheckpointError, match=missing):
        understand({key: value for key, value in OLD.items() if key != missing}, {})


@pytest.mark.parametrize(("configuration", "package"), [(NEW, "nequip"), (ALLEGRO_LES, "allegro")])
def test_missing_packages_are_named(configuration, package, monkeypatch, tmp_path):
    """The configuration is understood without nequip; building the model says what to install."""
    if package == "allegro":
        pytest.importorskip("nequip", reason="nequip is not installed")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.nn", None)
    path = tmp_path / "best.ckpt"
    torch.save(checkpoint(configuration), path)
    with pytest.raises(
        CheckpointError, match=rf"needs .*{package}, which is not installed.*pip install 'les_md\[nequip\]'"
    ):
        nequip.load(read_checkpoint(path), options=LoadOptions())
