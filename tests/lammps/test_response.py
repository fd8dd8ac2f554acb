"""Born effective charges and the current in LAMMPS: against LESCalculator, finite differences and other rank counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.data
import numpy as np
import pytest
from conftest import TILTED, lmp, random_atoms, water, write_data, write_model
from scipy.integrate import cumulative_trapezoid

from les_md import LESCalculator, export, model_file
from les_md.analysis.dielectric import dielectric_constant
from les_md.analysis.series_files import read_dipole_series
from tests.architectures.small_models import export_small_model

OPEN = np.diag([8.0, 8, 8]).tolist()
SMALL_TILTED = [[3.0, 0, 0], [1.4, 2.9, 0], [-0.8, 1.2, 3.1]]
SYSTEMS = {
    "water": lambda: (water(), "p p p"),
    "tilted": lambda: (random_atoms(TILTED, True, "HHOOHHOHOH"), "p p p"),
    "box of 3 angstrom": lambda: (random_atoms(np.diag([3.0, 3.1, 3.2]).tolist(), True, "OHH"), "p p p"),
    "tilted box of 3 angstrom": lambda: (random_atoms(SMALL_TILTED, True, "OHO"), "p p p"),
    "one atom and its images": lambda: (ase.Atoms("O", [[0.3, 0.2, 0.1]], cell=[2.2, 2.3, 2.4], pbc=True), "p p p"),
    "slab": lambda: (random_atoms([[6, 0, 0], [0, 6.5, 0], [0, 0, 9.0]], (True, True, False), "HOHOHOHO"), "p p f"),
    "rod": lambda: (random_atoms(np.diag([9.0, 9.0, 3.5]).tolist(), (False, False, True), "HOHOH"), "f f p"),
    "isolated": lambda: (random_atoms(OPEN, False, "HOHHOHHO"), "f f f"),
    "isolated, shrink-wrapped": lambda: (random_atoms(OPEN, False, "HOHHOHHO"), "s s m"),
    "isolated atom": lambda: (ase.Atoms("O", [[2, 2, 2]], cell=[4, 4, 4], pbc=False), "f f f"),
}


@pytest.fixture(scope="module")
def response_models(models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("response_models")
    return {
        "1 layer": models["water"],
        "2 layers": write_model(folder / "two.pt", num_message_passing=1),
        "3 layers": write_model(folder / "three.pt", num_message_passing=2),
        "2 layers, 2 charges": models["two charges"],
        "1 layer, 2 charges": write_model(folder / "local_two.pt", num_charges=2),
        "1 layer, mean kept": write_model(folder / "mean.pt", remove_mean=False),
        "2 layers, mean kept": write_model(folder / "deep_mean.pt", remove_mean=False, num_message_passing=1),
        "1 layer, turned": write_model(folder / "turned.pt", charge_sign=-1.0),
        "gentle": models["gentle"],
        "gentle, 2 layers": write_model(folder / "gentle.pt", num_message_passing=1, softness=10.0),
        "multipoles": export_small_model("multipoles", folder / "multipoles.pt"),
        "responding": export_small_model("responding", folder / "responding.pt"),
    }


def of_fix(session, name: str) -> np.ndarray:
    """A per-atom array of a fix, in the order of atom IDs."""
    import lammps

    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(session.atoms)])
    array = session.lmp.numpy.extract_fix(name, lammps.LMP_STYLE_ATOM, lammps.LMP_TYPE_ARRAY)
    return np.array(array[: len(order)])[order]


def born_charges(session) -> np.ndarray:
    return of_fix(session, "born").reshape(-1, 3, 3)


def by_atom(session, quantity: str) -> np.ndarray:
    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(session.atoms)])
    return np.array(session.lmp.numpy.extract_atom(quantity)[: len(order)])[order]


def assert_same(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(np.abs(theirs).max(), 1e-3))


# ---- Born charges


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(
    "model",
    [
        "1 layer",
        "2 layers, 2 charges",
        "1 layer, 2 charges",
        "1 layer, mean kept",
        "2 layers, mean kept",
        "multipoles",
        "responding",
    ],
)
def test_born_charges_of_lescalculator(name, model, response_models, lammps_of):
    atoms, boundary = SYSTEMS[name]()
    session = lammps_of(atoms, boundary=boundary).potential(response_models[model])
    session.run("fix born all pair 1 mliap/les born 1\nrun 0")
    expected = LESCalculator(response_models[model]).get_born_effective_charges(atoms)
    assert np.abs(expected).max() > 0.0 or len(atoms) == 1
    assert_same(born_charges(session), expected, 1e-10)


def test_sign_of_the_charges(response_models, lammps_of):
    """As it is recorded in the file: both ways the energy is the same, the charges and their response turned."""
    tensors = {}
    for model in ("1 layer", "1 layer, turned"):
        session = lammps_of(water()).potential(response_models[model])
        session.run("fix born all pair 1 mliap/les born 1\nrun 0")
        tensors[model] = born_charges(session)
        assert_same(tensors[model], LESCalculator(response_models[model]).get_born_effective_charges(water()), 1e-10)
    assert_same(tensors["1 layer, turned"], -tensors["1 layer"], 1e-12)


def test_local_models_take_one_pass_and_get_the_same(models):
    """What a model without message passing makes of one product is what the general way makes of six."""
    exported = model_file.load(models["water"])
    assert exported.module.is_local
    for atoms in (water(), random_atoms(OPEN, False, "HOHHOHHO")):
        expected = LESCalculator(exported).get_born_effective_charges(atoms)
        general = model_file.load(models["water"])
        general.module.is_local = False
        assert_same(LESCalculator(general).get_born_effective_charges(atoms), expected, 1e-12)


@pytest.mark.parametrize("model", ["1 layer", "2 layers, 2 charges"])
@pytest.mark.parametrize("system", ["tilted", "isolated"])
def test_born_charges_are_derivatives_of_the_polarisation(system, model, response_models, lammps_of):
    """Against finite differences of P, made of the charges and positions that LAMMPS has."""
    atoms, boundary = SYSTEMS[system]()
    session = lammps_of(atoms, boundary=boundary).potential(response_models[model])
    session.run("fix born all pair 1 mliap/les born 1\nrun 0")
    tensors = born_charges(session)
    inverse = np.linalg.inv(atoms.cell.array)

    def polarisation():
        import lammps

        # fix pair keeps what it has while the number of the step stays the same.
        session.run("fix q all pair 1 mliap/les charge 0\nrun 0")
        if "2 charges" in model:
            charges = of_fix(session, "q").sum(1)
        else:
            order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)])
            stored = session.lmp.numpy.extract_fix("q", lammps.LMP_STYLE_ATOM, lammps.LMP_TYPE_VECTOR)
            charges = np.array(stored[: len(atoms)])[order]
        charges = charges - charges.mean()
        positions = by_atom(session, "x")
        if system == "isolated":
            return charges @ positions
        return charges @ np.exp(2j * np.pi * positions @ inverse) / (2j * np.pi)

    step = 1e-4
    for atom, axis in ((0, 0), (3, 1), (6, 2)):
        session.run(f"group one id {atom + 1}")
        values = []
        for sign in (1, -2, 1):
            move = " ".join(str(sign * step * (axis == a)) for a in range(3))
            session.run(f"displace_atoms one move {move} units box")
            values.append(polarisation())
        session.run("group one delete")
        slope = (values[0] - values[1]) / (2 * step)
        if system == "tilted":
            phase = np.exp(-2j * np.pi * atoms.positions[atom] @ inverse)
            slope = (slope * phase).real @ atoms.cell.array
        np.testing.assert_allclose(tensors[atom, :, axis], slope, rtol=1e-5, atol=1e-6)


def test_only_when_asked(response_models, lammps_of):
    """Every N-th step; in between the fix keeps the last ones, and nothing is evaluated."""
    session = lammps_of(water()).potential(response_models["gentle, 2 layers"])
    session.run("velocity all create 300 4\nfix 1 all nve\ntimestep 0.0002\nfix born all pair 4 mliap/les born 1")
    session.run("thermo_style custom step pe\nrun 4")
    at_four = born_charges(session)
    session.run("run 3")
    np.testing.assert_array_equal(born_charges(session), at_four)
    session.run("run 1")
    assert np.abs(born_charges(session) - at_four).max() > 1e-4
    moved = water()
    moved.positions = by_atom(session, "x")
    expected = LESCalculator(response_models["gentle, 2 layers"]).get_born_effective_charges(moved)
    assert_same(born_charges(session), expected, 1e-10)


@pytest.mark.parametrize(("trigger", "evaluations"), [(1, 9), (0, 12)])
def test_trigger(trigger, evaluations, response_models, lammps_of):
    """With the trigger Born charges are part of the evaluation; without, fix pair's steps cost another one."""
    session = lammps_of(water()).potential(response_models["gentle"])
    session.run(f"velocity all create 300 4\nfix 1 all nve\nfix born all pair 4 mliap/les born {trigger}\nrun 8")
    moved = water()
    moved.positions = by_atom(session, "x")
    tensors = born_charges(session)
    session.close()
    log = (session.folder / "log.lammps").read_text()
    assert f"mliap/les: {evaluations} evaluations" in log
    assert_same(tensors, LESCalculator(response_models["gentle"]).get_born_effective_charges(moved), 1e-10)


