"""Long runs of bulk water at constant energy, in pieces that restart: drift, temperature, memory, bonds.

    python benchmarks/endurance.py lammps --steps 1000000 --pieces 20 --output endurance_lammps
    python benchmarks/endurance.py openmm --steps 500000 --pieces 20 --output endurance_openmm
    python benchmarks/endurance.py lammps --report --output endurance_lammps --figure endurance_lammps.png

32 molecules (96 atoms), made by ``examples/bulk_water/make_box.py``, are brought to 300 K for 5 ps; so few that a
million steps are done in hours. From there velocity Verlet runs at constant energy with 0.25 fs, each piece a process
of its own that reads the restart file (LAMMPS) or the State (OpenMM) that the piece before has written. A script that
was killed goes on, started again with the same output folder, with the piece it was at. Every ``--every`` steps the
energy, all at one instant, and the memory of the process (Linux) are recorded, and every ``--every-frame`` steps the
positions.

What passes (exit status 0), on all pieces together:

* all steps were run, and every number is finite;
* drift, the slope of the total energy, below 1e-5 eV/atom/ps, as in ``nve_drift.py``;
* energy continuous: the first energy of a piece is the last of the one before within 1e-6 eV/atom. Positions and
  velocities are stored in double precision; what may change is the order of atoms in the sums of a float32 network;
* temperature: mean between 270 and 330 K (velocities start at 300 K, potential energies of the states that could have
  been drawn differ by what is 13 K once it is shared), that of oxygen and that of hydrogen within 3 % of each other
  (equipartition), and a standard deviation below the canonical one, T sqrt(2 / 3N), as it is at constant energy;
* memory: within a piece, the resident memory grows by less than 5 MB after the first tenth of it. One double an atom
  forgotten each step would be 35 MB in 45,000 steps. From the first piece to the last the peak grows by less than
  20 MB; one start of a process differs from another by some;
* no broken molecule: every hydrogen between 0.8 and 1.3 Å from the oxygen that it had at the start, in every frame.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import matplotlib
import numpy as np
from mdtraj.formats import DCDTrajectoryFile

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "bulk_water"
TIMESTEP = 0.00025  # ps
BOLTZMANN = 8.617333262e-5  # eV/K
MASSES = {"O": 15.999, "H": 1.008}
COLUMNS = ("step", "potential", "kinetic_oxygen", "kinetic_hydrogen", "resident", "peak")

DRIFT = 1e-5  # eV/atom/ps
CONTINUITY = 1e-6  # eV/atom
TEMPERATURES = (270.0, 330.0)  # K
EQUIPARTITION = 0.03
GROWTH = 5.0  # MB, within a piece after its first tenth
GROWTH_OVER_PIECES = 20.0  # MB
BONDS = (0.8, 1.3)  # Å

LAMMPS_START = """
units metal
atom_style atomic
read_data {data}
mass 1 {masses[O]}
mass 2 {masses[H]}
pair_style mliap/les
pair_coeff * * {model} O H
neighbor 0.5 bin
timestep 0.0005
minimize 0 1e-3 200 2000
velocity all create 300.0 4711 mom yes dist gaussian
fix integrate all nvt temp 300.0 300.0 0.1
run {steps}
unfix integrate
velocity all zero linear
velocity all scale 300.0
reset_timestep 0 time 0.0
write_restart {restart}
"""
LAMMPS_PIECE = """
read_restart {before}
pair_style mliap/les
pair_coeff * * {model} O H
neighbor 0.5 bin
timestep {timestep}
group oxygen type 1
group hydrogen type 2
compute oxygen oxygen ke
compute hydrogen hydrogen ke
fix integrate all nve
dump frames all dcd {every_frame} {folder}/frames.dcd
dump_modify frames sort id
thermo {every}
thermo_style custom step pe c_oxygen c_hydrogen
thermo_modify format float %.15g flush yes
run {steps}
write_restart {folder}/restart
"""


@dataclass(frozen=True)
class Settings:
    """What a run is; stored in its folder, so that a run is gone on with as it was begun."""

    engine: str
    molecules: int
    steps: int
    pieces: int
    model: str
    dtype: str
    every: int
    every_frame: int
    equilibration: int

    @property
    def steps_of_piece(self) -> int:
        return self.steps // self.pieces


def programs() -> Path:
    return Path(sys.executable).parent


def memory_of(process: int) -> tuple[float, float]:
    """Resident memory and its peak of a process in MB; not a number when the process has just ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return np.nan, np.nan
    values = dict(line.split(":", 1) for line in status.splitlines())
    if "VmRSS" not in values:  # a process that has ended and has not been waited for
        return np.nan, np.nan
    return tuple(float(values[key].split()[0]) / 1024.0 for key in ("VmRSS", "VmHWM"))


