"""Commands around the potential: dynamics, minimisation, restart, hybrid styles, charges, several instances."""

import re

import numpy as np
import pytest
from conftest import SHARED, lmp, water, write_data

from les_md import LESCalculator


def test_nve_conserves_energy(models, lammps_of):
    # The error of velocity Verlet falls with the square of the time step: this holds only for exact forces.
    spread = []
    for timestep, steps in ((0.0002, 100), (0.0001, 200)):
        session = lammps_of(water()).potential(models["gentle"])
        session.run(f"velocity all create 100 4\nfix 1 all nve\ntimestep {timestep}\nthermo_style custom step etotal")
        energies = []
        for _ in range(20):
            session.run(f"run {steps // 20} post no")
            energies.append(session.lmp.get_thermo("etotal"))
        spread.append(np.ptp(energies))
        assert session.lmp.extract_global("ntimestep") == steps
    assert spread[1] < spread[0] / 3.0
    assert spread[1] < 2e-3


def test_neighbour_lists_are_rebuilt(models, lammps_of):
    # Fast atoms and a thin skin: after many rebuilds the forces are those of the positions.
    session = lammps_of(water()).potential(models["water"])
    session.run("neighbor 0.2 bin\nneigh_modify every 1 delay 0 check yes\nvelocity all create 3000 4\nfix 1 all nve")
    session.run("timestep 0.0005\nrun 60")
    result = session.evaluate()
    atoms = session.atoms.copy()
    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)])
    atoms.positions = np.array(session.lmp.numpy.extract_atom("x")[: len(atoms)])[order]
    atoms.calc = LESCalculator(models["water"])
    assert result.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    np.testing.assert_allclose(result.forces, atoms.get_forces(), rtol=0, atol=1e-9)


def test_nvt_and_npt_run(models, lammps_of):
    session = lammps_of(water()).potential(models["water"])
    session.run("velocity all create 300 4\ntimestep 0.0002\nthermo_style custom step temp econserve press vol lx")
    session.run("fix 1 all nvt temp 300 300 0.05\nrun 20\nunfix 1")
    session.run("fix 1 all npt temp 300 300 0.05 aniso 0 0 0.5\nrun 20")
    assert np.isfinite(session.lmp.get_thermo("press"))
    assert session.lmp.get_thermo("lx") != pytest.approx(6.2, abs=1e-6)
    atoms = session.atoms.copy()
    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)])
    atoms.positions = np.array(session.lmp.numpy.extract_atom("x")[: len(atoms)])[order]
    low, high = session.lmp.extract_box()[:2]
    atoms.set_cell(np.subtract(high, low))
    atoms.calc = LESCalculator(models["water"])
    assert session.lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), rel=1e-10)


def test_minimise(models, lammps_of):
    session = lammps_of(water()).potential(models["water"])
    before = session.evaluate()
    session.run("minimize 0 0 20 40")
    after = session.result()
    assert after.energy < before.energy - 1.0
    session.run("run 0")
    assert session.lmp.get_thermo("pe") == pytest.approx(after.energy, rel=1e-12)


def test_box_relaxation(models, lammps_of):
    session = lammps_of(water()).potential(models["water"])
    before = session.evaluate().energy
    session.run("fix relax all box/relax iso 0.0 vmax 0.001\nminimize 0 0 10 20")
    assert session.lmp.get_thermo("pe") < before
    assert session.lmp.get_thermo("lx") != 6.2


def test_restart_continues_the_trajectory(models, lammps_of, tmp_path):
    first = lammps_of(water()).potential(models["water"])
    first.run("velocity all create 100 4\nfix 1 all nve\ntimestep 0.0002\nrun 10")
    first.run(f"write_restart {tmp_path}/half.restart\nrun 10")

    second = lammps_of(water())
    second.run(f"clear\nread_restart {tmp_path}/half.restart").potential(models["water"])
    second.run("fix 1 all nve\ntimestep 0.0002\nrun 10")
    assert second.lmp.extract_global("ntimestep") == 20
    assert second.lmp.get_thermo("pe") == pytest.approx(first.lmp.get_thermo("pe"), rel=1e-12)
    for name in ("x", "v"):
        a, b = (np.array(s.lmp.gather_atoms(name, 1, 3)) for s in (first, second))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