# ---- the current


def test_current_is_the_sum_of_born_charges_times_velocities(response_models, lammps_of):
    """At the end of a step, with its velocities; not a number at steps where it is not evaluated."""
    session = lammps_of(water()).potential(response_models["2 layers"], "current 4")
    session.run("velocity all create 300 4\nfix 1 all nvt temp 300 300 0.01\ntimestep 0.0002")
    session.run("compute les all pair mliap/les\nfix born all pair 1 mliap/les born 1")
    session.run("thermo_style custom step pe c_les[*]\nthermo 1\nrun 0")
    for steps in range(9):
        if steps:
            session.run("run 1 pre no")
        current = np.array(session.lmp.numpy.extract_compute("les", 0, 1))
        assert len(current) == 9
        assert current[5] == 0.0  # no field, no energy of it
        if steps % 4:
            assert np.isnan(current[[2, 3, 4, 6, 7, 8]]).all()
            continue
        assert_same(current[2:5], np.einsum("iab,ib->a", born_charges(session), by_atom(session, "v")), 1e-12)
    assert np.isfinite(current[:2]).all()


def test_time_average_of_the_current(response_models, lammps_of):
    """fix ave/time, defined after the pair style, reads what belongs to its own step."""
    session = lammps_of(water()).potential(response_models["gentle"], "current 2")
    session.run("velocity all create 300 4\nfix 1 all nve\ntimestep 0.0002\ncompute les all pair mliap/les")
    session.run(
        f"fix j all ave/time 2 1 2 c_les[3] c_les[4] c_les[5] file {session.folder}/current.txt format ' %.15g'"
    )
    session.run("thermo_style custom step pe c_les[3] c_les[4] c_les[5]\nthermo_modify format float %.15g\nthermo 2")
    session.run("run 6")
    session.close()
    table = np.loadtxt(session.folder / "current.txt")
    log = (session.folder / "log.lammps").read_text()
    rows = re.search(r"\n +Step .*\n((?: *-?\d.*\n)+)", log).group(1).split("\n")[:-1]
    thermo = np.array([row.split() for row in rows], dtype=float)
    np.testing.assert_array_equal(table[:, 0], [0, 2, 4, 6])
    np.testing.assert_allclose(table[:, 1:], thermo[:, 2:], rtol=1e-12)


