"""Any number of MPI ranks: energy, forces, virial, charges and trajectories are those of one rank.

An evaluation is the same sum on every number of ranks, in another order. Values may therefore differ by rounding
only: 1e-10 of the largest one of their kind. Starting ``mpiexec`` takes longer than evaluating such small systems, so
one start evaluates all cases of one number of ranks, one after the other, and every test looks at its own.
"""

from __future__ import annotations

import re
from pathlib import Path

import ase
import numpy as np
import pytest
from conftest import (
    ELEMENTS,
    TILTED,
    random_atoms,
    water,
    write_chgnet,
    write_data,
    write_model,
    write_undirected_chgnet,
)

from tests.lammps.evaluations import (
    Case,
    Evaluations,
    cluster,
    deviations,
    half_filled,
    rank_count,
    run_script,
    snapshots,
    tables,
    uneven,
)
from tests.sharing import shared_folder

TOLERANCE = 1e-10


# ---- models and cases


@pytest.fixture(scope="module")
def rank_models(models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rank_models")
    return {
        "1 layer": models["water"],
        "2 layers": write_model(folder / "two.pt", num_message_passing=1),
        "3 layers": write_model(folder / "three.pt", num_message_passing=2),
        "2 layers, 2 charges": models["two charges"],
        "short range": models["short range"],
        "3 layers, cutoff 3": write_model(folder / "short_cutoff.pt", num_message_passing=2, cutoff=3.0),
        "CHGNet, 1 block": write_chgnet(folder / "chgnet_one.pt", 1),
        "CHGNet, 2 blocks": write_chgnet(folder / "chgnet_two.pt", 2),
        "CHGNet, 4 blocks": write_chgnet(folder / "chgnet_four.pt", 4),
        "CHGNet of chgnet, 2 blocks": write_undirected_chgnet(folder / "chgnet_undirected_two.pt", 2),
        "CHGNet of chgnet, 3 blocks": write_undirected_chgnet(folder / "chgnet_undirected_three.pt", 3),
        "gentle, 2 layers": write_model(folder / "gentle.pt", num_message_passing=1, softness=10.0),
    }


@pytest.fixture(scope="module")
def evaluations(rank_models, plugin, tmp_path_factory) -> Evaluations:
    return Evaluations(shared_folder(tmp_path_factory, "evaluations_of_ranks"), rank_models, CASES)


# ---- cases


def with_helium() -> ase.Atoms:
    """Water in the lower half along x, helium, which no model knows, in the upper."""
    atoms = half_filled()
    helium = np.array([[7.5, 1.0, 1.0], [8.0, 4.0, 3.0], [9.9, 2.0, 5.0], [11.0, 5.0, 1.0]])
    return atoms + ase.Atoms("He4", positions=helium)


RNG = np.random.default_rng(11)
RANDOM_IDS = tuple(int(i) for i in RNG.choice(2_000_000_000, size=24, replace=False) + 1)
MANY = ("2x1x1", "1x2x1", "1x3x1", "2x2x1")
HYBRID = "pair_style hybrid/overlay mliap/les {keywords} zero 4.0\npair_coeff * * mliap/les MODEL {elements}\n"
NULL = "pair_style hybrid/overlay mliap/les zero 4.0\npair_coeff * * mliap/les MODEL H O NULL\npair_coeff * * zero"
TWO_MODELS = (
    "pair_style hybrid/overlay mliap/les mliap/les\n"
    "pair_coeff * * mliap/les 1 {first} H O\npair_coeff * * mliap/les 2 {second} H O"
)
LAYER_NUMBERS = ("1 layer", "2 layers", "3 layers")

CASES: dict[str, Case] = {}

# A box of 6.2 Å, thinner than the receptive field of every model, and parts as thin as 2.1 Å.
for layers in LAYER_NUMBERS:
    eight = ("2x2x2",) if layers == "2 layers" else ()
    CASES[f"water, {layers}"] = Case(water(), (*MANY, *eight), layers, "kspace ewald")
CASES["water, mesh"] = Case(water(), ("2x1x1", "1x3x1", "2x2x1"), "2 layers", "kspace mesh accuracy 1e-4")
CASES["water, short range"] = Case(water(), ("2x2x1",), "short range", num_charges=0)
CASES["water, units real"] = Case(water(), ("2x1x1",), units="real")
CASES["box of 3 angstrom"] = Case(water((1, 1, 1)), ("2x1x1", "1x2x2"), "3 layers", "kspace mesh")
CASES["one atom and its images"] = Case(ase.Atoms("O", [[0.3, 0.2, 0.1]], cell=[2.2, 2.3, 2.4]), ("2x1x1",), "2 layers")

for solver in ("ewald", "mesh"):
    charges = {"model": "2 layers, 2 charges", "num_charges": 2}
    CASES[f"tilted, {solver}"] = Case(
        random_atoms(TILTED, True, "HHOOHHOHOH"), ("2x1x1", "2x2x1"), keywords=f"kspace {solver}", **charges
    )
    slab = random_atoms([[6, 0, 0], [0, 6.5, 0], [0, 0, 14.0]], (True, True, False), "HOHOHOHO")
    CASES[f"slab correction, {solver}"] = Case(
        slab, ("2x1x1", "1x2x2"), "2 layers", f"kspace {solver} slab yes", boundary="p p f"
    )
    CASES[f"isolated, {solver}"] = Case(cluster(), ("2x1x1", "2x2x1"), "2 layers", f"kspace {solver}", boundary="f f f")
CASES["slab correction, 2 charges"] = Case(
    slab, ("1x1x2",), keywords="slab yes", boundary="p p f", num_charges=2, model="2 layers, 2 charges"
)
CASES["isolated, 2 charges"] = Case(
    cluster(), ("1x1x2",), keywords="kspace mesh", boundary="f f f", num_charges=2, model="2 layers, 2 charges"
)
CASES["tilted slab"] = Case(random_atoms(TILTED, (True, True, False), "HOHOHOHO"), ("2x2x1",), boundary="p p f")
CASES["rod"] = Case(
    random_atoms(np.diag([9.0, 9.0, 3.5]).tolist(), (False, False, True), "HOHOH"),
    ("2x1x1", "1x3x1"),
    "2 layers",
    boundary="f f p",
)
CASES["one periodic axis"] = Case(slab, ("1x2x1",), boundary="p f f")
CASES["shrink-wrapped"] = Case(cluster(), ("2x1x1", "1x3x1"), "2 layers", boundary="s s s")
CASES["shrink-wrapped, mesh"] = Case(cluster(), ("1x2x2",), "3 layers", "kspace mesh", boundary="s m s")

CASES["a rank without atoms"] = Case(half_filled(), ("2x1x1", "1x3x1"), "2 layers", shares=(24, 0))
CASES["a rank without atoms, mesh"] = Case(half_filled(), ("2x1x1",), keywords="kspace mesh", shares=(24, 0))
CASES["ranks without atoms, fixed"] = Case(
    cluster(60.0), ("2x1x1", "2x2x1"), "3 layers", "kspace ewald", boundary="f f f", shares=(12, 0)
)
CASES["ranks without atoms, fixed, mesh"] = Case(
    cluster(60.0), ("2x1x1", "2x2x1"), "2 layers", "kspace mesh", boundary="f f f", shares=(12, 0)
)
helium = {"elements": ("H", "O", "He"), "pair": NULL, "shares": (24, 4)}
CASES["a rank with helium alone"] = Case(with_helium(), ("2x1x1", "2x2x1"), "1 layer", **helium)
CASES["a rank with helium alone, 2 layers"] = Case(with_helium(), ("2x1x1",), "2 layers", **helium)
CASES["two models"] = Case(
    water(), ("2x1x1", "2x2x1"), pair=TWO_MODELS.format(first="{2 layers}", second="{1 layer}"), instance="mliap/les 1"
)
CASES["two deep models"] = Case(
    water(),
    ("2x1x1", "2x2x1"),
    pair=TWO_MODELS.format(first="{2 layers}", second="{3 layers, cutoff 3}"),
    instance="mliap/les 2",
)

CASES["random IDs"] = Case(water(), ("2x1x1", "2x2x1"), "2 layers", ids=RANDOM_IDS)
CASES["deleted atoms"] = Case(
    water(),
    ("2x1x1", "1x3x1"),
    "2 layers",
    settings="group gone id 4:6 19:21\ndelete_atoms group gone compress no\nset group all image 0 0 0",
)
for layers in LAYER_NUMBERS[:2]:
    CASES[f"balanced, {layers}"] = Case(uneven(), ("1x1x2 rcb", "1x3x1 rcb", "2x2x1 rcb"), layers)
# Every bond needs its other direction, and those of atoms at the rim of a rank's part have none.
for blocks in ("1 block", "2 blocks", "4 blocks"):
    model = f"CHGNet, {blocks}"
    CASES[f"water, {model}"] = Case(water((3, 2, 2)), ("2x1x1", "1x2x1", "2x2x1"), model)
CASES["balanced, CHGNet"] = Case(uneven(), ("1x1x2 rcb", "2x2x1 rcb"), "CHGNet, 2 blocks")
CASES["a cluster, CHGNet"] = Case(cluster(), ("2x1x1", "2x2x1"), "CHGNet, 2 blocks", boundary="f f f")
CASES["tilted, CHGNet"] = Case(random_atoms(TILTED, True, "HHOOHHOHOH"), ("2x1x1", "2x2x1"), "CHGNet, 2 blocks")
CASES["a rank without atoms, CHGNet"] = Case(half_filled(), ("2x1x1",), "CHGNet, 2 blocks", shares=(24, 0))
CASES["one atom and its images, CHGNet"] = Case(
    ase.Atoms("O", [[0.3, 0.2, 0.1]], cell=[2.2, 2.3, 2.4]), ("2x1x1",), "CHGNet, 2 blocks"
)
for blocks in ("2 blocks", "3 blocks"):
    model = f"CHGNet of chgnet, {blocks}"
    CASES[f"water, {model}"] = Case(water((3, 2, 2)), ("2x1x1", "1x2x1", "2x2x1"), model, num_charges=0)


# ---- rank independence


@pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name, case in CASES.items() for layout in case.layouts]
)
def test_every_number_of_ranks_gives_the_same(name, layout, evaluations):
    """Energy, its parts, forces, virial, per-atom energies and charges are those of one rank, to rounding."""
    case = CASES[name]
    reference = evaluations(name, "1x1x1")
    result = evaluations(name, layout)
    assert len(set(result.owners)) <= rank_count(layout)
    if case.shares and layout == case.layouts[0]:
        assert tuple(np.bincount(result.owners, minlength=rank_count(layout))) == case.shares
    found = deviations(result, reference)
    assert max(found.values()) < TOLERANCE, found


