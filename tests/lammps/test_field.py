"""A uniform electric field in LAMMPS: forces, energy and work against finite differences, Born charges and ASE."""

from __future__ import annotations

import re
from pathlib import Path

import ase
import numpy as np
import pytest
from conftest import TILTED, lmp, random_atoms, water, write_data, write_model

from les_md import LESCalculator
from tests.architectures.small_models import export_small_model

REAL = 23.060549  # kcal/mol per eV, the factor by which LAMMPS converts potentials
FIELD = np.array([0.13, -0.24, 0.31])  # V/Å
OPEN = np.diag([8.0, 8, 8]).tolist()


def cluster() -> ase.Atoms:
    return random_atoms(OPEN, False, "HOHHOHHO")


SLAB = random_atoms([[6, 0, 0], [0, 6.5, 0], [0, 0, 14.0]], (True, True, False), "HOHOHOHO")
PERIODIC = {
    "water": (water(), "p p p"),
    "tilted": (random_atoms(TILTED, True, "HHOOHHOHOH"), "p p p"),
    "box of 3 angstrom": (random_atoms(np.diag([3.0, 3.1, 3.2]).tolist(), True, "OHH"), "p p p"),
    "slab": (SLAB, "p p f"),
}
MODELS = ("1 layer", "2 layers, 2 charges")


@pytest.fixture(scope="module")
def field_models(models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("field_models")
    return {
        "1 layer": models["water"],
        "2 layers": write_model(folder / "two.pt", num_message_passing=1),
        "2 layers, 2 charges": models["two charges"],
        "mean kept": write_model(folder / "mean.pt", remove_mean=False, num_message_passing=1),
        "gentle": models["gentle"],
        "gentle, 2 layers": write_model(folder / "gentle.pt", num_message_passing=1, softness=10.0),
        "multipoles": export_small_model("multipoles", folder / "multipoles.pt"),
        "responding": export_small_model("responding", folder / "responding.pt"),
    }


def keywords(field=FIELD, more: str = "") -> str:
    return f"efield {' '.join(f'{component:.17g}' for component in field)} {more}"


def by_atom(session, quantity: str) -> np.ndarray:
    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(session.atoms)])
    return np.array(session.lmp.numpy.extract_atom(quantity)[: len(order)])[order]


def assert_same(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(np.abs(theirs).max(), 1e-3))


def values_of_compute(session) -> np.ndarray:
    return np.array(session.lmp.numpy.extract_compute("split", 0, 1))


# ---- isolated systems


@pytest.mark.parametrize("units", ["metal", "real"])
@pytest.mark.parametrize("model", [*MODELS, "mean kept"])
def test_energy_of_a_cluster(model, units, field_models, lammps_of):
    """−P·E on top of what is there without a field, in all, per atom and in the vector of compute pair."""
    atoms, scale = cluster(), REAL if units == "real" else 1.0
    without = lammps_of(atoms, boundary="f f f", units=units).potential(field_models[model]).evaluate()
    session = lammps_of(atoms, boundary="f f f", units=units).potential(field_models[model], keywords(10 * FIELD))
    result = session.evaluate()
    calculator = LESCalculator(field_models[model])
    dipole = calculator.get_property("dipole", atoms)
    expected = -scale * dipole @ (10 * FIELD)
    assert abs(expected) > 1e-2
    tolerance = 1e-11 * abs(without.energy)
    assert result.energy - without.energy == pytest.approx(expected, abs=tolerance)
    assert result.energies.sum() == pytest.approx(result.energy, rel=1e-12)
    values = values_of_compute(session)
    assert len(values) == 6
    assert np.isnan(values[2:5]).all()
    assert values[5] == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(values[:2], [without.short_range, without.long_range], rtol=1e-12)
    born = calculator.get_born_effective_charges(atoms)
    assert_same(result.forces - without.forces, scale * np.einsum("a,iab->ib", 10 * FIELD, born), 1e-9)


