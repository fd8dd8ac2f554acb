"""Systems and Contexts from ASE configurations, models with random weights, and LESCalculator as reference."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import ase
import numpy as np
import pytest

openmm = pytest.importorskip("openmm", reason="needs OpenMM (pip install 'les_md[openmm]')")

from les_md import LESCalculator, export, load  # noqa: E402
from les_md.check_structures import water_box  # noqa: E402
from les_md.model_file import ExportedModel  # noqa: E402
from les_md.openmm import LESForce  # noqa: E402
from tests.test_exporting import write_checkpoint  # noqa: E402

#: e N_A / 1000 of CODATA 2018, written out so that the product's own constant is checked as well.
KJ_PER_MOL = 1.602176634e-19 * 6.02214076e23 / 1000.0
NANOMETER = 10.0  # Å
GAS_CONSTANT = 1.380649e-23 * 6.02214076e23 / 1000.0  # kJ/mol/K

BACKENDS = ["python"]
if os.environ.get("LES_MD_TEST_TORCHFORCE") == "1":  # then it has to work: nothing skips
    BACKENDS.append("torchforce")

#: What a new process has to do before it reads a System from XML.
PREPARATION = {"python": "", "torchforce": "import les_md.openmm\nles_md.openmm.prepare_torchforce()"}

SMALL = (-0.5, -1.5)  # reference energies that leave relative errors visible
ORGANIC = {"atomic_numbers": (1, 6, 7, 8), "reference_energies": (-0.5, -1.0, -1.2, -1.5)}
#: Changes of ``write_checkpoint`` and options of ``export``.
MODELS = {
    "one channel": ({"reference_energies": SMALL}, {"dtype": "float64"}),
    "two channels": ({"reference_energies": SMALL, "charges": 2}, {"dtype": "float64"}),
    "two layers": ({"reference_energies": SMALL, "charges": 2, "num_message_passing": 1}, {"dtype": "float64"}),
    "another seed": ({"reference_energies": SMALL, "seed": 1}, {"dtype": "float64"}),
    "float32": ({}, {"dtype": "float32"}),
    "short range": ({"reference_energies": SMALL, "charges": 0}, {"dtype": "float64", "short_range": True}),
    "smallest": ({"max_l": 1, "max_nu": 2, "repulsion": False}, {"dtype": "float32"}),
    "organic": (ORGANIC, {"dtype": "float64"}),
    "organic, short range": ({**ORGANIC, "charges": 0}, {"dtype": "float64", "short_range": True}),
}


class _Models(Mapping):
    """Exported files by name, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> Path:
        path = self._folder / f"{name.replace(' ', '_')}.pt"
        if path.is_file():
            return path
        if name == "liquid water":
            return export("water_rpbe_d3", path).path
        changes, options = MODELS[name]
        return export(write_checkpoint(path.with_suffix(".pth"), **changes), path, **options).path

    def __iter__(self) -> Iterator[str]:
        return iter([*MODELS, "liquid water"])

    def __len__(self) -> int:
        return len(MODELS) + 1


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Mapping[str, Path]:
    """``MODELS``, and "liquid water", the bundled model in float32."""
    return _Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


@pytest.fixture
def les_force(backend):
    """Make a LESForce for the atoms and boundaries of an ASE configuration; files are read once for all tests."""

    def make(model: Path, configuration: ase.Atoms, **options) -> LESForce:
        options.setdefault("periodic", bool(configuration.pbc.all()))
        return LESForce(loaded(model), configuration.numbers, backend=backend, **options)

    return make


@functools.cache
def loaded(model: Path) -> ExportedModel:
    """TorchScript compiles a model at its first evaluations, which takes longer than most tests."""
    return load(model)


def cubic_water() -> ase.Atoms:
    """Eight molecules at the density of the liquid."""
    atoms = water_box()
    atoms.set_cell(6.23 * np.eye(3), scale_atoms=True)
    return atoms


def tilted_water() -> ase.Atoms:
    """The same in a cell with angles near 60°, in OpenMM's reduced form."""
    atoms = water_box()
    atoms.set_cell([[6.9, 0.0, 0.0], [3.1, 6.1, 0.0], [-3.2, 2.4, 6.2]], scale_atoms=False)
    atoms.positions *= 1.05
    return atoms


