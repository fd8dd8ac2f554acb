"""The long-range sum alone against torch-pme's P3M, at the same measured force error.

    pip install torch-pme
    python benchmarks/compare_torch_pme.py [--sizes 3000 30000] [--dtype float64] [--threads 1] [--repeats 7]

Both sides get the charges, positions and cell of ``electrostatics.py`` (made neutral) and compute the same sum: that
over the wave vectors of the model, of Gaussian charges. torch-pme's Coulomb potential is therefore cut at the same
wave number, and its list of neighbours is empty, so that its real-space part costs nothing. Energies are compared with
the direct sum, too, which shows that it is the same energy.

A row is a setting of torch-pme: mesh points along an edge (it takes powers of two) and nodes of its interpolation.
Its forces (by automatic differentiation) have the error printed, relative to the direct sum. les_md is asked for
whatever accuracy makes its own measured error the same or smaller. Both are then run in turn, energy and forces each
time, and the medians of the processor's time are compared. ``kept`` computes torch-pme's filter of wave vectors once,
which its calculator does at every call (``as called``); les_md's plan, too, is made once for a cell. les_md computes
in float64 whatever ``--dtype`` is: the module of exported files, as OpenMM and ASE run it (``file``), and the compiled
code of the LAMMPS plugin for the same plan (``LAMMPS``), whose forces must be the same to rounding.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date

import torch
from compiled_mesh import CompiledMesh
from electrostatics import system

from les_md.electrostatics import LatentEwald, LongRangeParameters

try:
    import torchpme
except ImportError:
    sys.exit("this benchmark needs torch-pme: pip install torch-pme")


class TruncatedCoulomb(torchpme.CoulombPotential):
    """torch-pme's potential of Gaussian charges, cut where the model's sum is cut."""

    def __init__(self, parameters: LongRangeParameters) -> None:
        # torch-pme: E = 1/(2V) Σ 4π prefactor w(k) |S(k)|²; here E = C/V Σ w(k) |S(k)|²
        super().__init__(smearing=parameters.sigma, prefactor=parameters.norm_factor / (2.0 * math.pi))
        self.largest: float = (2.0 * math.pi / parameters.dl) ** 2 * (1.0 + 1e-6)

    def lr_from_k_sq(self, k_sq: torch.Tensor) -> torch.Tensor:
        return super().lr_from_k_sq(k_sq) * (k_sq <= self.largest)


class TorchPME:
    """P3M of a number of mesh points along the (cubic) cell's edge and of interpolation nodes."""

    def __init__(self, points: int, nodes: int, system: tuple, dtype: torch.dtype, keep_filter: bool) -> None:
        self.positions, self.charges, self.cell = (tensor.to(dtype) for tensor in system)
        # get_ns_mesh takes the power of two at or above 2 edge/spacing + 1
        spacing = 2.0 * float(self.cell[0, 0]) / (points - 1.5)
        potential = TruncatedCoulomb(LongRangeParameters()).to(dtype)
        self.calculator = torchpme.P3MCalculator(potential, spacing, interpolation_nodes=nodes).to(dtype)
        self.pairs = torch.zeros((0, 2), dtype=torch.int64)
        self.distances = torch.zeros(0, dtype=dtype)
        if keep_filter:
            self()
            self.calculator.kspace_filter.update = lambda *_arguments: None
        used = self.calculator.mesh_interpolator.ns_mesh.tolist() if keep_filter else [points] * 3
        assert used == [points] * 3, used

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        positions = self.positions.clone().requires_grad_(True)
        potential = self.calculator(self.charges, self.cell, positions, self.pairs, self.distances)
        energy = (self.charges * potential).sum()
        return energy.detach(), -torch.autograd.grad(energy, positions)[0]


class Mesh:
    """The module of exported files at a requested accuracy."""

    def __init__(self, module: torch.jit.ScriptModule, accuracy: float, system: tuple) -> None:
        self.module = module
        self.positions, self.charges, cell = system
        bounds = torch.zeros(2, 3, dtype=torch.float64)
        self.plan = module.plan(cell, cell, bounds, len(self.charges), "mesh", accuracy, False)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            energy, _potential, forces, _strain = self.module(self.positions, self.charges, self.plan)
            return energy.sum(), forces


class Compiled:
    """The same sum in the plugin's code."""

    def __init__(self, mesh: Mesh) -> None:
        self.positions, self.charges = mesh.positions, mesh.charges
        self.sum = CompiledMesh(mesh.module, mesh.plan, self.charges.shape[1])

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            energies, forces = self.sum(self.positions, self.charges)
            return energies.sum(), forces