def test_tilted_cells_are_cut_into_parts(evaluations):
    """The layouts are what they say: balancing cuts elsewhere than a grid, which has 27 of 45 atoms on one rank."""
    even = evaluations("balanced, 1 layer", "2x2x1 rcb")
    assert np.bincount(even.owners, minlength=4).max() < 15
    assert "2 by 2 by 1 MPI processor grid" in even.log
    assert "1 by 3 by 1 MPI processor grid" in evaluations("water, 3 layers", "1x3x1").log


def test_log_of_several_ranks(evaluations):
    """The log gives means over ranks, the slowest, and what the ranks share beyond their own atoms."""
    log = evaluations("a rank without atoms", "2x1x1").log
    assert re.search(r"per rank 12 own atoms \(at most 24\), \d+ nodes \(1\.\d\d times the own atoms\), \d+ edges", log)
    assert re.search(
        r"1 evaluations, ms each \(mean of the ranks, slowest\): neighbours \d+\.\d{3} \(\d+\.\d{3}\)", log
    )
    assert re.search(r"peak memory per rank \d+ MB, at most \d+ MB", log)
    deep = evaluations("water, 3 layers", "2x2x1").log
    # Every rank needs the edges of nearly all 24 atoms of this small box, and owns 6.
    assert float(re.search(r"edges \((.*?) times those of own atoms", deep).group(1)) > 3.0
    assert "(1.00 times those of own atoms)" in evaluations("water, 1 layer", "2x2x1").log


