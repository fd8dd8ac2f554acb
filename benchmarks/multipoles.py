"""The long-range sum alone with latent dipoles and quadrupoles, and what they induce: time against that of charges.

    python benchmarks/multipoles.py [--sizes 192 1536 12288] [--isolated 192 1536]

Random sources in a cubic box of water's density, as ``auto`` sums them, and in open space over all pairs. Potential,
forces and strain derivative by the module that exported files hold; processor time of the fastest of ``--repeats``
evaluations on one thread.
"""

import argparse
import time

import numpy as np
import torch

from les_md.electrostatics import LatentEwald, LongRangeParameters
from les_md.electrostatics.latent_layout import LatentLayout
from les_md.electrostatics.multipole_ewald import MultipoleEwald

DENSITY = 0.1003  # atoms per Å³ in liquid water
LAYOUTS = {
    "charges": LatentLayout(1),
    "and dipoles": LatentLayout(1, dipoles=True),
    "and quadrupoles": LatentLayout(1, dipoles=True, quadrupoles=True),
    "and induced": LatentLayout(1, dipoles=True, quadrupoles=True, kappas=True, alphas=True),
}


def milliseconds(module, positions, latent, plan, repeats: int) -> float:
    times = []
    with torch.no_grad(), torch.jit.optimized_execution(False):
        module(positions, latent, plan)
        for _ in range(repeats):
            start = time.process_time()
            module(positions, latent, plan)
            times.append(time.process_time() - start)
    return 1000.0 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of the long-range sum with latent variables beyond charges.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 1536, 12288])
    parser.add_argument("--isolated", type=int, nargs="+", default=[192, 1536])
    parser.add_argument("--accuracy", type=float, default=1e-5)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parameters, generator = LongRangeParameters(), np.random.default_rng(0)
    print(f"accuracy {options.accuracy:g}, one thread, fastest of {options.repeats}")
    for size, periodic in [(n, True) for n in options.sizes] + [(n, False) for n in options.isolated]:
        edge = (size / DENSITY) ** (1.0 / 3.0)
        positions = torch.tensor(generator.uniform(0.0, edge, (size, 3)))
        cell = torch.eye(3, dtype=torch.float64) * (edge if periodic else 0.0)
        for name, layout in LAYOUTS.items():
            plain = layout.num_columns == layout.num_charges
            module = torch.jit.script(LatentEwald(parameters) if plain else MultipoleEwald(parameters, layout))
            latent = torch.tensor(generator.normal(size=(size, layout.num_columns)))
            if layout.quadrupoles:
                latent[:, 4:7] -= latent[:, 4:7].mean(1, keepdim=True)
            latent[:, layout.num_sources :] = 0.01
            bounds = torch.stack([positions.amin(0), positions.amax(0)])
            kspace = "auto" if periodic else "ewald"
            plan = module.plan(cell, cell, bounds, size, kspace, options.accuracy, False)
            spent = milliseconds(module, positions, latent, plan, options.repeats)
            print(f"{size:7d} {name:16s} {spent:9.1f} ms  {module.describe(plan)}", flush=True)


if __name__ == "__main__":
    main()