def test_restart_without_pair_coeff_is_refused(models, lammps_of, tmp_path):
    session = lammps_of(water()).potential(models["water"]).run(f"run 0\nwrite_restart {tmp_path}/a.restart")
    session.run(f"clear\nread_restart {tmp_path}/a.restart")
    with pytest.raises(Exception, match=r"[Pp]air"):
        session.run("run 0")


def test_hybrid_overlay_adds_up(models, lammps_of):
    plain = lammps_of(water()).potential(models["water"]).evaluate()
    elements = " ".join(("H", "O"))
    lj = "pair_coeff 1 1 lj/cut 0.001 2.0\npair_coeff 1 2 lj/cut 0.001 2.0\npair_coeff 2 2 lj/cut 0.002 3.0"
    alone = lammps_of(water()).run("pair_style lj/cut 3.0\n" + lj.replace(" lj/cut", ""))
    alone.run("compute split all pair lj/cut\ncompute virial all pressure NULL virial\ncompute each all pe/atom")
    alone.run("compute total all reduce sum c_each")
    alone.run("thermo_style custom step pe press vol c_virial[*] c_total c_split\nrun 0")
    both = lammps_of(water()).run("pair_style hybrid/overlay mliap/les lj/cut 3.0")
    result = both.run(f"pair_coeff * * mliap/les {models['water']} {elements}\n{lj}").evaluate()
    assert result.energy == pytest.approx(plain.energy + alone.lmp.get_thermo("pe"), rel=1e-12)
    assert result.short_range + result.long_range == pytest.approx(plain.energy, rel=1e-12)
    forces = np.array(alone.lmp.gather_atoms("f", 1, 3)).reshape(-1, 3)
    np.testing.assert_allclose(result.forces, plain.forces + forces, rtol=0, atol=1e-9)
    pressure = np.array(alone.lmp.numpy.extract_compute("virial", 0, 1)) * 6.2**3 / 1.6021765e6
    np.testing.assert_allclose(result.virial, plain.virial + pressure, rtol=0, atol=1e-9 * abs(plain.virial).max())


def test_null_types_are_left_to_the_other_style(models, lammps_of):
    # A third type, helium, that the model does not know: zero interaction, so the water feels nothing of it.
    mixed = water()
    mixed += mixed[[0, 3]]
    mixed.symbols[-2:] = "He"
    mixed.positions[-2:] += [[1.5, 1.5, 0.2], [0.3, 1.4, 1.5]]
    plain = lammps_of(water()).potential(models["water"]).evaluate()
    session = lammps_of(mixed, elements=("H", "O", "He")).run("pair_style hybrid/overlay mliap/les zero 4.0")
    session.run(f"pair_coeff * * mliap/les {models['water']} H O NULL\npair_coeff * * zero")
    result = session.run("fix charge all pair 1 mliap/les charge 0").evaluate()
    assert result.energy == pytest.approx(plain.energy, rel=1e-12)
    np.testing.assert_allclose(result.forces[:-2], plain.forces, rtol=0, atol=1e-10)
    assert not result.forces[-2:].any()
    assert not result.energies[-2:].any()
    assert not result.charges[-2:].any()
    assert result.charges[:-2].all()


