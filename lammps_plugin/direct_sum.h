// SPDX-License-Identifier: MIT
// The sum of a periodic cell term by term: structure_factor and reciprocal_values in les_md/electrostatics/ewald.py, with
// their equations.

#ifndef LES_MD_DIRECT_SUM_H
#define LES_MD_DIRECT_SUM_H

#include "reciprocal_sum.h"

namespace les_md {

// Phases exp(2 pi i n_a s_a) of a charge along each axis are powers of the first. A line is the wave vectors of one n1
// and n2: its numbers stand as real parts, then imaginary parts, filled up with zeros to a multiple of four.
class DirectSum : public ReciprocalSum {
 public:
  DirectSum(const ReciprocalPlan &plan, int64_t channels);

  void spread(int64_t atoms, const double *positions, const double *charges, int threads,
              std::vector<double> &density) override;
  std::array<double, 9> solve(const std::vector<double> &density, int threads) override;

 protected:
  void values(int threads, double *potential, double *derivatives) const override;

 private:
  int64_t phases_of_atom() const;
  void set_phases(const double *fractional, double *phases) const;

  int64_t width_;    // numbers of a line
  std::vector<char> in_sum_;             // of each line, whether any of its wave vectors is in the sum
  std::vector<double> fractional_;       // [atoms, 3]
  std::vector<double> field_, slope_;    // lines of the field, and of n3 times the field
};

}    // namespace les_md

#endif
