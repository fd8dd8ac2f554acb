"""Write a LAMMPS data file of water molecules on a grid, at the density of the liquid.

    python make_box.py 512 -o water_512.data

Minimise and equilibrate it before use (``minimize 0 1e-3 200 2000``, then a few picoseconds at constant temperature).
"""

import argparse

import ase
import ase.io
import numpy as np
from ase.build import molecule
from scipy.spatial.transform import Rotation


def water_box(num_molecules: int, density: float = 0.997, seed: int = 1) -> ase.Atoms:
    """Cubic box of randomly oriented molecules on a grid; ``density`` in g/cm³. Atom order O H H."""
    edge = (num_molecules * 18.01528 / 0.602214076 / density) ** (1 / 3)
    per_axis = int(np.ceil(num_molecules ** (1 / 3)))
    generator = np.random.default_rng(seed)
    sites = np.array(list(np.ndindex(per_axis, per_axis, per_axis)))
    chosen = generator.permutation(len(sites))[:num_molecules]
    rotations = Rotation.random(num_molecules, random_state=seed)
    box = ase.Atoms(cell=[edge] * 3, pbc=True)
    for site, rotation in zip(sites[chosen], rotations, strict=True):
        water = molecule("H2O")
        water.positions = rotation.apply(water.positions - water.get_center_of_mass()) + (site + 0.5) * edge / per_axis
        box += water
    return box


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a LAMMPS data file of water molecules on a grid.")
    parser.add_argument("molecules", type=int, help="number of molecules")
    parser.add_argument("-o", "--output", default="water.data", help="data file to write (default: water.data)")
    parser.add_argument("--density", type=float, default=0.997, help="g/cm³ (default: 0.997)")
    parser.add_argument("--seed", type=int, default=1, help="of the orientations (default: 1)")
    options = parser.parse_args()
    if options.molecules < 1 or options.density <= 0.0:
        parser.error("the number of molecules and the density must be positive")
    box = water_box(options.molecules, options.density, options.seed)
    ase.io.write(options.output, box, format="lammps-data", specorder=["O", "H"], masses=True, units="metal")
    print(f"{options.output}: {options.molecules} molecules, edge {box.cell[0, 0]:.3f} Å")


if __name__ == "__main__":
    main()
