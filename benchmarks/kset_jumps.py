"""What the changing set of wave vectors does at constant pressure: the long-range energy against the edge of the box.

    python benchmarks/kset_jumps.py [--model water_rpbe_d3] [--figure docs/figures/kset_jumps.png]

The example's box of 64 water molecules is scaled, molecules and all, by up to ±2 % and the long-range energy is
computed with the model's own set at every size (``kset follow``) and with the set of the unscaled box (``kset
fixed``). Where a wave vector enters or leaves, the first jumps: its change is not the integral of its own derivative.
"""

import argparse
import tempfile
from pathlib import Path

import ase.io
import matplotlib
import numpy as np
import torch

from les_md import LESCalculator, export

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DATA = Path(__file__).resolve().parents[1] / "examples" / "bulk_water" / "water.data"
BAR = 1.602176634e6  # bar in 1 eV/Å³


def main() -> None:
    parser = argparse.ArgumentParser(description="Energy jumps from the changing set of wave vectors.")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model")
    parser.add_argument("--figure", type=Path, help="write a figure to this file")
    options = parser.parse_args()
    atoms = ase.io.read(DATA, format="lammps-data", atom_style="atomic", Z_of_type={1: 8, 2: 1})
    with tempfile.TemporaryDirectory() as temporary:
        calculator = LESCalculator(export(options.model, Path(temporary) / "model.pt", dtype="float64").path)
        atoms.calc = calculator
        charges = torch.tensor(atoms.get_charges()).reshape(len(atoms), -1)
    potential = calculator.model.module
    positions, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)
    bounds = torch.zeros(2, 3, dtype=torch.float64)

    def long_range(scale: float, follow: bool) -> tuple[float, float, int]:
        """Energy (eV), its derivative with the logarithm of the edge (eV) and number of wave vectors."""
        scaled = cell * scale
        plan = potential.plan(scaled, scaled if follow else cell, bounds, len(atoms), "ewald", 1e-5, False)
        density = potential.spread(positions * scale, charges, plan)
        field, strain_derivative = potential.solve(density, plan)
        phi, _forces, _ = potential.gather(field, positions * scale, charges, plan)
        inside = plan["weight"] > 0.0  # of the half space n_1 ≥ 0, which holds the plane n_1 = 0 whole
        vectors = int(2 * inside.sum() - inside[0].sum())
        return float(0.5 * (charges * phi).sum()), float(strain_derivative.trace()), vectors

    scales = np.linspace(0.98, 1.02, 401)
    # A script's optimiser would specialise again and again for sets of another size.
    with torch.jit.optimized_execution(False):
        results = {follow: np.array([long_range(s, follow) for s in scales]) for follow in (True, False)}
    energy, slope, vectors = results[True].T
    # What the derivative does not explain (mean of both ends, dE = slope d ln L) is a jump.
    explained = 0.5 * (slope[1:] + slope[:-1]) * np.diff(np.log(scales))
    jumps = np.diff(energy) - explained
    changed = np.diff(vectors) != 0
    edge = float(atoms.cell.lengths()[0])
    volume = atoms.get_volume()
    print(f"{Path(options.model).stem}: {len(atoms)} atoms, edge {edge:.3f} Å, {int(vectors[200])} wave vectors there")
    print(f"sizes at which the set changes between 0.98 and 1.02: {int(changed.sum())}")
    largest = 1e3 * np.abs(jumps).max()
    print(f"largest jump of the energy: {largest:.3f} meV, {largest / len(atoms):.5f} meV/atom")
    print(
        f"largest change where the set stays (error of the difference): {1e3 * np.abs(jumps[~changed]).max():.5f} meV"
    )
    total = (energy - results[False][:, 0])[[0, -1]]
    print(f"follow less fixed at 0.98 and 1.02: {1e3 * total[0]:.2f} and {1e3 * total[1]:.2f} meV")
    # The jumps act like a pressure that the virial does not see: their sum over the range per change of volume.
    missing = -jumps.sum() / (volume * (scales[-1] ** 3 - scales[0] ** 3)) * BAR
    print(f"mean pressure of the jumps, absent from the virial: {missing:.1f} bar")
    if options.figure:
        figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
        for follow, label in ((True, "kset follow"), (False, "kset fixed")):
            axes.plot(edge * scales, 1e3 * (results[follow][:, 0] - results[follow][200, 0]) / len(atoms), label=label)
        axes.set(xlabel="edge of the box (Å)", ylabel="long-range energy (meV/atom)")
        axes.legend()
        figure.savefig(options.figure, dpi=150)


if __name__ == "__main__":
    main()
