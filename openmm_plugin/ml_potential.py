"""The potential ``les`` of OpenMM-ML: ``MLPotential("les", modelPath="water.pt")``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import openmm
import openmm.app
from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

from les_md.model_file import read_metadata
from les_md.openmm.les_force import LESForce
from les_md.openmm.system_checks import atomic_numbers_of


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
            if not box and system.getNumParticles() == 0:
                warnings.warn(
                    "a System to interpolate is made from a topology without box vectors: the model is taken to be "
                    "isolated. If the System is periodic, pass periodic=True, or give the topology its box vectors",
                    stacklevel=2,
                )
        # To interpolate, OpenMM-ML has the force added to an empty System first: nothing to check there, and no box to
        # be had if the topology has none. It removes constraints between ML atoms after this call, unless told to keep
        # them.
        particles = topology
        if system.getNumParticles() == 0 and topology.getPeriodicBoxVectors() is None:
            particles = atomic_numbers_of(topology)
        force = LESForce(
            self._model_path,
            particles,
            atoms=atoms,
            force_group=forceGroup,
            system=system if system.getNumParticles() > 0 else None,
            allow_constraints=True,
            **options,
        )
        system.addForce(force)
        _add_link_atoms_to_excluded_electrostatics(system)

    def getMLLongRange(self) -> bool:
        """Whether the model has electrostatics over all periodic images; False only for a short-range model."""
        return self._has_long_range


def _add_link_atoms_to_excluded_electrostatics(system: openmm.System) -> None:
    """Make a mixed System of a long-range model with link atoms complete.

    OpenMM-ML (1.8) makes the force that takes the conventional electrostatics of the ML atoms away before it adds link
    atoms to the System, so that it has too few particles and no Context can be made. Link atoms have no conventional
    charge.
    """
    for force in system.getForces():
        if not isinstance(force, openmm.CustomCVForce):
            continue
        for index in range(force.getNumCollectiveVariables()):
            if force.getCollectiveVariableName(index) == "excludeForce":
                electrostatics = force.getCollectiveVariable(index)
                while electrostatics.getNumParticles() < system.getNumParticles():
                    electrostatics.addParticle(0.0, 1.0, 0.0)
