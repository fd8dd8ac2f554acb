"""Au2 on MgO(001) from a trained model: relaxation of the gold atoms in LAMMPS, charges, wetting energies.

python run.py --model caceles_au_mgo_r5.5_nu2.pth --data au2_mgo_dft_relaxed.xyz [--output output]
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from curvature import curvatures, stationary_point
from figure import plot
from relaxation import DIFFERENCES, Relaxation, gold, read_structures, relax, wetting_energies

from les_md import LESCalculator
from les_md.exporting import ensure_exported


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Relax Au2 on MgO(001) in LAMMPS and compare wetting energies with DFT. Neither the model nor the "
        "structures are bundled (CC BY-NC 4.0): take both from the les_fit repository of the authors of LES."
    )
    parser.add_argument(
        "--model", required=True, help="trained checkpoint (caceles_au_mgo_r5.5_nu2.pth) or exported file (float64)"
    )
    parser.add_argument("--data", type=Path, required=True, help="the four structures: au2_mgo_dft_relaxed.xyz")
    parser.add_argument("--force-tolerance", type=float, default=1e-5, help="on gold, eV/Å (default: 1e-5)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for results (default: output)")
    options = parser.parse_args()
    try:
        run(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Everything in order; results go to the folder ``options.output``."""
    structures = read_structures(options.data)
    options.output.mkdir(parents=True, exist_ok=True)
    model = ensure_exported(options.model, options.output / "au_mgo.pt")
    calculator = LESCalculator(model, kspace="ewald")
    relaxations: dict[str, Relaxation] = {}
    rows: dict[str, dict] = {}
    for name, atoms in structures.items():
        relaxations[name] = relax(model, atoms, options.output / name, options.force_tolerance)
        rows[name] = describe(relaxations[name], calculator)
        print(structure_line(name, rows[name]), flush=True)
    plot(relaxations, options.output / "charges.png")
    energies = wetting_table(structures, relaxations, calculator)
    (options.output / "results.json").write_text(
        json.dumps({"structures": rows, "wetting_energies": energies}, indent=1)
    )
    print("\nE(wetting) − E(non-wetting), meV")
    print(f"{'':42s}" + "".join(f"{substrate:>12s}" for substrate in DIFFERENCES))
    for label, values in energies.items():
        print(f"{label:42s}" + "".join(f"{values[substrate]:12.1f}" for substrate in DIFFERENCES))
    print(f"\nfigure {options.output / 'charges.png'}, numbers {options.output / 'results.json'}")


def describe(relaxation: Relaxation, calculator: LESCalculator) -> dict:
    """What happened to one structure, in units of eV, Å and e."""
    mobile = gold(relaxation.start)
    bond = [float(np.linalg.norm(np.diff(a.positions[mobile], axis=0))) for a in (relaxation.start, relaxation.relaxed)]
    return {
        "energy_start": relaxation.energy_start,
        "energy_relaxed": relaxation.energy_relaxed,
        "displacement": relaxation.displacement,
        "largest_force": relaxation.largest_force,
        "steps": relaxation.steps,
        "bond_start": bond[0],
        "bond_relaxed": bond[1],
        "lowest_curvature_start": float(curvatures(calculator, relaxation.start)[0]),
        "lowest_curvature_relaxed": float(curvatures(calculator, relaxation.relaxed)[0]),
        "gold_charges_start": relaxation.charges_start[mobile].tolist(),
        "gold_charges_relaxed": relaxation.charges_relaxed[mobile].tolist(),
    }


def structure_line(name: str, row: dict) -> str:
    charges = [", ".join(f"{q:+.3f}" for q in row[f"gold_charges_{when}"]) for when in ("start", "relaxed")]
    gain = 1000.0 * (row["energy_relaxed"] - row["energy_start"])
    return (
        f"{name:10s} {gain:8.2f} meV in {row['steps']} steps, gold moved {row['displacement']:.3f} Å, "
        f"Au-Au {row['bond_start']:.3f} -> {row['bond_relaxed']:.3f} Å, lowest curvature "
        f"{row['lowest_curvature_start']:+.3f} -> {row['lowest_curvature_relaxed']:+.3f} eV/Å², "
        f"charges of Au {charges[0]} -> {charges[1]} e"
    )


def wetting_table(structures: dict, relaxations: dict[str, Relaxation], calculator: LESCalculator) -> dict[str, dict]:
    """Wetting energies in meV by substrate: of DFT, and of the model at the three geometries."""
    of_dft = {name: atoms.get_potential_energy() for name, atoms in structures.items()}
    nearest = {
        name: calculator.get_property("energy", stationary_point(calculator, atoms))
        for name, atoms in structures.items()
    }
    energies = {
        "DFT": of_dft,
        "model, DFT geometry": {name: r.energy_start for name, r in relaxations.items()},
        "model, stationary point next to it": nearest,
        "model, gold relaxed in LAMMPS": {name: r.energy_relaxed for name, r in relaxations.items()},
    }
    return {
        label: {substrate: 1000.0 * value for substrate, value in wetting_energies(values).items()}
        for label, values in energies.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