@pytest.mark.parametrize("model", ["gentle", "gentle, 2 layers"])
def test_current_is_the_change_of_the_dipole(model, response_models, lammps_of):
    """Of an isolated cluster along a trajectory, by central differences in time, whose error falls as the square."""
    atoms = water((2, 1, 1))
    atoms.pbc = False
    errors = []
    for timestep in (2e-5, 1e-5):
        session = lammps_of(atoms, boundary="f f f").potential(response_models[model], "current 1")
        session.run(f"velocity all create 500 4\nfix 1 all nve\ntimestep {timestep}\nthermo 1")
        session.run("compute les all pair mliap/les\nfix q all pair 1 mliap/les charge 0")
        session.run("thermo_style custom step pe c_les[*]\nrun 0")
        dipoles, currents, changes = [], [], []
        for _ in range(12):
            session.run("run 1 pre no")
            order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)])
            charges = np.array(session.lmp.numpy.extract_fix("q", 1, 1)[: len(atoms)])[order]
            dipoles.append((charges - charges.mean()) @ by_atom(session, "x"))
            values = np.array(session.lmp.numpy.extract_compute("les", 0, 1))
            currents.append(values[2:5])
            changes.append(values[6:])
        dipoles, changes = np.array(dipoles) - dipoles[0], np.array(changes) - changes[0]
        slope = (dipoles[2:] - dipoles[:-2]) / (2 * timestep)
        errors.append([np.abs(slope - currents[1:-1]).max() / np.abs(currents).max(), relative(changes, dipoles)])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 1e-5
        assert 3.0 < coarse / fine < 5.0


