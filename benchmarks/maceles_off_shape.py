"""Export, step time and memory of a model of MACELES-OFF's shape in LAMMPS and OpenMM.

    python benchmarks/maceles_off_shape.py [--ranks 1 2]

The published model of organic chemistry has ten elements, 192 channels, features of degree 0 and 1 (max_L = 1), two
interactions and a cutoff of 4.5 Å. What a step costs depends on these sizes and not on the weights: here they are
random, with small readouts, so that a few steps of dynamics stay near the starting box of 192 atoms of water. The
isolated-atom energies are the published ones (−70 keV for Br). mace-torch makes the model; the package ``les`` is not
needed, since its part of a checkpoint is a few numbers.
"""

import argparse
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

import mace  # noqa: F401  (before e3nn, which cannot be imported by itself with a recent torch)
import numpy as np
import openmm_step
import torch
from e3nn import o3
from mace.modules import interaction_classes
from mace.modules.extensions import MACELES
from timed_run import ATOMS, measure

from les_md import export

#: eV, isolated atoms of SPICE's level of theory.
ATOMIC_ENERGIES = {
    1: -13.571964772646918,
    6: -1030.5671648271828,
    7: -1486.3750255780376,
    8: -2043.933693071156,
    9: -2715.318528602957,
    15: -9287.407133426237,
    16: -10834.4844708122,
    17: -12522.649269035726,
    35: -70045.28385080204,
    53: -8102.524593409054,
}


class Ewald(torch.nn.Module):
    """What a checkpoint stores of les.module.ewald.Ewald."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma, self.dl, self.norm_factor, self.remove_self_interaction = 1.0, 2.0, 90.0474, False


class Les(torch.nn.Module):
    """What a checkpoint stores of les.Les."""

    def __init__(self, les_arguments: dict) -> None:
        super().__init__()
        self.ewald = Ewald()


def make_checkpoint(path: Path, channels: int) -> Path:
    """A checkpoint as mace-torch writes it, with random weights in float64."""
    for name, cls in (("les", Les), ("les.module.ewald", Ewald)):
        module = types.ModuleType(name)
        cls.__module__ = name
        setattr(module, cls.__name__, cls)
        sys.modules[name] = module
    block = interaction_classes["RealAgnosticResidualInteractionBlock"]
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    model = MACELES(
        r_max=4.5,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=len(ATOMIC_ENERGIES),
        hidden_irreps=o3.Irreps(f"{channels}x0e + {channels}x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.array(list(ATOMIC_ENERGIES.values())),
        avg_num_neighbors=20.0,
        atomic_numbers=list(ATOMIC_ENERGIES),
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        use_reduced_cg=False,
        atomic_inter_scale=0.05,
        atomic_inter_shift=0.0,
    )
    torch.set_default_dtype(torch.float32)
    torch.save(model, path)
    return path


def megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Step time of a model of MACELES-OFF's shape.")
    parser.add_argument("--channels", type=int, default=192)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="of LAMMPS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2, help="of each timed run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder for the checkpoint and the exported file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        start = time.perf_counter()
        checkpoint = make_checkpoint(folder / "maceles_off_shape.model", options.channels)
        made = time.perf_counter()
        model = export(checkpoint, folder / "maceles_off_shape.pt").path
        exported = time.perf_counter()
        print(
            f"10 elements, {options.channels}x0e + {options.channels}x1o, float32, {options.threads} threads; "
            f"checkpoint {megabytes(checkpoint):.0f} MB in {made - start:.0f} s, "
            f"exported {megabytes(model):.0f} MB in {exported - made:.0f} s, self-check included, "
            f"{openmm_step.peak_memory():.0f} MB at most"
        )
        print(f"{'engine':>10s} {'atoms':>6s} {'ranks':>6s} {'ms/step':>9s} {'ms/atom':>8s} {'peak MB':>8s}")

        def show(engine: str, ranks: int, milliseconds: float, memory: float) -> None:
            print(
                f"{engine:>10s} {ATOMS:6d} {ranks:6d} {milliseconds:9.0f} {milliseconds / ATOMS:8.2f} {memory:8.0f}",
                flush=True,
            )

        timing = {"steps": options.steps, "warm_up": 2}
        for ranks in options.ranks:
            result = measure(
                model, (1, 1, 1), folder, repeats=options.repeats, threads=options.threads, ranks=ranks, **timing
            )
            show("LAMMPS", ranks, result["total"], result["memory"])
        case = {"backend": "python", "model": str(model), "num_atoms": ATOMS, "platform": "CPU", **timing}
        runs = [openmm_step.measure(case, options.threads) for _ in range(options.repeats)]
        show("OpenMM", 1, *[statistics.median(run[key] for run in runs) for key in ("ms", "memory")])


if __name__ == "__main__":
    main()
