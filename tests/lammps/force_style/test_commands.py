"""LAMMPS commands around the pair style, each compared with LESCalculator on the atoms, box and boundaries that result.

``agrees`` evaluates nothing anew: it takes energy and forces as the last command left them.
"""

from __future__ import annotations

import functools
from pathlib import Path

import ase
import ase.data
import numpy as np
import pytest

from les_md import LESCalculator
from tests.lammps.conftest import ELEMENTS, lmp, water, write_data


@functools.cache
def calculator(model: Path) -> LESCalculator:
    return LESCalculator(model)


def atoms_of(session) -> ase.Atoms:
    """Atoms, box and boundaries as LAMMPS has them now, in the order of their IDs; types 1 and 2 are H and O."""
    lmp_ = session.lmp
    count = int(lmp_.get_natoms())
    low, high, xy, yz, xz, periodic, _ = lmp_.extract_box()
    cell = [[high[0] - low[0], 0, 0], [xy, high[1] - low[1], 0], [xz, yz, high[2] - low[2]]]
    if count == 0:
        return ase.Atoms(cell=cell, pbc=periodic)
    order = np.argsort(lmp_.numpy.extract_atom("id")[:count])
    types = np.array(lmp_.numpy.extract_atom("type")[:count])[order]
    positions = np.array(lmp_.numpy.extract_atom("x")[:count])[order] - low
    return ase.Atoms([session.elements[t - 1] for t in types], positions, cell=cell, pbc=periodic)


def forces_of(session) -> np.ndarray:
    count = int(session.lmp.get_natoms())
    order = np.argsort(session.lmp.numpy.extract_atom("id")[:count])
    return np.array(session.lmp.numpy.extract_atom("f")[:count])[order]


def agrees(session, model: Path, forces: bool = True) -> ase.Atoms:
    """That energy (and forces) are those of LESCalculator; returns its atoms, with the results."""
    atoms = atoms_of(session)
    atoms.calc = calculator(model)
    energy = atoms.get_potential_energy()
    assert session.lmp.get_thermo("pe") == pytest.approx(energy, rel=1e-10)
    if forces:
        expected = atoms.get_forces()
        # The force on a lone atom is zero but for rounding, which sums in another order do not share.
        tolerance = max(1e-9 * np.abs(expected).max(), 1e-15)
        np.testing.assert_allclose(forces_of(session), expected, rtol=0, atol=tolerance)
    return atoms


PLAIN = "thermo_style custom step pe etotal press\nthermo_modify norm no"
HOT = "velocity all create 300 4\ntimestep 0.0002"


@pytest.fixture(params=["gentle", "two charges"])
def model(request, models) -> Path:
    """One layer and one charge; two layers and two charges."""
    return models[request.param]


