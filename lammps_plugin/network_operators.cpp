// SPDX-License-Identifier: MIT

#include "network_operators.h"

#include "network_loops.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/library.h>

#include <algorithm>

namespace les_md {

using at::Tensor;

namespace {

// Places of a tile, more or less: its radial functions, a few hundred numbers for each, stay in a core's cache.
constexpr int64_t places_of_tile = 96;

// First group of each tile, and the number of groups. A centre is in one tile, so that tiles share no sum.
std::vector<int64_t> tiles_of(const int64_t *centre_of_group, int64_t groups, int64_t group_size)
{
  const int64_t of_tile = std::max<int64_t>(1, places_of_tile / std::max<int64_t>(group_size, 1));
  std::vector<int64_t> starts{0};
  for (int64_t group = 1; group < groups; ++group)
    if (group - starts.back() >= of_tile && centre_of_group[group] != centre_of_group[group - 1])
      starts.push_back(group);
  if (groups > 0) starts.push_back(groups);
  return starts;
}

// Calls part(thread, first tile, last tile) on threads, of which each has the same tiles every time.
template <class Part> void over_tiles(int64_t tiles, int64_t threads, const Part &part)
{
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowAutograd below;
    for (int64_t thread = begin; thread < end; ++thread)
      part(thread, tiles * thread / threads, tiles * (thread + 1) / threads);
  });
}

struct SumOverNeighbours : torch::autograd::Function<SumOverNeighbours> {
  // Shapes are checked by the caller; all tensors are contiguous.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext *context, const Tensor &hidden,
                                                const Tensor &weight, const Tensor &features, const Tensor &coupled,
                                                const Tensor &neighbour, const Tensor &centre_of_group,
                                                int64_t num_centres, const std::vector<int64_t> &out_dims, bool keep)
  {
    torch::autograd::variable_list sums;
    for (const int64_t outs : out_dims) sums.push_back(at::zeros({num_centres, outs, features.size(2)}, features.options()));
    const int64_t places = neighbour.size(0), groups = centre_of_group.size(0), columns = weight.size(1);
    const auto tiles = tiles_of(centre_of_group.const_data_ptr<int64_t>(), groups, places / std::max<int64_t>(groups, 1));
    const auto count = static_cast<int64_t>(tiles.size()) - 1;
    const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
    Tensor kept;
    if (keep) kept = at::empty({places, columns}, features.options());
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "sum_over_neighbours", [&] {
      std::vector<scalar_t *> pointers;
      for (auto &sum : sums) pointers.push_back(sum.mutable_data_ptr<scalar_t>());
      const auto sum = arrays<scalar_t>(features, coupled, neighbour, centre_of_group, out_dims, pointers.data());
      over_tiles(count, threads, [&](int64_t, int64_t begin, int64_t end) {
        Tensor scratch;
        for (int64_t tile = begin; tile < end; ++tile) {
          const int64_t place = tiles[tile] * sum.group_size, size = (tiles[tile + 1] - tiles[tile]) * sum.group_size;
          if (!keep && (!scratch.defined() || scratch.size(0) < size)) scratch = at::empty({size, columns}, features.options());
          Tensor radial = keep ? kept.narrow(0, place, size) : scratch.narrow(0, 0, size);
          at::mm_out(radial, hidden.detach().narrow(0, place, size), weight.detach());
          sum_groups(sum, tiles[tile], tiles[tile + 1], radial.const_data_ptr<scalar_t>());
        }
      });
    });
    if (keep) {
      context->save_for_backward({weight, features, coupled, neighbour, centre_of_group, kept});
      context->saved_data["out_dims"] = out_dims;
    }
    return sums;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list cotangents)
  {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the compiled operators have first derivatives only");
    const auto saved = context->get_saved_variables();
    const Tensor &weight = saved[0], &features = saved[1], &coupled = saved[2], &neighbour = saved[3],
                 &centre_of_group = saved[4], &kept = saved[5];
    const auto out_dims = context->saved_data["out_dims"].toIntVector();
    for (auto &each : cotangents) each = each.contiguous();
    const int64_t groups = centre_of_group.size(0), columns = weight.size(1);
    const auto tiles = tiles_of(centre_of_group.const_data_ptr<int64_t>(), groups, neighbour.size(0) / std::max<int64_t>(groups, 1));
    const auto count = static_cast<int64_t>(tiles.size()) - 1;
    const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
    const Tensor of_hidden = at::empty({neighbour.size(0), weight.size(0)}, features.options());
    const Tensor of_coupled = at::empty_like(coupled), transposed = weight.t();
    // Each thread adds up its own.
    const Tensor of_features =
        at::zeros({std::max<int64_t>(threads, 1), features.size(0), features.size(1), features.size(2)}, features.options());
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "sum_over_neighbours", [&] {
      std::vector<scalar_t *> pointers;
      for (auto &each : cotangents) pointers.push_back(const_cast<scalar_t *>(each.const_data_ptr<scalar_t>()));
      const auto sum = arrays<scalar_t>(features, coupled, neighbour, centre_of_group, out_dims, pointers.data());
      over_tiles(count, threads, [&](int64_t thread, int64_t begin, int64_t end) {
        Tensor scratch;
        for (int64_t tile = begin; tile < end; ++tile) {
          const int64_t place = tiles[tile] * sum.group_size, size = (tiles[tile + 1] - tiles[tile]) * sum.group_size;
          if (!scratch.defined() || scratch.size(0) < size) scratch = at::empty({size, columns}, features.options());
          Tensor of_radial = scratch.narrow(0, 0, size), result = of_hidden.narrow(0, place, size);
          of_radial.zero_();
          pull_back_groups(sum, tiles[tile], tiles[tile + 1], kept.const_data_ptr<scalar_t>() + place * columns,
                           of_radial.mutable_data_ptr<scalar_t>(), of_features[thread].mutable_data_ptr<scalar_t>(),
                           of_coupled.mutable_data_ptr<scalar_t>());
          at::mm_out(result, of_radial, transposed);
        }
      });
    });
    return {of_hidden, Tensor(), threads > 1 ? of_features.sum(0) : of_features[0], of_coupled, Tensor(), Tensor(),
            Tensor(), Tensor(), Tensor()};
  }

  template <class T>
  static NeighborSum<T> arrays(const Tensor &features, const Tensor &coupled, const Tensor &neighbour,
                       const Tensor &centre_of_group, const std::vector<int64_t> &out_dims, T *const *sums)
  {
    return {features.size(1),
            features.size(2),
            static_cast<int64_t>(out_dims.size()),
            neighbour.size(0) / std::max<int64_t>(centre_of_group.size(0), 1),
            coupled.size(1),
            out_dims.data(),
            neighbour.const_data_ptr<int64_t>(),
            centre_of_group.const_data_ptr<int64_t>(),
            features.const_data_ptr<T>(),
            coupled.const_data_ptr<T>(),
            sums};
  }
};

