"""Processor time of CACE models' network, values and derivative: TorchScript against compiled ahead of time.

    python benchmarks/ahead_of_time.py --model water_rpbe_d3 [--model other.pth] [--sizes 1 2] [--repeats 15]

Bulk water of the example, replicated ``--sizes`` times in each direction, float32, one thread. The evaluations take
turns in one process; the medians are printed, with the largest difference of the derivative between the two, relative
to the largest derivative, in float32 and in float64, which must not be beyond 1e-5 and 1e-10.
"""

import argparse
import time

import torch
from ase.io import read
from cace_network import gradient_of, measure, trained_name
from timed_run import DATA

from les_md.ahead_of_time import compile_network
from les_md.architectures import LoadOptions, find_architecture
from les_md.checkpoint import read_checkpoint
from les_md.compiled_evaluation import CompiledEvaluation
from les_md.compiled_packages import load_functions
from les_md.models import resolve_checkpoint
from les_md.neighbors import NeighborList

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def evaluations_of(contents, dtype):
    """The model, and its two evaluations in ``dtype``; prints how long compiling took, and the packages' size."""
    trained = find_architecture(contents).load(contents, options=LoadOptions(dtype, allow_short_range=True))
    evaluation = trained.evaluation(trained.network)
    start = time.perf_counter()
    packages = compile_network(evaluation)
    size = sum(map(len, packages.values())) / 1e6
    print(f"compiled for {dtype} in {time.perf_counter() - start:.0f} s, {size:.1f} MB", flush=True)
    functions = load_functions(packages)
    scripted = torch.jit.script(evaluation)
    return trained, {"TorchScript": scripted, "compiled": CompiledEvaluation(scripted, **functions)}


def largest_difference(one, other):
    """Relative to the largest element of ``other``."""
    return float((one - other).abs().max() / other.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description="Processor time of the network of CACE models, compiled or not.")
    parser.add_argument("--model", action="append", help="checkpoint or bundled model; may be repeated")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    box = read(DATA, format="lammps-data", units="metal", atom_style="atomic")
    for model in options.model or ["water_rpbe_d3"]:
        contents = read_checkpoint(resolve_checkpoint(model))
        of_dtype = {dtype: evaluations_of(contents, dtype) for dtype in TOLERANCES}
        trained, evaluations = of_dtype[torch.float32]
        print(f"processor time in ms, float32, one thread, medians of {options.repeats} turns")
        print(f"{'model':20s} {'atoms':>6s} {'':>12s} {'values':>8s} {'derivative':>11s} {'both':>8s}")
        for size in options.sizes:
            atoms = box.repeat(size)
            index, vectors = NeighborList(trained.cutoff, skin=0.0).compute(
                atoms.positions, atoms.cell.array, atoms.pbc
            )
            heaviest = atoms.numbers.max()
            types = torch.tensor([trained.atomic_numbers.index(8 if z == heaviest else 1) for z in atoms.numbers])
            edges = (torch.from_numpy(vectors), torch.from_numpy(index), types)
            times = measure(evaluations, edges, options.repeats)
            for name, (forward, backward) in times.items():
                print(
                    f"{trained_name(model):20s} {len(atoms):6d} {name:>12s} {forward:8.2f} {backward:11.2f} "
                    f"{forward + backward:8.2f}",
                    flush=True,
                )
            ratio = sum(times["TorchScript"]) / sum(times["compiled"])
            print(f"{trained_name(model):20s} {len(atoms):6d} {'ratio':>12s} {'':8s} {'':11s} {ratio:8.2f}", flush=True)
            for dtype, (_trained, pair) in of_dtype.items():
                difference = largest_difference(
                    *(gradient_of(pair[name], *edges) for name in ("compiled", "TorchScript"))
                )
                values = [pair[name](*edges)[:2] for name in ("compiled", "TorchScript")]
                of_values = max(largest_difference(*each) for each in zip(*values, strict=True) if each[0].numel())
                print(f"{dtype}: values differ by {of_values:.1e}, derivatives by {difference:.1e}")
                if max(difference, of_values) > TOLERANCES[dtype]:
                    raise SystemExit(f"more than {TOLERANCES[dtype]:.0e}")


if __name__ == "__main__":
    main()
