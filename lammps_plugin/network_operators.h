// SPDX-License-Identifier: MIT
// The two costly sums of a MACE layer, compiled: what sum_over_neighbours and symmetric_product in
// les_md/architectures/mace_operators.py are in the exported file, with their derivatives, on the CPU. Results differ by
// rounding; those of the derivative by neighbours' features also with the number of threads.

#ifndef LES_MD_NETWORK_OPERATORS_H
#define LES_MD_NETWORK_OPERATORS_H

#include <torch/script.h>

#include <vector>

namespace les_md {

// Arguments and results are documented there. Derivatives are by hidden, features and coupled, and by x.
std::vector<at::Tensor> sum_over_neighbours(const at::Tensor &hidden, const at::Tensor &weight,
                                            const at::Tensor &features, const at::Tensor &coupled,
                                            const at::Tensor &neighbour, const at::Tensor &centre_of_group,
                                            int64_t num_centres, at::IntArrayRef out_dims);
at::Tensor symmetric_product(const at::Tensor &x, const at::Tensor &kinds, const at::Tensor &monomials,
                             at::IntArrayRef counts, const at::Tensor &coefficients, const at::Tensor &pairs,
                             const at::Tensor &matrix, at::IntArrayRef rows);

// Puts them in the place of the functions in a module that was loaded and not yet called: how many were found.
int use_network_operators(torch::jit::Module &module);

}    // namespace les_md

#endif