struct SymmetricProduct : torch::autograd::Function<SymmetricProduct> {
  // Values, or of_x if of_y is given.
  static Tensor evaluate(const Tensor &x, const Tensor &kinds, const Tensor &monomials, const std::vector<int64_t> &counts,
                         const Tensor &coefficients, const Tensor &of_y)
  {
    const bool derivative = of_y.defined();
    const int64_t atoms = x.size(0), outs = coefficients.size(1);
    const Tensor result = derivative ? at::zeros_like(x) : at::zeros({atoms, outs, x.size(2)}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "symmetric_product", [&] {
      const Polynomial<scalar_t> polynomial{x.size(1),
                                            x.size(2),
                                            outs,
                                            coefficients.size(2),
                                            static_cast<int64_t>(counts.size()),
                                            monomials.const_data_ptr<int64_t>(),
                                            counts.data(),
                                            kinds.const_data_ptr<int64_t>(),
                                            coefficients.const_data_ptr<scalar_t>(),
                                            x.const_data_ptr<scalar_t>()};
      const scalar_t *given = derivative ? of_y.const_data_ptr<scalar_t>() : nullptr;
      auto *out = result.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, atoms, 8, [&](int64_t begin, int64_t end) {
        if (derivative)
          add_derivatives(polynomial, begin, end, given, out);
        else
          add_values(polynomial, begin, end, out);
      });
    });
    return result;
  }

  static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &x, const Tensor &kinds,
                        const Tensor &monomials, const std::vector<int64_t> &counts, const Tensor &coefficients)
  {
    context->save_for_backward({x, kinds, monomials, coefficients});
    context->saved_data["counts"] = counts;
    return evaluate(x, kinds, monomials, counts, coefficients, Tensor());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list cotangents)
  {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the compiled operators have first derivatives only");
    const auto saved = context->get_saved_variables();
    const Tensor of_x = evaluate(saved[0], saved[1], saved[2], context->saved_data["counts"].toIntVector(), saved[3],
                                 cotangents[0].contiguous());
    return {of_x, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Indices that loops go through, checked before they do.
void check_indices(const Tensor &indices, int64_t below, const char *name)
{
  TORCH_CHECK(indices.scalar_type() == at::kLong, name, " must be int64");
  if (indices.numel() == 0) return;
  const auto *data = indices.const_data_ptr<int64_t>();
  const auto [lowest, highest] = std::minmax_element(data, data + indices.numel());
  TORCH_CHECK(*lowest >= 0 && *highest < below, name, " must be from 0 to ", below - 1);
}

}    // namespace

std::vector<Tensor> sum_over_neighbours(const Tensor &hidden, const Tensor &weight, const Tensor &features,
                                        const Tensor &coupled, const Tensor &neighbour, const Tensor &centre_of_group,
                                        int64_t num_centres, at::IntArrayRef out_dims)
{
  TORCH_CHECK(hidden.device().is_cpu(), "the compiled operators are for the CPU");
  const int64_t places = neighbour.numel(), groups = centre_of_group.numel(), dim = features.size(1);
  int64_t width = 0;
  for (const int64_t outs : out_dims) {
    TORCH_CHECK(outs > 0, "outcomes must have components");
    width += dim * outs;
  }
  TORCH_CHECK(features.dim() == 3 && hidden.dim() == 2 && coupled.dim() == 2 && weight.dim() == 2 &&
                  neighbour.dim() == 1 && centre_of_group.dim() == 1 && hidden.size(0) == places &&
                  coupled.size(0) == places && coupled.size(1) == width && weight.size(0) == hidden.size(1) &&
                  weight.size(1) == static_cast<int64_t>(out_dims.size()) * features.size(2) &&
                  (groups == 0 ? places == 0 : places % groups == 0),
              "the shapes of a sum over neighbours do not match");
  for (const Tensor *each : {&weight, &features, &coupled})
    TORCH_CHECK(each->scalar_type() == hidden.scalar_type(), "a sum over neighbours is of one type of numbers");
  TORCH_CHECK(!weight.requires_grad(), "the compiled operators have no derivative by weights");
  const Tensor ends = neighbour.contiguous(), centres = centre_of_group.contiguous();
  check_indices(ends, features.size(0), "neighbour");
  check_indices(centres, num_centres, "centre_of_group");
  const auto *data = centres.const_data_ptr<int64_t>();
  TORCH_CHECK(std::is_sorted(data, data + groups), "centre_of_group must be in ascending order");
  const bool keep = at::GradMode::is_enabled() &&
      (hidden.requires_grad() || features.requires_grad() || coupled.requires_grad());
  return SumOverNeighbours::apply(hidden.contiguous(), weight.contiguous(), features.contiguous(), coupled.contiguous(),
                                  ends, centres, num_centres, out_dims.vec(), keep);
}

Tensor symmetric_product(const Tensor &x, const Tensor &kinds, const Tensor &monomials, at::IntArrayRef counts,
                         const Tensor &coefficients, const Tensor &, const Tensor &, at::IntArrayRef)
{
  TORCH_CHECK(x.device().is_cpu(), "the compiled operators are for the CPU");
  const auto highest = static_cast<int64_t>(counts.size());
  int64_t all = 0;
  for (const int64_t count : counts) all += count;
  TORCH_CHECK(x.dim() == 3 && kinds.dim() == 1 && monomials.dim() == 2 && coefficients.dim() == 4 &&
                  kinds.size(0) == x.size(0) && monomials.size(0) == all && monomials.size(1) == highest &&
                  coefficients.size(2) == all && coefficients.size(3) == x.size(2) && highest <= Polynomial<float>::most_factors,
              "the shapes of a symmetric product do not match");
  TORCH_CHECK(coefficients.scalar_type() == x.scalar_type(), "a symmetric product is of one type of numbers");
  TORCH_CHECK(!coefficients.requires_grad(), "the compiled operators have no derivative by weights");
  const Tensor classes = kinds.contiguous(), factors = monomials.contiguous();
  check_indices(classes, coefficients.size(0), "kinds");
  check_indices(factors, x.size(1), "monomials");
  return SymmetricProduct::apply(x.contiguous(), classes, factors, counts.vec(), coefficients.contiguous());
}

// ---- in an exported file

namespace {

constexpr const char *module_of_functions = ".mace_operators.";

struct Replacement {
  const char *name, *schema;
};

constexpr Replacement replacements[] = {
    {"sum_over_neighbours",
     "sum_over_neighbours(Tensor hidden, Tensor weight, Tensor features, Tensor coupled, Tensor neighbour, "
     "Tensor centre_of_group, int num_centres, int[] out_dims) -> Tensor[]"},
    {"symmetric_product",
     "symmetric_product(Tensor x, Tensor kinds, Tensor monomials, int[] counts, Tensor coefficients, Tensor pairs, "
     "Tensor matrix, int[] rows) -> Tensor"},
};

void register_operators()
{
  static torch::Library library(torch::Library::FRAGMENT, "les_md", c10::nullopt, __FILE__, __LINE__);
  static const bool done = [] {
    library.def(replacements[0].schema, &sum_over_neighbours);
    library.def(replacements[1].schema, &symmetric_product);
    return true;
  }();
  (void) done;
}

}    // namespace

int use_network_operators(torch::jit::Module &module)
{
  int found = 0;
  for (torch::jit::Function *function : module._ivalue()->compilation_unit()->get_functions()) {
    const std::string name = function->qualname().qualifiedName();
    for (const auto &[own, schema] : replacements) {
      const std::string ending = std::string(module_of_functions) + own;
      if (name.size() < ending.size() || name.compare(name.size() - ending.size(), ending.size(), ending) != 0) continue;
      register_operators();
      auto &graph = *torch::jit::toGraphFunction(*function).graph();
      graph.block()->eraseOutput(0);
      while (graph.nodes().begin() != graph.nodes().end()) graph.nodes().reverse().begin()->destroy();
      const std::vector<torch::jit::NamedValue> arguments(graph.inputs().begin(), graph.inputs().end());
      graph.block()->registerOutput(graph.insert(c10::Symbol::fromQualString(std::string("les_md::") + own), arguments));
      ++found;
    }
  }
  return found;
}

}    // namespace les_md
