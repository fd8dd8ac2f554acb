"""The ``torchforce`` backend: openmm-torch's TorchForce evaluates everything in TorchScript."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import openmm
import torch

from les_md.openmm.les_force import LESForce
from les_md.openmm.python_backend import FIELD_PARAMETERS
from les_md.openmm.torch_module import configure_executor, module_class

logger = logging.getLogger("les_md.openmm")


def load_plugins() -> None:
    """Load openmm-torch's plugins that OpenMM could not load when it was imported.

    They need libraries that come with torch, and are not found where a program imports openmm before torch. What still
    does not load (OpenCL without a driver, say) is told to the log.

    Raises RuntimeError if no platform can evaluate a TorchForce.
    """
    failures = openmm.Platform.getPluginLoadFailures()
    for library in sorted((Path(openmm.version.openmm_library_path) / "plugins").glob("*OpenMMTorch*")):
        if any(library.name in failure for failure in failures) and not _can_evaluate(library.stem):
            try:
                openmm.Platform.loadPluginLibrary(str(library))
            except openmm.OpenMMException as error:
                logger.debug("%s", error)
    platforms = [openmm.Platform.getPlatform(index) for index in range(openmm.Platform.getNumPlatforms())]
    if not any(platform.supportsKernels(["CalcTorchForce"]) for platform in platforms):
        raise RuntimeError("no platform of OpenMM can evaluate a TorchForce: " + "; ".join(failures))


def _can_evaluate(library: str) -> bool:
    """Whether the platform that ``library`` is for can evaluate a TorchForce already."""
    for index in range(openmm.Platform.getNumPlatforms()):
        platform = openmm.Platform.getPlatform(index)
        if library.endswith(platform.getName()):
            return platform.supportsKernels(["CalcTorchForce"])
    return False


def prepare_torchforce() -> None:
    """Make this process ready for Systems with a TorchForce: call it before one is read from XML.

    Imports openmm-torch (which must be known to work, see ``probe``), loads its plugins whatever was imported first,
    and sets TorchScript up as it was when the force was made, for the speed and for the same numbers to the last bit.

    Raises ImportError if openmm-torch is not installed, RuntimeError if no platform can evaluate a TorchForce.
    """
    import openmmtorch  # noqa: F401

    load_plugins()
    configure_executor()


@functools.cache
def torchforce_class() -> type[LESForce]:
    """The LESForce that is a TorchForce; openmm-torch must be known to work (``probe``)."""
    prepare_torchforce()
    from openmmtorch import TorchForce

    class TorchLESForce(LESForce, TorchForce):
        """LESForce by openmm-torch's TorchForce; made by ``LESForce(..., backend="torchforce")``."""

        # TorchForce moves the module to the platform's device.
        _default_device = "cpu"

        def describe_backend(self) -> str:
            return f"LESForce: {self.model.path.name} by TorchForce, on the platform's device ({self._reason})"

        def __reduce__(self):
            return _from_xml, (openmm.XmlSerializer.serialize(self),)

        def _create(self) -> None:
            settings = self.computation.settings
            kind = module_class(self.model, self.periodic, self.electric_field is not None)
            module = kind(
                self.model,
                types=self.model.types_of(settings["atomic_numbers"]),
                num_particles=self.num_particles,
                particles=settings["particles"],
                periodic=self.periodic,
                kspace=settings["kspace"],
                accuracy=settings["accuracy"],
                expected_box=settings["expected_box"],
                kset_box=settings["kset_box"],
                sum_rule=settings["sum_rule"],
            )
            TorchForce.__init__(self, torch.jit.script(module.eval()))
            self.setOutputsForces(True)
            if self.electric_field is not None:
                for name, value in zip(FIELD_PARAMETERS, self.electric_field, strict=True):
                    self.addGlobalParameter(name, value)

    return TorchLESForce


def _from_xml(text: str) -> openmm.Force:
    """What a pickled force comes back as; openmm-torch has to be loaded before it can be read."""
    prepare_torchforce()
    return openmm.XmlSerializer.deserialize(text)