@pytest.mark.parametrize("model", [*MODELS, "mean kept"])
def test_forces_in_a_cluster_are_the_derivative_of_the_energy(model, field_models, lammps_of):
    session = lammps_of(cluster(), boundary="f f f").potential(field_models[model], keywords(10 * FIELD))
    forces = session.evaluate().forces
    step = 1e-4
    for atom, axis in ((0, 0), (1, 2), (5, 1)):
        energies = []
        session.run(f"group one id {atom + 1}")
        for sign in (1, -2, 1):
            move = " ".join(str(sign * step * (axis == a)) for a in range(3))
            session.run(f"displace_atoms one move {move} units box")
            energies.append(session.evaluate().energy)
        session.run("group one delete")
        assert (energies[1] - energies[0]) / (2 * step) == pytest.approx(forces[atom, axis], rel=1e-6, abs=5e-6)


def test_virial_of_a_cluster_is_the_strain_derivative(field_models, lammps_of):
    session = lammps_of(cluster(), boundary="f f f").potential(
        field_models["2 layers"], f"kspace ewald {keywords(10 * FIELD)}"
    )
    virial = session.evaluate().virial
    step = 2e-5
    for component, axis in enumerate("xyz"):
        session.run(f"change_box all {axis} scale {1 + step} remap units box")
        plus = session.evaluate().energy
        session.run(f"change_box all {axis} scale {(1 - step) / (1 + step):.16f} remap units box")
        minus = session.evaluate().energy
        session.run(f"change_box all {axis} scale {1 / (1 - step):.16f} remap units box")
        # change_box moves the atoms about the middle of the box, the virial is about the origin.
        middle = 4.0 * session.evaluate().forces[:, component].sum()
        assert -(plus - minus) / (2 * step) + middle == pytest.approx(virial[component], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("model", ["gentle", "gentle, 2 layers"])
def test_energy_is_conserved_in_a_constant_field(model, field_models, lammps_of):
    """Of a cluster; what the model and the motion gain is the work of the field, the integral of J·E."""
    atoms = water((2, 1, 1))
    atoms.pbc = False
    session = lammps_of(atoms, boundary="f f f").potential(field_models[model], f"current 1 {keywords(5 * FIELD)}")
    session.run("velocity all create 300 4\nfix 1 all nve\ntimestep 0.00005\ncompute split all pair mliap/les")
    session.run("thermo_style custom step etotal c_split[*]\nrun 0")
    total, field_energy, power = [], [], []
    for step in range(201):
        if step:
            session.run("run 1 pre no post no")
        values = values_of_compute(session)
        total.append(session.lmp.get_thermo("etotal"))
        field_energy.append(values[5])
        power.append(values[2:5] @ (5 * FIELD))
    total, power = np.array(total), np.array(power)
    work = np.concatenate([[0], np.cumsum(0.5 * (power[1:] + power[:-1]))]) * 0.00005
    assert np.abs(work).max() > 3e-3
    gained = (total - field_energy) - (total - field_energy)[0]
    assert np.abs(gained - work).max() < 1e-3 * np.abs(work).max()
    assert np.abs(total - total[0]).max() < 1e-3 * np.abs(work).max()


def test_minimisation_of_a_cluster(field_models, lammps_of):
    atoms = ase.build.molecule("H2O")
    atoms.positions += 4.0
    atoms.set_cell([8, 8, 8])
    session = lammps_of(atoms, boundary="f f f").potential(field_models["gentle"], keywords())
    session.run("thermo_style custom step pe fmax\nrun 0")
    energy, force = session.lmp.get_thermo("pe"), session.lmp.get_thermo("fmax")
    session.run("minimize 0 1e-6 300 1000")  # turning the molecule into the field takes long
    assert session.lmp.get_thermo("pe") < energy - 0.05
    assert session.lmp.get_thermo("fmax") < 0.001 * force


# ---- periodic systems


@pytest.mark.parametrize("units", ["metal", "real"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("system", PERIODIC)
def test_derivatives_of_the_forces_are_born_charges(system, model, units, field_models, lammps_of):
    """Fields along each axis and a general one; nothing else changes."""
    atoms, boundary = PERIODIC[system]
    scale = REAL if units == "real" else 1.0
    without = lammps_of(atoms, boundary=boundary, units=units).potential(field_models[model]).evaluate()
    born = LESCalculator(field_models[model]).get_born_effective_charges(atoms)
    for field in (*np.eye(3), FIELD):
        session = lammps_of(atoms, boundary=boundary, units=units).potential(field_models[model], keywords(field))
        result = session.evaluate()
        expected = scale * np.einsum("a,iab->ib", field, born)
        error = 1e-10 * max(np.abs(without.forces).max(), np.abs(expected).max())
        np.testing.assert_allclose(result.forces - without.forces, expected, rtol=0, atol=error)
        assert result.energy == pytest.approx(without.energy, rel=1e-13)
        np.testing.assert_allclose(result.virial, without.virial, rtol=0, atol=1e-10 * np.abs(without.virial).max())
        assert np.isnan(values_of_compute(session)[5])


@pytest.mark.parametrize(
    ("system", "model", "field", "passes"),
    [
        ("water", "2 layers", (0.0, 0.0, 0.2), 2),
        ("water", "2 layers", (0.1, 0.0, 0.2), 4),
        ("water", "2 layers", (0.1, 0.3, 0.2), 6),
        ("water", "1 layer", (0.1, 0.3, 0.2), 1),
        # Only c has a component along z, all but a along y.
        ("tilted", "2 layers", (0.0, 0.0, 0.2), 2),
        ("tilted", "2 layers", (0.0, 0.2, 0.0), 4),
        ("cluster", "2 layers", (0.1, 0.3, 0.2), 0),
    ],
)
def test_number_of_passes(system, model, field, passes, field_models, lammps_of):
    """As few as the field needs, by the log."""
    atoms, boundary = PERIODIC.get(system, (cluster(), "f f f"))
    session = lammps_of(atoms, boundary=boundary).potential(field_models[model], keywords(field)).run("run 0")
    session.close()
    log = (session.folder / "log.lammps").read_text()
    assert f"electrical response: {passes} more backward passes at step 0" in log


def test_a_field_of_zero_costs_nothing(field_models, lammps_of):
    session = lammps_of(water()).potential(field_models["2 layers"], "efield 0 0 0").run("run 0")
    without = lammps_of(water()).potential(field_models["2 layers"]).run("run 0")
    np.testing.assert_array_equal(by_atom(session, "f"), by_atom(without, "f"))
    session.close()
    assert "electrical response" not in (session.folder / "log.lammps").read_text()


def test_work_in_a_periodic_box(field_models, lammps_of):
    """Energy of model and motion grows by the integral of J·E."""
    session = lammps_of(water()).potential(field_models["gentle, 2 layers"], f"current 1 {keywords(5 * FIELD)}")
    session.run("velocity all create 300 4\nfix 1 all nve\ntimestep 0.00005\ncompute split all pair mliap/les")
    session.run("thermo_style custom step etotal c_split[*]\nrun 0")
    total, power = [], []
    for step in range(101):
        if step:
            session.run("run 1 pre no post no")
        total.append(session.lmp.get_thermo("etotal"))
        power.append(values_of_compute(session)[2:5] @ (5 * FIELD))
    total, power = np.array(total), np.array(power)
    work = np.concatenate([[0], np.cumsum(0.5 * (power[1:] + power[:-1]))]) * 0.00005
    assert np.abs(work).max() > 1e-2
    assert np.abs(total - total[0] - work).max() < 2e-3 * np.abs(work).max()


@pytest.mark.parametrize("model", MODELS)
def test_sum_rule(model, field_models, lammps_of):
    """``asr yes`` takes the mean off, so that the box feels no net force; the Born charges stay as they are."""
    plain = lammps_of(water()).potential(field_models[model], keywords(10 * FIELD)).evaluate().forces
    session = lammps_of(water()).potential(field_models[model], keywords(10 * FIELD, "asr yes"))
    session.run("fix born all pair 1 mliap/les born 1")
    forces = session.evaluate().forces
    assert np.abs(plain.sum(0)).max() > 1e-2
    assert_same(forces, plain - plain.mean(0), 1e-10)
    stored = session.lmp.numpy.extract_fix("born", 1, 2)
    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(session.atoms)])
    expected = LESCalculator(field_models[model]).get_born_effective_charges(water())
    assert_same(np.array(stored[: len(order)])[order].reshape(-1, 3, 3), expected, 1e-10)


@pytest.mark.parametrize(("atoms", "boundary"), [(water(), "p p p"), (cluster(), "f f f")])
def test_fields_that_vary(atoms, boundary, field_models, lammps_of):
    """Equal-style variables, evaluated at every step."""
    session = lammps_of(atoms, boundary=boundary)
    session.run("variable ramp equal 0.01*step\nvariable wave equal 0.2*cos(2*PI*step/8)")
    session.potential(field_models["gentle, 2 layers"], "efield v_ramp 0.1 v_wave")
    session.run("velocity all create 300 4\nfix 1 all nve\ntimestep 0.0001\nrun 3")
    field = np.array([0.03, 0.1, 0.2 * np.cos(2 * np.pi * 3 / 8)])
    moved = atoms.copy()
    moved.positions = by_atom(session, "x")
    calculator = LESCalculator(field_models["gentle, 2 layers"])
    expected = calculator.get_forces(moved)
    expected += np.einsum("a,iab->ib", field, calculator.get_born_effective_charges(moved))
    assert_same(by_atom(session, "f"), expected, 1e-10)


# ---- latent dipoles and quadrupoles, and what is induced


@pytest.mark.parametrize("model", ["multipoles", "responding"])
@pytest.mark.parametrize("system", [*PERIODIC, "cluster"])
def test_field_on_multipoles_is_that_of_lescalculator(system, model, field_models, lammps_of):
    """Forces, energy and virial in a field, of which the polarisabilities' part is quadratic."""
    atoms, boundary = PERIODIC.get(system, (cluster(), "f f f"))
    result = lammps_of(atoms, boundary=boundary).potential(field_models[model], keywords(5 * FIELD)).evaluate()
    calculator = LESCalculator(field_models[model], electric_field=5 * FIELD)
    calculator.calculate(atoms)
    assert_same(result.forces, calculator.results["forces"], 1e-10)
    assert result.energy == pytest.approx(calculator.results["energy"], rel=1e-11)
    assert_same(result.energies, calculator.results["energies"], 1e-10)
    if system != "cluster":
        stress = calculator.results["stress"][[0, 1, 2, 5, 4, 3]]
        assert_same(result.virial, -atoms.get_volume() * stress, 1e-9)


@pytest.mark.parametrize("model", ["multipoles", "responding"])
def test_forces_on_multipoles_of_a_cluster_are_the_derivative_of_the_energy(model, field_models, lammps_of):
    test_forces_in_a_cluster_are_the_derivative_of_the_energy(model, field_models, lammps_of)


# ---- ranks

RANK_CASES = {
    "periodic": (water(), "p p p", "2 layers", keywords()),
    "periodic, along z": (water(), "p p p", "2 layers, 2 charges", keywords((0.0, 0.0, 0.5))),
    "periodic, 1 layer, sum rule": (water(), "p p p", "1 layer", keywords(more="asr yes")),
    "periodic, sum rule": (water(), "p p p", "2 layers", keywords(more="asr yes")),
    "slab": (SLAB, "p p f", "2 layers", keywords((0.0, 0.0, 0.5))),
    "isolated": (cluster(), "f f f", "2 layers", keywords()),
    "isolated, 1 layer": (cluster(), "f f f", "1 layer", keywords()),
    "isolated, mean kept": (cluster(), "f f f", "mean kept", keywords()),
    "multipoles": (water(), "p p p", "multipoles", keywords()),
    "multipoles, isolated": (cluster(), "f f f", "multipoles", keywords()),
    "induced": (water(), "p p p", "responding", keywords(more="kspace mesh")),
    "induced, slab, sum rule": (SLAB, "p p f", "responding", keywords((0.0, 0.0, 0.5), more="asr yes slab yes")),
    "induced, isolated": (cluster(), "f f f", "responding", keywords(10 * FIELD)),
}


@pytest.fixture(scope="module")
def of_ranks(field_models, plugin, tmp_path_factory):
    """Forces and (energy, virial) of all cases for a processor grid."""
    folder = tmp_path_factory.mktemp("field_ranks")
    done = {}

    def evaluate(grid: str):
        if grid in done:
            return done[grid]
        script = ""
        for number, (atoms, boundary, model, options) in enumerate(RANK_CASES.values()):
            write_data(folder / f"{number}.data", atoms, ("H", "O"), "atomic")
            script += (
                f"clear\nunits metal\nboundary {boundary}\nbox tilt large\nprocessors {grid}\nread_data {number}.data\n"
                f"neighbor 1.0 bin\npair_style mliap/les {options}\npair_coeff * * {field_models[model]} H O\n"
                "compute v all pressure NULL virial\nthermo_style custom step pe c_v[*]\nthermo_modify norm no\nrun 0\n"
                f"write_dump all custom {number}.forces id fx fy fz modify sort id format float %.17g\n"
                f'print "$(pe:%.17g) {" ".join(f"$(c_v[{k}]:%.17g)" for k in range(1, 7))}" file {number}.values\n'
            )
        finished = lmp(script, folder, ranks=int(np.prod([int(n) for n in grid.split()])))
        assert finished.returncode == 0, (finished.stdout + finished.stderr)[-3000:]
        done[grid] = {
            name: (
                np.loadtxt(folder / f"{number}.forces", skiprows=9)[:, 1:],
                np.array((folder / f"{number}.values").read_text().split(), dtype=float),
            )
            for number, name in enumerate(RANK_CASES)
        }
        return done[grid]

    return evaluate


@pytest.mark.parametrize("grid", ["2 1 1", "2 2 1"])
@pytest.mark.parametrize("name", RANK_CASES)
def test_every_number_of_ranks_gives_the_same(name, grid, of_ranks):
    for ours, one in zip(of_ranks(grid)[name], of_ranks("1 1 1")[name], strict=True):
        assert_same(ours, one, 1e-10)


# ---- wrong input


class TestWrongInput:
    def check(self, lammps_of, commands, message, atoms=None, **options):
        session = lammps_of(water() if atoms is None else atoms, **options)
        with pytest.raises(Exception, match=message):
            session.run(commands)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("efield 1 2", r"keyword 'efield' needs three values"),
            ("efield 1", r"keyword 'efield' needs three values"),
            ("efield", r"keyword 'efield' needs a value"),
            ("efield 1 2 strong", r"[Ee]xpected floating.*strong"),
            ("efield nan 0 0", r"[Ee]xpected floating.*nan"),
            ("efield 0 0 1 asr maybe", r"[Ee]xpected boolean.*maybe"),
        ],
    )
    def test_values(self, text, message, lammps_of):
        self.check(lammps_of, f"pair_style mliap/les {text}", message)

    def style(self, model, options):
        return f"pair_style mliap/les {options}\npair_coeff * * {model} H O\n"

    def test_variables(self, models, lammps_of):
        style = self.style(models["water"], "efield 0 0 v_e")
        self.check(lammps_of, f"{style}run 0", r"variable e of efield does not exist")
        self.check(lammps_of, f"variable e atom x\n{style}run 0", r"variable e of efield is not of style equal")
        bad = "variable e equal 1/(step-2)\nfix 1 all nve\n"
        self.check(lammps_of, f"{bad}{style}run 3", r"[Dd]ivide by 0|not a number at step 2")

    def test_short_range_model(self, models, lammps_of):
        message = r"efield needs a model with charges, this one is short-range only"
        self.check(lammps_of, self.style(models["short range"], "efield 0 0 1") + "run 0", message)

    def test_sum_rule(self, models, lammps_of):
        self.check(lammps_of, self.style(models["water"], "asr yes") + "run 0", r"asr yes .* give efield too")
        commands = self.style(models["water"], "efield 0 0 1 asr yes") + "run 0"
        self.check(lammps_of, commands, r"asr yes is for periodic systems", atoms=cluster(), boundary="f f f")

    def test_minimisation(self, models, lammps_of):
        commands = self.style(models["water"], "efield 0 0 1") + "minimize 0 1e-3 10 10"
        self.check(lammps_of, commands, r"a field has no energy in a system with periodic directions")
        commands = "variable e equal 1.0\n" + self.style(models["water"], "efield 0 0 v_e") + "minimize 0 1e-3 10 10"
        self.check(lammps_of, commands, r"given by variables has no energy", atoms=cluster(), boundary="f f f")

    @pytest.mark.parametrize(
        "fix",
        ["npt temp 300 300 0.1 iso 0 0 1", "nph iso 0 0 1", "press/berendsen iso 0 0 1"],
    )
    def test_pressure_control(self, fix, models, lammps_of):
        commands = self.style(models["water"], "efield 0 0 1") + f"fix 1 all {fix}\nrun 0"
        self.check(
            lammps_of, commands, rf"pressure does not contain the field .* fix {re.escape(fix.split()[0])} cannot"
        )

    def test_a_box_that_is_deformed(self, models, lammps_of):
        """By rule, not by pressure: that is no matter."""
        commands = self.style(models["gentle"], "efield 0 0 1") + "fix 1 all nve\nfix 2 all deform 1 x erate 1\nrun 2"
        lammps_of(water()).run(commands)
