"""Configuration of a training: what the template says, and an error with a place for whatever is wrong."""

from __future__ import annotations

import dataclasses
from importlib.resources import files

import pytest

from les_md.architectures.chgnet_network import CHGNetConfiguration
from les_md.electrostatics import LongRangeParameters
from les_md.training.bond_guard import BondGuard
from les_md.training.chgnet_section import CHGNetSection
from les_md.training.configuration import (
    ConfigurationError,
    DataSection,
    ModelSection,
    Stage,
    TrainingConfiguration,
    TrainingSection,
    flatten,
)
from les_md.training.configuration_file import parse_configuration, read_configuration
from les_md.training.contact_guard import ContactGuard
from les_md.training.crowd_guard import CrowdGuard
from les_md.training.guard_sections import BondGuardSection, ContactGuardSection, CrowdGuardSection

TEMPLATE = files("les_md.training").joinpath("template.yaml").read_text(encoding="utf-8")

MINIMAL = """
output: out
data:
  train: train.xyz
  validation: 0.1
model:
  cutoff: 4.5
training:
  epochs: 20
"""
GUARD = "centre: O, ligand: H, bonded: 1.3, stretched: [1.1, 1.4]"
STRESS = "  stress_key: stress\n  stress_unit: GPa\n  stress_sign: tension\n"


def changed(old: str, new: str) -> str:
    assert old in MINIMAL
    return MINIMAL.replace(old, new)


def test_template_is_a_configuration_with_the_defaults():
    expected = parse_configuration(MINIMAL, "minimal.yaml")
    got = parse_configuration(TEMPLATE, "template.yaml")
    assert got == dataclasses.replace(
        expected, output="water_model", training=dataclasses.replace(expected.training, epochs=250)
    )


def test_template_shows_every_key_and_its_default():
    """The commented keys, uncommented, are the defaults too."""
    lines = []
    for line in TEMPLATE.splitlines():
        bare = line.split("#", 1)[1].strip() if line.lstrip().startswith("#") else line.strip()
        name = bare.split(":")[0]
        if ":" in bare and " " not in name:
            lines.append(("  " if line.startswith(("  ", "#   ")) else "") + bare)
    text = "\n".join(lines)
    for section in (
        TrainingConfiguration,
        DataSection,
        ModelSection,
        TrainingSection,
        BondGuardSection,
        ContactGuardSection,
        CrowdGuardSection,
        LongRangeParameters,
    ):
        for each in dataclasses.fields(section):
            assert f"{each.name}:" in text, each.name
    # What cannot stand together is taken out: schedules have options of their own.
    for name in (
        "bond_guards",
        "contact_guard",
        "crowd_guard",
        "repeat",
        "test",
        "group_key",
        "stress_key",
        "stress_unit",
        "stress_sign",
        "message_normalisation",
        "elements",
        "fixed_charges",
    ):
        text = "\n".join(line for line in text.splitlines() if not line.strip().startswith(f"{name}:"))
    text = "\n".join(line for line in text.splitlines() if "plateau_" not in line and "final_learning" not in line)
    got = flatten(parse_configuration(text, "template.yaml").to_dict())
    expected = flatten(parse_configuration(TEMPLATE, "template.yaml").to_dict())
    expected |= {"model.charge_channels": 1, "output": "water_model"}
    del expected["long_range"]
    expected |= {f"long_range.{name}": value for name, value in LongRangeParameters().to_dict().items()}
    assert got == expected


def test_numbers_and_text_that_yaml_takes_for_something_else():
    text = changed("epochs: 20", "epochs: 20\n  learning_rate: 1e-3\n  energy_weight: {1: 1, 10: 1e2}")
    text = text.replace("cutoff: 4.5", "cutoff: 4\n  elements: [No, Y]")
    configuration = parse_configuration(text, "c.yaml")
    assert configuration.training.learning_rate == 1e-3
    assert configuration.training.weights(9).energy == 1.0
    assert configuration.training.weights(10).energy == 100.0
    assert configuration.model.elements == ("No", "Y")
    assert configuration.model.cutoff == 4.0 and isinstance(configuration.model.cutoff, float)