# ---- trajectories


def start_of(folder: Path, grid: str, potential: str, model: Path) -> str:
    write_data(folder / "start.data", water(), ELEMENTS, "atomic")
    return (
        f"units metal\nprocessors {grid}\nread_data start.data\nneighbor 0.3 bin\n"
        "neigh_modify every 1 delay 0 check yes\n"
        f"pair_style mliap/les {potential}\npair_coeff * * {model} H O\nvelocity all create 2000 4\n"
    )


def test_trajectories_stay_together(rank_models, plugin, tmp_path):
    """200 steps on 1 and 4 ranks, with atoms that change their rank by moving and by balancing: the same trajectory.

    The sums of the ranks differ in the last digits, 1e-15 relative, and collisions amplify this only slowly at first
    (measured: 2e-14 Å): 1e-10 Å leaves room for that and for nothing else.
    """
    frames, energies = [], []
    for ranks, grid in ((1, "1 1 1"), (4, "2 2 1")):
        folder = tmp_path / f"ranks{ranks}"
        folder.mkdir()
        script = start_of(folder, grid, "kspace mesh", rank_models["gentle, 2 layers"])
        script += (
            "timestep 0.00025\nfix 1 all nve\ncompute owner all property/atom proc\n"
            + ("fix even all balance 25 1.0 shift xy 5 1.05\n" if ranks > 1 else "")
            + "dump d all custom 10 all.dump id xu yu zu vx vy vz c_owner\ndump_modify d sort id format float %.17g\n"
            "thermo 10\nthermo_style custom step pe etotal\nthermo_modify format float %.17g\nrun 200\n"
        )
        energies.append(tables(run_script(script, folder, ranks))[0])
        frames.append(snapshots(folder / "all.dump"))
    one, four = frames
    assert len(one) == 21
    assert not one[:, :, 7].any()
    assert (np.diff(four[:, :, 7], axis=0) != 0).sum() > 10  # changes of rank
    assert np.linalg.norm(one[-1, :, 1:4] - one[0, :, 1:4], axis=1).max() > 0.5  # Å
    assert np.abs(four[:, :, 1:4] - one[:, :, 1:4]).max() < 1e-10  # Å
    assert np.abs(four[:, :, 4:7] - one[:, :, 4:7]).max() < 1e-10 * np.abs(one[:, :, 4:7]).max()
    np.testing.assert_allclose(energies[1][:, 1:], energies[0][:, 1:], rtol=1e-12)


