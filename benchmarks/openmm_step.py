"""Time and memory of an MD step of bulk water in OpenMM: LESForce by each backend, and OpenMM-ML's own ``mace``.

    python benchmarks/openmm_step.py                                        # the bundled water model
    python benchmarks/openmm_step.py --model MACE-LES_water.model --openmm-ml   # the same checkpoint in OpenMM-ML too
    python benchmarks/openmm_step.py --platform CUDA --atoms 192 1536 12288 49152

Every case runs in a process of its own, one after the other, and several times over (``--rounds``), so that noise hits
all alike: the median of ms per step over the rounds, and the peak of resident memory of the whole process (Python,
OpenMM and torch included). "outside" is the part of a step not spent in the exported model: neighbours, conversions and
OpenMM itself (``python`` backend only). Networks run in float32; OpenMM-ML's ``mace`` evaluates a MACE-LES checkpoint
with mace-torch (both must be installed), with the long-range sum as in ``compare_upstream.py``. The ratios at the end
are of the medians of this one run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ase
import ase.io
import openmm
import torch
from openmm import app, unit

from les_md import LESForce, export

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "bulk_water"
CELL_ATOMS = 192  # in the example's box


def water(num_atoms: int) -> ase.Atoms:
    """Liquid water at 0.997 g/cm³: the example's equilibrated box, repeated; 648 atoms from a grid."""
    repeats = round((num_atoms / CELL_ATOMS) ** (1 / 3))
    if CELL_ATOMS * repeats**3 == num_atoms:
        atoms = ase.io.read(EXAMPLE / "water.data", format="lammps-data", atom_style="atomic", sort_by_id=True)
        return atoms.repeat(repeats)
    sys.path.insert(0, str(EXAMPLE))
    from make_box import water_box

    if num_atoms % 3:
        raise ValueError(f"{num_atoms} atoms are no whole number of water molecules")
    return water_box(num_atoms // 3)


def topology_of(atoms: ase.Atoms) -> app.Topology:
    topology = app.Topology()
    chain = topology.addChain()
    for symbol in atoms.get_chemical_symbols():
        topology.addAtom(symbol, app.element.Element.getBySymbol(symbol), topology.addResidue("X", chain))
    topology.setPeriodicBoxVectors(atoms.cell.array / 10.0 * unit.nanometer)
    return topology


def peak_memory() -> float:
    """Largest resident memory of this process in MB; getrusage would also count the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def run_case(backend: str, model: str, num_atoms: int, platform: str, steps: int, warm_up: int) -> dict:
    """Time ``steps`` steps of one case in this process."""
    atoms = water(num_atoms)
    topology = topology_of(atoms)
    outside = None
    if backend == "openmm-ml":
        from compare_upstream import upstream_model
        from openmmml import MLPotential

        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "mace.model"
            torch.save(upstream_model(model), path)
            system = MLPotential("mace", modelPath=str(path)).createSystem(
                topology, returnEnergyType="energy", precision="single", removeCMMotion=False
            )
    else:
        system = openmm.System()
        system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
        for atom in topology.atoms():
            system.addParticle(atom.element.mass)
        force = LESForce(model, topology, backend=backend, system=system)
        system.addForce(force)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.0005)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    context.setPositions(atoms.positions / 10.0)
    if num_atoms % CELL_ATOMS:  # from a grid
        openmm.LocalEnergyMinimizer.minimize(context, 1000.0, 10)
    context.setVelocitiesToTemperature(300.0, 1)
    integrator.step(warm_up)
    in_model = 0.0
    if backend == "python":
        # Time the exported module alone, inside of the same steps.
        exported = force.computation.evaluator.model
        module = exported.module

        class Timed:
            def __call__(self, *arguments):
                nonlocal in_model
                start = time.perf_counter()
                output = module(*arguments)
                if exported.device.type == "cuda":
                    torch.cuda.synchronize()
                in_model += time.perf_counter() - start
                return output

        exported.module = Timed()
    start = time.perf_counter()
    integrator.step(steps)
    context.getState(getEnergy=platform == "CUDA")  # waits for the GPU
    total = time.perf_counter() - start
    if backend == "python":
        outside = 1.0 - in_model / total
    gpu = torch.cuda.max_memory_allocated() / 1e6 if platform == "CUDA" else 0.0
    return {
        "ms": 1000.0 * total / steps,
        "memory": peak_memory(),
        "gpu_memory": gpu,
        "outside": outside,
    }


def measure(arguments: dict, threads: int) -> dict:
    """``run_case`` in a new process; raises RuntimeError with its last words if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENMM_CPU_THREADS": str(threads)}
    command = [sys.executable, __file__, "--case", json.dumps(arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines()
        raise RuntimeError(f"{arguments['backend']}: {lines[-1] if lines else f'exit status {result.returncode}'}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Time and memory of an MD step of bulk water in OpenMM.")
    parser.add_argument("--model", default="water_rpbe_d3", help="checkpoint or bundled model")
    parser.add_argument("--backends", nargs="+", default=["python"], choices=["python", "torchforce"])
    parser.add_argument("--openmm-ml", action="store_true", help="also OpenMM-ML's mace with the same checkpoint")
    parser.add_argument("--atoms", nargs="+", type=int, default=[192, 648, 1536])
    parser.add_argument("--platform", default="CPU")
    parser.add_argument("--steps", type=int, default=20, help="timed steps at 192 atoms; fewer for more atoms")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(**json.loads(options.case))))
        return 0
    backends = [*options.backends, *(["openmm-ml"] if options.openmm_ml else [])]
    print(f"{Path(options.model).stem}, float32, {options.platform}, {options.threads} threads, "
          f"medians of {options.rounds} rounds")  # fmt: skip
    print(f"{'atoms':>7s} {'backend':>12s} {'ms/step':>10s} {'peak MB':>9s} {'GPU MB':>8s} {'outside':>8s}")
    medians: dict[tuple[int, str], dict] = {}
    with tempfile.TemporaryDirectory() as temporary:
        exported = str(export(options.model, Path(temporary) / "model.pt").path)
        for num_atoms in options.atoms:
            steps = max(3, round(options.steps * CELL_ATOMS / num_atoms))
            results: dict[str, list[dict]] = {backend: [] for backend in backends}
            for _ in range(options.rounds):
                for backend in backends:
                    case = {
                        "backend": backend,
                        "model": options.model if backend == "openmm-ml" else exported,
                        "num_atoms": num_atoms,
                        "platform": options.platform,
                        "steps": steps,
                        "warm_up": 3,
                    }
                    results[backend].append(measure(case, options.threads))
            for backend, runs in results.items():
                median = {
                    key: statistics.median(run[key] for run in runs) for key in ("ms", "memory", "gpu_memory")
                }  # fmt: skip
                medians[num_atoms, backend] = median
                outside = (
                    "" if runs[0]["outside"] is None else f"{100 * statistics.median(r['outside'] for r in runs):7.1f}%"
                )
                print(
                    f"{num_atoms:7d} {backend:>12s} {median['ms']:10.1f} {median['memory']:9.0f} "
                    f"{median['gpu_memory']:8.0f} {outside:>8s}",
                    flush=True,
                )
    first = backends[0]
    for num_atoms in options.atoms:
        for backend in backends[1:]:
            ours, other = medians[num_atoms, first], medians[num_atoms, backend]
            print(
                f"{num_atoms} atoms: {backend} / {first}: {other['ms'] / ours['ms']:.2f} in time, "
                f"{other['memory'] / ours['memory']:.2f} in peak memory"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
