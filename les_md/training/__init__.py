"""Training of native models on energies and forces."""