def relative(ours, theirs) -> float:
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def test_change_of_the_polarisation(response_models, lammps_of):
    """The integral of J by trapezoids over all runs that follow on each other, whatever the time step.

    From zero again after a minimisation and where the number of the step jumps.
    """
    session = lammps_of(water()).potential(response_models["gentle"], "current 2")
    session.run("velocity all create 300 4\nfix 1 all nve\ncompute les all pair mliap/les\nthermo 1")
    session.run("thermo_style custom step time pe c_les[*]\ntimestep 0.0002\nrun 0 post no")

    def values():
        return np.array(session.lmp.numpy.extract_compute("les", 0, 1))

    change, current = np.zeros(3), values()[2:5]
    np.testing.assert_array_equal(values()[6:], 0.0)
    for number, timestep in enumerate((0.0002, 0.0002, 0.0001)):
        for _ in range(4):
            session.run("run 1 pre no post no")
            assert np.isnan(values()[6:]).all()
            session.run("run 1 pre no post no")
            change += timestep * (current + values()[2:5])  # 2 steps, halved
            current = values()[2:5]
            assert_same(values()[6:], change, 1e-11)
        # Other velocities of the same positions: the last current of a run is not the first of the next.
        session.run(
            f"velocity all create 300 {5 + number}\ntimestep {0.0002 if number == 0 else 0.0001}\nrun 0 post no"
        )
        assert_same(values()[6:], change, 1e-11)
        assert np.abs(values()[2:5] - current).max() > 0.1
        current = values()[2:5]
    session.run("run 1 post no\nrun 2 post no\nrun 1 post no")  # runs that end where nothing is evaluated
    assert np.abs(values()[6:] - change).max() > 1e-4
    session.run("reset_timestep 1000\nrun 0 post no")
    np.testing.assert_array_equal(values()[6:], 0.0)
    session.run("run 4 post no")
    assert np.abs(values()[6:]).max() > 1e-4
    step = session.lmp.extract_global("ntimestep")
    session.run("minimize 0 0 2 100")
    assert np.isnan(values()[2:5]).all()
    assert session.lmp.extract_global("ntimestep") == step + 2  # as if it had been two steps of a run
    session.run("run 0 post no")
    np.testing.assert_array_equal(values()[6:], 0.0)


