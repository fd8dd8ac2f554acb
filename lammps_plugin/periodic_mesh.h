// SPDX-License-Identifier: MIT
// The long-range sum of a periodic cell through a mesh, compiled: structure_factor_of_mesh, reciprocal_field,
// reciprocal_strain_derivative, mesh_of_field and forces_on_mesh in les_md/electrostatics are the same in the exported
// file, with their equations. On the CPU, in float64, for charges alone; results differ by rounding.

#ifndef LES_MD_PERIODIC_MESH_H
#define LES_MD_PERIODIC_MESH_H

#include "mesh_operators.h"

#include <torch/types.h>

#include <array>
#include <cstdint>
#include <vector>

namespace les_md {

// What a plan of solver 1 holds: LatentPlanner.plan. Tensors are in float64, on the CPU.
struct PeriodicMeshPlan {
  torch::Tensor cell;             // [3, 3], rows are lattice vectors in angstrom
  torch::Tensor polynomials;      // [degree + 1, 2 order]
  torch::Tensor deconvolution;    // [K1 + 1, 2 K2 + 1, 2 K3 + 1], as are the next two
  torch::Tensor weight;           // eV/e^2
  torch::Tensor anisotropy;       // angstrom^2
  std::array<int64_t, 3> shape{};    // points of the periodic mesh
};

// The mesh has its axes in the order 2, 3, 1: then the transform halves the axis that the sum halves, and that axis is
// contiguous.
class PeriodicMesh {
 public:
  PeriodicMesh(const PeriodicMeshPlan &plan, int64_t channels);

  // Structure factor of charges [atoms, channels] at positions [atoms, 3]: [channels, K1 + 1, 2 K2 + 1, 2 K3 + 1, 2],
  // to be summed over processes. Keeps where the charges are for "gather".
  void spread(const double *positions, const torch::Tensor &charges, int threads, std::vector<double> &density);

  // Field of the density of all charges; returns dE/d(strain) in eV at fixed charges.
  std::array<double, 9> solve(const std::vector<double> &density, int threads);

  // At the charges of the last "spread", which are given again: their potential [atoms, channels] in eV/e, half of
  // charge times potential [atoms], and the forces [atoms, 3] at fixed charges. What the file takes from the potential
  // for the interaction of a unit charge with itself is self_potential.
  torch::Tensor gather(const torch::Tensor &charges, double self_potential, int threads, double *energies,
                       double *forces) const;

 private:
  int64_t wave_vectors() const { return (limits_[0] + 1) * (2 * limits_[1] + 1) * (2 * limits_[2] + 1); }
  MeshWindow window() const;
  void locate(const double *positions, int64_t atoms);
  void fold(const double *padded, double *mesh, int threads) const;
  void unfold(const double *mesh, double *padded, int threads) const;

  PeriodicMeshPlan plan_;
  int64_t channels_, order_, padding_;
  std::array<int64_t, 3> limits_{};       // K1, K2, K3
  std::array<double, 9> inverse_cell_{};
  MeshShape points_{}, padded_points_{};    // of the axes 2, 3, 1: of the cell, and with room for all windows
  std::vector<double> coordinates_;         // [atoms, 3] along the axes 2, 3, 1
  torch::Tensor padded_, spectrum_;    // the latter [channels, points 2, points 3, K1 + 1]
};

}    // namespace les_md

#endif