def test_two_models_on_two_kinds_of_atoms(models, lammps_of):
    # hybrid: one instance for H, one for O; each ignores the other's atoms.
    session = lammps_of(water()).run("pair_style hybrid/overlay mliap/les mliap/les zero 4.0")
    session.run(f"pair_coeff * * mliap/les 1 {models['water']} H NULL")
    session.run(f"pair_coeff * * mliap/les 2 {models['water']} NULL O")
    session.run("pair_coeff * * zero\nthermo_style custom step pe\nrun 0")
    expected = 0.0
    for element in "HO":
        part = water()
        del part[[i for i, s in enumerate(part.symbols) if s != element]]
        part.calc = LESCalculator(models["water"])
        expected += part.get_potential_energy()
    assert session.lmp.get_thermo("pe") == pytest.approx(expected, rel=1e-12)


def test_charges_are_written_to_the_atoms(models, lammps_of):
    atoms = water()
    atoms.calc = LESCalculator(models["water"])
    session = lammps_of(atoms, atom_style="charge").potential(models["water"], "charges yes").run("run 0")
    order = np.argsort(session.lmp.numpy.extract_atom("id")[: len(atoms)])
    charges = np.array(session.lmp.numpy.extract_atom("q")[: len(atoms)])[order]
    np.testing.assert_allclose(charges, atoms.get_charges(), rtol=0, atol=1e-12)


def test_charges_stay_as_they_are_by_default(models, lammps_of):
    session = lammps_of(water(), atom_style="charge").run("set type 1 charge 0.25")
    session.potential(models["water"]).run("run 0")
    assert set(np.array(session.lmp.numpy.extract_atom("q")[:24])) == {0.0, 0.25}


def test_style_and_model_can_be_named_again(models, lammps_of):
    session = lammps_of(water()).potential(models["short range"])
    short = session.evaluate().energy
    session.run(f"pair_coeff * * {models['water']} H O")
    full = session.evaluate().energy
    assert full != pytest.approx(short, rel=1e-6)
    session.run("pair_style mliap/les threads 1")  # the same style again keeps its coefficients
    assert session.evaluate().energy == pytest.approx(full, rel=1e-14)
    session.run("thermo_style one\nuncompute split\nuncompute virial\nuncompute total\nuncompute each")
    session.run("pair_style zero 4.0\npair_coeff * *\nrun 0")
    session.potential(models["water"])
    assert session.evaluate().energy == pytest.approx(full, rel=1e-14)


def test_elements_in_any_type_order(models, lammps_of):
    first = lammps_of(water()).potential(models["water"]).evaluate()
    second = lammps_of(water(), elements=("O", "H")).potential(models["water"]).evaluate()
    assert second.energy == pytest.approx(first.energy, rel=1e-13)
    np.testing.assert_allclose(second.forces, first.forces, rtol=0, atol=1e-11)


def test_instances_share_a_process(models, lammps_of):
    first = lammps_of(water()).potential(models["water"])
    energy = first.evaluate().energy
    second = lammps_of(water()).potential(models["short range"])
    second.evaluate()
    second.close()
    assert first.evaluate().energy == pytest.approx(energy, rel=1e-14)


def test_bonds_need_not_disturb_the_neighbour_list(models, lammps_of):
    plain = lammps_of(water()).potential(models["water"]).evaluate()
    session = lammps_of(water(), atom_style="full", before="special_bonds lj/coul 1.0 1.0 1.0")
    session.run("neigh_modify one 4000")
    result = session.potential(models["water"]).evaluate()
    assert result.energy == pytest.approx(plain.energy, rel=1e-12)


