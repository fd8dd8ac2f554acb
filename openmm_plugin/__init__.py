"""Exported models in OpenMM: ``LESForce``, and the potential ``les`` of OpenMM-ML.

Entry points: ``les_force.py`` (the force and its contract), ``les_reporter.py`` (charges, dipole and energies during a
simulation), ``ml_potential.py`` (OpenMM-ML).
"""

try:
    import openmm as _openmm  # noqa: F401
except ImportError as error:
    raise ImportError('les_md.openmm needs OpenMM: pip install "les_md[openmm]"') from error

from les_md.openmm.les_force import LESForce
from les_md.openmm.les_reporter import LESReporter
from les_md.openmm.system_checks import check_system
from les_md.openmm.torchforce_backend import prepare_torchforce
from les_md.openmm.units import VOLT_PER_NANOMETER

__all__ = ["VOLT_PER_NANOMETER", "LESForce", "LESReporter", "check_system", "prepare_torchforce"]