class TestAtomsComeAndGo:
    def test_deleted_created_changed(self, model, lammps_of):
        session = lammps_of(water()).potential(model).run(f"{PLAIN}\nrun 0")
        assert len(agrees(session, model)) == 24
        session.run("group first id 1:3\ndelete_atoms group first\nrun 0 post no")
        assert len(agrees(session, model)) == 21
        session.run("delete_atoms group first compress no\nset atom 4 type 1\nrun 0")
        agrees(session, model)
        session.run("create_atoms 2 single 0.4 0.3 0.2\nrun 0")
        assert len(agrees(session, model)) == 22
        session.run("displace_atoms all random 0.1 0.1 0.1 7\nreset_atoms id\nrun 0")
        agrees(session, model)
        session.run("delete_atoms overlap 2.0 all all\nrun 0")
        assert 1 < len(agrees(session, model)) < 20

    def test_from_nothing_to_one_atom_and_back(self, model, lammps_of):
        session = lammps_of(water()).potential(model).run(f"{PLAIN}\ndelete_atoms group all\nrun 0")
        assert session.lmp.get_natoms() == 0
        assert session.lmp.get_thermo("pe") == 0.0
        session.run("create_atoms 2 single 3 3 3\nrun 2")
        assert len(agrees(session, model)) == 1
        session.run("delete_atoms group all\nrun 2")
        assert session.lmp.get_thermo("pe") == 0.0

    def test_deposit_and_evaporate(self, model, lammps_of):
        atoms = water()
        atoms.set_cell([6.2, 6.2, 20.0])
        session = lammps_of(atoms, boundary="p p f").potential(model)
        session.run(f"{PLAIN}\n{HOT}\ntimestep 0.00002\nneigh_modify delay 0 every 1\nfix 1 all nve")
        session.run("region above block 0 6.2 0 6.2 12 16\nfix 2 all deposit 3 2 4 99 region above near 1.0 vz -9 -9")
        session.run("run 14")
        assert len(agrees(session, model)) == 27
        session.run("unfix 2\nfix 3 all evaporate 4 2 above 5\nrun 9")
        assert len(agrees(session, model)) < 27

    def test_appended_molecules(self, model, lammps_of, tmp_path):
        extra = water((1, 1, 1))
        extra.set_cell([6.2] * 3)
        write_data(tmp_path / "more.data", extra, ELEMENTS, "atomic")
        session = lammps_of(water()).potential(model).run(f"{PLAIN}\ndelete_atoms group all\nrun 0")
        session.run(f"read_data {tmp_path / 'more.data'} add append\nrun 0")
        assert len(agrees(session, model)) == 3

    def test_monte_carlo(self, models, lammps_of):
        session = lammps_of(water((2, 2, 1))).potential(models["gentle"])
        session.run(f"{PLAIN}\n{HOT}\nneigh_modify delay 0 every 1\nfix 1 all nve")
        session.run("fix 2 all atom/swap 2 3 5 300 ke no types 1 2\nrun 6\nunfix 2\nrun 0")
        agrees(session, models["gentle"])


class TestBoxChanges:
    def test_replicate(self, model, lammps_of):
        session = lammps_of(water((1, 1, 2))).potential(model).run(f"{PLAIN}\nrun 0\nreplicate 2 2 1\nrun 0")
        assert len(agrees(session, model)) == 24

    def test_change_box(self, model, lammps_of):
        session = lammps_of(water()).potential(model).run(f"{PLAIN}\nrun 0")
        session.run("change_box all triclinic xy final 1.3 yz final -0.7 remap units box\nrun 0")
        assert agrees(session, model).cell[1, 0] == pytest.approx(1.3)
        session.run("change_box all x scale 1.1 y volume z volume remap\nrun 0")
        agrees(session, model)
        session.run("change_box all xy final 0 yz final 0 ortho\nchange_box all z final -4 14 boundary p p f\nrun 0")
        agrees(session, model)
        session.run("change_box all boundary f f f x final -2 12 y final -2 12\nrun 0")
        assert not agrees(session, model).pbc.any()

    def test_box_that_is_deformed_and_relaxed(self, models, lammps_of):
        session = lammps_of(water()).potential(models["gentle"]).run(f"{PLAIN}\n{HOT}\nfix 1 all nve")
        session.run("fix 2 all deform 1 x scale 1.05 remap x flip no\nrun 8\nunfix 2")
        session.run("run 0")  # the box changes at the end of a step, behind the forces
        assert agrees(session, models["gentle"]).cell[0, 0] == pytest.approx(6.2 * 1.05)
        session.run("unfix 1\nfix 2 all box/relax aniso 0.0 vmax 0.001\nminimize 0 0 4 10")
        session.run("unfix 2\nrun 0")
        agrees(session, models["gentle"])


