// SPDX-License-Identifier: MIT
// One evaluation of an exported file: its network in blocks of nodes, densities, electrical response, derivatives.

#include "les_model_script.h"

#include <ATen/Parallel.h>
#include <torch/cuda.h>

#include <algorithm>
#include <chrono>

namespace les_md {

// Own nodes evaluated at a time where there is no message passing: larger tensors leave the processor's cache.
static constexpr int64_t nodes_per_block = 2048;

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

void copy_out(const Tensor &tensor, double *out)
{
  const Tensor host = tensor.detach().to(torch::kCPU, torch::kFloat64).contiguous();
  std::copy_n(host.const_data_ptr<double>(), host.numel(), out);
}

void copy_out(const Tensor &matrix, std::array<double, 9> &out)
{
  TORCH_CHECK(matrix.numel() == 9, "a strain derivative must have 9 components");
  copy_out(matrix, out.data());
}

}    // namespace

void LESModel::make_blocks(const Graph &graph)
{
  script_->blocks.clear();
  const auto own = static_cast<int64_t>(graph.own);
  const auto edges = static_cast<int64_t>(graph.centre.size());
  const int64_t size = info_.num_layers == 1 ? nodes_per_block : std::max<int64_t>(own, 1);
  int64_t edge = 0;
  for (int64_t first = 0; first < own; first += size) {
    Script::Block block{first, std::min(first + size, own), edge, edges, {}, {}, {}, {}, {}, {}};
    if (block.last_node < own)    // the edges of the last block may start at nodes of other processes too
      while (edge < edges && graph.centre[edge] < block.last_node) ++edge;
    else
      edge = edges;
    block.last_edge = edge;
    script_->blocks.push_back(block);
  }
}

void LESModel::forward_block(const Graph &graph, size_t number)
{
  auto &block = script_->blocks[number];
  const auto device = script_->device;
  const int64_t own = block.last_node - block.first_node, edges = block.last_edge - block.first_edge;
  Tensor types, edge_index;
  if (script_->blocks.size() == 1) {
    types = view(graph.types);
    edge_index = torch::stack({view(graph.centre), view(graph.neighbour)});
  } else {
    // Nodes of the block: its own ones, then the other ends of its edges
    block_node_.resize(graph.types.size(), -1);
    std::vector<int64_t> members;
    for (int64_t node = block.first_node; node < block.last_node; ++node) {
      block_node_[node] = static_cast<int64_t>(members.size());
      members.push_back(node);
    }
    edge_index = torch::empty({2, edges}, torch::kInt64);
    auto *index = edge_index.mutable_data_ptr<int64_t>();
    for (int64_t k = 0; k < edges; ++k) {
      const int64_t neighbour = graph.neighbour[block.first_edge + k];
      if (block_node_[neighbour] < 0) {
        block_node_[neighbour] = static_cast<int64_t>(members.size());
        members.push_back(neighbour);
      }
      index[k] = block_node_[graph.centre[block.first_edge + k]];
      index[edges + k] = block_node_[neighbour];
    }
    types = torch::empty({static_cast<int64_t>(members.size())}, torch::kInt64);
    auto *type = types.mutable_data_ptr<int64_t>();
    for (size_t k = 0; k < members.size(); ++k) {
      type[k] = graph.types[members[k]];
      block_node_[members[k]] = -1;
    }
  }
  // A copy: it is needed once more for the derivative.
  block.vectors = torch::from_blob(const_cast<double *>(graph.vectors.data()) + 3 * block.first_edge, {edges, 3},
                                   torch::kFloat64)
                      .clone()
                      .to(device);
  block.edge_index = edge_index.to(device);
  block.types = script_->blocks.size() == 1 ? types.clone().to(device) : types.to(device);
  const auto network = (script_->network ? script_->network->evaluate(block.vectors, block.edge_index, block.types)
                                         : script_->call("evaluate", {block.vectors, block.edge_index, block.types}))
                           .toTuple();
  block.energy = network->elements()[0].toTensor().narrow(0, 0, own);
  block.charge = network->elements()[1].toTensor().narrow(0, 0, own);
  block.state = network->elements()[2];
}

