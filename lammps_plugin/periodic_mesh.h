// SPDX-License-Identifier: MIT
// The sum of a periodic cell through a mesh: mesh_structure_factor, mesh_of_field and mesh_values in
// les_md/electrostatics/mesh.py, with their equations.

#ifndef LES_MD_PERIODIC_MESH_H
#define LES_MD_PERIODIC_MESH_H

#include "mesh_operators.h"
#include "reciprocal_sum.h"

#include <ATen/core/Tensor.h>

namespace les_md {

// What a plan of solver 1 holds besides.
struct MeshPlan {
  int64_t order = 0;
  std::vector<double> polynomials;      // [degree + 1, 2 order]
  std::vector<double> deconvolution;    // [K1 + 1, 2 K2 + 1, 2 K3 + 1]
  std::array<int64_t, 3> shape{};       // points of the periodic mesh
};

// The mesh has its axes in the order 2, 3, 1: then the transform halves the axis that the sum halves, and that axis is
// contiguous.
class PeriodicMesh : public ReciprocalSum {
 public:
  PeriodicMesh(const ReciprocalPlan &plan, const MeshPlan &mesh, int64_t channels);

  void spread(int64_t atoms, const double *positions, const double *charges, int threads,
              std::vector<double> &density) override;
  std::array<double, 9> solve(const std::vector<double> &density, int threads) override;

 protected:
  void values(int threads, double *potential, double *derivatives) const override;

 private:
  MeshWindow window() const;
  void locate(const double *positions);
  void fold(const double *padded, double *mesh, int threads) const;
  void unfold(const double *mesh, double *padded, int threads) const;

  MeshPlan mesh_;
  int64_t padding_;
  MeshShape points_{}, padded_points_{};    // of the axes 2, 3, 1: of the cell, and with room for all windows
  std::vector<double> coordinates_;         // [atoms, 3] along the axes 2, 3, 1
  std::vector<double> padded_;
  at::Tensor spectrum_;    // [channels, points 2, points 3, K1 + 1]
};

}    // namespace les_md

#endif