class TestRuns:
    def test_continued(self, model, lammps_of):
        session = lammps_of(water()).potential(model).run(f"{PLAIN}\n{HOT}\nfix 1 all nve\nrun 3")
        for command in (
            "run 2 pre no post no",
            "run 0 post no",
            "run 4 every 2 'print hello'",
            "run 2 start 0 stop 20",
        ):
            session.run(command)
            agrees(session, model)
        session.run("neighbor 0.3 nsq\nneigh_modify delay 0 every 1 check no\nrun 3")
        agrees(session, model)

    def test_minimisers(self, models, lammps_of):
        session = lammps_of(water()).potential(models["gentle"]).run(f"{PLAIN}\nrun 0")
        energy = session.lmp.get_thermo("pe")
        for style in ("cg", "sd", "fire"):
            session.run(f"min_style {style}\nminimize 0 0 3 10")
            agrees(session, models["gentle"])
            assert session.lmp.get_thermo("pe") < energy
            energy = session.lmp.get_thermo("pe")

    def test_respa(self, models, lammps_of):
        """The whole style on the outer level; without inner levels of its own."""
        session = lammps_of(water()).potential(models["gentle"]).run(f"{PLAIN}\n{HOT}\nfix 1 all nve")
        session.run("run_style respa 2 2 pair 2\nrun 4")
        agrees(session, models["gentle"])

    def test_rerun(self, models, lammps_of, tmp_path):
        session = lammps_of(water()).potential(models["gentle"]).run(f"{PLAIN}\n{HOT}\nfix 1 all nve")
        session.run(f"dump d all custom 3 {tmp_path / 'd.dump'} id type x y z\ndump_modify d format float %.17g\nrun 6")
        energy, forces = session.lmp.get_thermo("pe"), forces_of(session)
        session.run(
            f"undump d\nunfix 1\ndisplace_atoms all random 0.1 0.1 0.1 3\nrerun {tmp_path / 'd.dump'} dump x y z"
        )
        assert session.lmp.get_thermo("pe") == pytest.approx(energy, rel=1e-11)
        np.testing.assert_allclose(forces_of(session), forces, rtol=0, atol=1e-9 * np.abs(forces).max())

    def test_finite_differences_of_lammps(self, model, lammps_of):
        session = lammps_of(water((1, 1, 2)), before="atom_modify map array").potential(model)
        session.run(f"{PLAIN}\nfix n all numdiff 1 1e-5\nrun 0")
        forces = forces_of(session)
        order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(forces)])
        numerical = np.array(session.lmp.numpy.extract_fix("n", 1, 2)[: len(forces)])[order]
        np.testing.assert_allclose(numerical, forces, rtol=0, atol=1e-6 * np.abs(forces).max())

    def test_virial_by_finite_differences_of_lammps(self, models, lammps_of):
        """``fix numdiff/virial`` deforms the atoms and leaves the box: for pairs only, not for a sum over the box."""
        session = lammps_of(water((1, 1, 2)), before="atom_modify map array").potential(models["short range"])
        session.run("fix w all numdiff/virial 1 1e-6\ncompute p all pressure NULL virial")
        session.run("thermo_style custom step pe c_p[*] f_w[*]\nrun 0")
        pressure = np.array(session.lmp.numpy.extract_compute("p", 0, 1))
        virial = np.array([session.lmp.extract_fix("w", 0, 1, k) for k in range(6)])
        virial = virial[[0, 1, 2, 5, 4, 3]]  # yz xz xy in that fix
        np.testing.assert_allclose(virial, pressure, rtol=0, atol=1e-5 * np.abs(pressure).max())

    def test_settings_that_do_not_matter(self, models, lammps_of):
        session = lammps_of(water()).potential(models["two charges"]).run(f"{PLAIN}\n{HOT}\nfix 1 all nve\nrun 5")
        for command in ("atom_modify sort 0 0.0", "atom_modify sort 1 2.0", "comm_modify vel yes", "comm_style tiled",
                        "neighbor 2.0 bin", "suffix off", "neigh_modify one 3000 page 60000"):  # fmt: skip
            session.run(f"{command}\nrun 2")
            agrees(session, models["two charges"])


