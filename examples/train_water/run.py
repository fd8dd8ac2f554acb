"""Train a water model with les-train: python run.py --data water_rpbe_d3.xyz [--epochs 250] [--output output].

Writes the frames of training, validation and test (whole trajectories, as for the bundled model) and the
configuration to the output folder, and runs les-train there. Run again with --resume it goes on where it was stopped.
"""

import argparse
import sys
from pathlib import Path

import ase.io
import yaml

from les_md.training import command
from les_md.training.run_folder import write_text
from les_md.training.water import split

CONFIGURATION = Path(__file__).with_name("water.yaml")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a water model with les-train.")
    parser.add_argument("--data", type=Path, required=True, help="water_rpbe_d3.xyz, of the repository les_fit")
    parser.add_argument("--epochs", type=int, default=250, help="of the training (default: 250)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for results (default: output)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    options = parser.parse_args()
    try:
        path = prepare(options.data, options.output, options.epochs)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return command.main([str(path), *(["--resume"] if options.resume else [])])


def prepare(data: Path, output: Path, epochs: int) -> Path:
    """Write the three files of frames and the configuration; return the path of the latter."""
    frames = ase.io.read(data, ":")
    output.mkdir(parents=True, exist_ok=True)
    for part, indices in split(frames).items():
        ase.io.write(output / f"{part}.xyz", [frames[i] for i in indices], format="extxyz")
    settings = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    for guard in settings["training"]["bond_guards"]:
        # A shorter training has the guards for the same share of its epochs.
        guard["from_epoch"] = max(1, round(guard["from_epoch"] * epochs / settings["training"]["epochs"]))
    settings["training"]["epochs"] = epochs
    write_text(output / "water.yaml", yaml.safe_dump(settings, sort_keys=False))
    return output / "water.yaml"


if __name__ == "__main__":
    sys.exit(main())
