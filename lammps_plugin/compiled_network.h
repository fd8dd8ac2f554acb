// SPDX-License-Identifier: MIT
// The network of an exported model as les-export --compile compiled it: les_md/compiled_evaluation.py in C++.

#ifndef LES_MD_COMPILED_NETWORK_H
#define LES_MD_COMPILED_NETWORK_H

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <map>
#include <string>
#include <vector>

namespace les_md {

// What takes the place of the methods of the same names of the exported module, on the CPU. Only for models whose
// energies and charges depend on the edges of their own atom alone.
class CompiledNetwork {
 public:
  using Tensor = torch::Tensor;

  // Packages by function, and their entries in the archive.
  static const std::map<std::string, std::string> &package_names();

  // Loads native code of the packages.
  CompiledNetwork(const torch::jit::Module &module, const std::map<std::string, std::string> &packages);

  // Energy, charge and state, like the module's.
  torch::jit::IValue evaluate(const Tensor &vectors, const Tensor &edge_index, const Tensor &types);
  Tensor pull_back(const Tensor &types, const torch::jit::IValue &state, const Tensor &energy_cotangent,
                   const Tensor &charge_cotangent);
  // Gradient and response.
  std::pair<Tensor, Tensor> pull_back_response(const Tensor &edge_index, const Tensor &types,
                                               const torch::jit::IValue &state, const Tensor &energy_cotangent,
                                               const Tensor &charge_cotangent, const Tensor &weights);

 private:
  using Function = std::unique_ptr<torch::inductor::AOTIModelPackageLoader>;

  torch::jit::IValue call(const char *method, std::vector<torch::jit::IValue> arguments);
  Tensor pull_back_one(const std::vector<Tensor> &state, const Tensor &cotangent);

  torch::jit::Module plain_;
  Tensor scales_, reference_energies_;
  double sign_;
  int64_t num_charges_, num_hidden_;
  Function values_, derivative_;
};

}    // namespace les_md

#endif