def test_bond_guards():
    line = next(each for each in TEMPLATE.splitlines() if "bond_guards: [" in each).replace("# ", "")
    (section,) = parse_configuration(changed("  epochs: 20", f"  epochs: 20\n{line}"), "c.yaml").training.bond_guards
    # The template shows the defaults, here and in the guard of the bundled water model.
    assert section == BondGuardSection("O", "H", 1.25, (1.08, 1.45))
    assert section.guard((1, 8)) == BondGuard(centre=1, ligand=0)
    line = line.replace("compressed: null", "compressed: [0.4, 0.85]").replace("least_push: 5.0", "least_push: 7")
    (section,) = parse_configuration(changed("  epochs: 20", f"  epochs: 20\n{line}"), "c.yaml").training.bond_guards
    assert section.guard((1, 8)) == BondGuard(centre=1, ligand=0, compressed=(0.4, 0.85), least_push=7.0)
    with pytest.raises(ConfigurationError, match=r"training.bond_guards: O is not an element of the model"):
        section.guard((1, 6))


def test_chgnet():
    line = next(each for each in TEMPLATE.splitlines() if "A CHGNet instead" in each).split("instead: ")[1]
    text = MINIMAL.replace("model:\n  cutoff: 4.5\n", f"{line}\n")
    section = parse_configuration(text, "c.yaml").model
    # The template shows the defaults, and every key but two that it explains for a CACE.
    assert section == CHGNetSection(5.0)
    shown = [each.name for each in dataclasses.fields(section) if f"{each.name}:" in line]
    assert len(shown) == len(dataclasses.fields(section)) - 2
    assert section.network((11, 17), 10.0) == CHGNetConfiguration((11, 17), 5.0)
    assert parse_configuration(changed("cutoff", "architecture: cace\n  cutoff"), "c.yaml").model == ModelSection(4.5)


def test_guards_of_clusters():
    lines = [
        each.replace("# ", "") for each in TEMPLATE.splitlines() if "contact_guard: {" in each or "d_guard: {" in each
    ]
    text = changed("  epochs: 20", "\n".join(["  epochs: 20", *lines]))
    training = parse_configuration(text, "c.yaml").training
    # The template shows the defaults, of the sections and of the guards themselves.
    assert training.guard_sections == (ContactGuardSection(), CrowdGuardSection())
    numbers = (1, 6, 7, 8)
    guards = [section.guard(numbers) for section in training.guard_sections]
    assert guards == [ContactGuard(numbers), CrowdGuard(numbers)]
    with pytest.raises(ConfigurationError, match=r"training.crowd_guard: N is not an element of the model"):
        training.crowd_guard.guard((1, 6, 8))
    text = changed("  epochs: 20", "  epochs: 20\n  contact_guard: {from_epoch: 4}\n  crowd_guard: {from_epoch: 9}")
    assert parse_configuration(text, "c.yaml").training.guarded_from == 9


def test_stages():
    text = changed(
        "epochs: 20", "epochs: 20\n  learning_rate: {1: 0.01, 7: 0.002, 15: 1e-3}\n  charge_restraint: {1: 2, 7: 0}"
    )
    training = parse_configuration(text, "c.yaml").training
    assert training.stages == (Stage(1, 6, 0.01), Stage(7, 14, 0.002), Stage(15, 20, 0.001))
    assert [training.stage(epoch).first for epoch in (1, 6, 7, 14, 15, 20)] == [1, 1, 7, 7, 15, 15]
    assert training.restrains_charges and [training.restraint(epoch) for epoch in (6, 7)] == [2.0, 0.0]


