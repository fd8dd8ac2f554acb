// SPDX-License-Identifier: MIT
// The long-range sum of a periodic cell, compiled, in the steps of LatentEwald in les_md/electrostatics: spread, a sum
// of densities over processes, solve, gather. On the CPU, in float64, for charges alone; results differ by rounding from
// those of the exported file, which holds the same.

#ifndef LES_MD_RECIPROCAL_SUM_H
#define LES_MD_RECIPROCAL_SUM_H

#include <array>
#include <cstdint>
#include <vector>

namespace les_md {

// What a plan of LatentPlanner holds for any periodic cell.
struct ReciprocalPlan {
  std::array<double, 9> cell{};       // [3, 3], rows are lattice vectors in angstrom
  std::array<int64_t, 3> limits{};    // K1, K2, K3
  std::vector<double> weight;         // [K1 + 1, 2 K2 + 1, 2 K3 + 1], eV/e^2
  std::vector<double> anisotropy;     // the same shape, angstrom^2
};

class ReciprocalSum {
 public:
  ReciprocalSum(const ReciprocalPlan &plan, int64_t channels);
  virtual ~ReciprocalSum() = default;

  // Structure factor of charges [atoms, channels] at positions [atoms, 3]: [channels, K1 + 1, 2 K2 + 1, 2 K3 + 1, 2],
  // to be summed over processes. Keeps where the charges are for "gather".
  virtual void spread(int64_t atoms, const double *positions, const double *charges, int threads,
                      std::vector<double> &density) = 0;

  // Field of the density of all charges; returns dE/d(strain) in eV at fixed charges.
  virtual std::array<double, 9> solve(const std::vector<double> &density, int threads) = 0;

  // At the charges of the last "spread", which are given again: their potential [atoms, channels] in eV/e, half of
  // charge times potential [atoms], and the forces [atoms, 3] at fixed charges. What the file takes from the potential
  // for the interaction of a unit charge with itself is self_potential.
  void gather(const double *charges, double self_potential, int threads, double *potential, double *energies,
              double *forces) const;

 protected:
  // Potential [atoms, channels] at the charges of the last "spread", and its derivatives by their fractional
  // coordinates [atoms, channels, 3].
  virtual void values(int threads, double *potential, double *derivatives) const = 0;

  int64_t wave_vectors() const { return (limits_[0] + 1) * (2 * limits_[1] + 1) * (2 * limits_[2] + 1); }
  void check(const std::vector<double> &density) const;
  std::array<double, 3> fractional(const double *position) const;
  std::array<double, 9> strain_derivative(const std::vector<double> &density) const;
  const double *weight() const { return plan_.weight.data(); }

  int64_t channels_;
  std::array<int64_t, 3> limits_{};    // K1, K2, K3
  int64_t atoms_ = 0;                  // of the last "spread"

 private:
  ReciprocalPlan plan_;
  std::array<double, 9> inverse_cell_{};
};

}    // namespace les_md

#endif