def test_atom_that_leaves_a_cluster(rank_models, plugin, tmp_path):
    """An atom flies away over 30 Å: the mesh of an isolated system follows, on all ranks alike, without a visible jump.

    After every step the energy is also that of the sum over all pairs to the accuracy of the mesh.
    """
    write_data(tmp_path / "start.data", cluster(), ELEMENTS, "atomic")
    tables_of = {}
    for ranks, kspace in ((1, "ewald"), (1, "mesh"), (2, "mesh")):
        script = (
            f"units metal\nboundary s s s\nprocessors * 1 1\nread_data start.data\n"
            f"pair_style mliap/les kspace {kspace}\npair_coeff * * {rank_models['gentle, 2 layers']} H O\n"
            "set atom 1 vx 5000 vy 3000 vz -2000\nfix 1 all nve\ntimestep 0.00025\ncompute split all pair mliap/les\n"
            "thermo 1\nthermo_style custom step pe c_split[2] xlo xhi\nthermo_modify format float %.17g\nrun 25\n"
        )
        (tables_of[ranks, kspace],) = tables(run_script(script, tmp_path, ranks))
    mesh = tables_of[1, "mesh"]
    assert mesh[-1, 4] - mesh[-1, 3] > mesh[0, 4] - mesh[0, 3] + 20.0
    np.testing.assert_allclose(tables_of[2, "mesh"], mesh, rtol=1e-11)
    long_range = tables_of[1, "ewald"][:, 2]
    np.testing.assert_allclose(mesh[:, 2], long_range, rtol=0, atol=1e-5 * np.abs(long_range).max())


