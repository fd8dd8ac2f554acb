"""The models with reference files, what each is evaluated on, and the evaluation itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.build
import numpy as np

from les_md.check_structures import packed, water_box
from les_md.models import bundled_models
from tests.architectures.small_models import export_here_or_elsewhere
from tests.lammps.conftest import Lammps

SHARED = Path(__file__).resolve().parents[4] / "shared" / "models"
REFERENCES = Path(__file__).parent / "references"

#: Steps of velocity Verlet, of 0.1 fs, behind the results called "run".
STEPS = 4


@dataclass(frozen=True)
class Case:
    """A checkpoint, by the name of a bundled model or of a file of ../shared, and atoms to evaluate it on."""

    checkpoint: str
    elements: tuple[str, ...]
    structure: str  # "water", "packed" or "molecule"
    boundary: str = "p p p"
    short_range: bool = False
    architecture: str = "CACE"  # of SMALL_MODELS, which says what its export needs

    @property
    def path(self) -> Path:
        return bundled_models().get(self.checkpoint, SHARED / self.checkpoint)

    @property
    def digest(self) -> str:
        """SHA-256 of the checkpoint."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def atoms(self) -> ase.Atoms:
        if self.structure == "water":
            return water_box()
        if self.structure == "packed":
            return packed(list(self.elements))
        molecule = ase.build.molecule("CH3CONH2")
        molecule.rattle(0.05, seed=4)
        molecule.set_cell(np.diag([14.0, 15.0, 16.0]))
        molecule.center()
        return molecule


ORGANIC = ("H", "C", "N", "O")
CASES = {
    "water_rpbe_d3": Case("water_rpbe_d3", ("O", "H"), "water"),
    "water_rpbe_d3_short_range": Case("water_rpbe_d3_short_range", ("O", "H"), "water", short_range=True),
    "organics_wb97m": Case("organics_wb97m", ORGANIC, "molecule", boundary="f f f"),
    "molten_salt_chgnet": Case("molten_salt_chgnet", ("Na", "Mg", "Cl"), "packed", architecture="CHGNet"),
    "molten_salt_chgnet_short_range": Case(
        "molten_salt_chgnet_short_range", ("Na", "Mg", "Cl"), "packed", short_range=True, architecture="CHGNet"
    ),
    "caceles_water_r4.5_nu2": Case("caceles_water_r4.5_nu2.pth", ("O", "H"), "water"),
    "caceles_water_r5.5_nu2": Case("caceles_water_r5.5_nu2.pth", ("H", "O"), "water"),
    "caceles_dipeptide_r4_nl2_nu2": Case("caceles_dipeptide_r4_nl2_nu2.pth", ORGANIC, "molecule", boundary="s s s"),
    "caceles_au_mgo_r5.5_nu2": Case("caceles_au_mgo_r5.5_nu2.pth", ("O", "Mg", "Al", "Au"), "packed"),
    "maceles_water_nl1_l0": Case("maceles_water_nl1_l0.model", ("O", "H"), "water", architecture="MACE"),
    "nequiples_water_nl3_l1": Case("nequiples_water_nl3_l1.ckpt", ("H", "O"), "water", architecture="NequIP"),
}


def export_case(case: Case, output: Path) -> Path:
    """Exported in float64, by another Python where this one lacks a package for it; skips where none has it."""
    options = ["--short-range"] if case.short_range else []
    return export_here_or_elsewhere(case.architecture, case.path, output, *options)


def evaluate(case: Case, model: Path, folder: Path) -> dict[str, np.ndarray]:
    """Results in LAMMPS: before the first step ("init ...") and after ``STEPS`` steps ("run ..."); metal units.

    ``energy`` [2] short- and long-range, ``stress`` [6] of the virial (bar; xx yy zz xy xz yz), ``forces`` [N, 3],
    ``energies`` [N], ``charges`` [N] where the model has them. Velocities are a function of the atoms' numbers alone.
    """
    session = Lammps(case.atoms(), folder, boundary=case.boundary, elements=case.elements)
    try:
        session.potential(model, "threads 1")
        if not case.short_range:
            session.run("fix charge all pair 1 mliap/les charge 0")
        found = {}
        session.run("variable v atom 3.0*sin(id)\nvelocity all set v_v NULL NULL\ntimestep 0.0001\nfix 1 all nve")
        for stage in ("init", "run"):
            if stage == "run":
                session.run(f"run {STEPS}")
            result = session.evaluate() if stage == "init" else session.result()
            found[f"{stage} energy"] = np.array([result.short_range, result.long_range])
            found[f"{stage} stress"] = np.array(session.lmp.numpy.extract_compute("virial", 0, 1))
            found[f"{stage} forces"] = result.forces
            found[f"{stage} energies"] = result.energies
            if result.charges.size:
                found[f"{stage} charges"] = result.charges
        return found
    finally:
        session.close()
