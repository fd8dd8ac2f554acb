// SPDX-License-Identifier: MIT
// What the sources of LESModel share: the scripted module, the plan and the state of an evaluation, and how a call of
// libtorch that fails becomes a message. Only they include it: it brings libtorch along.

#ifndef LES_MD_LES_MODEL_SCRIPT_H
#define LES_MD_LES_MODEL_SCRIPT_H

#include "compiled_network.h"
#include "les_model.h"
#include "reciprocal_sum.h"

#include "json.h"    // nlohmann's JSON class as LAMMPS ships it

#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <exception>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace les_md {

using torch::Tensor;

struct LESModel::Script {
  std::string path, metadata;    // of the file that was read
  torch::jit::Module module;
  bool called = false;    // since it was loaded
  bool operators = false, has_operators = false;    // of the network: whether they were asked for, and found a place
  torch::Device device{torch::kCPU};
  torch::jit::IValue plan;
  Tensor cell;    // of the plan

  // A part of the graph: own nodes and edges from first to before last; arguments and results of "evaluate"
  struct Block {
    int64_t first_node, last_node, first_edge, last_edge;
    Tensor vectors, edge_index, types, energy, charge;
    torch::jit::IValue state;
  };
  std::vector<Block> blocks;
  Tensor charge;    // of all own nodes, and their other latent variables
  Tensor potential;    // at the own nodes; undefined without a long-range energy
  Tensor weights;    // of the polarisation, of all own nodes
  // Of models with latent variables beyond charges:
  Tensor total_charge;    // with induced ones
  Tensor density, induced_density;    // of all processes
  Tensor field;                       // that the density gives
  torch::jit::IValue induced{c10::List<Tensor>()};    // what "spread_induced" returned for "gather_induced"
  Tensor rows;    // of the polarisation weights that are pulled back, where not all are

  LAMMPS_NS::json compiled_for;    // what networks were compiled for; null if there are none
  std::map<std::string, std::string> packages;
  std::unique_ptr<CompiledNetwork> network;    // where it runs compiled

  torch::jit::IValue call(const char *method, std::vector<torch::jit::IValue> arguments)
  {
    called = true;
    return module.get_method(method)(std::move(arguments));
  }

  static Tensor matrix(const double *data, int64_t rows, const torch::Device &device)
  {
    return torch::from_blob(const_cast<double *>(data), {rows, 3}, torch::kFloat64).clone().to(device);
  }

  Tensor plan_entry(const char *key) { return plan.toGenericDict().at(key).toTensor(); }

  // "spread" and "gather" of the plan, through the compiled operators or as a whole in the file
  bool compiled = false;
  std::unique_ptr<ReciprocalSum> sum;    // of a periodic cell: then "solve" is compiled as well
  double self_potential = 0.0;           // that "gather" takes from the potential of a unit charge
  void make_sum(int64_t channels);
  Tensor spread(const Tensor &positions, const Tensor &charges);
  c10::intrusive_ptr<c10::ivalue::Tuple> gather(const torch::jit::IValue &field, const Tensor &positions,
                                                const Tensor &charges);
};

// What went wrong, without the stack traces around it.
std::string reason(const std::exception &error);

// PyTorch and its scripts say so in words alone.
bool is_out_of_memory(const std::exception &error);

struct NotEnoughMemory : std::bad_alloc {
  const char *what() const noexcept override { return "not enough memory"; }
};

// Runs a part of an evaluation and turns what it throws into a message for the user.
template <class Part> void guarded(Part &&part)
{
  // The number of edges changes every step. The optimiser would specialise the first steps for theirs, which costs
  // seconds for a deep network and gains nothing afterwards.
  const torch::jit::GraphOptimizerEnabledGuard plain(false);
  try {
    part();
  } catch (const std::exception &error) {
    if (is_out_of_memory(error)) throw NotEnoughMemory();
    throw std::runtime_error(reason(error));
  }
}

}    // namespace les_md

#endif