class TestFixes:
    def test_rigid(self, models, lammps_of):
        session = lammps_of(water(), atom_style="full", before="special_bonds lj/coul 1.0 1.0 1.0")
        session.potential(models["gentle"]).run(f"{PLAIN}\nvelocity all create 300 4\ntimestep 0.0005")
        before = atoms_of(session).get_all_distances(mic=True)[0, 1:3]
        session.run("fix 1 all rigid/nve/small molecule\nrun 10")
        atoms = agrees(session, models["gentle"])
        np.testing.assert_allclose(atoms.get_all_distances(mic=True)[0, 1:3], before, rtol=0, atol=1e-10)

    def test_shake(self, models, lammps_of, tmp_path):
        atoms = water()
        write_data(tmp_path / "plain.data", atoms, ELEMENTS, "full")
        bonds = [f"{2 * m + k + 1} 1 {3 * m + 1} {3 * m + 2 + k}" for m in range(8) for k in range(2)]
        angles = [f"{m + 1} 1 {3 * m + 2} {3 * m + 1} {3 * m + 3}" for m in range(8)]
        text = (tmp_path / "plain.data").read_text()
        text = text.replace("2 atom types", "2 atom types\n16 bonds\n1 bond types\n8 angles\n1 angle types")
        text += "\nBonds\n\n" + "\n".join(bonds) + "\n\nAngles\n\n" + "\n".join(angles) + "\n"
        (tmp_path / "bonds.data").write_text(text)
        session = lammps_of(atoms, atom_style="full")
        session.run(f"clear\nunits metal\natom_style full\nbond_style zero\nangle_style zero\n"
                    f"special_bonds lj/coul 1.0 1.0 1.0\nread_data {tmp_path / 'bonds.data'} "
                    "extra/special/per/atom 4\nbond_coeff * 0.9687\nangle_coeff * 103.9")  # fmt: skip
        session.potential(models["gentle"]).run(f"{PLAIN}\n{HOT}\nfix 1 all nve\nfix 2 all shake 1e-10 100 0 b 1 a 1")
        session.run("run 10")
        agrees(session, models["gentle"], forces=False)  # which now contain those of the constraints
        assert atoms_of(session).get_distance(0, 1, mic=True) == pytest.approx(0.9687, abs=1e-6)
        session.run("unfix 2\nrun 0")
        agrees(session, models["gentle"])

    def test_thermostats_and_groups(self, models, lammps_of):
        session = lammps_of(water()).potential(models["gentle"]).run(f"{PLAIN}\n{HOT}\ngroup o type 2")
        session.run("fix 1 o nve\nfix 2 o langevin 300 300 0.1 5 zero yes\nrun 5\nunfix 2\nunfix 1\nrun 0")
        agrees(session, models["gentle"])
        session.run("fix 1 all nve\nfix 2 all temp/csvr 300 300 0.05 8\nfix 3 all momentum 2 linear 1 1 1\nrun 5")
        agrees(session, models["gentle"])
        session.run("unfix 2\nunfix 1\nfix 1 all move linear 1.0 0.5 0.0\nrun 4")
        agrees(session, models["gentle"])

    def test_energy_of_a_charge_that_fix_adapt_changes(self, models, lammps_of):
        """Charges of the atoms are not those of the model: changing them changes nothing."""
        session = lammps_of(water(), atom_style="charge").potential(models["gentle"]).run(f"{PLAIN}\nrun 0")
        energy = session.lmp.get_thermo("pe")
        session.run("variable q equal 0.5\nfix 1 all adapt 1 atom charge v_q\nrun 1")
        assert session.lmp.get_thermo("pe") == pytest.approx(energy, rel=1e-13)


class TestStyleNamedAgain:
    def test_between_other_styles(self, models, lammps_of):
        session = lammps_of(water()).potential(models["gentle"]).run(f"{PLAIN}\n{HOT}\nfix 1 all nve\nrun 2")
        agrees(session, models["gentle"])
        session.run("pair_style none").potential(models["two charges"]).run("run 2")
        agrees(session, models["two charges"])
        session.run("pair_style mliap/les kspace ewald\nrun 2")
        agrees(session, models["two charges"])
        session.run(f"pair_coeff * * {models['gentle']} H O\nrun 2")
        agrees(session, models["gentle"])
        session.run("clear\nunits metal\nboundary p p p\nread_data " + str(session.folder / "system.data"))
        session.potential(models["gentle"]).run(f"{PLAIN}\nrun 0")
        agrees(session, models["gentle"])

    def test_hybrid_of_one(self, model, lammps_of):
        session = lammps_of(water()).run(f"pair_style hybrid mliap/les\npair_coeff * * mliap/les {model} H O")
        session.run(f"{PLAIN}\nrun 0")
        agrees(session, model)

    def test_scaled_in_a_hybrid(self, models, lammps_of):
        """Half of one model and half of another, which a path between two potentials needs."""
        names = ("gentle", "short range")
        session = lammps_of(water()).run("pair_style hybrid/scaled 0.25 mliap/les 0.75 mliap/les")
        for number, name in enumerate(names, 1):
            session.run(f"pair_coeff * * mliap/les {number} {models[name]} H O")
        session.run(f"{PLAIN}\nrun 0")
        atoms = atoms_of(session)
        energy, forces = 0.0, 0.0
        for share, name in zip((0.25, 0.75), names, strict=True):
            atoms.calc = calculator(models[name])
            energy += share * atoms.get_potential_energy()
            forces += share * atoms.get_forces()
        assert session.lmp.get_thermo("pe") == pytest.approx(energy, rel=1e-10)
        np.testing.assert_allclose(forces_of(session), forces, rtol=0, atol=1e-9 * np.abs(forces).max())