void LESModel::forward(const Graph &graph, const ResponseRequest &request)
{
  const auto device = script_->device;
  const auto own = static_cast<int64_t>(graph.own);
  density_.clear();
  guarded([&] {
    Clock clock(device);
    make_blocks(graph);
    for (size_t k = 0; k < script_->blocks.size(); ++k) forward_block(graph, k);
    std::vector<Tensor> charges{torch::zeros({0, info_.num_columns}, torch::TensorOptions(torch::kFloat64).device(device))};
    for (const auto &block : script_->blocks) charges.push_back(block.charge);
    script_->charge = torch::cat(charges).contiguous();
    times.forward += clock.lap();

    if (info_.long_range) {
      const torch::NoGradGuard no_tape;    // the solver's derivatives are analytic
      const Tensor positions = view(graph.positions, {own, 3}).to(device);
      if (script_->sum)
        script_->sum->spread(own, graph.positions.data(), script_->charge.const_data_ptr<double>(),
                             at::get_num_threads(), density_);
      else
        copy_out(script_->spread(positions, script_->charge), density_);
      script_->total_charge = script_->charge;
      script_->induced = c10::List<Tensor>();
      if (info_.multipoles) script_->total_charge = script_->charge.narrow(1, 0, info_.n_q);
      if (request.any()) {
        script_->weights = script_->call("polarisation_weights", {positions, script_->cell}).toTensor();
        if (!info_.responds) sum_weights();
      }
      times.density += clock.lap();
    }
  });
}

void LESModel::sum_weights()
{
  copy_out(script_->call("polarisation_sums", {script_->weights, script_->total_charge}).toTensor(), response_sums_);
}

// The density of all processes gives the field, and the field what it induces in the own atoms.
void LESModel::induce(const Graph &graph, const ResponseRequest &request)
{
  const auto device = script_->device;
  guarded([&] {
    const torch::NoGradGuard no_tape;
    Clock clock(device);
    script_->density = view(density_, {static_cast<int64_t>(density_.size())}).clone().to(device);
    script_->field = script_->call("solve", {script_->density, script_->plan}).toTuple()->elements()[0].toTensor();
    times.solve += clock.lap();
    const Tensor positions = view(graph.positions, {static_cast<int64_t>(graph.own), 3}).to(device);
    const auto spread =
        script_->call("spread_induced", {script_->field, positions, script_->charge, script_->plan}).toTuple();
    copy_out(spread->elements()[0].toTensor(), density_);
    script_->induced = spread->elements()[1];
    script_->total_charge = script_->call("total_charges", {script_->charge, script_->induced}).toTensor();
    if (request.any()) sum_weights();
    times.density += clock.lap();
  });
}

// Weights of the polarisation less their means, as far as the request needs them.
void LESModel::prepare_weights(const ResponseRequest &request)
{
  const auto device = script_->device;
  const Tensor means = view(response_sums_, {static_cast<int64_t>(response_sums_.size())}).to(device) /
      static_cast<double>(std::max<int64_t>(request_.atoms, 1));
  const Tensor field = Script::matrix(request.electric_field.data(), 1, device)[0];
  Tensor &weights = script_->weights;
  weights = script_->call("centred_weights", {weights, means}).toTensor();
  script_->rows = Tensor();
  if (request.field && isolated()) {    // the last row is that of the field's energy
    const Tensor of_field = script_->call("field_weights", {weights, field}).toTensor();
    weights = request.born ? torch::cat({weights, of_field}) : of_field;
  } else if (!request.born) {
    script_->rows = script_->call("field_rows", {script_->cell, field}).toTensor().nonzero().squeeze(1);
    weights = weights.index_select(0, script_->rows);
  }
}

void LESModel::respond(const Graph &graph, const ResponseRequest &request)
{
  const auto device = script_->device;
  guarded([&] {
    const torch::NoGradGuard no_tape;
    Clock clock(device);
    script_->induced_density = view(density_, {static_cast<int64_t>(density_.size())}).clone().to(device);
    prepare_weights(request);
    const Tensor positions = view(graph.positions, {static_cast<int64_t>(graph.own), 3}).to(device);
    copy_out(script_->call("spread_response", {script_->weights, positions, script_->charge, script_->plan}).toTensor(),
             density_);
    times.density += clock.lap();
  });
}

