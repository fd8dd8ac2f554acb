// SPDX-License-Identifier: MIT
// An exported file: reading it, where it runs, and the plan of its long-range sum.

#include "les_model.h"

#include "direct_sum.h"
#include "les_model_script.h"
#include "mesh_operators.h"
#include "network_operators.h"
#include "periodic_mesh.h"

#include "json.h"    // nlohmann's JSON class as LAMMPS ships it

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/cuda.h>
#include <torch/version.h>

#include <algorithm>
#include <cctype>
#include <fstream>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace les_md {

using LAMMPS_NS::json;

static constexpr int oldest_format = 3, newest_format = 5;
static constexpr const char *metadata_name = "les_md.json";

// What compiled networks must be for: les_md/compiled_packages.py.
static constexpr int compiled_interface = 1;
static constexpr const char *compiled_processor = "x86-64-v3";

namespace {

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

std::string first_bytes(const std::string &path, size_t count)
{
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open model file '" + path + "'");
  std::string bytes(count, '\0');
  file.read(&bytes[0], static_cast<std::streamsize>(count));
  bytes.resize(static_cast<size_t>(file.gcount()));
  return bytes;
}

// As les_md/electrostatics/latent_layout.py counts them; files without this entry have charges alone.
void read_latent(const json &metadata, ModelInfo &info)
{
  info.num_columns = info.n_q;
  if (!metadata.contains("latent")) return;
  const auto &latent = metadata.at("latent");
  const std::pair<const char *, int> kinds[] = {{"dipoles", 3}, {"quadrupoles", 6}, {"kappas", 1}, {"alphas", 1}};
  for (const auto &kind : kinds) {
    if (!latent.at(kind.first).get<bool>()) continue;
    info.num_columns += kind.second * info.n_q;
    info.multipoles = true;
    if (kind.second == 1) info.responds = true;
    info.latent += std::string(", latent ") + kind.first;
  }
  for (const auto &entry : latent.items())
    if (entry.key() != "num_charges" &&
        std::none_of(std::begin(kinds), std::end(kinds), [&](const auto &kind) { return entry.key() == kind.first; }))
      throw std::runtime_error("the model has latent variables that this les_md does not know (" + entry.key() +
                               "): update les_md");
}

void prepare(torch::jit::Module &module, const torch::Device &device)
{
  module.eval();
  for (auto parameter : module.parameters()) parameter.requires_grad_(false);
  module.to(device);
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

// c10 errors end in a C++ stack trace, script errors begin with a Python one: keep what says what went wrong
std::string reason(const std::exception &error)
{
  const auto *torch_error = dynamic_cast<const c10::Error *>(&error);
  std::string text = torch_error ? torch_error->what_without_backtrace() : error.what();
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  if (text.rfind("The following operation failed", 0) == 0) text.erase(0, text.rfind('\n') + 1);
  for (const std::string prefix : {"builtins.RuntimeError: ", "RuntimeError: "})    // raised by the script itself
    if (text.rfind(prefix, 0) == 0) text.erase(0, prefix.size());
  return text;
}

bool is_out_of_memory(const std::exception &error)
{
  if (dynamic_cast<const std::bad_alloc *>(&error)) return true;
  const std::string text = error.what();    // of the CPU's allocator, and of CUDA's
  return text.find("can't allocate memory") != std::string::npos || text.find("out of memory") != std::string::npos ||
      text.find("std::bad_alloc") != std::string::npos;
}

LESModel::~LESModel() = default;

LESModel::LESModel(const std::string &path, const std::string &device) : script_(std::make_unique<Script>())
{
  const std::string magic = first_bytes(path, 4);
  if (magic != std::string("PK\x03\x04", 4))
    throw std::runtime_error("'" + path + "' is not a TorchScript file: give a file written by les-export");

  script_->device = parse_device(device);
  script_->path = path;
  torch::jit::ExtraFilesMap extra{{metadata_name, ""}};
  for (const auto &package : CompiledNetwork::package_names()) extra[package.second] = "";
  try {
    script_->module = torch::jit::load(path, torch::kCPU, extra);
  } catch (const std::exception &error) {
    // what torch.save writes has none of a script's constants
    if (std::string(error.what()).find("constants.pkl: file not found") != std::string::npos)
      throw std::runtime_error("'" + path + "' is not an exported model, but looks like a checkpoint: give the file that " +
                               "les-export " + path + " writes");
    throw std::runtime_error("'" + path + "' cannot be read: it is damaged or truncated, is no TorchScript file, or " +
                             "was written by a newer PyTorch (" + reason(error) + ")");
  }
  if (extra[metadata_name].empty())
    throw std::runtime_error("'" + path + "' is a TorchScript file but not one of les_md (it holds no " +
                             metadata_name + "): give a file written by les-export");

  script_->metadata = extra[metadata_name];
  try {
    const json metadata = json::parse(script_->metadata);
    const int format = metadata.at("format_version").get<int>();
    if (format < oldest_format || format > newest_format)
      throw std::runtime_error("'" + path + "' has format version " + std::to_string(format) +
                               ", this les_md reads versions " + std::to_string(oldest_format) + " to " +
                               std::to_string(newest_format) + ": " +
                               (format > newest_format ? "update les_md or " : "") +
                               "export the model with this version");
    info_.architecture = metadata.at("architecture").get<std::string>();
    info_.dtype = metadata.at("dtype").get<std::string>();
    info_.elements = metadata.at("elements").get<std::vector<std::string>>();
    info_.cutoff = metadata.at("cutoff").get<double>();
    info_.num_layers = metadata.at("num_layers").get<int>();
    info_.n_q = metadata.at("n_q").get<int>();
    info_.long_range = !metadata.at("long_range").is_null();
    read_latent(metadata, info_);
    info_.response = info_.long_range && format >= 4;
    if (metadata.contains("compiled")) script_->compiled_for = metadata.at("compiled");
  } catch (const json::exception &error) {
    throw std::runtime_error("'" + path + "' holds damaged metadata in " + metadata_name + ": " + error.what());
  }

  for (const auto &package : CompiledNetwork::package_names())
    script_->packages[package.first] = std::move(extra[package.second]);

  std::vector<std::string> methods{"evaluate", "pull_back"};
  if (info_.long_range) methods.insert(methods.end(), {"plan", "describe", "spread", "solve", "gather"});
  if (info_.response)
    methods.insert(methods.end(), {"polarisation_weights", "polarisation_sums", "pull_back_response",
                                   "born_effective_charges_of", "field_terms", "field_rows", "field_forces"});
  if (info_.multipoles)
    methods.insert(methods.end(), {"long_range_energies", "total_charges", "total_dipoles", "spread_induced",
                                   "solve_induced", "gather_induced", "centred_weights", "field_weights",
                                   "spread_response", "gather_response", "field_terms_of"});
  for (const auto &method : methods)
    if (!script_->module.find_method(method))
      throw std::runtime_error("'" + path + "' is damaged: the model has no method " + method);

  const char *const parts[] = {"mesh_coordinates", "density_of_mesh", "mesh_of_field", "gather_from_values"};
  info_.mesh_parts = info_.long_range && !info_.multipoles &&
      std::all_of(std::begin(parts), std::end(parts),
                  [&](const char *part) { return script_->module.find_method(part).has_value(); });

  prepare(script_->module, script_->device);
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
  planned_ = false;
}

void LESModel::use_operators(bool compiled)
{
  operators_wanted_ = compiled;
  planned_ = false;
  const bool of_network = compiled && script_->device.is_cpu();
  if (of_network == script_->operators) return;
  guarded([&] {
    // A function that was called is part of its callers by now.
    if (script_->called || script_->has_operators) {
      torch::jit::ExtraFilesMap extra{{metadata_name, ""}};
      script_->module = torch::jit::load(script_->path, torch::kCPU, extra);
      TORCH_CHECK(extra[metadata_name] == script_->metadata, "'", script_->path,
                  "' has changed since it was read: give pair_coeff again");
      prepare(script_->module, script_->device);
      script_->called = false;
    }
    script_->operators = of_network;
    script_->has_operators = of_network && use_network_operators(script_->module) > 0;
  });
}

bool LESModel::has_network_operators() const
{
  return script_->has_operators;
}

bool LESModel::is_compiled() const
{
  return script_->network != nullptr;
}

std::string LESModel::use_compiled(bool compiled)
{
  if (!compiled) {
    script_->network.reset();
    return "";
  }
  if (script_->network && script_->device.is_cpu()) return "";
  script_->network.reset();
  const auto &target = script_->compiled_for;
  if (!target.is_object()) return "no network was compiled into the file (les-export --compile)";
  if (!script_->device.is_cpu()) return "it was compiled for the device cpu, not " + device();
  const std::pair<const char *, json> here[] = {{"interface", compiled_interface},
                                                {"torch", TORCH_VERSION},
                                                {"system", "Linux"},
                                                {"device", "cpu"},
                                                {"processor", compiled_processor}};
  for (const auto &[key, value] : here)
    if (!target.contains(key) || target.at(key) != value)
      return std::string("it was compiled for ") + key + " " + (target.contains(key) ? target.at(key).dump() : "unknown") +
          ", this is " + value.dump();
  const std::string capability = at::get_cpu_capability();
  if (capability != "AVX2" && capability != "AVX512") return "it was compiled for AVX2, this processor has none";
  for (const auto &package : script_->packages)
    if (package.second.empty())
      throw std::runtime_error("the model file is damaged: its metadata speak of a compiled network that it lacks");
  guarded([&] { script_->network = std::make_unique<CompiledNetwork>(script_->module, script_->packages); });
  return "";
}

void LESModel::set_threads(int threads)
{
  at::set_num_threads(threads);
}

void LESModel::plan(const PlanRequest &request)
{
  if (!info_.long_range || (planned_ && request == request_)) return;
  guarded([&] {
    const torch::NoGradGuard no_tape;
    const auto device = script_->device;
    const Tensor cell = Script::matrix(request.cell.data(), 3, device);
    script_->plan = script_->call("plan", {cell, Script::matrix(request.kset_cell.data(), 3, device),
                                           Script::matrix(request.bounds.data(), 2, device), request.atoms,
                                           request.kspace, request.accuracy, request.slab});
    script_->cell = cell;
    const auto solver = script_->plan_entry("solver").item<int64_t>();
    density_is_list_ = solver == 2;
    const bool possible = operators_wanted_ && !info_.multipoles && device.is_cpu();
    script_->compiled = possible && info_.mesh_parts && (solver == 1 || solver == 3) &&
        script_->plan_entry("polynomials").size(1) <= 2 * MeshWindow::most_points;
    script_->sum.reset();
    if (!request.slab && ((possible && solver == 0) || (script_->compiled && solver == 1)))
      script_->make_sum(info_.n_q);
  });
  request_ = request;
  planned_ = true;
}

std::string LESModel::describe_plan()
{
  if (!info_.long_range) return "short range only";
  std::string text;
  guarded([&] { text = script_->call("describe", {script_->plan}).toStringRef(); });
  if (script_->compiled || script_->sum) text += ", compiled operators";
  return text;
}

int LESModel::response_passes(const ResponseRequest &request)
{
  if (!request.any() || (isolated() && !request.born)) return 0;
  if (info_.num_layers == 1 && !info_.multipoles) return 1;
  if (request.born) return isolated() ? 3 : info_.multipoles ? 9 : 6;
  int passes = 0;
  guarded([&] {
    const Tensor field = Script::matrix(request.electric_field.data(), 1, script_->device)[0];
    passes = script_->call("field_rows", {script_->cell, field}).toTensor().sum().item<int>();
  });
  return passes;
}

static MeshWindow window_of(const Tensor &polynomials)
{
  return {polynomials.const_data_ptr<double>(), polynomials.size(0) - 1, polynomials.size(1) / 2};
}

void LESModel::Script::make_sum(int64_t channels)
{
  const auto numbers = [this](const char *key) {
    const Tensor entry = plan_entry(key).contiguous();
    return std::vector<double>(entry.const_data_ptr<double>(), entry.const_data_ptr<double>() + entry.numel());
  };
  const auto waves = plan_entry("weight").sizes();
  ReciprocalPlan common;
  const auto cell = numbers("cell");
  std::copy_n(cell.begin(), 9, common.cell.begin());
  common.limits = {waves.at(0) - 1, (waves.at(1) - 1) / 2, (waves.at(2) - 1) / 2};
  common.weight = numbers("weight");
  common.anisotropy = numbers("anisotropy");
  if (plan_entry("solver").item<int64_t>() == 0) {
    sum = std::make_unique<DirectSum>(common, channels);
  } else {
    const Tensor shape = plan_entry("shape").contiguous();
    MeshPlan mesh{plan_entry("polynomials").size(1) / 2, numbers("polynomials"), numbers("deconvolution"), {}};
    std::copy_n(shape.const_data_ptr<int64_t>(), 3, mesh.shape.begin());
    sum = std::make_unique<PeriodicMesh>(common, mesh, channels);
  }
  // What the file makes of a unit charge where there is no field
  const auto real = torch::TensorOptions(torch::kFloat64);
  const auto alone = call("gather", {torch::zeros({2 * channels * static_cast<int64_t>(common.weight.size())}, real),
                                     torch::zeros({1, 3}, real), torch::ones({1, channels}, real), plan})
                         .toTuple();
  self_potential = -alone->elements()[0].toTensor()[0][0].item<double>();
}

static constexpr const char *outside = "a charge is not on the mesh of the long-range sum";

Tensor LESModel::Script::spread(const Tensor &positions, const Tensor &charges)
{
  if (!compiled) return call("spread", {positions, charges, plan}).toTensor();
  const auto located = call("mesh_coordinates", {positions, plan}).toTuple();
  const Tensor coordinates = located->elements()[0].toTensor().contiguous(), sources = charges.contiguous();
  const auto shape = located->elements()[1].toIntVector();
  const Tensor polynomials = plan_entry("polynomials").contiguous();
  const Tensor mesh = torch::zeros({sources.size(1), shape.at(0), shape.at(1), shape.at(2)}, sources.options());
  const bool inside =
      spread_on_mesh(window_of(polynomials), {shape[0], shape[1], shape[2]}, sources.size(0), sources.size(1),
                     coordinates.const_data_ptr<double>(), sources.const_data_ptr<double>(),
                     mesh.mutable_data_ptr<double>(), at::get_num_threads());
  TORCH_CHECK(inside, outside);
  return call("density_of_mesh", {mesh, positions, charges, plan}).toTensor();
}

c10::intrusive_ptr<c10::ivalue::Tuple> LESModel::Script::gather(const torch::jit::IValue &field,
                                                                const Tensor &positions, const Tensor &charges)
{
  if (!compiled) return call("gather", {field, positions, charges, plan}).toTuple();
  const auto located = call("mesh_coordinates", {positions, plan}).toTuple();
  const Tensor coordinates = located->elements()[0].toTensor().contiguous();
  const Tensor mesh = call("mesh_of_field", {field, plan}).toTensor().contiguous();
  const Tensor polynomials = plan_entry("polynomials").contiguous();
  const int64_t atoms = charges.size(0), channels = charges.size(1);
  const Tensor values = torch::empty({atoms, channels}, charges.options());
  const Tensor derivatives = torch::empty({atoms, channels, 3}, charges.options());
  const bool inside =
      gather_from_mesh(window_of(polynomials), {mesh.size(1), mesh.size(2), mesh.size(3)}, atoms, channels,
                       coordinates.const_data_ptr<double>(), mesh.const_data_ptr<double>(),
                       values.mutable_data_ptr<double>(), derivatives.mutable_data_ptr<double>(),
                       at::get_num_threads());
  TORCH_CHECK(inside, outside);
  return call("gather_from_values", {values, derivatives, field, positions, charges, plan}).toTuple();
}

}    // namespace les_md
