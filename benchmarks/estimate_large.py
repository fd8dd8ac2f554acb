"""What a step of 1e6 and 1e8 atoms of water would cost on many ranks, estimated from parts measured here.

    python benchmarks/estimate_large.py [--bandwidth 5e9]

Measured in this run, in LAMMPS on one core: the network and the spreading and gathering of charges per atom (12,288
atoms), transforms and the work on wave vectors per mesh point (one molecule in the box of 98,304 atoms). Assumed: one
core per rank, perfect balance, and a reduction that moves every number twice at ``--bandwidth`` bytes per second (MPI's
Rabenseifner algorithm), whatever the rank count. Replicated: every rank transforms the whole mesh, as les_md does.
Distributed: ranks hold blocks of the mesh, swap its edges with their neighbours and transform it together; each number
crosses the network four times per transform.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from timed_run import ATOMS, measure

from les_md import export
from les_md.electrostatics import LatentEwald, LongRangeParameters

EDGE = 12.429  # Å, box of 192 atoms
BYTES = 8


def cubic_plan(module, num_atoms: int, charges: int | None = None) -> dict[str, torch.Tensor]:
    """The mesh of a box of water of ``num_atoms``, for as many charges or others."""
    cell = torch.eye(3, dtype=torch.float64) * EDGE * (num_atoms / ATOMS) ** (1.0 / 3.0)
    return module.plan(cell, cell, torch.zeros(2, 3, dtype=torch.float64), charges or num_atoms, "mesh", 1e-5, False)


#: One molecule in the box of 98,304 atoms: all but the mesh is nothing.
ALONE = """one molecule of water

3 atoms
2 atom types

0 {edge} xlo xhi
0 {edge} ylo yhi
0 {edge} zlo zhi

Masses

1 15.999
2 1.008

Atoms # atomic

1 1 0 0 0
2 2 0.96 0 0
3 2 -0.24 0.93 0
"""


def mesh_seconds_per_point(model: Path, folder: Path, repeats: int) -> float:
    """The transforms and the work on wave vectors for the mesh of 98,304 atoms, per point."""
    data = folder / "alone.data"
    data.write_text(ALONE.format(edge=EDGE * 8))
    parts = measure(model, (1, 1, 1), folder, steps=2, repeats=repeats, warm_up=1, keywords="kspace mesh", data=data)
    plan = cubic_plan(LatentEwald(LongRangeParameters()), 98_304, charges=3)
    return parts["electrostatics"] * 1e-3 / float(plan["shape"].prod())


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimate of a step of 1e6 and 1e8 atoms on many ranks.")
    parser.add_argument("--bandwidth", type=float, default=5e9, help="bytes per second and rank of the network")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = export("water_rpbe_d3", folder / "model.pt").path
        per_point = mesh_seconds_per_point(model, folder, options.repeats)
        parts = measure(model, (4, 4, 4), folder, steps=2, repeats=options.repeats, warm_up=1)
    atoms = ATOMS * 64
    module = LatentEwald(LongRangeParameters())
    points = float(cubic_plan(module, atoms)["shape"].prod())
    network = (parts["total"] - parts["electrostatics"]) * 1e-3 / atoms
    local = (parts["electrostatics"] * 1e-3 - per_point * points) / atoms
    print(
        f"measured per atom: network and LAMMPS {1e6 * network:.1f} µs, spread and gather {1e6 * local:.1f} µs; "
        f"per mesh point {1e9 * per_point:.0f} ns"
    )
    print(f"assumed: {options.bandwidth / 1e9:g} GB/s per rank; times in s per step, memory of the mesh in GB per rank")
    print(
        f"{'atoms':>7s} {'ranks':>6s} {'network':>8s} {'spread+gather':>14s} | {'replicated':>11s} {'reduction':>10s} "
        f"{'memory':>7s} {'share':>6s} | {'distributed':>11s} {'messages':>9s} {'share':>6s}"
    )
    per_atom = points / atoms
    for num_atoms in (1e5, 1e6, 1e8):
        half_waves = EDGE * (num_atoms / ATOMS) ** (1.0 / 3.0) / 2.0  # K along each axis at dl = 2 Å
        wave_bytes = 2 * BYTES * (half_waves + 1) * (2 * half_waves + 1) ** 2
        mesh = per_atom * num_atoms
        for ranks in (1, 8, 64, 4096):
            own = num_atoms / ranks
            work = own * network
            spread = own * local
            whole = mesh * per_point
            reduction = 2 * wave_bytes / options.bandwidth if ranks > 1 else 0.0
            share = (spread + whole + reduction) / (work + spread + whole + reduction)
            block = whole / ranks
            messages = 8 * mesh * BYTES / ranks / options.bandwidth if ranks > 1 else 0.0
            share_distributed = (spread + block + messages) / (work + spread + block + messages)
            print(
                f"{num_atoms:7.0e} {ranks:6d} {work:8.3f} {spread:14.3f} | {whole:11.3f} {reduction:10.3f} "
                f"{3 * mesh * BYTES / 1e9:7.1f} {100 * share:5.0f}% | {block:11.3f} {messages:9.3f} "
                f"{100 * share_distributed:5.0f}%"
            )
    # Replicated work is a tenth of the step where mesh · per_point = 0.1 · own · network.
    print(
        "the replicated transforms alone are a tenth of the network's time at "
        f"{0.1 * network / (per_atom * per_point):.0f} ranks, whatever the number of atoms"
    )


if __name__ == "__main__":
    main()