// What the long-range sum adds to energies, forces and strain derivative of the own atoms, and the potential there.
void LESModel::long_range_terms(const Graph &graph, Evaluation &out, const ResponseRequest &request)
{
  const auto device = script_->device;
  const auto own = static_cast<int64_t>(graph.own);
  const torch::NoGradGuard no_tape;    // the solver's derivatives are analytic
  Clock clock(device);
  torch::jit::IValue field;
  if (script_->sum) {
    out.system_strain = script_->sum->solve(density_, at::get_num_threads());
  } else {
    const Tensor density = view(density_, {static_cast<int64_t>(density_.size())}).to(device);
    if (!info_.responds)
      script_->density = density;
    else if (!request.any())
      script_->induced_density = density;
    auto solved = script_->call("solve", {script_->density, script_->plan}).toTuple();
    Tensor strain = solved->elements()[1].toTensor();
    if (info_.responds) {
      solved = script_->call("solve_induced", {script_->density, script_->induced_density, script_->plan}).toTuple();
      strain = strain + solved->elements()[1].toTensor();
    }
    copy_out(strain, out.system_strain);
    field = solved->elements()[0];
  }
  times.solve += clock.lap();

  if (script_->sum) {
    script_->potential = torch::empty_like(script_->charge);
    script_->sum->gather(script_->charge.const_data_ptr<double>(), script_->self_potential, at::get_num_threads(),
                         script_->potential.mutable_data_ptr<double>(), out.long_range_energy.data(),
                         out.long_range_force.data());
  } else if (own > 0) {
    const Tensor &q = script_->charge;
    const Tensor positions = view(graph.positions, {own, 3}).to(device);
    const auto gathered = info_.responds
        ? script_->call("gather_induced", {field, positions, q, script_->plan, script_->induced}).toTuple()
        : script_->gather(field, positions, q);
    script_->potential = gathered->elements()[0].toTensor();
    const Tensor energies = info_.multipoles
        ? script_->call("long_range_energies", {q, script_->potential}).toTensor()
        : (q * script_->potential).sum(1) * 0.5;
    copy_out(energies, out.long_range_energy.data());
    copy_out(gathered->elements()[1].toTensor(), out.long_range_force.data());
    copy_out(gathered->elements()[2].toTensor(), out.atoms_strain);
  }
  times.gather += clock.lap();
}

