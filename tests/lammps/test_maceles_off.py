"""A model of MACELES-OFF's shape, with few channels: LAMMPS, OpenMM, ASE and mace-torch agree, on 1, 2 and 4 ranks.

Ten elements, isolated-atom energies down to −70 keV, features of degree 0 and 1, two interactions, cutoff 4.5 Å. All
energies are compared on the scale of what the model adds to the isolated atoms.
"""

import ase
import numpy as np
import pytest
from conftest import lmp, random_atoms

pytest.importorskip("mace", reason="mace-torch is not installed")
pytest.importorskip("openmm", reason="OpenMM is not installed")

import openmm
from e3nn import o3

from les_md import LESCalculator, LESForce, export
from tests.architectures import test_mace
from tests.lammps.evaluations import Case, commands_of, deviations, read

TOLERANCE = 1e-9
ATOMIC_ENERGIES = {
    "H": -13.571964772646918,
    "C": -1030.5671648271828,
    "N": -1486.3750255780376,
    "O": -2043.933693071156,
    "F": -2715.318528602957,
    "P": -9287.407133426237,
    "S": -10834.4844708122,
    "Cl": -12522.649269035726,
    "Br": -70045.28385080204,
    "I": -8102.524593409054,
}
ELEMENTS = tuple(ATOMIC_ENERGIES)
NUMBERS = [ase.data.atomic_numbers[symbol] for symbol in ELEMENTS]
EV = 1.602176634e-19 * 6.02214076e23 / 1000.0  # kJ/mol


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The model as mace-torch made it, and the exported file in float64."""
    folder = tmp_path_factory.mktemp("maceles_off")
    with pytest.MonkeyPatch.context() as patch:
        test_mace.les_package.__wrapped__(patch)
        model = test_mace.make_model(
            r_max=4.5,
            num_elements=10,
            atomic_numbers=NUMBERS,
            atomic_energies=np.array([list(ATOMIC_ENERGIES.values())]),
            hidden_irreps=o3.Irreps("16x0e + 16x1o"),
            max_ell=3,
            correlation=3,
            avg_num_neighbors=30.0,
        )
        source = test_mace.saved(model, folder)
        return model, export(source, folder / "off.pt", dtype="float64").path


@pytest.fixture(scope="module")
def atoms() -> ase.Atoms:
    """A tilted cell of 9 Å with all elements, too small for 2 or 4 ranks not to need each other's atoms."""
    cell = [[9.0, 0.0, 0.0], [1.1, 8.7, 0.0], [-0.7, 1.3, 9.2]]
    return random_atoms(cell, True, [*ELEMENTS, *"HCNO", *"HCOH", "S", "Cl", *"HHHO"], shortest=1.1)


@pytest.fixture(scope="module")
def reference(trained, atoms) -> dict:
    atoms.calc = LESCalculator(trained[1])
    atoms.get_potential_energy()
    return {**atoms.calc.results, "binding": abs(binding(atoms.calc.results["energy"], atoms))}


def binding(energy: float, atoms: ase.Atoms) -> float:
    """Energy less that of the isolated atoms."""
    return energy - sum(ATOMIC_ENERGIES[symbol] for symbol in atoms.symbols)


def assert_agrees(energy, forces, reference: dict, tolerance: float = TOLERANCE) -> None:
    assert energy == pytest.approx(reference["energy"], rel=0, abs=tolerance * reference["binding"])
    size = np.abs(reference["forces"]).max()
    np.testing.assert_allclose(forces, reference["forces"], rtol=0, atol=tolerance * size)


def test_mace_torch(trained, atoms, reference):
    assert 0.1 < reference["binding"] < 1e3
    original = test_mace.evaluate_with_mace(trained[0], atoms)
    assert_agrees(float(original["energy"][0]), original["forces"].detach().numpy(), reference)
    charges = original["latent_charges"].detach().numpy()
    ours = reference["charges"].reshape(-1)
    sign = np.sign(ours @ charges)
    np.testing.assert_allclose(ours, sign * charges, rtol=0, atol=TOLERANCE * np.abs(charges).max())


def test_openmm(trained, atoms, reference):
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / 10.0))
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(LESForce(trained[1], atoms.numbers.tolist(), backend="python", periodic=True))
    context = openmm.Context(system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / 10.0)
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy()._value / EV
    assert_agrees(energy, state.getForces(asNumpy=True)._value / (10.0 * EV), reference)


def test_lammps_on_any_number_of_ranks(trained, atoms, reference, plugin, tmp_path):
    case = Case(atoms, (), model="off", elements=ELEMENTS, settings="group all_elements type 1:10")
    results = {}
    for layout in ("1x1x1", "2x1x1", "2x2x1"):
        ranks = int(np.prod([int(n) for n in layout.split("x")]))
        done = lmp(commands_of(layout, case, layout, tmp_path, {"off": trained[1]}), tmp_path, ranks=ranks)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        results[layout] = read(layout, tmp_path)
        assert len(set(results[layout].owners)) == ranks
        assert_agrees(results[layout].energy, results[layout].forces, reference)
        found = deviations(results[layout], results["1x1x1"])
        assert max(found.values()) < 1e-10, found
    one = results["1x1x1"]
    virial = -reference["stress"][[0, 1, 2, 5, 4, 3]] * atoms.get_volume()
    pressure = one.virial * atoms.get_volume() / 1.6021765e6
    np.testing.assert_allclose(pressure, virial, rtol=0, atol=TOLERANCE * np.abs(virial).max())
    charges = reference["charges"].reshape(-1)
    np.testing.assert_allclose(one.charges[:, 0], charges, rtol=0, atol=TOLERANCE * np.abs(charges).max())


def test_dynamics_in_single_precision(trained, atoms, plugin, tmp_path):
    """The sum of −151 keV, of which float32 has no digit below 0.01 eV, does not hide that energy is conserved."""
    model = export(trained[1].with_name("trained.model"), tmp_path / "off32.pt").path
    case = Case(atoms, (), model="off", elements=ELEMENTS)
    script = commands_of("md", case, "2x1x1", tmp_path, {"off": model})
    script += (
        "velocity all create 100.0 1\nfix nve all nve\ntimestep 0.0002\nthermo_style custom step pe ke\nthermo 1\n"
        'variable total equal pe+ke\nfix record all print 1 "${total}" file total.txt screen no\nrun 10\n'
    )
    done = lmp(script, tmp_path, ranks=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    total = np.loadtxt(tmp_path / "total.txt")
    assert len(total) >= 10
    assert abs(total[0]) > 1e5
    assert np.ptp(total) < 1e-3
