"""What a run of ``run.py`` shows: Ramachandran map, water around the carbonyl oxygens, energies, charges, dipole.

python analysis.py output [output_2 ...]
"""

import argparse
from pathlib import Path

import matplotlib
import mdtraj
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
#: Å; a bond that gets longer than this is broken: to hydrogen, and between other atoms.
LONGEST = {True: 1.35, False: 2.0}
DEBYE = 48.0320471  # per e nm


def dihedrals(trajectory: mdtraj.Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """φ and ψ of the alanine [frames], degrees."""
    return tuple(np.degrees(compute(trajectory)[1][:, 0]) for compute in (mdtraj.compute_phi, mdtraj.compute_psi))


def water_around_carbonyls(trajectory: mdtraj.Trajectory) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """r in Å, and g(r) of water oxygen and hydrogen around the two carbonyl oxygens."""
    carbonyls = trajectory.topology.select("protein and name O or resname ACE and name O")
    r_max = 0.499 * float(trajectory.unitcell_lengths.min())
    distributions = {}
    for element in ("O", "H"):
        water = trajectory.topology.select(f"water and element {element}")
        pairs = trajectory.topology.select_pairs(carbonyls, water)
        r, distributions[element] = mdtraj.compute_rdf(trajectory, pairs, r_range=(0.0, r_max), bin_width=0.01)
    return 10.0 * r, distributions


def broken_bonds(trajectory: mdtraj.Trajectory) -> list[str]:
    """Bonds of the topology that are, in any frame, longer than ``LONGEST``."""
    bonds = list(trajectory.topology.bonds)
    lengths = 10.0 * mdtraj.compute_distances(trajectory, [[a.index, b.index] for a, b in bonds])
    hydrogen = [any(atom.element.symbol == "H" for atom in bond) for bond in bonds]
    longest = np.array([LONGEST[value] for value in hydrogen])
    return [f"{bonds[i][0]}-{bonds[i][1]}" for i in np.flatnonzero(lengths.max(0) > longest)]


def read_tables(folders: list[Path], name: str) -> dict[str, np.ndarray]:
    """Columns of the CSV file ``name`` of a reporter, by heading, one folder after the other."""
    tables = [read_table(folder / name) for folder in folders]
    return {heading: np.concatenate([table[heading] for table in tables]) for heading in tables[0]}


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Columns of a CSV file of a reporter, by heading."""
    with open(path, encoding="utf-8") as file:
        names = [name.strip().strip('#"') for name in file.readline().split(",")]
    return dict(
        zip(names, np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2, usecols=range(len(names))).T, strict=True)
    )


def plot(folder: Path, phi: np.ndarray, psi: np.ndarray, r: np.ndarray, water: dict, log: dict, les: dict) -> Path:
    """The figure of the run, ``summary.png``."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 8), layout="constrained")
    axes[0, 0].scatter(phi, psi, s=4, c=np.arange(len(phi)), cmap="viridis")
    axes[0, 0].set(xlim=(-180, 180), ylim=(-180, 180), xlabel="φ (degrees)", ylabel="ψ (degrees)")
    axes[0, 0].set(title="Ramachandran map (dark to light: time)", aspect="equal")
    for element, color in (("O", "tab:red"), ("H", "tab:blue")):
        axes[0, 1].plot(r, water[element], color=color, label=f"carbonyl O to water {element}")
    axes[0, 1].axhline(1.0, color="black", linewidth=0.5)
    axes[0, 1].set(xlabel="r (Å)", ylabel="g(r)", title="Water around the carbonyl oxygens")
    axes[0, 1].legend()
    axes[1, 0].plot(log["Time (ps)"], log["Temperature (K)"], linewidth=0.5)
    axes[1, 0].set(xlabel="time (ps)", ylabel="temperature (K)", title="Temperature")
    long_range = les["Long-range energy (kJ/mol)"]
    axes[1, 1].plot(les["Time (ps)"], long_range - long_range.mean(), label="long-range", linewidth=0.7)
    potential = log["Potential Energy (kJ/mole)"]
    axes[1, 1].plot(log["Time (ps)"], potential - potential.mean(), label="all", linewidth=0.7)
    axes[1, 1].set(xlabel="time (ps)", ylabel="energy less its mean (kJ/mol)", title="Potential energy")
    axes[1, 1].legend()
    path = folder / "summary.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def summarise(folders: list[Path], start: Path) -> str:
    """Write ``summary.png`` into the last of the folders, which continue each other; returns the summary's text."""
    folder = folders[-1]
    trajectory = mdtraj.join([mdtraj.load_xtc(str(each / "trajectory.xtc"), top=str(start)) for each in folders])
    phi, psi = dihedrals(trajectory)
    r, water = water_around_carbonyls(trajectory)
    log, les = read_tables(folders, "log.csv"), read_tables(folders, "les.csv")
    charges = np.loadtxt(folder / "charges.csv", delimiter=",", skiprows=1, ndmin=2)[:, 1:]
    path = plot(folder, phi, psi, r, water, log, les)
    outer = r > 1.2
    nearest = {element: r[outer][np.argmax(g[outer])] for element, g in water.items()}
    broken = broken_bonds(trajectory)
    oxygens = trajectory.topology.select("water and element O")
    temperature = log["Temperature (K)"]
    return "\n".join(
        [
            f"simulated          {log['Time (ps)'][-1]:.1f} ps, {trajectory.n_atoms} atoms, {len(trajectory)} frames",
            f"speed              {log['Speed (ns/day)'][-1] * 1000.0 / 86400.0 / 0.0005:.1f} steps/s",
            f"temperature        {temperature.mean():.1f} ± {temperature.std():.1f} K",
            f"broken bonds       {len(broken)}" + (f" ({', '.join(broken[:5])})" if broken else ""),
            f"water at carbonyls O {nearest['O']:.2f} Å, H {nearest['H']:.2f} Å",
            f"mean charge        {charges[:, oxygens].mean():+.3f} e on water oxygen",
            f"figure             {path}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Analysis of a run of alanine dipeptide in water.")
    parser.add_argument("folders", type=Path, nargs="+", help="folders written by run.py, one continuing the other")
    parser.add_argument("--start", type=Path, default=HERE / "solvated.pdb", help="box that the run started from")
    options = parser.parse_args()
    print(summarise(options.folders, options.start))


if __name__ == "__main__":
    main()