def test_log_names_the_model_and_the_times(models, plugin, tmp_path):
    write_data(tmp_path / "w.data", water(), ("H", "O"), "atomic")
    script = f"units metal\nread_data w.data\npair_style mliap/les\npair_coeff * * {models['water']} H O\nrun 2\n"
    done = lmp(script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "log.lammps").read_text()
    assert "(cace, float64), types 1=H 2=O, cutoff 4, kspace auto, device cpu, 1 thread" in log
    # In a cubic box of 6.2 Å the sum takes all n ≠ 0 with |n| ≤ 6.2/2.
    n = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1)
    vectors = ((n**2).sum(-1) <= 3.1**2).sum() - 1
    assert f"mliap/les: long-range sum by ewald, {vectors} wave vectors, compiled operators\n" in log
    assert re.search(r"mliap/les: per rank 24 own atoms \(at most 24\), 24 nodes \(1.00 times the own atoms\), ", log)
    assert re.search(r"\d+ edges \(1.00 times those of own atoms\)\n", log)
    number = r" \d+\.\d{3}"
    parts = ("neighbours", "graph", "network-forward", "density", "reduction", "solve", "gather", "network-backward")
    assert re.search("mliap/les: 3 evaluations, ms each:" + "".join(f" {part}{number}" for part in parts) + "\n", log)
    assert re.search(r"mliap/les: peak memory per rank \d+ MB, at most \d+ MB\n", log)


def test_model_is_found_in_the_potentials_folder(models, plugin, tmp_path):
    write_data(tmp_path / "w.data", water(), ("H", "O"), "atomic")
    script = f"units metal\nread_data w.data\npair_style mliap/les\npair_coeff * * {models['water'].name} H O\nrun 0\n"
    done = lmp(script, tmp_path, {"LAMMPS_POTENTIALS": str(models["water"].parent)})
    assert done.returncode == 0, done.stdout + done.stderr


def test_charges_every_few_steps(models, lammps_of):
    session = lammps_of(water()).potential(models["gentle"]).run("fix 1 all nve\nfix q all pair 5 mliap/les charge 0")
    session.run("compute q all reduce sum f_q\nthermo_style custom step c_q\nthermo 5")
    # Kept from step 5 on: those of step 5, not of the last step, 7.
    session.run("run 7 post no")
    kept = session.lmp.numpy.extract_compute("q", 0, 0)
    session.run("unfix q\nfix q all pair 1 mliap/les charge 0\nrun 0")
    now = session.lmp.numpy.extract_compute("q", 0, 0)
    assert kept != 0.0
    assert now != pytest.approx(kept, rel=1e-9)
    assert now == pytest.approx(kept, rel=0.1)
    # The style has no other per-atom quantity.
    with pytest.raises(Exception, match=r"potential"):
        session.run("fix p all pair 1 mliap/les potential 0\nrun 0")


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_result(threads, models, lammps_of):
    reference = lammps_of(water()).potential(models["water"], "threads 1").evaluate()
    result = lammps_of(water()).potential(models["water"], f"threads {threads}").evaluate()
    assert result.energy == pytest.approx(reference.energy, rel=1e-12)
    np.testing.assert_allclose(result.forces, reference.forces, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("checkpoint", "frames"), [("caceles_water_r4.5_nu2.pth", (0, 1)), ("maceles_water_nl1_l0.model", (0,))]
)
def test_published_models(checkpoint, frames, lammps_of, tmp_path):
    """A published checkpoint through les-export into LAMMPS: forces against those of the authors' code."""
    import ase.io

    from les_md import export

    source = SHARED / "models" / checkpoint
    if not source.is_file():
        pytest.skip(f"needs ../shared/models/{checkpoint}, a published model that is not part of this repository")
    if checkpoint.endswith(".model"):
        pytest.importorskip("mace", reason="needs mace-torch to export a MACE model")
    model = export(source, tmp_path / "model.pt", dtype="float64").path
    reference = np.load(SHARED / "reference" / f"{source.stem}.npz")
    for frame in frames:
        atoms = ase.io.read(SHARED / "data" / "water_rpbe_d3.xyz", frame)
        atoms.calc = LESCalculator(model)
        result = lammps_of(atoms).potential(model).evaluate()
        assert result.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
        size = abs(atoms.get_forces()).max()
        np.testing.assert_allclose(result.forces, atoms.get_forces(), rtol=0, atol=1e-10 * size)
        forces = reference[f"{frame}/forces"]
        np.testing.assert_allclose(result.forces, forces, rtol=0, atol=1e-8 * abs(forces).max())
