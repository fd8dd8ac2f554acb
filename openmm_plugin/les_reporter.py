"""LESReporter: charges, dipole and the two parts of the energy during an OpenMM simulation."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TextIO

import numpy as np
import openmm.app
from openmm import unit

from les_md.openmm.les_force import LESForce
from les_md.openmm.units import EV_TO_KJ_PER_MOL, NM_TO_ANGSTROM

COLUMNS = (
    "Step",
    "Time (ps)",
    "Short-range energy (kJ/mol)",
    "Long-range energy (kJ/mol)",
    "Dipole x (e nm)",
    "Dipole y (e nm)",
    "Dipole z (e nm)",
)
CURRENT_COLUMNS = ("Current x (e nm/ps)", "Current y (e nm/ps)", "Current z (e nm/ps)")


class LESReporter:
    """Writes what only a LES model knows, as a reporter of ``openmm.app.Simulation``::

        simulation.reporters.append(LESReporter("les.csv", 100, force, charges="charges.csv"))

    Parameters
    ----------
    file : name of a CSV file, or an open text file: step, time, short- and long-range energy in kJ/mol (the first
        includes the reference energies of the elements), and the dipole moment √ε Σ (q − q̄) r of the force's atoms in
        e nm.
    reportInterval : steps between two reports.
    force : the LESForce whose atoms are reported on. For a System read from XML, make a LESForce of the same model,
        which need not be in the System.
    current : whether to write three more columns, the current J = Σ Z* v of the force's atoms in e nm/ps, whose
        autocorrelation gives the infrared spectrum. The velocities are those of the State, which lag half a time step
        behind the positions with leapfrog integrators (Verlet, Langevin).
    born : name of a further CSV file, or an open text file, for the Born effective charges of every atom of the force
        in e: nine columns an atom (xx, xy, ..., zz; polarisation before displacement); None writes none.
    charges : name of a second CSV file, or an open text file, for the latent charge of every atom of the force in e
        (the sum over channels), one line per report after a line with the particles' indices; None writes none.
    append : go on with existing files, as after a restart.

    The dipole of a periodic system follows the positions as they are in the Context, molecules not wrapped. Neither
    its value nor its changes are those of the polarisation, since charge goes from one molecule to another: use
    ``current``.

    ``current`` and ``born`` cost one more evaluation per report, with six backward passes (see
    ``LESForce.getBornEffectiveCharges``). The energies do not contain that of an electric field.

    Otherwise the model is evaluated once per report, and not at all where another reporter asks for the energy at the
    same step and the ``python`` backend runs.

    Raises ValueError for a short-range model (it has no charges) and for an interval below 1.
    """

    def __init__(
        self,
        file: str | Path | TextIO,
        reportInterval: int,
        force: LESForce,
        charges: str | Path | TextIO | None = None,
        append: bool = False,
        current: bool = False,
        born: str | Path | TextIO | None = None,
    ) -> None:
        if not isinstance(force, LESForce):
            raise TypeError(f"force must be a LESForce, not {type(force).__name__}")
        if not force.model.has_long_range:
            raise ValueError(f"{force.model.path.name} is a short-range model: it has no charges to report")
        if int(reportInterval) < 1:
            raise ValueError(f"reportInterval must be at least 1, got {reportInterval}")
        self._interval = int(reportInterval)
        self._force = force
        self._atoms = np.array(force.atoms)
        self._opened: list[TextIO] = []
        self._current = bool(current)
        self._table = self._writer(file, COLUMNS + (CURRENT_COLUMNS if current else ()), append)
        self._charges = None
        if charges is not None:
            self._charges = self._writer(charges, ("Step", *force.atoms), append)
        self._born = None
        if born is not None:
            heading = (f"{atom} {a}{b}" for atom in force.atoms for a in "xyz" for b in "xyz")
            self._born = self._writer(born, ("Step", *heading), append)

    def describeNextReport(self, simulation: openmm.app.Simulation) -> dict:
        """What the next report needs: positions and energy (whose evaluation is then shared)."""
        steps = self._interval - simulation.currentStep % self._interval
        include = ["positions", "energy", *(["velocities"] if self._current else [])]
        return {"steps": steps, "periodic": False, "include": include}

    def report(self, simulation: openmm.app.Simulation, state: openmm.State) -> None:
        """Write one line for the present State."""
        computation = self._force.computation
        positions, box, field = computation.inputs(state)
        output = computation.evaluate(positions, box, field)
        charges = output["charges"]
        dipole = computation.evaluator.dipole_moment_of(output, positions * NM_TO_ANGSTROM) / NM_TO_ANGSTROM
        long_range = output["long_range_energy"]
        short_range = output["energy"] - long_range - output["field_energy"]
        current = ()
        if self._current or self._born is not None:
            tensors = computation.born_effective_charges(positions, box)
            if self._current:
                velocities = state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)
                current = np.einsum("iab,ib->a", tensors, velocities[self._atoms])
            if self._born is not None:
                self._born.row(simulation.currentStep, *(f"{value:.6f}" for value in tensors.reshape(-1)))
        self._table.row(
            simulation.currentStep,
            f"{state.getTime().value_in_unit(unit.picosecond):.10g}",
            *(f"{EV_TO_KJ_PER_MOL * energy:.10g}" for energy in (short_range, long_range)),
            *(f"{component:.8g}" for component in dipole),
            *(f"{component:.8g}" for component in current),
        )
        if self._charges is not None:
            self._charges.row(simulation.currentStep, *(f"{charge:.6f}" for charge in charges.sum(1)))

    def _writer(self, file: str | Path | TextIO, heading: tuple, append: bool) -> _Table:
        if isinstance(file, (str, Path)):
            opened = open(file, "a" if append else "w", newline="", encoding="utf-8")  # noqa: SIM115 (kept open)
            self._opened.append(opened)
            return _Table(opened, None if append and opened.tell() > 0 else heading)
        return _Table(file, None if append else heading)

    def __del__(self) -> None:
        for file in getattr(self, "_opened", []):
            file.close()


class _Table:
    """A CSV file whose lines reach the disk at once, so that a run can be watched."""

    def __init__(self, file: TextIO, heading: tuple | None) -> None:
        self._file = file
        self._csv = csv.writer(file, lineterminator="\n")
        if heading is not None:
            self.row(*heading)

    def row(self, *values: object) -> None:
        self._csv.writerow(values)
        self._file.flush()