def test_series_for_the_dielectric_constant(response_models, lammps_of):
    """ΔP in the log is read as a dipole series: the integral of J."""
    session = lammps_of(water()).potential(response_models["gentle"], "current 2")
    session.run("velocity all create 300 4\nfix 1 all nve\ntimestep 0.0005\ncompute les all pair mliap/les")
    session.run(
        "thermo 2\nthermo_style custom step time temp vol c_les[3] c_les[4] c_les[5] c_les[7] c_les[8] c_les[9]"
    )
    session.run("thermo_modify format float %.12g\nrun 120")
    session.close()
    log = session.folder / "log.lammps"
    current = read_dipole_series(log, ["c_les[3]", "c_les[4]", "c_les[5]"], "current")
    dipole = read_dipole_series(log, ["c_les[7]", "c_les[8]", "c_les[9]"], "dipole")
    integral = cumulative_trapezoid(current.values, dx=current.interval, axis=0, initial=0.0)
    assert_same(dipole.values, integral, 1e-9)
    values = [dielectric_constant(series, blocks=5).value for series in (current, dipole)]
    assert values[0] == pytest.approx(values[1], rel=1e-8)


def test_real_units(response_models, lammps_of):
    """Born charges in e, the current in e Å/fs for velocities in Å/fs, its integral in e Å."""
    result = {}
    for units, scale in (("metal", 1.0), ("real", 1e-3)):
        session = lammps_of(water(), units=units).potential(response_models["1 layer"], "current 1")
        session.run(f"variable speed equal {scale}*5\nvelocity all set ${{speed}} 0 0\nvelocity all set NULL {scale} 0")
        session.run("fix born all pair 1 mliap/les born 1\ncompute les all pair mliap/les")
        session.run("thermo_style custom step pe c_les[*]\nrun 0")
        current = np.array(session.lmp.numpy.extract_compute("les", 0, 1))[2:5] / scale
        session.run(f"fix 1 all nve\ntimestep {1e-7 / scale}\nthermo 2\nrun 2")
        change = np.array(session.lmp.numpy.extract_compute("les", 0, 1))[6:]
        np.testing.assert_allclose(change, 2e-7 * current, rtol=1e-2)
        result[units] = born_charges(session), current, change
    assert_same(result["real"][0], result["metal"][0], 1e-13)
    assert_same(result["real"][1], result["metal"][1], 1e-12)
    np.testing.assert_allclose(result["real"][2], result["metal"][2], rtol=1e-6)
    assert np.abs(result["metal"][1]).max() > 0.0


def test_pair_style_named_again(response_models, lammps_of):
    """The current can be switched on, changed and off again."""
    session = lammps_of(water()).potential(response_models["1 layer"])
    session.run("velocity all create 300 4\nfix 1 all nve")
    fixes = session.lmp.available_ids("fix")
    for every, expected in ((2, 9), (3, 9), (0, 2)):
        session.run(f"pair_style mliap/les current {every}\ncompute les all pair mliap/les")
        session.run("thermo_style custom step pe c_les[*]\nrun 0")
        values = np.array(session.lmp.numpy.extract_compute("les", 0, 1))
        assert len(values) == expected
        assert np.isfinite(values).all()
        assert len(session.lmp.available_ids("fix")) == len(fixes) + (every > 0)
        session.run("thermo_style one\nuncompute les")
    session.potential(response_models["1 layer"], "current 2").run("pair_style zero 4.0\npair_coeff * *\nrun 0")
    assert session.lmp.available_ids("fix") == fixes


# ---- ranks


@dataclass
class Case:
    atoms: ase.Atoms
    model: str
    layouts: tuple[str, ...]
    boundary: str = "p p p"
    pair: str = "pair_style mliap/les current 1\npair_coeff * * MODEL H O"
    elements: tuple[str, ...] = ("H", "O")


def half_filled() -> ase.Atoms:
    """Water in the lower half of a box along x."""
    atoms = water((2, 2, 2))
    atoms.set_cell([12.4, 6.2, 6.2])
    atoms.positions[:, 0] %= 6.2
    return atoms


def with_helium() -> ase.Atoms:
    return half_filled() + ase.Atoms("He2", positions=[[8.0, 4.0, 3.0], [11.0, 5.0, 1.0]])


