"""The potential ``les`` of OpenMM-ML: ``MLPotential("les", modelPath="water.pt")``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import openmm
import openmm.app
from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

from les_md.model_file import read_metadata
from les_md.openmm.les_force import LESForce


class LESPotentialImplFactory(MLPotentialImplFactory):
    """Registered under the entry point group ``openmmml.potentials`` as ``les``."""

    def createImpl(self, name: str, modelPath: str | Path | None = None, **args) -> LESPotentialImpl:
        """``modelPath`` : a file written by ``les-export``; other arguments as of ``LESForce``, used as defaults.

        Raises
        ------
        ValueError : no ``modelPath``.
        FileNotFoundError, ModelFileError : as for ``LESForce``.
        """
        if modelPath is None:
            raise ValueError(
                f"MLPotential({name!r}) needs the exported model: MLPotential({name!r}, modelPath='model.pt')"
            )
        return LESPotentialImpl(modelPath, args)


class LESPotentialImpl(MLPotentialImpl):
    """Adds a ``LESForce`` to the Systems that OpenMM-ML builds.

    Keyword arguments of ``createSystem`` and ``createMixedSystem`` that ``LESForce`` knows (backend, device, kspace,
    accuracy, periodic) go to it.

    A mixed System is embedded mechanically: the model's energy is that of the ML atoms alone, in the same box. Latent
    charges interact with each other and with their own periodic images, not with the charges of the other particles;
    those see the ML atoms with the charges of the conventional force field. Because the model counts the images
    (``getMLLongRange()`` is True), OpenMM-ML takes the corresponding part of the conventional electrostatics away,
    which needs Ewald or PME there.
    """

    #: Arguments of OpenMM-ML and of its embedding that are not for the force.
    EMBEDDING_ARGUMENTS = frozenset({"linkAtomDistances", "mlLongRange"})

    def __init__(self, model_path: str | Path, defaults: dict) -> None:
        metadata = read_metadata(model_path)
        self._model_path = model_path
        self._defaults = defaults
        self._has_long_range = metadata["long_range"] is not None

    def addForces(
        self,
        topology: openmm.app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **args,
    ) -> None:
        """Add the force; raises as ``LESForce``, and TypeError for an argument that it does not know."""
        options = {**self._defaults, **args}
        for name in self.EMBEDDING_ARGUMENTS:
            options.pop(name, None)
        if "periodic" not in options:
            # A mixed System may be periodic although the topology does not tell.
            box = topology.getPeriodicBoxVectors() is not None
            options["periodic"] = box or system.usesPeriodicBoundaryConditions()
        # To interpolate, OpenMM-ML has the force added to an empty System first: nothing to check there. It removes
        # constraints between ML atoms after this call, unless told to keep them.
        force = LESForce(
            self._model_path,
            topology,
            atoms=atoms,
            force_group=forceGroup,
            system=system if system.getNumParticles() > 0 else None,
            allow_constraints=True,
            **options,
        )
        system.addForce(force)

    def getMLLongRange(self) -> bool:
        """Whether the model has electrostatics over all periodic images; False only for a short-range model."""
        return self._has_long_range