class TestNewton:
    @pytest.mark.parametrize("newton", ["on", "on off"])
    def test_on(self, newton, model, lammps_of):
        session = lammps_of(water(), before=f"newton {newton}").potential(model).run(f"{PLAIN}\nrun 0")
        agrees(session, model)

    @pytest.mark.parametrize("newton", ["off", "off on"])
    def test_off(self, newton, models, lammps_of):
        session = lammps_of(water(), before=f"newton {newton}").potential(models["gentle"])
        with pytest.raises(Exception, match="needs newton on for pairs"):
            session.run("run 0")


class TestInstances:
    def test_two_in_turn(self, models, lammps_of):
        """Steps of several instances of LAMMPS in one process, with one model and with two."""
        names = ("gentle", "gentle", "two charges")
        sessions = [lammps_of(water()).potential(models[name]).run(f"{PLAIN}\n{HOT}\nfix 1 all nve") for name in names]
        sessions[1].run("velocity all scale 600")
        for _ in range(3):
            for session in sessions:
                session.run("run 2 post no")
        for name, session in zip(names, sessions, strict=True):
            agrees(session, models[name])
        sessions[0].close()
        sessions[1].run("run 2")
        agrees(sessions[1], models["gentle"])


def test_partitions(models, plugin, tmp_path):
    """Two worlds of one rank in one start, each with its own model and its own number of steps."""
    write_data(tmp_path / "w.data", water(), ELEMENTS, "atomic")
    script = (
        f"variable model world {models['gentle']} {models['two charges']}\nvariable steps world 2 4\n"
        "units metal\nread_data w.data\npair_style mliap/les\npair_coeff * * ${model} H O\n" + PLAIN + "\n"
        "fix 1 all nve\ntimestep 0.0002\nrun ${steps}\nvariable p world 0 1\n"
        'print "$(pe:%.17g)" file energy.${p}\n'
        "dump d all custom 1 d.${p} id type x y z\ndump_modify d sort id format float %.17g\nrun 0\n"
    )
    done = lmp(script, tmp_path, ranks=2, arguments=["-partition", "2x1"])
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    for number, name in enumerate(("gentle", "two charges")):
        table = np.loadtxt(tmp_path / f"d.{number}", skiprows=9)
        atoms = ase.Atoms(np.where(table[:, 1] == 1, "H", "O"), table[:, 2:], cell=[6.2] * 3, pbc=True)
        atoms.calc = calculator(models[name])
        energy = float((tmp_path / f"energy.{number}").read_text())
        assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-10)


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [
        (["-sf", "omp", "-pk", "omp", "2"], 2),
        (["-pk", "omp", "1"], 1),
        (["-sf", "opt"], 1),
        (["-sf", "hybrid", "omp", "opt"], 1),
    ],
)
def test_accelerated_styles(arguments, threads, models, plugin, tmp_path):
    """Suffixes find no accelerated variant of this style and change nothing; ``package omp`` gives the threads."""
    write_data(tmp_path / "w.data", water(), ELEMENTS, "atomic")
    script = (
        f"units metal\nread_data w.data\npair_style mliap/les\npair_coeff * * {models['gentle']} H O\n{PLAIN}\n"
        'fix 1 all nve\ntimestep 0.0002\nrun 0\nprint "$(pe:%.17g)" file energy\nrun 3\n'
    )
    done = lmp(script, tmp_path, arguments=arguments)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    atoms = water()
    atoms.calc = calculator(models["gentle"])
    assert float((tmp_path / "energy").read_text()) == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    assert f"{threads} thread{'s' if threads > 1 else ''}\n" in done.stdout