def small_cell() -> ase.Atoms:
    """One molecule in a cell below the cutoff of 3 Å."""
    atoms = water_box()[:3]
    atoms.positions -= atoms.positions[0]
    atoms.set_cell([[2.61, 0.0, 0.0], [0.3, 2.53, 0.0], [-0.2, 0.1, 2.77]])
    return atoms


def cluster() -> ase.Atoms:
    """Eight molecules in open space."""
    atoms = water_box()
    atoms.set_pbc(False)
    atoms.set_cell(None)
    return atoms


def topology_of(configuration: ase.Atoms, box: bool | None = None) -> openmm.app.Topology:
    """Water molecules (O H H in turn) with bonds; with box vectors if the configuration is periodic."""
    topology = openmm.app.Topology()
    chain = topology.addChain()
    for molecule in range(len(configuration) // 3):
        residue = topology.addResidue("HOH", chain)
        oxygen, first, second = (
            topology.addAtom(name, openmm.app.Element.getBySymbol(configuration.symbols[3 * molecule + i]), residue)
            for i, name in enumerate(("O", "H1", "H2"))
        )
        topology.addBond(oxygen, first)
        topology.addBond(oxygen, second)
    if configuration.pbc.all() if box is None else box:
        topology.setPeriodicBoxVectors(configuration.cell.array / NANOMETER * openmm.unit.nanometer)
    return topology


def make_system(configuration: ase.Atoms, *forces: openmm.Force) -> openmm.System:
    """A System of these atoms and forces, with the configuration's box if it is periodic."""
    system = openmm.System()
    for mass in configuration.get_masses():
        system.addParticle(mass)
    if configuration.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(configuration.cell.array / NANOMETER))
    for force in forces:
        system.addForce(force)
    return system


def make_context(
    system: openmm.System,
    configuration: ase.Atoms,
    integrator: openmm.Integrator | None = None,
    platform: str = "Reference",
) -> openmm.Context:
    """A Context with the configuration's positions."""
    context = openmm.Context(
        system, integrator or openmm.VerletIntegrator(0.0002), openmm.Platform.getPlatformByName(platform)
    )
    context.setPositions(configuration.positions / NANOMETER)
    return context


def evaluate(context: openmm.Context, **selection) -> tuple[float, np.ndarray]:
    """Potential energy in kJ/mol and forces [N, 3] in kJ/mol/nm; ``selection``: groups."""
    state = context.getState(energy=True, forces=True, **selection)
    energy = state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoule_per_mole)
    return energy, state.getForces(asNumpy=True).value_in_unit(openmm.unit.kilojoule_per_mole / openmm.unit.nanometer)


def positions_of(context: openmm.Context) -> np.ndarray:
    """[N, 3] nm."""
    return context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(openmm.unit.nanometer)


def configuration_of(context: openmm.Context, like: ase.Atoms) -> ase.Atoms:
    """Positions and box of a Context as a configuration of the same elements and boundaries as ``like``."""
    atoms = like.copy()
    atoms.positions = NANOMETER * positions_of(context)
    if like.pbc.all():
        box = context.getState().getPeriodicBoxVectors(asNumpy=True).value_in_unit(openmm.unit.nanometer)
        atoms.set_cell(NANOMETER * box)
    return atoms


@functools.cache
def _calculator(model: Path, **options) -> LESCalculator:
    return LESCalculator(loaded(model), **options)


def reference(model: Path, configuration: ase.Atoms, **options) -> tuple[float, np.ndarray]:
    """Energy in kJ/mol and forces [N, 3] in kJ/mol/nm of LESCalculator."""
    calculator = _calculator(model, **options)
    calculator.calculate(configuration)
    return KJ_PER_MOL * calculator.results["energy"], KJ_PER_MOL * NANOMETER * calculator.results["forces"]


def assert_same(result: tuple[float, np.ndarray], expected: tuple[float, np.ndarray], tolerance: float = 1e-9) -> None:
    """Energy to a relative ``tolerance``, forces to the same part of the largest one."""
    assert result[0] == pytest.approx(expected[0], rel=tolerance)
    np.testing.assert_allclose(result[1], expected[1], rtol=0, atol=tolerance * max(np.abs(expected[1]).max(), 1e-3))


def langevin(timestep: float = 0.0005, temperature: float = 300.0, friction: float = 5.0) -> openmm.Integrator:
    """A LangevinMiddleIntegrator with fixed random numbers; ps, K, 1/ps."""
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, timestep)
    integrator.setRandomNumberSeed(11)
    return integrator


def resident_memory() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a script in a new process, single-threaded like this one."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
