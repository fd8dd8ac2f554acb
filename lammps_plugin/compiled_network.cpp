// SPDX-License-Identifier: MIT

#include "compiled_network.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace les_md {

using torch::Tensor;
using torch::jit::IValue;

// Atoms and neighbours that a table has at least: compilers take dimensions of one for constants.
static constexpr int64_t smallest = 2;

// Tensors of the state before and of each block: CompiledEvaluation in Python has the same.
static constexpr size_t first_kept = 4, kept_of_block = 6;

namespace {

// A folder of this process alone, and gone with this object.
class TemporaryFolder {
 public:
  TemporaryFolder()
  {
    std::string name = (std::filesystem::temp_directory_path() / "les_md_XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("cannot make a temporary folder for the compiled network");
    path = name;
  }
  TemporaryFolder(const TemporaryFolder &) = delete;
  ~TemporaryFolder()
  {
    std::error_code ignored;    // what is left of it costs disk space only
    std::filesystem::remove_all(path, ignored);
  }

  std::filesystem::path path;
};

std::unique_ptr<torch::inductor::AOTIModelPackageLoader> load(const std::string &package)
{
  const TemporaryFolder folder;
  const auto path = folder.path / "network.pt2";
  std::ofstream file(path, std::ios::binary);
  file.write(package.data(), static_cast<std::streamsize>(package.size()));
  file.close();
  if (!file) throw std::runtime_error("cannot write the compiled network to " + path.string());
  return std::make_unique<torch::inductor::AOTIModelPackageLoader>(path.string());
}

// [..., N] with at least `smallest` atoms, those added being zero
Tensor padded(const Tensor &of_atoms)
{
  const int64_t missing = smallest - of_atoms.size(-1);
  return missing <= 0 ? of_atoms.contiguous() : torch::constant_pad_nd(of_atoms, {0, missing});
}

}    // namespace

const std::map<std::string, std::string> &CompiledNetwork::package_names()
{
  static const std::map<std::string, std::string> names{{"values", "les_md_values.pt2"},
                                                        {"derivative", "les_md_derivative.pt2"}};
  return names;
}

CompiledNetwork::CompiledNetwork(const torch::jit::Module &module, const std::map<std::string, std::string> &packages) :
    plain_(module.attr("evaluation").toModule()), scales_(plain_.attr("scales").toTensor()),
    reference_energies_(module.attr("reference_energies").toTensor()), sign_(module.attr("charge_sign").toDouble()),
    num_charges_(plain_.attr("num_charges").toInt()), num_hidden_(plain_.attr("num_hidden").toInt()),
    values_(load(packages.at("values"))), derivative_(load(packages.at("derivative")))
{
  TORCH_CHECK(module.attr("is_local").toBool(), "a compiled network of a model with message passing");
}

IValue CompiledNetwork::call(const char *method, std::vector<IValue> arguments)
{
  return plain_.get_method(method)(std::move(arguments));
}

IValue CompiledNetwork::evaluate(const Tensor &vectors, const Tensor &edge_index, const Tensor &types)
{
  const torch::NoGradGuard no_tape;
  const auto arranged = call("arrange", {vectors, edge_index, types}).toTuple();
  const auto tensors = arranged->elements()[0].toTensorVector();
  const auto starts = arranged->elements()[1].toIntVector();
  const Tensor &order = tensors.at(0), &centre = tensors.at(1), &neighbour_types = tensors.at(3);
  const Tensor &edges = tensors.at(4), &counts = tensors.at(5), &slots = tensors.at(6);
  const int64_t nodes = types.size(0), atoms = counts.size(0);
  c10::List<Tensor> state{order};
  const auto result = [&](const Tensor &energy, const Tensor &charge) {
    return IValue(c10::ivalue::Tuple::create(
        energy.to(torch::kFloat64) + reference_energies_.index_select(0, types), sign_ * charge.to(torch::kFloat64), state));
  };
  if (atoms == 0) return result(edges.new_zeros({0}), edges.new_zeros({0, num_charges_}));

  const Tensor of_vectors = edges.narrow(1, 0, 3);
  const Tensor x = of_vectors.select(1, 0), y = of_vectors.select(1, 1), z = of_vectors.select(1, 2);
  const Tensor distance = torch::sqrt(x * x + y * y + z * z);
  const auto close = call("close_pairs", {distance, centre, types.narrow(0, 0, atoms), neighbour_types}).toTuple();
  const Tensor pairs = close->elements()[1].toTensor();
  const Tensor slope = close->elements()[2].toTensor() / distance.index_select(0, pairs);
  for (const Tensor &each :
       {pairs, slope.unsqueeze(1) * of_vectors.index_select(0, pairs), close->elements()[3].toTensor()})
    state.push_back(each);

  const int64_t size = call("size_of_blocks", {counts}).toInt();
  std::vector<Tensor> outputs;
  for (size_t block = 0; block + 1 < starts.size(); ++block) {
    const int64_t first = static_cast<int64_t>(block) * size, own = std::min(size, atoms - first);
    const int64_t start = starts[block], count = starts[block + 1] - start;
    const int64_t width = std::max(counts.narrow(0, first, own).max().item<int64_t>(), smallest);
    const Tensor rows = (centre.narrow(0, start, count) - first) * width + slots.narrow(0, start, count);
    const Tensor table =
        call("table", {edges.narrow(0, start, count), rows, std::max(own, smallest), width}).toTensor();
    const Tensor scales = padded(scales_.index_select(2, types.narrow(0, first, own)));
    const auto kept = values_->run({table, scales});
    outputs.push_back(kept.at(0).narrow(1, 0, own));
    for (const Tensor &each : {rows, table, scales}) state.push_back(each);
    for (size_t k = 1; k < kept.size(); ++k) state.push_back(kept[k]);
  }
  Tensor values = torch::cat(outputs, 1);
  values.select(0, 0).add_(close->elements()[0].toTensor());
  if (nodes > atoms) values = torch::cat({values, values.narrow(1, atoms - 1, 1).expand({-1, nodes - atoms})}, 1);
  return result(values.select(0, 0), values.narrow(0, 1, num_charges_).t());
}

Tensor CompiledNetwork::pull_back_one(const std::vector<Tensor> &state, const Tensor &cotangent)
{
  if (state.size() == 1) return cotangent.new_zeros({0, 3});
  const Tensor &order = state.at(0), &pairs = state.at(1), &along = state.at(2), &pair_centre = state.at(3);
  const size_t per_block = kept_of_block + static_cast<size_t>(num_hidden_);
  std::vector<Tensor> parts;
  int64_t first = 0;
  for (size_t start = first_kept; start < state.size(); start += per_block) {
    const Tensor &rows = state.at(start), &table = state.at(start + 1), &scales = state.at(start + 2);
    const int64_t size = std::min(table.size(0), cotangent.size(1) - first);
    std::vector<Tensor> arguments{table, scales, padded(cotangent.narrow(1, first, size))};
    for (size_t k = start + 3; k < start + per_block; ++k) arguments.push_back(state.at(k));
    parts.push_back(derivative_->run(arguments).at(0).transpose(1, 2).reshape({-1, 3}).index_select(0, rows));
    first += table.size(0);
  }
  const Tensor gradient = torch::cat(parts);
  gradient.index_add_(0, pairs, along * cotangent.select(0, 0).index_select(0, pair_centre).unsqueeze(1));
  return order.size(0) == 0 ? gradient : torch::zeros_like(gradient).index_copy_(0, order, gradient);
}

Tensor CompiledNetwork::pull_back(const Tensor &types, const IValue &state, const Tensor &energy_cotangent,
                                  const Tensor &charge_cotangent)
{
  const torch::NoGradGuard no_tape;
  TORCH_CHECK(energy_cotangent.size(0) == types.size(0), "one cotangent for each node");
  const Tensor cotangent = torch::cat({energy_cotangent.unsqueeze(0), sign_ * charge_cotangent.t()});
  return pull_back_one(state.toTensorVector(), cotangent.to(scales_.scalar_type())).to(torch::kFloat64);
}

std::pair<Tensor, Tensor> CompiledNetwork::pull_back_response(const Tensor &edge_index, const Tensor &types,
                                                              const IValue &state, const Tensor &energy_cotangent,
                                                              const Tensor &charge_cotangent, const Tensor &weights)
{
  const torch::NoGradGuard no_tape;
  const Tensor mine = (weights != 0.0).any(0).to(torch::kFloat64).unsqueeze(1).expand_as(charge_cotangent);
  const Tensor of_sum = pull_back(types, state, torch::zeros_like(energy_cotangent), mine);
  return {pull_back(types, state, energy_cotangent, charge_cotangent),
          weights.index_select(1, edge_index[0]).unsqueeze(2) * of_sum};
}

}    // namespace les_md
