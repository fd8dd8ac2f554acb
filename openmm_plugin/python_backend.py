"""The ``python`` backend: OpenMM's own PythonForce calls the exported model at every step."""

from __future__ import annotations

import sys
import threading

import numpy as np
import openmm
from openmm import unit

from les_md.evaluator import PotentialEvaluator
from les_md.model_file import ExportedModel, ModelFileError, load_bytes
from les_md.openmm.system_checks import require_box
from les_md.openmm.units import EV_TO_KJ_PER_MOL, NM_TO_ANGSTROM

#: Parameters of a Context that hold the electric field in kJ/(mol nm e).
FIELD_PARAMETERS = ("les_electric_field_x", "les_electric_field_y", "les_electric_field_z")

# A function of Python in whose call OpenMM evaluates the forces, in the same thread.
_MINIMIZE = openmm.LocalEnergyMinimizer.minimize.__code__


def _is_minimising() -> bool:
    """Whether LocalEnergyMinimizer called; a State does not tell."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _MINIMIZE:
            return True
        frame = frame.f_back
    return False


class Computation:
    """What PythonForce calls: energy and forces of the model's atoms from a State.

    It pickles with the whole model inside, so that a serialised System needs no other file. One object serves all
    Contexts made from a System: nothing kept between calls changes a result.

    Parameters
    ----------
    model_bytes : content of the exported file.  model_name : its name, for messages.
    atomic_numbers : of the atoms that the model acts on.
    num_particles : of the System.  particles : indices [n] of the model's atoms among them; None for all.
    periodic : whether the State's box is used.
    expected_box : [3, 3] nm or None; an untouched default box of OpenMM is refused if this differs from it.
    kset_box : [3, 3] nm, the box whose set of wave vectors is kept; None for that of the State's box.
    device, kspace, accuracy, compiled : as in ``LESForce``.
    has_field : whether the State's ``FIELD_PARAMETERS`` are an electric field that acts on the atoms.
    sum_rule : as in ``LESForce``.
    """

    def __init__(
        self,
        model_bytes: bytes,
        model_name: str,
        atomic_numbers: tuple[int, ...],
        num_particles: int,
        particles: tuple[int, ...] | None,
        periodic: bool,
        expected_box: np.ndarray | None,
        kset_box: np.ndarray | None,
        device: str | None,
        kspace: str,
        accuracy: float,
        model: ExportedModel | None = None,
        has_field: bool = False,
        sum_rule: bool = False,
        compiled: bool = False,
    ) -> None:
        #: The arguments, as they are serialised.
        self.settings = {
            "model_bytes": model_bytes,
            "model_name": model_name,
            "atomic_numbers": atomic_numbers,
            "num_particles": num_particles,
            "particles": particles,
            "periodic": periodic,
            "expected_box": expected_box,
            "kset_box": kset_box,
            "device": device,
            "kspace": kspace,
            "accuracy": accuracy,
            "has_field": has_field,
            "sum_rule": sum_rule,
            "compiled": compiled,
        }
        self._particles = None if particles is None else np.array(particles, dtype=np.int64)
        # OpenMM 8.5 crashes in the first evaluation unless one of these has set up its use of numpy, as happens where a
        # new process only loads a checkpoint.
        openmm.Continuous1DFunction([0.0, 0.0], 0.0, 1.0)
        # OpenMM lets go of the interpreter while it integrates: Contexts may be run by several threads.
        self._lock = threading.RLock()
        self._evaluator: PotentialEvaluator | None = None
        self._last: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], dict] | None = None
        if model is not None:
            self._prepare(model)

    def __getstate__(self) -> dict:
        return self.settings

    def __setstate__(self, settings: dict) -> None:
        # OpenMM cannot report an exception raised here (the process would die), so the model is read at the first use.
        self.__init__(**settings)

    @property
    def evaluator(self) -> PotentialEvaluator:
        """The model with its neighbour list; raises ModelFileError if the serialised model cannot be read."""
        with self._lock:
            if self._evaluator is None:
                settings = self.settings
                try:
                    model = load_bytes(
                        settings["model_bytes"], settings["model_name"], settings["device"], settings["compiled"]
                    )
                except ModelFileError as error:
                    raise ModelFileError(f"the model inside this serialised LESForce: {error}") from error
                self._prepare(model)
            return self._evaluator

    def _prepare(self, model: ExportedModel) -> None:
        kset_box = self.settings["kset_box"]
        evaluator = PotentialEvaluator(
            model,
            kspace=self.settings["kspace"],
            accuracy=self.settings["accuracy"],
            kset_cell=None if kset_box is None else NM_TO_ANGSTROM * kset_box,
        )
        self._types = evaluator.types_of(np.array(self.settings["atomic_numbers"], dtype=np.int64))
        self._periodic_axes = np.full(3, self.settings["periodic"])
        self._evaluator = evaluator

    def evaluate(self, positions: np.ndarray, box: np.ndarray, field: np.ndarray | None = None) -> dict:
        """What ``PotentialEvaluator.compute`` returns, for ``positions`` [n, 3] nm of the model's atoms.

        ``box`` [3, 3] nm, rows are the box vectors; not looked at if the force is not periodic. ``field`` [3]
        kJ/(mol nm e), None for none. The last evaluation is kept, so that a reporter need not repeat that of the
        Context; leave the arrays in it as they are.
        """
        volts = np.zeros(3) if field is None else field / (EV_TO_KJ_PER_MOL * NM_TO_ANGSTROM)  # per Å
        with self._lock:
            last = self._last
            if last is not None and all(map(np.array_equal, last[0], (positions, box, volts))):
                return last[1]
            evaluator = self.evaluator
            if self.settings["periodic"]:
                require_box(box, self.settings["expected_box"])
            output = evaluator.compute(
                self._types,
                NM_TO_ANGSTROM * positions,
                NM_TO_ANGSTROM * box,
                self._periodic_axes,
                volts if volts.any() else None,
                self.settings["sum_rule"],
            )
            self._last = (positions, box, volts), output
            return output

    def born_effective_charges(self, positions: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Born effective charges [n, 3, 3] in e; arguments as of ``evaluate``."""
        with self._lock:
            evaluator = self.evaluator
            if self.settings["periodic"]:
                require_box(box, self.settings["expected_box"])
            return evaluator.born_effective_charges(
                self._types, NM_TO_ANGSTROM * positions, NM_TO_ANGSTROM * box, self._periodic_axes
            )

    def inputs(self, state: openmm.State) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Arguments of ``evaluate`` from a State with positions and, if there is a field, parameters."""
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        expected = self.settings["num_particles"]
        if len(positions) != expected:
            raise ValueError(
                f"this LESForce was made for {expected} particles, the System has {len(positions)}: topology and "
                "System must describe the same particles"
            )
        box = np.zeros((3, 3))
        if self.settings["periodic"]:
            box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)
        field = None
        if self.settings["has_field"]:
            parameters = state.getParameters()
            try:
                field = np.array([parameters[name] for name in FIELD_PARAMETERS])
            except KeyError as error:
                raise ValueError(f"the Context has no parameter {error}: its LESForce has no electric field") from None
        return positions if self._particles is None else positions[self._particles], box, field

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """Energy in kJ/mol and forces [n, 3] in kJ/mol/nm.

        Raises ValueError in a minimisation of a periodic system in a field.
        """
        positions, box, field = self.inputs(state)
        if field is not None and field.any() and self.settings["periodic"] and _is_minimising():
            raise ValueError(
                "an electric field has no energy in a periodic system, so that nothing can be minimised in it: set the "
                f"parameters {', '.join(FIELD_PARAMETERS)} of the Context to 0 for the minimisation"
            )
        output = self.evaluate(positions, box, field)
        forces = (EV_TO_KJ_PER_MOL * NM_TO_ANGSTROM) * output["forces"]
        if self._particles is not None:
            of_atoms, forces = forces, np.zeros((self.settings["num_particles"], 3))
            forces[self._particles] = of_atoms
        return EV_TO_KJ_PER_MOL * output["energy"], forces
