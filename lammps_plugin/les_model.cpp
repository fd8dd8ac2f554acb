// SPDX-License-Identifier: MIT

#include "les_model.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/cuda.h>
#include <torch/script.h>

#include "json.h"    // nlohmann's JSON class as LAMMPS ships it

#include <algorithm>
#include <cctype>
#include <chrono>
#include <fstream>
#include <stdexcept>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace les_md {

using LAMMPS_NS::json;
using torch::Tensor;

static constexpr int supported_format = 1;
static constexpr const char *metadata_name = "les_md.json";

struct LESModel::Script {
  torch::jit::Module module;
  torch::Device device{torch::kCPU};

  torch::jit::IValue call(const char *method, std::vector<torch::jit::IValue> arguments)
  {
    return module.get_method(method)(std::move(arguments));
  }
};

namespace {

class Clock {
 public:
  explicit Clock(const torch::Device &device) : device_(device) { last_ = now(); }

  double lap()
  {
    const double before = last_;
    last_ = now();
    return last_ - before;
  }

 private:
  double now() const
  {
    if (device_.is_cuda()) torch::cuda::synchronize(device_.index());
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  torch::Device device_;
  double last_;
};

torch::Device parse_device(const std::string &name)
{
  if (name == "cpu") return torch::kCPU;
  if (name == "auto") return torch::cuda::is_available() ? torch::kCUDA : torch::kCPU;
  torch::Device device(torch::kCPU);
  try {
    device = torch::Device(name);
  } catch (const std::exception &) {
    throw std::runtime_error("unknown device '" + name + "': give cpu, cuda, cuda:N or auto");
  }
  if (!device.is_cuda()) throw std::runtime_error("unknown device '" + name + "': give cpu, cuda, cuda:N or auto");
  if (!torch::cuda::is_available())
    throw std::runtime_error("device '" + name + "' is not available: this libtorch sees no CUDA device");
  if (device.has_index() && device.index() >= static_cast<int>(torch::cuda::device_count()))
    throw std::runtime_error("device '" + name + "' does not exist: there are " +
                             std::to_string(torch::cuda::device_count()) + " CUDA devices");
  return device;
}

// c10 errors end in a C++ stack trace, script errors begin with a Python one: keep what says what went wrong
std::string reason(const std::exception &error)
{
  const auto *torch_error = dynamic_cast<const c10::Error *>(&error);
  std::string text = torch_error ? torch_error->what_without_backtrace() : error.what();
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  if (text.rfind("The following operation failed", 0) == 0) text.erase(0, text.rfind('\n') + 1);
  return text;
}

std::string first_bytes(const std::string &path, size_t count)
{
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open model file '" + path + "'");
  std::string bytes(count, '\0');
  file.read(&bytes[0], static_cast<std::streamsize>(count));
  bytes.resize(static_cast<size_t>(file.gcount()));
  return bytes;
}

// Tensors over the engine's own memory: read only, and only while the caller's vectors live.
Tensor view(const std::vector<double> &data, std::vector<int64_t> shape)
{
  return torch::from_blob(const_cast<double *>(data.data()), shape, torch::kFloat64);
}

Tensor view(const std::vector<int64_t> &data)
{
  return torch::from_blob(const_cast<int64_t *>(data.data()), {static_cast<int64_t>(data.size())}, torch::kInt64);
}

void copy_out(const Tensor &tensor, std::vector<double> &out)
{
  const Tensor host = tensor.detach().to(torch::kCPU, torch::kFloat64).contiguous();
  const double *data = host.const_data_ptr<double>();
  out.assign(data, data + host.numel());
}

// Large blocks go back to the system at every free by default and are mapped and zeroed again in the next step.
void keep_freed_memory()
{
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

}    // namespace

LESModel::~LESModel() = default;

LESModel::LESModel(const std::string &path, const std::string &device) : script_(std::make_unique<Script>())
{
  const std::string magic = first_bytes(path, 4);
  if (magic != std::string("PK\x03\x04", 4))
    throw std::runtime_error("'" + path + "' is not a TorchScript file: give a file written by les-export");

  script_->device = parse_device(device);
  torch::jit::ExtraFilesMap extra{{metadata_name, ""}};
  try {
    script_->module = torch::jit::load(path, torch::kCPU, extra);
  } catch (const std::exception &error) {
    throw std::runtime_error("'" + path + "' cannot be read: it is damaged or truncated, is no TorchScript file, or " +
                             "was written by a newer PyTorch (" + reason(error) + ")");
  }
  if (extra[metadata_name].empty())
    throw std::runtime_error("'" + path + "' is a TorchScript file but not one of les_md (it holds no " +
                             metadata_name + "): give a file written by les-export");

  try {
    const json metadata = json::parse(extra[metadata_name]);
    const int format = metadata.at("format_version").get<int>();
    if (format > supported_format)
      throw std::runtime_error("'" + path + "' has format version " + std::to_string(format) +
                               ", this les_md reads up to " + std::to_string(supported_format) +
                               ": update les_md or export the model with this version");
    info_.architecture = metadata.at("architecture").get<std::string>();
    info_.dtype = metadata.at("dtype").get<std::string>();
    info_.elements = metadata.at("elements").get<std::vector<std::string>>();
    info_.cutoff = metadata.at("cutoff").get<double>();
    info_.n_q = metadata.at("n_q").get<int>();
    info_.long_range = !metadata.at("long_range").is_null();
  } catch (const json::exception &error) {
    throw std::runtime_error("'" + path + "' holds damaged metadata in " + metadata_name + ": " + error.what());
  }

  std::vector<std::string> methods{"short_range"};
  if (info_.long_range) methods.insert(methods.end(), {"spread", "solve", "gather"});
  for (const auto &method : methods)
    if (!script_->module.find_method(method))
      throw std::runtime_error("'" + path + "' is damaged: the model has no method " + method);

  script_->module.eval();
  for (auto parameter : script_->module.parameters()) parameter.requires_grad_(false);
  script_->module.to(script_->device);
  keep_freed_memory();
}

std::string LESModel::device() const
{
  return script_->device.str();
}

void LESModel::move_to(const std::string &device)
{
  script_->device = parse_device(device);
  script_->module.to(script_->device);
}

void LESModel::set_threads(int threads)
{
  at::set_num_threads(threads);
}

void LESModel::evaluate(const Graph &graph, Evaluation &out)
{
  // The number of edges changes every step. The optimiser would specialise the first steps for theirs, which costs
  // seconds for a deep network and gains nothing afterwards.
  torch::jit::GraphOptimizerEnabledGuard plain(false);
  try {
    run(graph, out);
  } catch (const std::exception &error) {
    throw std::runtime_error(reason(error));
  }
}

void LESModel::run(const Graph &graph, Evaluation &out)
{
  const auto device = script_->device;
  const auto nodes = static_cast<int64_t>(graph.types.size());
  const auto edges = static_cast<int64_t>(graph.centre.size());
  Clock clock(device);

  const Tensor edge_index = torch::stack({view(graph.centre), view(graph.neighbour)}).to(device);
  const Tensor types = view(graph.types).to(device);
  Tensor vectors = view(graph.vectors, {edges, 3}).to(device).requires_grad_(true);

  const auto network = script_->call("short_range", {vectors, edge_index, types}).toTuple();
  const Tensor energy = network->elements()[0].toTensor();
  const Tensor charge = network->elements()[1].toTensor();
  times.forward += clock.lap();

  Tensor potential;
  out.long_range_energy.assign(nodes, 0.0);
  out.long_range_force.assign(3 * nodes, 0.0);
  out.long_range_strain.fill(0.0);
  if (info_.long_range) {
    torch::NoGradGuard no_tape;    // the solver's derivatives are analytic
    const Tensor q = charge.detach();
    const Tensor positions = view(graph.positions, {nodes, 3}).to(device);
    const Tensor cell =
        torch::from_blob(const_cast<double *>(graph.cell.data()), {3, 3}, torch::kFloat64).to(device);

    // densities of disjoint sets of atoms add up: with several ranks they are summed here, before solve
    const Tensor density = script_->call("spread", {positions, q, cell}).toTensor();
    const auto solved = script_->call("solve", {density, cell}).toTuple();
    const auto gathered = script_->call("gather", {solved->elements()[1], positions, q, cell}).toTuple();
    potential = gathered->elements()[0].toTensor();

    std::vector<double> strain;
    copy_out(solved->elements()[2].toTensor(), strain);
    std::copy(strain.begin(), strain.end(), out.long_range_strain.begin());
    copy_out((q * potential).sum(1) * 0.5, out.long_range_energy);
    copy_out(gathered->elements()[1].toTensor(), out.long_range_force);
  }
  times.electrostatics += clock.lap();

  // dE/d(edge vector) of the whole energy: cotangent 1 for the node energies, the potential for the charges
  std::vector<Tensor> outputs{energy}, cotangents{torch::ones_like(energy)};
  if (potential.defined() && charge.requires_grad()) {
    outputs.push_back(charge);
    cotangents.push_back(potential);
  }
  Tensor gradient;
  if (edges > 0 && energy.requires_grad())
    gradient = torch::autograd::grad(outputs, {vectors}, cotangents, c10::nullopt, false, true)[0];
  if (!gradient.defined()) gradient = torch::zeros_like(vectors);

  copy_out(gradient, out.edge_gradient);
  copy_out(energy, out.short_range_energy);
  copy_out(charge, out.charge);
  times.backward += clock.lap();
}

}    // namespace les_md
