"""The ``python`` backend: OpenMM's own PythonForce calls the exported model at every step."""

from __future__ import annotations

import threading

import numpy as np
import openmm
from openmm import unit

from les_md.evaluator import PotentialEvaluator
from les_md.model_file import ExportedModel, ModelFileError, load_bytes
from les_md.openmm.system_checks import require_box
from les_md.openmm.units import EV_TO_KJ_PER_MOL, NM_TO_ANGSTROM


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
    device, kspace, accuracy : as in ``LESForce``.
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
        }
        self._particles = None if particles is None else np.array(particles, dtype=np.int64)
        # OpenMM 8.5 crashes in the first evaluation unless one of these has set up its use of numpy, as happens where a
        # new process only loads a checkpoint.
        openmm.Continuous1DFunction([0.0, 0.0], 0.0, 1.0)
        # OpenMM lets go of the interpreter while it integrates: Contexts may be run by several threads.
        self._lock = threading.RLock()
        self._evaluator: PotentialEvaluator | None = None
        self._last: tuple[np.ndarray, np.ndarray, dict] | None = None
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
                    model = load_bytes(settings["model_bytes"], settings["model_name"], settings["device"])
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

    def evaluate(self, positions: np.ndarray, box: np.ndarray) -> dict:
        """What ``PotentialEvaluator.compute`` returns, for ``positions`` [n, 3] nm of the model's atoms.

        ``box`` [3, 3] nm, rows are the box vectors; not looked at if the force is not periodic. The last evaluation
        is kept, so that a reporter need not repeat that of the Context; leave the arrays in it as they are.
        """
        with self._lock:
            last = self._last
            if last is not None and np.array_equal(positions, last[0]) and np.array_equal(box, last[1]):
                return last[2]
            evaluator = self.evaluator
            if self.settings["periodic"]:
                require_box(box, self.settings["expected_box"])
            output = evaluator.compute(
                self._types, NM_TO_ANGSTROM * positions, NM_TO_ANGSTROM * box, self._periodic_axes
            )
            self._last = positions, box, output
            return output

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """Energy in kJ/mol and forces [n, 3] in kJ/mol/nm."""
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
        output = self.evaluate(positions if self._particles is None else positions[self._particles], box)
        forces = (EV_TO_KJ_PER_MOL * NM_TO_ANGSTROM) * output["forces"]
        if self._particles is not None:
            of_atoms, forces = forces, np.zeros_like(positions)
            forces[self._particles] = of_atoms
        return EV_TO_KJ_PER_MOL * output["energy"], forces
