"""Units at the border between OpenMM (nm, kJ/mol) and exported models (Å, eV)."""

from __future__ import annotations

EV_TO_KJ_PER_MOL = 96.48533212331001  # e N_A / 1000, CODATA 2018
VOLT_PER_NANOMETER = EV_TO_KJ_PER_MOL  # in OpenMM's unit of electric fields, kJ/(mol nm e)
NM_TO_ANGSTROM = 10.0
