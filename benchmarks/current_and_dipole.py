"""Infrared bands of liquid water from the current Σ Z* v and from the dipole Σ (q − q̄) r of the same trajectory.

    python benchmarks/current_and_dipole.py --steps 4000

Latent charges flow between molecules, so that the second is no polarisation in a periodic system. Prints the highest
n α of the bend and of the O-H stretch from both, and their ratio.
"""

import argparse
import tempfile
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from tqdm import tqdm

from les_md import LESCalculator, export
from les_md.analysis.infrared import infrared_spectrum
from les_md.analysis.series import DipoleSeries

BANDS = {"bend": (1500.0, 1850.0), "O-H stretch": (2800.0, 4000.0)}
TIMESTEP, EVERY = 0.5, 6  # fs, steps
DATA = Path(__file__).resolve().parents[1] / "examples" / "bulk_water" / "water.data"


def main() -> None:
    parser = argparse.ArgumentParser(description="Infrared bands from the current and from the dipole.")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model")
    parser.add_argument("--steps", type=int, default=4000, help="steps of 0.5 fs at constant energy (default: 4000)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    atoms = ase.io.read(DATA, format="lammps-data", atom_style="atomic", sort_by_id=True)
    currents, moments = [], []
    with tempfile.TemporaryDirectory() as folder:
        calculator = LESCalculator(export(options.model, Path(folder) / "model.pt").path)
        atoms.calc = calculator
        MaxwellBoltzmannDistribution(atoms, temperature_K=300.0, rng=np.random.default_rng(1))
        Stationary(atoms)
        dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
        for _ in tqdm(range(options.steps // EVERY)):
            dynamics.run(EVERY)
            charges = atoms.get_charges().reshape(len(atoms), -1)
            # ASE leaves positions unwrapped.
            moments.append(calculator.evaluator.dipole_moment(charges, atoms.positions))
            velocities = atoms.get_velocities() * (1e3 * units.fs)  # Å/ps
            currents.append(np.einsum("iab,ib->a", calculator.get_born_effective_charges(atoms), velocities))
    known = {"interval": 1e-3 * TIMESTEP * EVERY, "volume": atoms.get_volume(), "temperature": 300.0}
    spectra = {
        "current": infrared_spectrum(DipoleSeries("current", np.array(currents), **known), resolution=100.0, blocks=2),
        "dipole": infrared_spectrum(DipoleSeries("dipole", np.array(moments), **known), resolution=100.0, blocks=2),
    }
    print(f"{options.steps * TIMESTEP * 1e-3:g} ps, {len(atoms) // 3} molecules; highest n α in cm⁻¹")
    print(f"{'band':12s} {'current':>9s} {'dipole':>9s} {'ratio':>6s}")
    for name, (low, high) in BANDS.items():
        heights = {
            route: spectrum.intensity[(spectrum.wavenumber > low) & (spectrum.wavenumber < high)].max()
            for route, spectrum in spectra.items()
        }
        ratio = heights["dipole"] / heights["current"]
        print(f"{name:12s} {heights['current']:9.0f} {heights['dipole']:9.0f} {ratio:6.1f}")


if __name__ == "__main__":
    main()
