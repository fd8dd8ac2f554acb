"""Restart and data files from which a trajectory goes on to the same bits; what other commands read of the style."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lammps.conftest import water

START = "velocity all create 400 4\nfix 1 all nve\ntimestep 0.0003\nneighbor 0.4 bin\nneigh_modify delay 0 every 1"
AGAIN = "fix 1 all nve\ntimestep 0.0003\nneighbor 0.4 bin\nneigh_modify delay 0 every 1"


def state_of(session) -> dict[str, np.ndarray]:
    """Positions, velocities and forces in the order of the IDs, and the energy."""
    count = int(session.lmp.get_natoms())
    order = np.argsort(session.lmp.numpy.extract_atom("id")[:count])
    found = {name: np.array(session.lmp.numpy.extract_atom(name)[:count])[order] for name in ("x", "v", "f")}
    return {**found, "energy": np.array(session.lmp.get_thermo("pe"))}


@pytest.mark.parametrize("kspace", ["ewald", "mesh"])
@pytest.mark.parametrize("boundary", ["p p p", "f f f"])
@pytest.mark.parametrize("file", ["restart", "data"])
def test_continued_to_the_last_bit(file, boundary, kspace, models, lammps_of, tmp_path):
    atoms = water()
    if boundary == "f f f":
        atoms.set_cell([20.0] * 3)
        atoms.center()
    keywords, model = f"kspace {kspace}", models["gentle"]
    first = lammps_of(atoms, boundary=boundary).potential(model, keywords).run(f"{START}\nrun 7")
    first.run(f"write_{file} {tmp_path / 'half'}\nrun 8")

    second = lammps_of(atoms, boundary=boundary).run(f"clear\nunits metal\nboundary {boundary}")
    second.run(f"read_{file} {tmp_path / 'half'}\nreset_timestep 7").potential(model, keywords)
    second.run(f"{AGAIN}\nrun 8")
    expected = state_of(first)
    for name, values in state_of(second).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_restart_files_of_a_run(models, lammps_of, tmp_path):
    """``restart N`` writes while the run goes on with its neighbour list, which the continuation makes anew."""
    model = models["two charges"]
    first = lammps_of(water()).potential(model).run(f"{START}\nrestart 6 {tmp_path / 'at.*'}\nrun 12")
    second = lammps_of(water()).run(f"clear\nread_restart {tmp_path / 'at.6'}").potential(model).run(f"{AGAIN}\nrun 6")
    assert second.lmp.extract_global("ntimestep") == 12
    expected = state_of(first)
    for name, values in state_of(second).items():
        size = np.abs(expected[name]).max()
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-10 * size, err_msg=name)


class TestWhatOthersRead:
    def test_compute_pair(self, models, lammps_of):
        """Scalars of the style, of its short- and of its long-range part, whatever is asked for."""
        session = lammps_of(water()).potential(models["water"])
        session.run("compute all all pair mliap/les\ncompute short all pair mliap/les evdwl")
        session.run("compute long all pair mliap/les ecoul\ncompute group all pe pair\ncompute each all pe/atom pair")
        session.run("compute sum all reduce sum c_each\nthermo_modify norm no")
        session.run(
            "thermo_style custom step pe evdwl ecoul epair c_all c_all[1] c_all[2] c_short c_long c_sum c_group"
        )
        session.run("run 0")
        keys = ("pe", "evdwl", "ecoul", "epair")
        total, short, long, pair = (session.lmp.get_thermo(key) for key in keys)
        get = session.lmp.numpy.extract_compute
        np.testing.assert_allclose(get("all", 0, 1), [short, long], rtol=1e-15)
        assert get("short", 0, 0) == short
        assert get("long", 0, 0) == long
        for scalar in (get("all", 0, 0), get("group", 0, 0), get("sum", 0, 0), pair, short + long):
            assert scalar == pytest.approx(total, rel=1e-13)
        assert long != 0.0

    def test_fix_adapt(self, models, lammps_of):
        """There is nothing that ``fix adapt`` could change."""
        session = lammps_of(water()).potential(models["water"]).run("run 0")
        with pytest.raises(Exception, match="Fix adapt pair style mliap/les param epsilon not supported"):
            session.run("variable one equal 1.0\nfix a all adapt 1 pair mliap/les epsilon * * v_one\nrun 0")

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("compute c all pair/local eng", "does not support compute pair/local"),
            ("group o type 2\ncompute c all group/group o", "does not support compute group/group"),
            ("pair_write 1 1 10 r 1.0 3.0 table.txt HH", "does not support pair_write"),
            ("compute s all stress/atom NULL", "no per-atom virial"),
            ("compute s all centroid/stress/atom NULL", "centroid/stress/atom"),
        ],
        ids=["pair/local", "group/group", "pair_write", "stress/atom", "centroid/stress/atom"],
    )
    def test_what_has_no_pairs_to_tell_of(self, command, message, models, lammps_of):
        session = lammps_of(water()).potential(models["water"]).run("run 0")
        with pytest.raises(Exception, match=message):
            session.run(f"{command}\nrun 0\nthermo_style custom step c_c\nrun 0")
            session.run("compute x all reduce sum c_s[1]\nthermo_style custom step c_x\nrun 0")
