"""Cases evaluated by LAMMPS on several processor grids, all of one number of ranks by one start of ``mpiexec``."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
import pytest

from tests.lammps.conftest import ELEMENTS, lmp, random_atoms, water, write_data
from tests.sharing import one_at_a_time


@dataclass
class Case:
    """One configuration and potential; ``layouts`` are the processor grids, more than one rank, to compare on.

    A layout ending in " rcb" uses ``comm_style tiled`` and ``balance 1.0 rcb``. ``pair`` replaces the pair commands
    of a plain ``pair_style mliap/les``; MODEL in it stands for the file of ``model``, and other models are named by
    their key in braces.
    """

    atoms: ase.Atoms
    layouts: tuple[str, ...]
    model: str = "1 layer"
    keywords: str = ""
    boundary: str = "p p p"
    pair: str = ""
    settings: str = ""  # after reading the data, before the pair style
    after: str = ""  # after the pair style
    elements: tuple[str, ...] = ELEMENTS
    num_charges: int = 1
    instance: str = "mliap/les"  # as compute pair and fix pair name it
    ids: tuple[int, ...] | None = None
    units: str = "metal"
    shares: tuple[int, ...] = ()  # expected numbers of own atoms of all ranks on the first layout, if that is the point


@dataclass
class Evaluated:
    energy: float
    virial: np.ndarray
    split: np.ndarray  # of compute pair: total, short-range, long-range
    ids: np.ndarray
    forces: np.ndarray
    energies: np.ndarray
    charges: np.ndarray
    owners: np.ndarray  # rank that has the atom
    log: str


def rank_count(layout: str) -> int:
    return int(np.prod([int(n) for n in layout.split()[0].split("x")]))


def commands_of(tag: str, case: Case, layout: str, folder: Path, models: dict[str, Path]) -> str:
    """Commands that evaluate a case and leave ``tag.atoms``, ``tag.values`` and ``tag.log`` in the folder."""
    grid, _, tiled = layout.partition(" ")
    write_data(folder / f"{tag}.data", case.atoms, case.elements, "atomic", case.ids)
    pair = case.pair or f"pair_style mliap/les {case.keywords}\npair_coeff * * MODEL {' '.join(case.elements)}"
    pair = pair.replace("MODEL", str(models[case.model]))
    for name in re.findall(r"\{(.*?)\}", pair):
        pair = pair.replace(f"{{{name}}}", str(models[name]))
    columns = {0: "", 1: "f_q", 2: "f_q[1] f_q[2]"}[case.num_charges]
    keep = f"fix q all pair 1 {case.instance.replace(' ', ':')} charge 0" if case.num_charges else ""
    values = ["pe", *[f"c_virial[{k + 1}]" for k in range(6)], "c_split", "c_split[1]", "c_split[2]"]
    return f"""
