"""The long-range sum of the LAMMPS plugin on its own: ``lammps_plugin/periodic_mesh.cpp``, compiled as in the plugin.

``CompiledMesh`` calls it from Python, so that benchmarks can compare the sum that LAMMPS runs without LAMMPS around it.
Compiling takes half a minute, once in a process.
"""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from les_md.lammps import plugin_build

SHIM = r"""
#include "periodic_mesh.h"
#include <torch/library.h>
#include <torch/types.h>
#include <map>
#include <memory>

static std::map<int64_t, std::unique_ptr<les_md::PeriodicMesh>> meshes;

static std::vector<double> numbers(const torch::Tensor &tensor)
{
  const torch::Tensor entry = tensor.contiguous();
  return {entry.const_data_ptr<double>(), entry.const_data_ptr<double>() + entry.numel()};
}

static int64_t make(const torch::Tensor &cell, const torch::Tensor &polynomials, const torch::Tensor &deconvolution,
                    const torch::Tensor &weight, const torch::Tensor &anisotropy, at::IntArrayRef shape,
                    int64_t channels)
{
  const auto handle = static_cast<int64_t>(meshes.size());
  les_md::ReciprocalPlan plan;
  std::copy_n(numbers(cell).begin(), 9, plan.cell.begin());
  plan.limits = {weight.size(0) - 1, (weight.size(1) - 1) / 2, (weight.size(2) - 1) / 2};
  plan.weight = numbers(weight);
  plan.anisotropy = numbers(anisotropy);
  const les_md::MeshPlan mesh{polynomials.size(1) / 2, numbers(polynomials), numbers(deconvolution),
                              {shape[0], shape[1], shape[2]}};
  meshes.emplace(handle, std::make_unique<les_md::PeriodicMesh>(plan, mesh, channels));
  return handle;
}

static std::tuple<torch::Tensor, torch::Tensor> evaluate(int64_t handle, const torch::Tensor &positions,
                                                         const torch::Tensor &charges, double self_potential,
                                                         int64_t threads)
{
  auto &mesh = *meshes.at(handle);
  const auto count = static_cast<int>(threads);
  const torch::Tensor sources = charges.contiguous();
  const double *charge = sources.const_data_ptr<double>();
  std::vector<double> density;
  mesh.spread(positions.size(0), positions.const_data_ptr<double>(), charge, count, density);
  mesh.solve(density, count);
  const torch::Tensor potential = torch::empty_like(sources);
  const torch::Tensor energies = torch::empty({positions.size(0)}, positions.options());
  const torch::Tensor forces = torch::empty_like(positions);
  mesh.gather(charge, self_potential, count, potential.mutable_data_ptr<double>(), energies.mutable_data_ptr<double>(),
              forces.mutable_data_ptr<double>());
  return {energies, forces};
}

TORCH_LIBRARY(les_md_benchmark, library)
{
  library.def("make", make);
  library.def("evaluate", evaluate);
}
"""


@cache
def _operators():
    source_folder = Path(plugin_build.__file__).resolve().parent
    toolchain = plugin_build.find_toolchain()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "shim.cpp").write_text(SHIM)
        names = ("mesh_operators", "periodic_mesh", "reciprocal_sum")
        sources = (folder / "shim.cpp", *(source_folder / f"{name}.cpp" for name in names))
        objects = [folder / f"{source.stem}.o" for source in sources]
        for source, target in zip(sources, objects, strict=True):
            subprocess.run([*toolchain.compile_command(source, target), "-I", str(source_folder)], check=True)
        library = folder / "compiled_mesh.so"
        subprocess.run(toolchain.link_command(objects, library), check=True)
        torch.ops.load_library(library)
    return torch.ops.les_md_benchmark


class CompiledMesh:
    """The sum of a plan (solver 1, no slab) in compiled code.

    Parameters: ``module`` a scripted ``LatentEwald``, ``plan`` of it, ``num_charges`` channels.
    """

    def __init__(self, module: torch.jit.ScriptModule, plan: dict[str, torch.Tensor], num_charges: int) -> None:
        if int(plan["solver"]) != 1 or bool(plan["slab"]):
            raise ValueError(f"not a plan of a periodic mesh: {module.describe(plan)}")
        entries = ("cell", "polynomials", "deconvolution", "weight", "anisotropy")
        self.handle = _operators().make(*(plan[entry] for entry in entries), plan["shape"].tolist(), num_charges)
        ones = torch.ones(1, num_charges, dtype=torch.float64)
        field = torch.zeros(2 * num_charges * plan["weight"].numel(), dtype=torch.float64)
        potential, _forces, _strain = module.gather(field, torch.zeros(1, 3, dtype=torch.float64), ones, plan)
        self.self_potential = -float(potential[0, 0])

    def __call__(self, positions: torch.Tensor, charges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies [N] eV and forces [N, 3] eV/Å at fixed charges, with as many threads as torch has."""
        return _operators().evaluate(self.handle, positions, charges, self.self_potential, torch.get_num_threads())