void LESModel::backward(const Graph &graph, Evaluation &out, const ResponseRequest &request)
{
  const auto device = script_->device;
  const auto own = static_cast<int64_t>(graph.own);
  const auto all = static_cast<int64_t>(graph.types.size());
  guarded([&] {
    Clock clock(device);
    Tensor potential;
    out.long_range_energy.assign(graph.own, 0.0);
    out.long_range_force.assign(3 * graph.own, 0.0);
    out.system_strain.fill(0.0);
    out.atoms_strain.fill(0.0);
    script_->potential = Tensor();
    if (info_.long_range) long_range_terms(graph, out, request);
    potential = script_->potential;
    clock.lap();    // these have their own

    out.edge_gradient.assign(graph.vectors.size(), 0.0);
    out.short_range_energy.resize(graph.own);
    out.charge.resize(graph.own * info_.n_q);
    copy_out(script_->charge.narrow(1, 0, info_.n_q), out.charge.data());
    // The field of an isolated system changes the cotangent of the charges, that of another needs Born charges.
    const bool response = request.born || (request.field && !isolated());
    out.born.clear();
    out.field_energy.clear();
    out.field_force.clear();
    Tensor means, field, rows, pulled_back, explicit_part;
    if (request.any()) {
      means = view(response_sums_, {static_cast<int64_t>(response_sums_.size())}).to(device) /
          static_cast<double>(std::max<int64_t>(request_.atoms, 1));
      field = Script::matrix(request.electric_field.data(), 1, device)[0];
      if (!info_.multipoles)
        script_->weights = script_->weights - means.narrow(0, 0, script_->weights.size(0)).unsqueeze(1);
    }
    const auto add_terms_of_field = [&](const Tensor &energies, const Tensor &forces, const Tensor &strain_derivative) {
      copy_out(energies, out.field_energy);
      std::vector<double> force;
      copy_out(forces, force);
      for (size_t k = 0; k < force.size(); ++k) out.long_range_force[k] += force[k];
      std::array<double, 9> strain;
      copy_out(strain_derivative, strain);
      for (size_t k = 0; k < strain.size(); ++k) out.atoms_strain[k] += strain[k];
    };
    const Tensor own_positions = view(graph.positions, {own, 3}).to(device);
    if (request.any() && info_.multipoles) {
      const torch::NoGradGuard no_tape;
      if (!info_.responds) prepare_weights(request);
      const Tensor density = view(density_, {static_cast<int64_t>(density_.size())}).to(device);
      const auto gathered = script_->call("gather_response", {density, script_->weights, own_positions, script_->charge,
                                                              script_->plan, script_->induced, field})
                                .toTuple();
      script_->weights = gathered->elements()[0].toTensor();    // now for all latent variables
      explicit_part = gathered->elements()[1].toTensor();
      rows = script_->rows;
      if (request.field && isolated()) {
        const int64_t last = script_->weights.size(0) - 1;
        if (own > 0) {
          const auto dipoles = script_->call("total_dipoles", {script_->charge, script_->induced}).toTensor();
          const auto terms = script_->call("field_terms_of", {script_->charge, script_->total_charge, dipoles, means[-1],
                                                              explicit_part[last], own_positions, field})
                                 .toTuple();
          potential = potential + script_->weights[last];
          add_terms_of_field(terms->elements()[0].toTensor(), terms->elements()[1].toTensor(),
                             terms->elements()[2].toTensor());
        }
        script_->weights = script_->weights.narrow(0, 0, last);
        explicit_part = explicit_part.narrow(0, 0, last);
      }
    } else if (request.field && isolated() && own > 0) {
      const auto terms =
          script_->call("field_terms", {script_->charge, means[-1], script_->weights, own_positions, field}).toTuple();
      potential = potential + terms->elements()[1].toTensor().unsqueeze(1);
      add_terms_of_field(terms->elements()[0].toTensor(), terms->elements()[2].toTensor(),
                         terms->elements()[3].toTensor());
    }
    if (response) {
      if (!request.born && !info_.multipoles) {
        rows = script_->call("field_rows", {script_->cell, field}).toTensor().nonzero().squeeze(1);
        script_->weights = script_->weights.index_select(0, rows);
      }
      pulled_back = torch::zeros({script_->weights.size(0), all, 3}, script_->weights.options());
      if (explicit_part.defined()) pulled_back.narrow(1, 0, own).copy_(explicit_part);
    }
    for (auto &block : script_->blocks) {
      // dE/d(edge vector) of the own nodes' energy: cotangent 1 for their energies, the potential for their charges
      copy_out(block.energy, out.short_range_energy.data() + block.first_node);
      if (block.last_edge > block.first_edge) {
        const int64_t size = block.last_node - block.first_node, nodes = block.types.size(0);
        const Tensor energy_cotangent = torch::zeros({nodes}, block.energy.options());
        const Tensor charge_cotangent = torch::zeros({nodes, info_.num_columns}, block.energy.options());
        energy_cotangent.narrow(0, 0, size).fill_(1.0);
        if (potential.defined())
          charge_cotangent.narrow(0, 0, size).copy_(potential.narrow(0, block.first_node, size));
        std::vector<torch::jit::IValue> arguments{block.vectors, block.edge_index, block.types,
                                                  block.state,   energy_cotangent, charge_cotangent};
        Tensor gradient;
        if (response) {
          auto shape = script_->weights.sizes().vec();
          shape[1] = nodes;
          const Tensor weights = torch::zeros(shape, script_->weights.options());
          weights.narrow(1, 0, size).copy_(script_->weights.narrow(1, block.first_node, size));
          Tensor of_weights;
          if (script_->network) {
            std::tie(gradient, of_weights) = script_->network->pull_back_response(
                block.edge_index, block.types, block.state, energy_cotangent, charge_cotangent, weights);
          } else {
            arguments.emplace_back(weights);
            const auto both = script_->call("pull_back_response", std::move(arguments)).toTuple();
            gradient = both->elements()[0].toTensor();
            of_weights = both->elements()[1].toTensor();
          }
          const auto ends = [&](const std::vector<int64_t> &nodes_of_edges) {
            return view(nodes_of_edges).slice(0, block.first_edge, block.last_edge).to(device);
          };
          pulled_back.index_add_(1, ends(graph.neighbour), of_weights);
          pulled_back.index_add_(1, ends(graph.centre), of_weights, -1);
        } else if (script_->network) {
          gradient = script_->network->pull_back(block.types, block.state, energy_cotangent, charge_cotangent);
        } else {
          gradient = script_->call("pull_back", std::move(arguments)).toTensor();
        }
        copy_out(gradient, out.edge_gradient.data() + 3 * block.first_edge);
      }
      block = {};    // its memory serves the next one
    }
    if (response) {
      const Tensor positions = view(graph.positions, {all, 3}).to(device);
      if (rows.defined())    // tensors that are complete as far as the field has components
        pulled_back = torch::zeros({info_.multipoles ? 9 : 6, all, 3}, pulled_back.options())
                          .index_copy(0, rows, pulled_back);
      const Tensor tensors =
          script_->call("born_effective_charges_of",
                        {script_->total_charge, means[-1], pulled_back, positions, script_->cell})
              .toTensor();
      if (request.born) copy_out(tensors, out.born);
      if (request.field && !isolated())
        copy_out(script_->call("field_forces", {tensors, field}).toTensor(), out.field_force);
    }
    times.backward += clock.lap();
  });
  script_->blocks.clear();
}

}    // namespace les_md