clear
log {tag}.log
units {case.units}
boundary {case.boundary}
box tilt large
processors {grid.replace("x", " ")}
comm_style {"tiled" if tiled else "brick"}
read_data {tag}.data
neighbor 1.0 bin
{case.settings}
{"balance 1.0 rcb" if tiled else ""}
{pair}
{case.after}
{keep}
compute split all pair {case.instance}
compute each all pe/atom
compute owner all property/atom proc
compute virial all pressure NULL virial
thermo_style custom step {" ".join(values)}
thermo_modify norm no
dump d all custom 1 {tag}.atoms id fx fy fz c_each c_owner {columns}
dump_modify d sort id format float %.17g
run 0
print "{" ".join(f"$({value}:%.17g)" for value in values)}" file {tag}.values
"""


def read(tag: str, folder: Path) -> Evaluated:
    values = np.array((folder / f"{tag}.values").read_text().split(), dtype=float)
    table = np.loadtxt(folder / f"{tag}.atoms", skiprows=9, ndmin=2)
    return Evaluated(
        energy=values[0],
        virial=values[1:7],
        split=values[7:10],
        ids=table[:, 0].astype(int),
        forces=table[:, 1:4],
        energies=table[:, 4],
        owners=table[:, 5].astype(int),
        charges=table[:, 6:],
        log=(folder / f"{tag}.log").read_text(),
    )


def slug(text: str) -> str:
    return re.sub(r"\W+", "_", text)


class Evaluations:
    """All cases on one number of ranks, evaluated by one start of ``lmp`` when the first of them is asked for.

    ``folder`` may be shared by several processes of tests: what one of them has evaluated the others read.
    """

    def __init__(self, folder: Path, models: dict[str, Path], cases: dict[str, Case]) -> None:
        self.folder, self.models, self.cases = folder, models, cases
        self.work = defaultdict(list)
        for name, case in cases.items():
            for layout in ("1x1x1", *case.layouts):
                self.work[rank_count(layout)].append((name, layout))

    def __call__(self, name: str, layout: str) -> Evaluated:
        ranks, tag = rank_count(layout), slug(f"{name}-{layout}")
        output = self.folder / f"output_of_{ranks}"
        if not output.is_file():
            with one_at_a_time(self.folder):
                if not output.is_file():
                    done = lmp(self._commands(ranks), self.folder, ranks=ranks)
                    output.write_text(done.stdout + done.stderr)
        if not (self.folder / f"{tag}.values").is_file():
            pytest.fail(f"{name} on {layout} was not evaluated:\n{output.read_text()[-3000:]}")
        return read(tag, self.folder)

    def _commands(self, ranks: int) -> str:
        return "".join(
            commands_of(slug(f"{name}-{layout}"), self.cases[name], layout, self.folder, self.models)
            for name, layout in self.work[ranks]
        )


def deviations(result: Evaluated, reference: Evaluated) -> dict[str, float]:
    """Largest differences, each relative to the largest value of its kind."""
    np.testing.assert_array_equal(result.ids, reference.ids)
    found = {"energy": abs(result.energy - reference.energy) / abs(reference.energy)}
    found["split"] = np.abs(result.split - reference.split).max() / abs(reference.energy)
    for kind in ("forces", "virial", "energies", "charges"):
        ours, theirs = getattr(result, kind), getattr(reference, kind)
        if theirs.size:
            found[kind] = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-3)
    return found


# ---- configurations


def half_filled(length: float = 12.4) -> ase.Atoms:
    """Water in the lower half of a box along x."""
    atoms = water((2, 2, 2))
    atoms.set_cell([length, 6.2, 6.2])
    atoms.positions[:, 0] %= 6.2
    return atoms


def uneven() -> ase.Atoms:
    """A box of 12.4 Å with water in one octant and thin vapour elsewhere, for balancing."""
    atoms = water((2, 2, 2))
    atoms.positions %= 6.2
    vapour = water((2, 2, 2), 6.2)
    inside = (vapour.positions % 12.4 < 6.9).all(1)
    del vapour[[i for i in range(len(vapour)) if inside[i - i % 3 : i - i % 3 + 3].any()]]
    atoms.set_cell([12.4] * 3)
    return atoms + vapour


def cluster(length: float = 14.0) -> ase.Atoms:
    """Twelve atoms in the corner region of a larger box, in open space."""
    atoms = random_atoms(np.diag([7.0, 7, 7]).tolist(), False, "HOHHOHHOHOHO")
    atoms.set_cell([length] * 3)
    atoms.positions += 0.3
    return atoms


# ---- trajectories


def run_script(script: str, folder: Path, ranks: int) -> str:
    """Runs an input with 17 digits in its tables; returns the log."""
    done = lmp(script, folder, ranks=ranks)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return (folder / "log.lammps").read_text()


def tables(log: str) -> list[np.ndarray]:
    """The thermodynamic output of every run in a log, [lines, columns]."""
    found = re.findall(r"\n +Step .*\n((?: *-?\d.*\n)+)", log)
    return [np.array([line.split() for line in table.splitlines()], dtype=float) for table in found]


def snapshots(path: Path) -> np.ndarray:
    """A text dump, [frames, atoms, columns]."""
    frames = path.read_text().split("ITEM: TIMESTEP\n")[1:]
    return np.array([[line.split() for line in frame.splitlines()[8:]] for frame in frames], dtype=float)
