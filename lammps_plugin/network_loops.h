// SPDX-License-Identifier: MIT
// The loops of network_operators.cpp over edges, atoms and channels, in float and double. All arrays are contiguous, and
// indices within them.

#ifndef LES_MD_NETWORK_LOOPS_H
#define LES_MD_NETWORK_LOOPS_H

#include <cstdint>

namespace les_md {

// Sums over neighbours: the arguments of sum_over_neighbours in les_md/architectures/mace_operators.py.
template <class T> struct NeighborSum {
  int64_t dim, channels, paths, group_size, width;    // width: numbers of a place's "coupled"
  const int64_t *out_dims, *neighbour, *centre_of_group;
  const T *features, *coupled;
  T *const *sums;    // of each path, [n, out, C]: added to; or their cotangents, which are read
};

// Adds groups from first to before last, whose radial functions [places, paths, C] are given.
void sum_groups(const NeighborSum<float> &sum, int64_t first, int64_t last, const float *radial);
void sum_groups(const NeighborSum<double> &sum, int64_t first, int64_t last, const double *radial);

// Derivatives of the same groups: adds to of_radial, like radial, and to of_features; sets of_coupled.
void pull_back_groups(const NeighborSum<float> &sum, int64_t first, int64_t last, const float *radial,
                      float *of_radial, float *of_features, float *of_coupled);
void pull_back_groups(const NeighborSum<double> &sum, int64_t first, int64_t last, const double *radial,
                      double *of_radial, double *of_features, double *of_coupled);

// Symmetric products: the arguments of symmetric_product, there too.
template <class T> struct Polynomial {
  static constexpr int most_factors = 16;

  int64_t size, channels, outs, all, highest;    // all: monomials; highest: factors of the longest, at most most_factors
  const int64_t *monomials, *counts, *kinds;
  const T *coefficients, *x;
};

// Adds values of atoms from begin to before end to y [n, out, C].
void add_values(const Polynomial<float> &polynomial, int64_t begin, int64_t end, float *y);
void add_values(const Polynomial<double> &polynomial, int64_t begin, int64_t end, double *y);

// Adds derivatives by x, from the cotangents of y, to of_x [n, size, C].
void add_derivatives(const Polynomial<float> &polynomial, int64_t begin, int64_t end, const float *of_y, float *of_x);
void add_derivatives(const Polynomial<double> &polynomial, int64_t begin, int64_t end, const double *of_y,
                     double *of_x);

}    // namespace les_md

#endif