def test_restart_on_another_number_of_ranks(rank_models, plugin, tmp_path):
    """A trajectory of 2 ranks, written half way, goes on unchanged on 1 and on 3."""
    model = rank_models["gentle, 2 layers"]
    output = (
        "fix 1 all nve\ntimestep 0.00025\nthermo 10\nthermo_style custom step pe etotal\n"
        "thermo_modify format float %.17g\n"
    )
    script = start_of(tmp_path, "2 1 1", "", model) + output
    first = tables(run_script(script + "run 10\nwrite_restart half.restart\nrun 10\n", tmp_path, 2))
    for ranks in (1, 3):
        again = "read_restart half.restart\nneighbor 0.3 bin\n"
        again += f"pair_style mliap/les\npair_coeff * * {model} H O\n{output}run 10\n"
        (table,) = tables(run_script(again, tmp_path, ranks))
        np.testing.assert_allclose(table, first[1], rtol=1e-11)
    np.testing.assert_array_equal(first[0][-1], first[1][0])


# ---- pressure


def cell_of(row: np.ndarray) -> np.ndarray:
    """Lattice vectors from lx ly lz xy xz yz."""
    lx, ly, lz, xy, xz, yz = row
    return np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]])


DEFORMATIONS = ("x", "y", "z", "xy", "xz", "yz")


@pytest.mark.parametrize("ranks", [1, 4])
def test_pressure_is_the_strain_derivative(ranks, rank_models, plugin, tmp_path):
    """The virial against energy differences along six independent deformations, by ewald and mesh.

    ``kset fixed`` keeps the wave vectors of the first step of a run, so all strained boxes must belong to one run:
    ``fix deform wiggle`` passes through one on either side of the first. (It changes the box at the end of a step,
    after the energy: the energy of a line belongs to the box of the line before.) Edges a and c are multiples of
    dl = 2 Å, where the set would change otherwise.
    """
    cell = np.array([[6.0, 0, 0], [2.1, 6.5, 0], [-1.2, np.sqrt(36 - 1.44 - 27.04), 5.2]])
    write_data(tmp_path / "tilted.data", random_atoms(cell, True, "HHOOHHOHOH"), ELEMENTS, "atomic")
    script = (
        f"units metal\nprocessors {'2 2 1' if ranks == 4 else '1 1 1'}\nread_data tilted.data\n"
        f"pair_style mliap/les\npair_coeff * * {rank_models['2 layers']} H O\ntimestep 0.001\n"
        "compute virial all pressure NULL virial\nthermo 1\n"
        "thermo_style custom step pe lx ly lz xy xz yz c_virial[*]\nthermo_modify format float %.17g norm no\n"
    )
    for solver in ("ewald", "mesh accuracy 1e-3"):
        script += f"pair_style mliap/les kspace {solver} kset fixed\n"
        for deformation in DEFORMATIONS:
            script += f"fix 1 all deform 1 {deformation} wiggle 2e-4 0.004 remap x flip no units box\nrun 4\nunfix 1\n"
    found = tables(run_script(script, tmp_path, ranks))
    assert len(found) == 12
    for table in found:
        cells = [cell_of(row[2:8]) for row in table]
        volume = np.linalg.det(cells[0])
        pressure = table[0, 8:] / 1.6021765e6  # eV/Å³
        virial = volume * pressure[[0, 3, 4, 3, 1, 5, 4, 5, 2]].reshape(3, 3)
        strains = [np.linalg.inv(cells[0]) @ cell - np.eye(3) for cell in cells[:-1]]
        energies = table[1:, 1]
        expected = [-(virial * strain).sum() for strain in strains]
        assert np.abs(strains[1] - strains[3]).max() > 4e-5
        error = energies[1] - energies[3] - (expected[1] - expected[3])
        size = np.abs(strains[1] - strains[3]).sum() * np.abs(virial).max()
        assert abs(error) < 1e-6 * size
