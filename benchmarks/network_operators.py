"""Steps of bulk water with a MACE model in LAMMPS: the network's operators compiled, and those of the file.

    python benchmarks/network_operators.py --model MACE-LES_water.model [--sizes 1 2] [--rounds 5] [--steps 4]

The bulk water of the example, replicated ``--sizes`` times in each direction, float32, one thread. Runs take turns; the
processor's time of a step, LAMMPS's loop time times the CPU use that it prints, is given as the median of ``--rounds``
runs, with the ratio of each round's two, lowest to highest, and the largest difference of forces relative to the
largest force, which must not be beyond 1e-4.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from timed_run import DATA

from les_md import export

INPUT = """
units metal
atom_style atomic
read_data {data}
replicate {size} {size} {size}
pair_style mliap/les kspace mesh threads 1 operators {operators}
pair_coeff * * {model} O H
neighbor 0.5 bin
timestep 0.0005
velocity all create 300.0 1
fix integrate all nve
run 0
write_dump all custom {forces} id fx fy fz modify sort id format float %.9g
run 2 post no
run {steps}
"""


def run(folder: Path, **settings) -> tuple[float, np.ndarray]:
    """Processor time of a step in ms, and the forces before the first."""
    forces = folder / "forces"
    (folder / "in.bench").write_text(INPUT.format(data=DATA, forces=forces, **settings))
    command = [str(Path(sys.executable).parent / "lmp"), "-in", str(folder / "in.bench"), "-log", "none"]
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode != 0:
        raise SystemExit(f"LAMMPS failed:\n{output.stdout[-2000:]}\n{output.stderr[-2000:]}")
    is_compiled = "compiled operators), types" in output.stdout
    if is_compiled != (settings["operators"] == "compiled"):
        raise SystemExit("the network did not run the operators that were asked for")
    seconds = float(re.findall(r"^Loop time of (\S+) on", output.stdout, re.M)[-1])
    use = float(re.findall(r"^(\S+)% CPU use", output.stdout, re.M)[-1])
    return 10.0 * use * seconds / settings["steps"], np.loadtxt(forces, skiprows=9)[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps of bulk water with a MACE model, operators compiled or not.")
    parser.add_argument(
        "--model", required=True, help="checkpoint of a MACE model that knows H and O, or its exported file, *.pt"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Path(options.model).resolve()
        if model.suffix != ".pt":
            model = export(model, folder / "model.pt", allow_short_range=True).path
        print(f"processor time of a step in ms, float32, one thread, medians of {options.rounds} runs in turn")
        print(f"{'atoms':>6s} {'file':>9s} {'compiled':>9s} {'ratio':>6s} {'of rounds':>13s} {'forces differ':>14s}")
        for size in options.sizes:
            rounds = []
            for _ in range(options.rounds):
                results = {
                    operators: run(folder, size=size, model=model, operators=operators, steps=options.steps)
                    for operators in ("file", "compiled")
                }
                rounds.append([results[operators][0] for operators in ("file", "compiled")])
            plain, ours = (results[operators][1] for operators in ("file", "compiled"))
            difference = np.abs(ours - plain).max() / np.abs(plain).max()
            medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
            ratios = sorted(before / after for before, after in rounds)
            print(
                f"{len(plain):6d} {medians[0]:9.1f} {medians[1]:9.1f} {medians[0] / medians[1]:6.2f} "
                f"{ratios[0]:6.2f} … {ratios[-1]:4.2f} {difference:14.1e}",
                flush=True,
            )
            if difference > 1e-4:
                raise SystemExit("the forces differ by more than rounding")


if __name__ == "__main__":
    main()
