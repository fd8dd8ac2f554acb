"""Processor time of the network of CACE models, values and derivative, as exported and by automatic differentiation.

    python benchmarks/cace_network.py --model water_rpbe_d3 [--model other.pth] [--sizes 1 2] [--repeats 15]

Bulk water of the example, replicated ``--sizes`` times in each direction, float32, one thread. The evaluations take
turns in one process; the medians are printed, with the largest error of the derivative, relative to the largest
derivative, against automatic differentiation in float64.
"""

import argparse
import statistics
import time

import torch
from ase.io import read
from timed_run import DATA

from les_md.architectures import LoadOptions, find_architecture
from les_md.checkpoint import read_checkpoint
from les_md.layered_evaluation import WholeEvaluation
from les_md.models import resolve_checkpoint
from les_md.neighbors import NeighborList

WARM_UP = 3  # scripts are compiled in the first calls


def cotangents(types, charge):
    """1 for the energies and 0.1 V for the charges, as a long-range potential might be."""
    return torch.ones(len(types), dtype=torch.float64), torch.full(charge.shape, 0.1, dtype=torch.float64)


def gradient_of(evaluation, vectors, index, types):
    """Derivative [E, 3] by the edge vectors."""
    _energy, charge, state = evaluation(vectors, index, types)
    return evaluation.pull_back(vectors, index, types, state, *cotangents(types, charge))


def measure(evaluations, edges, repeats):
    """Medians in ms of values and derivative of each evaluation."""
    times = {name: ([], []) for name in evaluations}
    for turn in range(WARM_UP + repeats):
        for name, evaluation in evaluations.items():
            start = time.process_time()
            _energy, charge, state = evaluation(*edges)
            middle = time.process_time()
            evaluation.pull_back(*edges, state, *cotangents(edges[2], charge))
            end = time.process_time()
            if turn >= WARM_UP:
                times[name][0].append(1000 * (middle - start))
                times[name][1].append(1000 * (end - middle))
    return {name: [statistics.median(part) for part in parts] for name, parts in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Processor time of the network of CACE models.")
    parser.add_argument("--model", action="append", help="checkpoint or bundled model; may be repeated")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"processor time in ms, float32, one thread, medians of {options.repeats} turns")
    print(f"{'model':28s} {'atoms':>6s} {'':>14s} {'values':>8s} {'derivative':>11s} {'both':>8s} {'error':>9s}")
    box = read(DATA, format="lammps-data", units="metal", atom_style="atomic")
    for model in options.model or ["water_rpbe_d3"]:
        contents = read_checkpoint(resolve_checkpoint(model))
        architecture = find_architecture(contents)
        trained, double = (
            architecture.load(contents, options=LoadOptions(dtype, allow_short_range=True))
            for dtype in (torch.float32, torch.float64)
        )
        evaluations = {"plain": torch.jit.script(WholeEvaluation(trained.network))}
        if trained.evaluation is not None:
            evaluations["as exported"] = torch.jit.script(trained.evaluation(trained.network))
        for size in options.sizes:
            atoms = box.repeat(size)
            index, vectors = NeighborList(trained.cutoff, skin=0.0).compute(
                atoms.positions, atoms.cell.array, atoms.pbc
            )
            heaviest = atoms.numbers.max()
            types = torch.tensor([trained.atomic_numbers.index(8 if z == heaviest else 1) for z in atoms.numbers])
            edges = (torch.from_numpy(vectors), torch.from_numpy(index), types)
            reference = gradient_of(WholeEvaluation(double.network), *edges)
            times = measure(evaluations, edges, options.repeats)
            for name, (forward, backward) in times.items():
                error = float((gradient_of(evaluations[name], *edges) - reference).abs().max() / reference.abs().max())
                print(
                    f"{trained_name(model):28s} {len(atoms):6d} {name:>14s} {forward:8.2f} {backward:11.2f} "
                    f"{forward + backward:8.2f} {error:9.1e}",
                    flush=True,
                )


def trained_name(model: str) -> str:
    """The checkpoint's name without folder and suffix."""
    return resolve_checkpoint(model).stem


if __name__ == "__main__":
    main()