def test_files_may_be_one_or_several():
    text = changed("train.xyz", "[a.xyz, b.xyz]").replace("0.1", "v.xyz")
    configuration = parse_configuration(text, "c.yaml")
    assert configuration.data.train == ("a.xyz", "b.xyz")
    assert configuration.data.validation == ("v.xyz",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml is empty"),
        ("- a\n- b\n", "c.yaml, line 1: the file must be a mapping"),
        ("[output, data]: 1\n", "c.yaml, line 1: a key must be a word"),
        ("output: a\n---\noutput: b\n", "c.yaml, line 2: not YAML"),
        ("output: [a\n", "c.yaml, line 2: not YAML"),
        (changed("epochs", "epocs"), r"c.yaml, line 9: unknown key 'training.epocs'; did you mean 'epochs'\?"),
        (changed("cutoff: 4.5", "cutoff: 4.5\n  zzz: 1"), r"line 8: unknown key 'model.zzz'; known keys: cutoff, "),
        (changed("  epochs: 20", "  batch_size: 2"), r"c.yaml, line 9: 'training.epochs' is missing"),
        (changed("training:\n  epochs: 20\n", ""), r"line 2: 'training' is missing"),
        (changed("epochs: 20", "epochs: 20\n  epochs: 30"), r"line 10: 'training.epochs' is given twice"),
        (changed("epochs: 20", "epochs: 2.5"), r"line 9: 'training.epochs' must be an integer, got '2.5'"),
        (changed("epochs: 20", "epochs: '20'"), r"line 9: 'training.epochs' must be an integer, got '20'"),
        (changed("epochs: 20", "epochs: [20]"), r"line 9: 'training.epochs' must be an integer, not a list"),
        (changed("epochs: 20", "epochs: {a: 1}"), r"line 9: 'training.epochs' must be an integer, not a mapping"),
        (changed("epochs: 20", "epochs:"), r"line 9: 'training.epochs' has no value"),
        (changed("epochs: 20", "epochs: 0"), r"line 9: training: epochs must be greater than 0, got 0"),
        (changed("4.5", "wide"), r"line 7: 'model.cutoff' must be a number, got 'wide'"),
        (
            changed("4.5", "4.5\n  architecture: mace"),
            r"line 8: unknown 'model.architecture' 'mace'; known: cace",
        ),
        (changed("4.5", "4.5\n  architecture: chgnet\n  max_l: 3"), r"line 9: unknown key 'model.max_l'; did you mean"),
        (
            changed("4.5", "4.5\n  architecture: chgnet\n  three_body_cutoff: 5"),
            r"three_body_cutoff must not be",
        ),
        (changed("4.5", "4.5\n  architecture: chgnet\n  atom_hidden: [0]"), r"atom_hidden: widths .* greater than 0"),
        (
            changed("4.5", "4.5\n  architecture: chgnet").replace("20", "20\n  guess_charges: true"),
            r"guess_charges needs model.architecture: cace",
        ),
        (changed("4.5", ".nan"), r"line 7: 'model.cutoff' must be a number, got '.nan'"),
        (changed("4.5", "4.5\n  charges: maybe"), r"line 8: 'model.charges' must be true or false, got 'maybe'"),
        (changed("4.5", "4.5\n  hidden: [a]"), r"line 8: 'model.hidden\[0\]' must be an integer, got 'a'"),
        (changed("4.5", "4.5\n  hidden: []"), r"hidden needs the widths"),
        (changed("4.5", "4.5\n  elements: [Xy]"), r"elements: 'Xy' is not an element"),
        (changed("4.5", "4.5\n  elements: [H, H]"), r"elements: an element is named twice"),
        (changed("4.5", "4.5\n  max_nu: 5"), r"max_nu 1 to 4"),
        (changed("4.5", "4.5\n  num_message_passing: -1"), r"must not be negative"),
        (changed("4.5", "4.5\n  cutoff_exponent: 2"), r"cutoff_exponent must be at least 3"),
        (changed("4.5", "4.5\n  message_normalisation: 0.3"), r"needs num_message_passing of 1 or more"),
        (changed("4.5", "4.5\n  charges: false\n  charge_channels: 2"), r"charge_channels needs charges: true"),
        (
            changed("4.5", "4.5\n  charges: false") + "long_range: {sigma: 1.0}\n",
            r"the section long_range needs model.charges: true",
        ),
        (MINIMAL + "long_range: {sigma: -1.0}\n", r"long_range: long-range parameter sigma must be a positive number"),
        (MINIMAL + "long_range: {}\n", None),
        (MINIMAL + "dtype: float16\n", r"dtype must be float32 or float64, got 'float16'"),
        (MINIMAL + "threads: 0\n", r"threads must be greater than 0"),
        (MINIMAL + "seed: -1\n", r"seeds must not be negative"),
        (changed("0.1", "1.1"), r"must be between 0 and 1"),
        (changed("0.1", "0.6\n  test: 0.5"), r"leave frames for training"),
        (changed("train.xyz", "[]"), r"train needs at least one file"),
        (changed("0.1", "v.xyz\n  group_key: run"), r"group_key says how frames are held out"),
        (changed("0.1", "0.1\n  stress_unit: GPa"), r"need stress_key"),
        (changed("0.1", "0.1\n  stress_key: stress"), r"stress_unit must be stated .*: eV/Å\^3, .*GPa, kbar"),
        (changed("0.1", "0.1\n  stress_key: stress\n  stress_unit: bar"), r"unknown stress_unit 'bar'; known: "),
        (changed("0.1", "0.1\n  stress_key: s\n  stress_unit: GPa"), r"stress_sign must be stated: tension if"),
        (changed("0.1\n", "0.1\n" + STRESS), r"training.stress_weight is 0: give both or none"),
        (changed("20", "20\n  stress_weight: 1"), r"training.stress_weight needs data.stress_key"),
        (changed("0.1", "0.1\n  atomic_energies: mean"), r"atomic_energies must be average, or an energy"),
        (changed("0.1", "0.1\n  atomic_energies: {Xx: 1.0}"), r"atomic_energies: 'Xx' is not an element"),
        (changed("0.1", "0.1\n  atomic_energies: {H: a}"), r"'data.atomic_energies.H' must be a number"),
        (changed("0.1", "0.1\n  atomic_energies: {H: 1, H: 2}"), r"'data.atomic_energies.H' is given twice"),
        (changed("0.1", "0.1\n  atomic_energies: {}"), r"'data.atomic_energies' is empty"),
        (changed("0.1", "0.1\n  largest_force: 0"), r"largest_force must be greater than 0"),
        (changed("20", "20\n  learning_rate_schedule: step"), r"unknown learning_rate_schedule 'step'; known: cosine"),
        (changed("20", "20\n  plateau_patience: 3"), r"plateau_patience belongs to the schedule plateau"),
        (
            changed("20", "20\n  learning_rate_schedule: constant\n  final_learning_rate: 1e-4"),
            r"final_learning_rate belongs to",
        ),
        (changed("20", "20\n  final_learning_rate: 1"), r"final_learning_rate must be between 0 and learning_rate"),
        (
            changed("20", "20\n  learning_rate_schedule: plateau\n  plateau_factor: 2"),
            r"plateau_factor must be between",
        ),
        (changed("20", "20\n  average: 1.0"), r"average must be at least 0 and below 1"),
        (changed("20", "20\n  patience: 0"), r"patience must be greater than 0"),
        (changed("20", "20\n  warmup_steps: -1"), r"warmup_steps must not be negative"),
        (changed("20", "20\n  energy_weight: -1"), r"energy_weight must not be negative"),
        (changed("20", "20\n  energy_weight: {2: 1}"), r"counted from 1, which must occur"),
        (changed("20", "20\n  energy_weight: {a: 1}"), r"the keys of 'training.energy_weight' must be an integer"),
        (changed("20", "20\n  energy_weight: {1: 1, 30: 2}"), r"epoch 30 is beyond the last, 20"),
        (changed("20", "20\n  bond_guards: [O]"), r"'training.bond_guards\[0\]' must be a mapping, got 'O'"),
        (changed("20", "20\n  bond_guards: O"), r"'training.bond_guards' must be a list, each a mapping, got 'O'"),
        (changed("20", "20\n  bond_guards: [{centre: O}]"), r"'training.bond_guards\[0\].ligand' is missing"),
        (changed("20", f"20\n  bond_guards: [{{{GUARD}, evry: 1}}]"), r"bond_guards\[0\].evry'; did you mean 'every'"),
        (changed("20", f"20\n  bond_guards: [{{{GUARD}, every: 0}}]"), r"every must be greater than 0"),
        (changed("20", f"20\n  bond_guards: [{{{GUARD}, fraction: 2}}]"), r"fraction must be at most 1"),
        (changed("20", f"20\n  bond_guards: [{{{GUARD}, from_epoch: 21}}]"), r"epoch 21 is beyond the last, 20"),
        (
            changed("20", f"20\n  bond_guards: [{{{GUARD.replace('1.1, ', '')}}}]"),
            r"stretched must be two lengths in Å, the shorter one first",
        ),
        (changed("20", f"20\n  bond_guards: [{{{GUARD.replace('O', 'Oo')}}}]"), r"centre: 'Oo' is not an element"),
        (changed("20", f"20\n  bond_guards: [{{{GUARD}}}]") + "device: cuda\n", r"crowd_guard\) need device: cpu"),
        (changed("20", "20\n  learning_rate: 0"), r"learning_rate must be greater than 0"),
        (changed("20", "20\n  learning_rate: {2: 0.1}"), r"learning_rate: the epochs .* counted from 1"),
        (changed("20", "20\n  learning_rate: {1: 0.1, 21: 0.1}"), r"learning_rate: epoch 21 is beyond the last, 20"),
        (changed("20", "20\n  learning_rate: {1: 0.1, 9: 0.1}\n  patience: 3"), r"patience is for a single learning_"),
        (
            changed("20", "20\n  learning_rate: {1: 0.1, 9: 0.01}\n  final_learning_rate: 0.05"),
            r"final_learning_rate must be between 0 and learning_rate",
        ),
        (changed("20", "20\n  contact_guard: {heavy: [2, 1]}"), r"heavy must be two numbers greater than 0"),
        (changed("20", "20\n  contact_guard: true"), r"'training.contact_guard' must be a mapping, got 'true'"),
        (changed("20", "20\n  contact_guard: {from_epoch: 30}"), r"guards: epoch 30 is beyond the last, 20"),
        (changed("20", "20\n  crowd_guard: {centres: [X]}"), r"centres: 'X' is not an element"),
        (changed("20", "20\n  crowd_guard: {centres: []}"), r"centres needs at least one element"),
        (changed("20", "20\n  crowd_guard: {numbers: [2.5, 3]}"), r"numbers\[0\]' must be an integer, got '2.5'"),
        (changed("20", "20\n  charge_restraint: -1"), r"charge_restraint must not be negative"),
        (
            changed("20", "20\n  guess_charges: true").replace("4.5", "4.5\n  charges: false"),
            r"guess_charges and charge_restraint need model.charges: true",
        ),
        (changed("0.1", "0.1\n  repeat: {a.xyz: 2}"), r"repeat: 'a.xyz' is not a training file"),
        (changed("0.1", "0.1\n  repeat: {train.xyz: 0}"), r"used once or more often, got 0 for 'train.xyz'"),
        (changed("20", "20\n  energy_weight: 0\n  forces_weight: 0"), r"all weights of the loss are 0"),
    ],
)
def test_error_messages(text, message):
    if message is None:
        assert parse_configuration(text, "c.yaml").long_range == LongRangeParameters()
        return
    with pytest.raises(ConfigurationError, match=message):
        parse_configuration(text, "c.yaml")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such configuration file"):
        read_configuration(tmp_path / "absent.yaml")