def last_descendant(process: int) -> int:
    """The process itself or, where it has started another one and waits (as the script ``lmp`` does), that one."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return last_descendant(int(children[0])) if children else process


def run_process(command: list[str], columns: int = 4) -> np.ndarray:
    """Rows of ``COLUMNS`` [T, 6] of a process that prints numbers in ``columns`` columns below a header with ``Step``.

    Raises RuntimeError with the end of what it wrote when the process fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENMM_CPU_THREADS": "1"}
    rows, lines, inside, measured = [], [], False, 0
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            lines = [*lines[-40:], line]
            words = line.split()
            if words[:1] == ["Step"]:
                inside, measured = True, last_descendant(process.pid)
            elif inside and len(words) == columns and words[0].isdigit():
                rows.append([*map(float, words), *memory_of(measured)])
            else:
                inside = False
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with status {process.returncode}:\n" + "".join(lines))
    return np.array(rows)


def start(settings: Settings, folder: Path) -> None:
    """Export the model and write the equilibrated state of the system, once."""
    model, data, ready = folder / "model.pt", folder / "water.data", restart_of(settings, folder, 0)
    if ready.exists():
        return
    sys.path.insert(0, str(EXAMPLE))
    from make_box import water_box

    box = water_box(settings.molecules)
    ase.io.write(data, box, format="lammps-data", specorder=["O", "H"], masses=True, units="metal")
    subprocess.run(
        [programs() / "les-export", settings.model, "-o", model, "--dtype", settings.dtype],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    unfinished = ready.with_name("unfinished_start")
    if settings.engine == "lammps":
        script = folder / "in.start"
        script.write_text(
            LAMMPS_START.format(data=data, model=model, masses=MASSES, steps=settings.equilibration, restart=unfinished)
        )
        run_process([str(programs() / "lmp"), "-in", str(script), "-log", str(folder / "log.start")])
    else:
        run_process([sys.executable, __file__, "openmm", "--output", str(folder), "--child", str(unfinished)])
    unfinished.replace(ready)


def restart_of(settings: Settings, folder: Path, piece: int) -> Path:
    """File with the state after ``piece`` pieces."""
    name = "restart" if settings.engine == "lammps" else "state.xml"
    return folder / name if piece == 0 else folder / f"piece_{piece:03d}" / name


def run_piece(settings: Settings, folder: Path, piece: int) -> None:
    """Run a piece (from 1) in a folder beside the final one, which it becomes when all of it is there."""
    final = folder / f"piece_{piece:03d}"
    before = restart_of(settings, folder, piece - 1)
    # A name of its own: what a killed script has left behind may still be written for a moment.
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished_", dir=folder))
    if settings.engine == "lammps":
        script = unfinished / "in.piece"
        script.write_text(
            LAMMPS_PIECE.format(
                before=before,
                model=folder / "model.pt",
                timestep=TIMESTEP,
                folder=unfinished,
                every=settings.every,
                every_frame=settings.every_frame,
                steps=settings.steps_of_piece,
            )
        )
        command = [str(programs() / "lmp"), "-in", str(script), "-log", str(unfinished / "log.lammps")]
    else:
        command = [sys.executable, __file__, "openmm", "--output", str(folder), "--child", str(unfinished)]
        command += ["--before", str(before)]
    rows = run_process(command)
    expected = settings.steps_of_piece // settings.every + 1
    if len(rows) != expected:
        raise RuntimeError(f"piece {piece} wrote {len(rows)} energies, not {expected}")
    np.savetxt(unfinished / "rows.csv", rows, delimiter=",", header=",".join(COLUMNS), comments="", fmt="%.15g")
    unfinished.replace(final)


def openmm_child(settings: Settings, folder: Path, target: Path, before: Path | None) -> None:
    """The process of OpenMM: without ``before`` it writes the equilibrated State to ``target``, else runs a piece."""
    import openmm
    from openmm import app, unit

    from les_md import LESForce
    from les_md.openmm.units import EV_TO_KJ_PER_MOL

    sys.path.insert(0, str(EXAMPLE))
    from run_openmm import create_system, read_water

    topology, positions = read_water(folder / "water.data")
    symbols = np.array([atom.element.symbol for atom in topology.atoms()])
    masses = np.array([MASSES[symbol] for symbol in symbols])
    system = create_system(topology)
    for k, mass in enumerate(masses):
        system.setParticleMass(k, mass)
    system.addForce(LESForce(folder / "model.pt", topology, system=system))
    if before is None:
        integrator = openmm.LangevinMiddleIntegrator(300.0 * unit.kelvin, 1.0 / unit.picosecond, 0.0005)
        integrator.setRandomNumberSeed(4711)
    else:
        # Velocities at the time of the positions, so that the total energy is that of one instant.
        integrator = openmm.CustomIntegrator(TIMESTEP)
        integrator.addUpdateContextState()
        integrator.addComputePerDof("v", "v+0.5*dt*f/m")
        integrator.addComputePerDof("x", "x+dt*v")
        integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("CPU"))
    if before is None:
        simulation.context.setPositions(positions)
        openmm.LocalEnergyMinimizer.minimize(simulation.context, maxIterations=200)
        simulation.context.setVelocitiesToTemperature(300.0 * unit.kelvin, 4711)
        simulation.step(settings.equilibration)
        velocities = simulation.context.getState(velocities=True).getVelocities(asNumpy=True)
        velocities = velocities.value_in_unit(unit.nanometer / unit.picosecond)
        velocities -= masses @ velocities / masses.sum()
        kinetic = 0.5 * (masses @ velocities**2).sum() / EV_TO_KJ_PER_MOL
        velocities *= np.sqrt(0.5 * BOLTZMANN * 300.0 * (3 * len(masses) - 3) / kinetic)
        simulation.context.setVelocities(velocities)
        simulation.context.setTime(0.0)
        simulation.context.setStepCount(0)
        target.write_text(openmm.XmlSerializer.serialize(simulation.context.getState(positions=True, velocities=True)))
        return
    simulation.loadState(str(before))
    oxygens = symbols == "O"

    def report() -> None:
        state = simulation.context.getState(energy=True, velocities=True)
        potential = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) / EV_TO_KJ_PER_MOL
        velocities = state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)
        kinetic = 0.5 * masses * (velocities**2).sum(1) / EV_TO_KJ_PER_MOL
        print(
            simulation.currentStep,
            f"{potential:.15g} {kinetic[oxygens].sum():.15g} {kinetic[~oxygens].sum():.15g}",
            flush=True,
        )

    simulation.reporters.append(app.DCDReporter(str(target / "frames.dcd"), settings.every_frame))
    print("Step potential kinetic_oxygen kinetic_hydrogen")
    report()
    for _ in range(settings.steps_of_piece // settings.every):
        simulation.step(settings.every)
        report()
    state = simulation.context.getState(positions=True, velocities=True)
    (target / "state.xml").write_text(openmm.XmlSerializer.serialize(state))


def bonds_of_start(molecules: int) -> np.ndarray:
    """Oxygen and hydrogen of every bond [B, 2]; both engines have the atoms by molecule, O H H."""
    atoms = np.arange(3 * molecules).reshape(-1, 3)
    return np.concatenate([atoms[:, [0, 1]], atoms[:, [0, 2]]])


@contextmanager
def without_output() -> Iterator[None]:
    """Discard what compiled code writes to the standard output; the reader of DCD files is talkative."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def bond_lengths(path: Path, bonds: np.ndarray) -> np.ndarray:
    """Lengths in Å [F, B] in every frame of a DCD file with a rectangular box."""
    with without_output(), DCDTrajectoryFile(str(path)) as file:
        positions, lengths, _ = file.read()
    vectors = positions[:, bonds[:, 1]] - positions[:, bonds[:, 0]]
    vectors -= lengths[:, None] * np.round(vectors / lengths[:, None])
    return np.linalg.norm(vectors, axis=2)


def degrees_of_freedom(molecules: int) -> dict[str, float]:
    """Of oxygen and of hydrogen; the total momentum, zero, is taken from both by their masses."""
    counts = {"O": molecules, "H": 2 * molecules}
    total = sum(counts[symbol] * MASSES[symbol] for symbol in counts)
    return {symbol: 3.0 * counts[symbol] * (1.0 - MASSES[symbol] / total) for symbol in counts}


def drift_of(time: np.ndarray, energy: np.ndarray) -> tuple[float, float]:
    """Slope of the energy, per ps, and standard deviation about the line."""
    slope, offset = np.polyfit(time, energy, 1)
    return float(slope), float((energy - slope * time - offset).std())


def summarise(settings: Settings, folder: Path, figure: Path | None) -> bool:
    """Print what the finished pieces in the folder show, and whether everything passes; and draw it."""
    bonds, freedom = bonds_of_start(settings.molecules), degrees_of_freedom(settings.molecules)
    n_atoms = 3 * settings.molecules
    pieces, bond_ranges = [], []
    for k in range(1, settings.pieces + 1):
        path = folder / f"piece_{k:03d}"
        if not path.exists():
            break
        table = np.loadtxt(path / "rows.csv", delimiter=",", skiprows=1)
        columns = dict(zip(COLUMNS, table.T, strict=True))
        kinetic = {"O": columns["kinetic_oxygen"], "H": columns["kinetic_hydrogen"]}
        columns["time"] = TIMESTEP * columns["step"]
        columns["energy"] = (columns["potential"] + kinetic["O"] + kinetic["H"]) / n_atoms
        columns["T"] = 2.0 * (kinetic["O"] + kinetic["H"]) / (BOLTZMANN * sum(freedom.values()))
        columns |= {f"T_{symbol}": 2.0 * kinetic[symbol] / (BOLTZMANN * freedom[symbol]) for symbol in freedom}
        pieces.append(columns)
        lengths = bond_lengths(path / "frames.dcd", bonds)
        bond_ranges.append((lengths.min(), lengths.max(), len(lengths)))
    if not pieces:
        print("no piece is finished")
        return False
    # The first energy of a piece repeats the last of the one before.
    whole = {
        key: np.concatenate([pieces[0][key][:1], *(piece[key][1:] for piece in pieces)])
        for key in ("time", "energy", "T", "T_O", "T_H")
    }
    steps_done = len(pieces) * settings.steps_of_piece
    print(
        f"{settings.engine}, {settings.model}, {settings.dtype}, {n_atoms} atoms: {steps_done:,} of {settings.steps:,} "
        f"steps of {1000 * TIMESTEP:g} fs ({steps_done * TIMESTEP:g} ps) in {len(pieces)} pieces"
    )
    print(
        f"{'piece':>5s} {'step':>9s} {'drift':>9s} {'fluctuation':>11s} {'T / K':>6s} {'jump':>9s} {'MB: first':>9s}"
        f" {'settled':>8s} {'last':>7s} {'peak':>7s} {'growth':>7s} {'shortest':>9s} {'longest':>8s}"
    )
    jumps, growths, peaks = [], [], []
    for k, piece in enumerate(pieces):
        drift, fluctuation = drift_of(piece["time"], piece["energy"])
        jumps.append(piece["energy"][0] - pieces[k - 1]["energy"][-1] if k else 0.0)
        resident = piece["resident"][np.isfinite(piece["resident"])]
        settled = piece["resident"][len(piece["resident"]) // 10]
        growths.append(resident[-1] - settled)
        peaks.append(np.nanmax(piece["peak"]))
        print(
            f"{k + 1:5d} {int(piece['step'][-1]):9d} {drift:+9.1e} {fluctuation:11.1e} {piece['T'].mean():6.1f} "
            f"{jumps[-1]:+9.1e} {resident[0]:9.1f} {settled:8.1f} {resident[-1]:7.1f} {peaks[-1]:7.1f} "
            f"{growths[-1]:+7.2f} {bond_ranges[k][0]:9.3f} {bond_ranges[k][1]:8.3f}"
        )
    print("(drift in eV/atom/ps, fluctuation about it and jump from the piece before in eV/atom, bonds O-H in Å)")
    drift, fluctuation = drift_of(whole["time"], whole["energy"])
    means = {key: float(whole[key].mean()) for key in ("T", "T_O", "T_H")}
    deviation, canonical = float(whole["T"].std()), means["T"] * np.sqrt(2.0 / sum(freedom.values()))
    jump, growth, over = float(np.abs(jumps).max()), float(np.max(growths)), float(max(peaks) - peaks[0])
    shortest, longest = min(b[0] for b in bond_ranges), max(b[1] for b in bond_ranges)
    finite = all(np.isfinite(whole[key]).all() for key in whole) and bool(np.isfinite(peaks).all())
    percentiles = np.percentile(whole["T"], [0, 5, 50, 95, 100])
    checks = [
        (f"steps {steps_done:,} of {settings.steps:,}, all numbers finite", finite and steps_done == settings.steps),
        (f"drift {drift:+.2e} eV/atom/ps (limit {DRIFT:.0e}), fluctuation {fluctuation:.1e}", abs(drift) < DRIFT),
        (f"energy over {len(pieces) - 1} restarts continuous to {jump:.1e} eV/atom (limit {CONTINUITY:.0e})",
         jump < CONTINUITY),
        (f"temperature {means['T']:.1f} K (limits {TEMPERATURES[0]:.0f} and {TEMPERATURES[1]:.0f}); least, 5 %, "
         f"median, 95 %, largest " + ", ".join(f"{value:.0f}" for value in percentiles),
         TEMPERATURES[0] < means["T"] < TEMPERATURES[1]),
        (f"temperature of oxygen {means['T_O']:.1f} K, of hydrogen {means['T_H']:.1f} K (limit {EQUIPARTITION:.0%})",
         abs(means["T_O"] - means["T_H"]) < EQUIPARTITION * means["T"]),
        (f"temperature deviates by {deviation:.1f} K, canonical {canonical:.1f} K", deviation < canonical),
        (f"memory grows by {growth:+.2f} MB within a piece after its first tenth (limit {GROWTH:g} MB)",
         growth < GROWTH),
        (f"peak of memory {max(peaks):.0f} MB, grows by {over:+.2f} MB from the first piece on "
         f"(limit {GROWTH_OVER_PIECES:g} MB)", over < GROWTH_OVER_PIECES),
        (f"O-H bonds {shortest:.3f} to {longest:.3f} Å in {sum(b[2] for b in bond_ranges)} frames (limits {BONDS[0]:g} "
         f"and {BONDS[1]:g} Å)", BONDS[0] < shortest and longest < BONDS[1]),
    ]  # fmt: skip
    for text, passed in checks:
        print("pass" if passed else "FAIL", text)
    if figure is not None:
        plot(settings, pieces, whole, drift, figure)
    return all(passed for _, passed in checks)


def plot(settings: Settings, pieces: list[dict], whole: dict[str, np.ndarray], drift: float, path: Path) -> None:
    """Total energy, temperature by piece and memory against time; dotted lines are restarts."""
    figure, axes = plt.subplots(3, 1, figsize=(6, 6), sharex=True, layout="constrained")
    time, energy = whole["time"], 1000.0 * (whole["energy"] - whole["energy"].mean())
    axes[0].plot(time, energy, linewidth=0.3, color="tab:blue")
    axes[0].plot(time, 1000.0 * drift * (time - time.mean()), color="black", label=f"{drift:+.1e} eV/atom/ps")
    axes[0].set_ylabel("total energy /\nmeV per atom")
    axes[0].legend()
    for k, piece in enumerate(pieces):
        middle = piece["time"].mean()
        axes[1].errorbar(middle, piece["T"].mean(), piece["T"].std(), fmt="o", markersize=3, color="tab:red")
        axes[2].plot(piece["time"], piece["resident"], linewidth=0.8, color="tab:green")
        if k:
            for axis in axes:
                axis.axvline(piece["time"][0], color="gray", linestyle=":", linewidth=0.5)
    axes[1].set_ylabel("temperature of\na piece / K")
    axes[2].set(xlabel="time / ps", ylabel="resident\nmemory / MB")
    axes[2].set_ylim(0.0, 1.2 * max(np.nanmax(piece["resident"]) for piece in pieces))
    name = {"lammps": "LAMMPS", "openmm": "OpenMM"}[settings.engine]
    axes[0].set_title(
        f"{name}, {settings.molecules} water molecules, constant energy, {settings.dtype} network", fontsize="medium"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description="Long runs of bulk water, in pieces that restart.")
    parser.add_argument("engine", choices=("lammps", "openmm"))
    parser.add_argument("--molecules", type=int, default=32, help="of water (default: 32)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="in all (default: 1000000)")
    parser.add_argument("--pieces", type=int, default=20, help="processes, one after the other (default: 20)")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model of water")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--every", type=int, default=100, help="steps between two energies (default: 100)")
    parser.add_argument("--every-frame", type=int, default=500, help="steps between two frames (default: 500)")
    parser.add_argument("--equilibration", type=int, default=10_000, help="steps of 0.5 fs at 300 K (default: 10000)")
    parser.add_argument("--output", type=Path, required=True, help="folder; a run in it is gone on with")
    parser.add_argument("--report", action="store_true", help="run nothing; say what the pieces in the folder show")
    parser.add_argument("--figure", type=Path, help="write a figure to this file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--before", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.output.resolve()
    stored = folder / "settings.json"
    if options.child or options.report:
        if not stored.exists():
            parser.error(f"{folder} holds no run")
        settings = Settings(**json.loads(stored.read_text()))
        if settings.engine != options.engine:
            parser.error(f"{folder} holds a run of {settings.engine}")
        if options.child:
            openmm_child(settings, folder, options.child, options.before)
            return 0
        return 0 if summarise(settings, folder, options.figure) else 1
    settings = Settings(**{key: getattr(options, key) for key in Settings.__dataclass_fields__})
    if settings.steps < 1 or settings.pieces < 1 or settings.steps % (settings.pieces * settings.every):
        parser.error("--steps must be a multiple of --pieces times --every")
    if settings.steps_of_piece < settings.every_frame:
        parser.error("--every-frame must not exceed the steps of a piece")
    folder.mkdir(parents=True, exist_ok=True)
    if stored.exists() and json.loads(stored.read_text()) != settings.__dict__:
        parser.error(f"{folder} holds a run with other settings: {stored.read_text()}")
    stored.write_text(json.dumps(settings.__dict__))
    for left in folder.glob("unfinished_*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    start(settings, folder)
    for piece in range(1, settings.pieces + 1):
        if not (folder / f"piece_{piece:03d}").exists():
            run_piece(settings, folder, piece)
            print(f"piece {piece} of {settings.pieces} done", flush=True)
    return 0 if summarise(settings, folder, options.figure) else 1


if __name__ == "__main__":
    raise SystemExit(main())
