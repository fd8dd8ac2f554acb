"""The bundled models, trained anew: ``python -m les_md.training.recipes NAME --data DATA --out DIR``.

Writes the frames of training, validation and test, and the configuration of the model (``les_md/models/NAME.yaml``), to
a folder, and runs ``les-train`` there. What it leaves is a configuration like any other: ``les-train DIR/NAME.yaml``.
"""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from pathlib import Path

import yaml

from les_md.training import command, molten_salt, organics, water
from les_md.training.run_folder import write_text

#: What ``--data`` is for each model; None where the data are made.
DATA = {
    "water_rpbe_d3": "water_rpbe_d3.xyz",
    "organics_wb97m": f"the folder of {organics.ABSOLUTE_FILE} and {organics.DIPOLAR_FILE}",
    "molten_salt_chgnet": None,
}


def configuration(name: str, short_range: bool = False, seed: int | None = None, epochs: int | None = None) -> str:
    """The configuration of a bundled model as YAML.

    Parameters
    ----------
    short_range : of its twin without charges, everything else being equal.
    seed : of the initial weights and of the order of frames; by default that of the file that comes with les_md.
    epochs : of a shorter (or longer) training, in which everything begins after the same share of the epochs.

    Raises ValueError where there are too few epochs for the stages of the model.
    """
    text = files("les_md.models").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    if not short_range and seed is None and epochs is None:
        return text
    settings = yaml.safe_load(text)
    training = settings["training"]
    if short_range:
        settings["model"]["charges"] = False
        settings.pop("long_range", None)
        for key in ("guess_charges", "charge_restraint"):
            training.pop(key, None)
    if epochs is not None:
        _stretch(training, epochs)
    if seed is not None:
        settings["seed"] = seed
    return yaml.safe_dump(settings, sort_keys=False)


def _stretch(training: dict, epochs: int) -> None:
    """Change the number of epochs, and in proportion all that begins at one."""
    share = epochs / training["epochs"]

    def begin(epoch: int) -> int:
        return 1 + round((epoch - 1) * share)

    for key, value in training.items():
        if isinstance(value, dict) and all(isinstance(each, int) for each in value):
            training[key] = {begin(epoch): each for epoch, each in value.items()}
            if len(training[key]) < len(value) or max(training[key]) > epochs:
                raise ValueError(f"{epochs} epochs are too few for the {len(value)} parts of training.{key}")
    guards = [*training.get("bond_guards", []), *(training.get(f"{kind}_guard") for kind in ("contact", "crowd"))]
    for guard in guards:
        if guard is not None and "from_epoch" in guard:
            guard["from_epoch"] = min(begin(guard["from_epoch"]), epochs)
    training["epochs"] = epochs


def write_data(name: str, data: Path | None, out: Path) -> None:
    """Write the files of frames that the configuration of a bundled model names."""
    out.mkdir(parents=True, exist_ok=True)
    if name == "molten_salt_chgnet":
        molten_salt.write_parts(out)
    else:
        {"water_rpbe_d3": water, "organics_wb97m": organics}[name].write_parts(data, out)


def argument_parser() -> argparse.ArgumentParser:
    """The options of ``python -m les_md.training.recipes``."""
    parser = argparse.ArgumentParser(
        prog="python -m les_md.training.recipes", description="Train a bundled model anew, with les-train."
    )
    parser.add_argument("name", choices=list(DATA), help="the model")
    known = "; ".join(f"{name}: {what}" for name, what in DATA.items() if what is not None)
    parser.add_argument("--data", type=Path, help=f"{known}. From the repository les_fit of the authors of LES")
    parser.add_argument("--out", type=Path, required=True, help="folder for data, configuration and results")
    parser.add_argument("--short-range", action="store_true", help="train the twin without charges")
    parser.add_argument(
        "--seed", type=int, help="of the initial weights and of the order of frames (default: the model's)"
    )
    parser.add_argument("--epochs", type=int, help="of a shorter training")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = argument_parser()
    options = parser.parse_args(arguments)
    if (options.data is None) != (DATA[options.name] is None):
        parser.error(f"--data is {DATA[options.name] or f'not needed for {options.name}, whose data are made'}")
    if options.epochs is not None and options.epochs < 1:
        parser.error("--epochs must be at least 1")
    path = options.out / f"{options.name}.yaml"
    try:
        text = configuration(options.name, options.short_range, options.seed, options.epochs)
        if not (options.resume and path.is_file()):
            write_data(options.name, options.data, options.out)
        write_text(path, text)
    except ModuleNotFoundError as error:
        if error.name != "openmm":
            raise
        print("error: the data are made with OpenMM: pip install 'les_md[openmm]'", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return command.main([str(path), *(["--resume"] if options.resume else [])])


if __name__ == "__main__":
    sys.exit(main())