def processor_time(evaluate: Callable) -> float:
    start = time.process_time()
    evaluate()
    return time.process_time() - start


def relative_error(forces: torch.Tensor, reference: torch.Tensor) -> float:
    return float(torch.linalg.norm(forces.double() - reference) / torch.linalg.norm(reference))


def no_worse_mesh(module: torch.jit.ScriptModule, system: tuple, reference: torch.Tensor, error: float):
    """The coarsest mesh of les_md whose measured error is at most ``error``, and its own error."""
    accuracy = min(0.1, 4.0 * error)
    while True:
        mesh = Mesh(module, accuracy, system)
        own = relative_error(mesh()[1], reference)
        if own <= error:
            return mesh, own
        accuracy /= 1.5


def compare(num_atoms: int, dtype: torch.dtype, repeats: int, largest: float) -> None:
    """Print the rows of one system."""
    positions, charges, cell = system(num_atoms)
    charges = charges - charges.mean()
    whole = (positions, charges, cell)
    module = torch.jit.script(LatentEwald(LongRangeParameters()))
    with torch.no_grad():
        energies, _potential, reference, _strain = module(positions, charges, module.direct_plan(cell))
    energy = float(energies.sum())
    least = 2 * math.floor(float(cell[0, 0]) / LongRangeParameters().dl) + 1
    points = 1 << math.ceil(math.log2(least))
    while points**3 <= largest:
        for nodes in (3, 4, 5):
            kept = TorchPME(points, nodes, whole, dtype, keep_filter=True)
            their_energy, forces = kept()
            error = relative_error(forces, reference)
            if error > 0.1:
                continue
            if abs(float(their_energy) - energy) > error * abs(energy):
                sys.exit(f"torch-pme's energy is {their_energy} eV, the direct sum's {energy} eV: not the same sum")
            del forces
            mesh, own = no_worse_mesh(module, whole, reference, error)
            compiled = Compiled(mesh)
            difference = relative_error(compiled()[1], mesh()[1])
            if difference > 1e-10:
                sys.exit(f"the plugin's forces differ from the file's by {difference:.1e}")
            called = TorchPME(points, nodes, whole, dtype, keep_filter=False)
            evaluations = {"called": called, "kept": kept, "mesh": mesh, "compiled": compiled}
            times: dict[str, list[float]] = {name: [] for name in evaluations}
            for turn in range(repeats + 1):
                for name, evaluate in evaluations.items():
                    seconds = processor_time(evaluate)
                    if turn > 0:  # the first one warms up
                        times[name].append(1000.0 * seconds)
            median = {name: statistics.median(values) for name, values in times.items()}
            print(
                f"{num_atoms:7d} {points:5d}³ {nodes:5d} {error:9.1e} {median['called']:11.1f} {median['kept']:9.1f} | "
                f"{own:9.1e} {median['mesh']:9.1f} {median['kept'] / median['mesh']:6.1f} "
                f"{median['compiled']:9.1f} {median['kept'] / median['compiled']:6.1f}  "
                f"{module.describe(mesh.plan)}",
                flush=True,
            )
        points *= 2


def main() -> None:
    parser = argparse.ArgumentParser(description="The long-range sum alone against torch-pme's P3M.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[3000, 30_000])
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="of torch-pme")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--largest-mesh", type=float, default=2.2e6, help="mesh points of torch-pme, at most")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch-pme {torchpme.__version__} in {options.dtype}, {options.threads} threads, processor time in ms, "
        f"medians of {options.repeats} in turn; {date.today()}, load {os.getloadavg()[0]:.0f}"
    )
    print(
        f"{'':7s} {'torch-pme':>12s} {'':9s} {'ms':>11s} {'ms':>9s} | "
        f"{'les_md':>9s} {'file':>9s} {'':6s} {'LAMMPS':>9s}"
    )
    print(
        f"{'atoms':>7s} {'mesh':>6s} {'nodes':>5s} {'error':>9s} {'as called':>11s} {'kept':>9s} | {'error':>9s} ",
        end="",
    )
    print(f"{'ms':>9s} {'ratio':>6s} {'ms':>9s} {'ratio':>6s}")
    for size in options.sizes:
        compare(size, getattr(torch, options.dtype), options.repeats, options.largest_mesh)


if __name__ == "__main__":
    main()
