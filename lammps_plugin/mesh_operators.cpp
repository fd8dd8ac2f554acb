// SPDX-License-Identifier: MIT

#include "mesh_operators.h"

#include "vector_clones.h"

#include <algorithm>
#include <cmath>
#include <vector>

#if defined(__GNUC__)
#define LES_MD_INLINE inline __attribute__((always_inline))
#else
#define LES_MD_INLINE inline
#endif

namespace les_md {

namespace {

constexpr int most_points = MeshWindow::most_points;

LES_MD_INLINE int64_t points_of(const MeshShape &mesh)
{
  return mesh[0] * mesh[1] * mesh[2];
}

// Window (and slope) at the points around a charge, [3, order] each, and the first of them along each axis; false if
// one of them is not on the mesh.
template <int fixed_order, bool with_slope>
LES_MD_INLINE bool evaluate_window(const MeshWindow &window, const MeshShape &mesh, const double *coordinates,
                                   int64_t *first, double *__restrict values, double *__restrict slopes)
{
  const int64_t order = fixed_order ? fixed_order : window.order;
  for (int axis = 0; axis < 3; ++axis) {
    const double shifted = coordinates[axis] - 0.5 * static_cast<double>(order);
    const double floor = std::floor(shifted);
    // A point at distance order/2 has no weight: the window starts at the next one. (Not so if one is NaN.)
    if (!(floor >= -1.0 && floor + static_cast<double>(order) < static_cast<double>(mesh[axis]))) return false;
    first[axis] = static_cast<int64_t>(floor) + 1;
    const double tau = 2.0 * (shifted - floor) - 1.0;
    const double *row = window.polynomials + window.degree * 2 * order;
    double value[most_points], slope[most_points];
    for (int64_t k = 0; k < order; ++k) value[k] = row[k];
    if (with_slope)
      for (int64_t k = 0; k < order; ++k) slope[k] = row[order + k];
    for (int64_t power = window.degree - 1; power >= 0; --power) {
      row -= 2 * order;
      for (int64_t k = 0; k < order; ++k) value[k] = value[k] * tau + row[k];
      if (with_slope)
        for (int64_t k = 0; k < order; ++k) slope[k] = slope[k] * tau + row[order + k];
    }
    for (int64_t k = 0; k < order; ++k) values[axis * order + k] = value[k];
    if (with_slope)
      for (int64_t k = 0; k < order; ++k) slopes[axis * order + k] = slope[k];
  }
  return true;
}

// Windows of the charges from begin to before end of a block: values [3, order] and first points.
template <int fixed_order>
LES_MD_INLINE bool windows(const MeshWindow &window, const MeshShape &mesh, const double *coordinates, int64_t begin,
                           int64_t end, int64_t *first, double *values)
{
  const int64_t order = fixed_order ? fixed_order : window.order;
  bool inside = true;
  for (int64_t i = begin; i < end; ++i)
    inside &= evaluate_window<fixed_order, false>(window, mesh, coordinates + 3 * i, first + 3 * i,
                                                  values + 3 * order * i, nullptr);
  return inside;
}

// Adds the charges of a block, one channel of them with this stride, to the mesh's planes from begin to before end.
template <int fixed_order>
LES_MD_INLINE void add_to_planes(int64_t run_time_order, const MeshShape &mesh, const double *charges, int64_t stride,
                                 int64_t atoms, const int64_t *first, const double *values, int64_t begin, int64_t end,
                                 double *density)
{
  const int64_t order = fixed_order ? fixed_order : run_time_order;
  for (int64_t i = 0; i < atoms; ++i) {
    const int64_t *at = first + 3 * i;
    const double *along1 = values + 3 * order * i, *along2 = along1 + order;
    double along3[most_points];
    for (int64_t k = 0; k < order; ++k) along3[k] = along2[order + k];
    const int64_t last = std::min(at[0] + order, end);
    for (int64_t plane = std::max(at[0], begin); plane < last; ++plane) {
      const double weight = charges[i * stride] * along1[plane - at[0]];
      double *line = density + (plane * mesh[1] + at[1]) * mesh[2] + at[2];
      for (int64_t j = 0; j < order; ++j, line += mesh[2]) {
        const double product = weight * along2[j];
        for (int64_t k = 0; k < order; ++k) line[k] += product * along3[k];
      }
    }
  }
}

// Value and derivatives of one channel at one charge.
template <int fixed_order>
LES_MD_INLINE void gather_one(int64_t run_time_order, const MeshShape &mesh, const double *potential,
                              const int64_t *first, const double *values, const double *slopes, double *value,
                              double *derivative)
{
  const int64_t order = fixed_order ? fixed_order : run_time_order;
  const double *along1 = values, *along2 = values + order, *along3 = values + 2 * order;
  const double *slope1 = slopes, *slope2 = slopes + order, *slope3 = slopes + 2 * order;
  double plain[most_points], by1[most_points], by2[most_points];
  for (int64_t k = 0; k < order; ++k) plain[k] = by1[k] = by2[k] = 0.0;
  for (int64_t i = 0; i < order; ++i) {
    double over2[most_points], slope_over2[most_points];
    for (int64_t k = 0; k < order; ++k) over2[k] = slope_over2[k] = 0.0;
    const double *line = potential + ((first[0] + i) * mesh[1] + first[1]) * mesh[2] + first[2];
    for (int64_t j = 0; j < order; ++j, line += mesh[2])
      for (int64_t k = 0; k < order; ++k) {
        over2[k] += along2[j] * line[k];
        slope_over2[k] += slope2[j] * line[k];
      }
    for (int64_t k = 0; k < order; ++k) {
      plain[k] += along1[i] * over2[k];
      by1[k] += slope1[i] * over2[k];
      by2[k] += along1[i] * slope_over2[k];
    }
  }
  double sums[4] = {0.0, 0.0, 0.0, 0.0};
  for (int64_t k = 0; k < order; ++k) {
    sums[0] += plain[k] * along3[k];
    sums[1] += by1[k] * along3[k];
    sums[2] += by2[k] * along3[k];
    sums[3] += plain[k] * slope3[k];
  }
  *value = sums[0];
  std::copy_n(sums + 1, 3, derivative);
}

template <int fixed_order>
LES_MD_INLINE bool gather(const MeshWindow &window, const MeshShape &mesh, const double *potential, int64_t channels,
                          const double *coordinates, int64_t begin, int64_t end, double *values, double *derivatives)
{
  double along[3 * most_points], slope[3 * most_points];
  int64_t first[3];
  for (int64_t i = begin; i < end; ++i) {
    if (!evaluate_window<fixed_order, true>(window, mesh, coordinates + 3 * i, first, along, slope)) return false;
    for (int64_t channel = 0; channel < channels; ++channel) {
      const int64_t at = i * channels + channel;
      gather_one<fixed_order>(window.order, mesh, potential + channel * points_of(mesh), first, along, slope,
                              values + at, derivatives + 3 * at);
    }
  }
  return true;
}

// The loops for the orders that files have, and for any other.

#define LES_MD_FOR_ORDER(order, call)                                                                                  \
  switch (order) {                                                                                                     \
    case 4: return call(4);                                                                                            \
    case 5: return call(5);                                                                                            \
    case 6: return call(6);                                                                                            \
    case 7: return call(7);                                                                                            \
    case 8: return call(8);                                                                                            \
    case 9: return call(9);                                                                                            \
    case 10: return call(10);                                                                                          \
    default: return call(0);                                                                                           \
  }

LES_MD_CLONES bool windows_of(const MeshWindow &window, const MeshShape &mesh, const double *coordinates, int64_t begin,
                              int64_t end, int64_t *first, double *values)
{
#define LES_MD_CALL(order) windows<order>(window, mesh, coordinates, begin, end, first, values)
  LES_MD_FOR_ORDER(window.order, LES_MD_CALL)
#undef LES_MD_CALL
}

LES_MD_CLONES void add_block(int64_t order, const MeshShape &mesh, const double *charges, int64_t stride, int64_t atoms,
                             const int64_t *first, const double *values, int64_t begin, int64_t end, double *density)
{
#define LES_MD_CALL(fixed) add_to_planes<fixed>(order, mesh, charges, stride, atoms, first, values, begin, end, density)
  LES_MD_FOR_ORDER(order, LES_MD_CALL)
#undef LES_MD_CALL
}

LES_MD_CLONES bool gather_block(const MeshWindow &window, const MeshShape &mesh, const double *potential,
                                int64_t channels, const double *coordinates, int64_t begin, int64_t end,
                                double *values, double *derivatives)
{
#define LES_MD_CALL(order)                                                                                             \
  gather<order>(window, mesh, potential, channels, coordinates, begin, end, values, derivatives)
  LES_MD_FOR_ORDER(window.order, LES_MD_CALL)
#undef LES_MD_CALL
}

}    // namespace

bool spread_on_mesh(const MeshWindow &window, const MeshShape &mesh, int64_t atoms, int64_t channels,
                    const double *coordinates, const double *charges, double *density, int threads)
{
  // All threads evaluate the windows of a block of charges; then each adds them to planes of its own.
  const int64_t block = std::min<int64_t>(atoms, 512 * threads), order = window.order;
  std::vector<int64_t> first(3 * block);
  std::vector<double> values(3 * order * block);
  const int64_t planes = std::max(order, (mesh[0] + threads - 1) / threads), parts = (mesh[0] + planes - 1) / planes;
  for (int64_t start = 0; start < atoms; start += block) {
    const int64_t count = std::min(block, atoms - start);
    int inside = 1;
#pragma omp parallel for num_threads(threads) reduction(&& : inside) schedule(static)
    for (int part = 0; part < threads; ++part)
      inside = windows_of(window, mesh, coordinates + 3 * start, count * part / threads, count * (part + 1) / threads,
                          first.data(), values.data()) &&
          inside;
    if (!inside) return false;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t channel = 0; channel < channels; ++channel)
        add_block(order, mesh, charges + start * channels + channel, channels, count, first.data(), values.data(),
                  part * planes, std::min(mesh[0], (part + 1) * planes), density + channel * points_of(mesh));
  }
  return true;
}

bool gather_from_mesh(const MeshWindow &window, const MeshShape &mesh, int64_t atoms, int64_t channels,
                      const double *coordinates, const double *potential, double *values, double *derivatives,
                      int threads)
{
  int inside = 1;
#pragma omp parallel for num_threads(threads) reduction(&& : inside) schedule(static)
  for (int part = 0; part < threads; ++part)
    inside = gather_block(window, mesh, potential, channels, coordinates, atoms * part / threads,
                          atoms * (part + 1) / threads, values, derivatives) &&
        inside;
  return inside != 0;
}

}    // namespace les_md
