// SPDX-License-Identifier: MIT
// The two loops over charges and mesh points of the long-range sum, compiled: what spread_on_mesh and gather_from_mesh
// in les_md/electrostatics/mesh.py are in the exported file, on the CPU and in float64. Results differ by rounding.

#ifndef LES_MD_MESH_OPERATORS_H
#define LES_MD_MESH_OPERATORS_H

#include <array>
#include <cstdint>

namespace les_md {

using MeshShape = std::array<int64_t, 3>;    // points of a mesh without periodicity, the last axis contiguous

// The window of a plan, and its slope, as polynomials.
struct MeshWindow {
  static constexpr int most_points = 16;

  const double *polynomials;    // [degree + 1, 2 order]
  int64_t degree, order;        // order at most most_points
};

// Both return false if the window of a charge is not inside the mesh. Sums do not depend on the number of threads.

// Adds charges [atoms, channels] at coordinates [atoms, 3] in mesh spacings to a density [channels, points].
bool spread_on_mesh(const MeshWindow &window, const MeshShape &mesh, int64_t atoms, int64_t channels,
                    const double *coordinates, const double *charges, double *density, int threads);

// Values [atoms, channels] of a potential [channels, points] at the charges, and their derivatives with respect to the
// coordinates, [atoms, channels, 3].
bool gather_from_mesh(const MeshWindow &window, const MeshShape &mesh, int64_t atoms, int64_t channels,
                      const double *coordinates, const double *potential, double *values, double *derivatives,
                      int threads);

}    // namespace les_md

#endif