SLAB = random_atoms([[6, 0, 0], [0, 6.5, 0], [0, 0, 14.0]], (True, True, False), "HOHOHOHO")
NULL = (
    "pair_style hybrid/overlay mliap/les current 1 zero 4.0\n"
    "pair_coeff * * mliap/les MODEL H O NULL\npair_coeff * * zero"
)
CASES = {
    "water": Case(water(), "1 layer", ("2x1x1", "2x2x1")),
    "water, 2 layers": Case(water(), "2 layers", ("2x1x1", "1x2x1", "2x2x1")),
    "water, 3 layers": Case(water(), "3 layers", ("2x1x1", "2x2x1")),
    "tilted": Case(random_atoms(TILTED, True, "HHOOHHOHOH"), "2 layers, 2 charges", ("2x1x1", "2x2x1")),
    "box of 3 angstrom": Case(water((1, 1, 1)), "3 layers", ("2x1x1", "1x2x2")),
    "slab": Case(SLAB, "2 layers", ("1x1x2", "1x2x2"), boundary="p p f"),
    "isolated": Case(random_atoms(OPEN, False, "HOHHOHHO"), "2 layers", ("2x1x1", "2x2x1"), boundary="f f f"),
    "isolated, mean kept": Case(
        random_atoms(OPEN, False, "HOHHOHHO"), "2 layers, mean kept", ("2x1x1",), boundary="s s s"
    ),
    "a rank without atoms": Case(half_filled(), "2 layers", ("2x1x1",)),
    "multipoles": Case(water(), "multipoles", ("2x1x1", "2x2x1")),
    "induced": Case(water(), "responding", ("2x1x1", "2x2x1")),
    "induced, by mesh": Case(
        water(), "responding", ("2x1x1",), pair="pair_style mliap/les current 1 kspace mesh\npair_coeff * * MODEL H O"
    ),
    "induced, slab": Case(SLAB, "responding", ("1x2x2",), boundary="p p f"),
    "induced, isolated": Case(
        random_atoms(OPEN, False, "HOHHOHHO"), "responding", ("2x1x1", "2x2x1"), boundary="f f f"
    ),
    "induced, a rank without atoms": Case(half_filled(), "responding", ("2x1x1",)),
    "helium": Case(with_helium(), "1 layer", ("2x1x1", "2x2x1"), pair=NULL, elements=("H", "O", "He")),
}


def slug(text: str) -> str:
    return re.sub(r"\W+", "_", text)


def commands_of(name: str, layout: str, folder: Path, models: dict[str, Path]) -> str:
    case, tag = CASES[name], slug(f"{name} {layout}")
    write_data(folder / f"{tag}.data", case.atoms, case.elements, "atomic")
    return f"""
clear
units metal
boundary {case.boundary}
box tilt large
processors {layout.replace("x", " ")}
read_data {tag}.data
neighbor 1.0 bin
{case.pair.replace("MODEL", str(models[case.model]))}
velocity all create 300 4
fix born all pair 1 mliap/les born 1
compute les all pair mliap/les
thermo_style custom step pe c_les[*]
dump d all custom 1 {tag}.atoms id fx fy fz f_born[*]
dump_modify d sort id format float %.17g
run 0
print "$(c_les[3]:%.17g) $(c_les[4]:%.17g) $(c_les[5]:%.17g)" file {tag}.current
"""


@pytest.fixture(scope="module")
def evaluated(response_models, plugin, tmp_path_factory):
    """``evaluated(name, layout)``: forces, Born charges, current; one start of ``lmp`` for each number of ranks."""
    folder = tmp_path_factory.mktemp("response_ranks")
    finished = {}

    def of(name: str, layout: str):
        ranks = int(np.prod([int(n) for n in layout.split("x")]))
        if ranks not in finished:
            work = [
                (n, where)
                for n, case in CASES.items()
                for where in ("1x1x1", *case.layouts)
                if int(np.prod([int(k) for k in where.split("x")])) == ranks
            ]
            script = "".join(commands_of(n, where, folder, response_models) for n, where in work)
            finished[ranks] = lmp(script, folder, ranks=ranks)
        tag, done = slug(f"{name} {layout}"), finished[ranks]
        assert (folder / f"{tag}.current").is_file(), (done.stdout + done.stderr)[-3000:]
        table = np.loadtxt(folder / f"{tag}.atoms", skiprows=9, ndmin=2)
        return table[:, 1:4], table[:, 4:], np.array((folder / f"{tag}.current").read_text().split(), dtype=float)

    return of


@pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in CASES for layout in CASES[name].layouts])
def test_every_number_of_ranks_gives_the_same(name, layout, evaluated):
    for ours, one in zip(evaluated(name, layout), evaluated(name, "1x1x1"), strict=True):
        assert_same(ours, one, 1e-10)
    assert np.abs(one).max() > 0.1  # the current


def test_change_of_the_polarisation_on_ranks(response_models, plugin, tmp_path):
    """Along a trajectory during which atoms move from one rank to another."""
    atoms = water((2, 2, 2))
    write_data(tmp_path / "water.data", atoms, ("H", "O"), "atomic")
    changes = []
    for ranks in (1, 4):
        done = lmp(
            f"processors {'2 2 1' if ranks == 4 else '1 1 1'}\nunits metal\nread_data water.data\n"
            f"pair_style mliap/les current 2\npair_coeff * * {response_models['gentle, 2 layers']} H O\n"
            "neighbor 0.2 bin\nneigh_modify every 1 delay 0 check no\nvelocity all create 3000 4\nfix 1 all nve\n"
            "timestep 0.001\ncompute les all pair mliap/les\nthermo 10\n"
            "thermo_style custom step pe c_les[7] c_les[8] c_les[9]\nrun 10\nrun 10\n"
            'print "$(c_les[7]:%.17g) $(c_les[8]:%.17g) $(c_les[9]:%.17g)" file change\n',
            tmp_path,
            ranks=ranks,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        changes.append(np.array((tmp_path / "change").read_text().split(), dtype=float))
    assert np.abs(changes[0]).max() > 0.01
    assert_same(changes[1], changes[0], 1e-10)


def test_atoms_of_no_element_have_no_born_charges(evaluated, response_models):
    born = evaluated("helium", "2x1x1")[1].reshape(-1, 3, 3)
    np.testing.assert_array_equal(born[-2:], 0.0)
    expected = LESCalculator(response_models["1 layer"]).get_born_effective_charges(half_filled())
    assert_same(born[:-2], expected, 1e-10)


# ---- published models


@pytest.mark.parametrize(
    "name",
    [
        "caceles_water_r4.5_nu2.pth",
        "caceles_water_r5.5_nu2.pth",
        "caceles_dipeptide_r4_nl2_nu2.pth",
        "caceles_au_mgo_r5.5_nu2.pth",
        "maceles_water_nl1_l0.model",
    ],
)
def test_published_models(name, shared, plugin, tmp_path):
    """Born charges of the authors' packages, in float64."""
    if name.startswith("mace"):
        pytest.importorskip("mace", reason="exporting MACE needs mace-torch")
    report = export(shared / "models" / name, tmp_path / "model.pt", dtype="float64", charge_sign="keep")
    reference = np.load(shared / "reference" / f"{Path(name).stem}.npz")
    elements = model_file.read_metadata(report.path)["elements"]
    frames = sorted({key.split("/")[0] for key in reference.files})
    if "au_mgo" in name:
        frames = frames[:1]
    script = ""
    for frame in frames:
        data = {key.split("/")[1]: reference[key] for key in reference.files if key.split("/")[0] == frame}
        atoms = ase.Atoms(data["numbers"], data["positions"], cell=data["cell"], pbc=data["pbc"])
        if not atoms.pbc.any():
            atoms.positions -= atoms.positions.min(0)
            atoms.set_cell(np.ptp(atoms.positions, axis=0) + 0.1)
        write_data(tmp_path / f"{frame}.data", atoms, tuple(elements), "atomic")
        script += (
            f"clear\nunits metal\nboundary {'p p p' if atoms.pbc.any() else 's s s'}\nread_data {frame}.data\n"
            f"pair_style mliap/les\npair_coeff * * model.pt {' '.join(elements)}\n"
            "fix born all pair 1 mliap/les born 1\nrun 0 post no\n"
            f"write_dump all custom {frame}.born id f_born[*] modify sort id format float %.17g\n"
        )
    for ranks in (1, 2):
        done = lmp(script, tmp_path, ranks=ranks)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        for frame in frames:
            ours = np.loadtxt(tmp_path / f"{frame}.born", skiprows=9)[:, 1:]
            assert_same(ours, reference[f"{frame}/bec"].reshape(len(ours), 9), 1e-8)
            (tmp_path / f"{frame}.born").unlink()


# ---- wrong input


class TestWrongInput:
    def check(self, lammps_of, commands, message, **options):
        session = lammps_of(water(), **options)
        with pytest.raises(Exception, match=message):
            session.run(commands)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("-1", r"current must be a number of steps, or 0 for never, not -1"),
            ("often", r"[Ee]xpected integer.*often"),
            ("2.5", r"[Ee]xpected integer.*2.5"),
        ],
    )
    def test_current(self, value, message, lammps_of):
        self.check(lammps_of, f"pair_style mliap/les current {value}", message)

    def test_without_velocities(self, models, lammps_of):
        """A warning in the log, once: in rerun of a dump without velocities too."""
        session = lammps_of(water()).potential(models["gentle"], "current 2")
        dump = session.folder / "positions.dump"
        session.run(f"velocity all create 300 4\nfix 1 all nve\ndump d all custom 2 {dump} id x y z\nrun 4\nundump d")
        session.run(
            "velocity all set 0 0 0\ncompute les all pair mliap/les\nthermo_style custom step pe c_les[*]\n"
            f"rerun {dump} dump x y z"
        )
        np.testing.assert_array_equal(np.array(session.lmp.numpy.extract_compute("les", 0, 1))[2:5], 0.0)
        session.close()
        log = (session.folder / "log.lammps").read_text()
        assert log.count("current is zero at step 0 because all velocities are") == 1
        assert log.count("all velocities are") == 1

    def test_not_asked_for(self, models, lammps_of):
        commands = f"pair_style mliap/les\npair_coeff * * {models['water']} H O\ncompute les all pair mliap/les\n"
        self.check(lammps_of, commands + "thermo_style custom step c_les[3]\nrun 0", r"c_les\[3\]|out.of.range")

    def test_short_range_model(self, models, lammps_of):
        plain = f"pair_style mliap/les\npair_coeff * * {models['short range']} H O\n"
        message = r"needs a model with charges, this one is short-range only"
        for trigger in (0, 1):
            self.check(
                lammps_of, f"{plain}fix born all pair 1 mliap/les born {trigger}", rf"fix pair with born {message}"
            )
        self.check(lammps_of, plain.replace("les\n", "les current 1\n", 1) + "run 0", rf"current {message}")

    @pytest.fixture
    def old(self, models, tmp_path):
        """As an older version wrote it."""
        model = model_file.load(models["water"])
        model_file.write(tmp_path / "old.pt", model.module, {**model.metadata, "format_version": 3})
        return tmp_path / "old.pt"

    def test_older_file(self, old, models, lammps_of):
        """It runs as before; only what it lacks is refused."""
        plain = f"pair_style mliap/les\npair_coeff * * {old} H O\n"
        message = r"needs a model file of format 4 or newer.*export the checkpoint again"
        self.check(lammps_of, f"{plain}fix born all pair 1 mliap/les born 1", message)
        self.check(lammps_of, f"{plain}fix born all pair 1 mliap/les born 0", message)
        self.check(lammps_of, plain.replace("les\n", "les current 1\n", 1) + "run 0", message)
        energies = [lammps_of(water()).potential(path).evaluate().energy for path in (old, models["water"])]
        assert energies[0] == energies[1]

    def test_fix_of_the_style_alone(self, lammps_of, models):
        commands = f"pair_style mliap/les\npair_coeff * * {models['water']} H O\nfix 1 all mliap/les/current\nrun 0"
        self.check(lammps_of, commands, r"give pair_style mliap/les current N instead")
