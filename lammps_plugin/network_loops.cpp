// SPDX-License-Identifier: MIT

#include "network_loops.h"

#include "vector_clones.h"

#include <cstring>

#if defined(__GNUC__)
#define LES_MD_INLINE inline __attribute__((always_inline))
#define LES_MD_VECTORS
#pragma GCC diagnostic ignored "-Wpsabi"    // of functions that are inlined, hence have no interface
#else
#define LES_MD_INLINE inline
#endif

namespace les_md {

namespace {

// Channels that are worked on at a time: 32 bytes, or one.
#ifdef LES_MD_VECTORS
template <class T> struct Lanes {
  typedef T type __attribute__((vector_size(32)));
};
#else
template <class T> struct Lanes {
  typedef T type;
};
#endif

template <class V, class T> LES_MD_INLINE V load(const T *from)
{
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <class V, class T> LES_MD_INLINE void store(T *to, const V &value)
{
  std::memcpy(to, &value, sizeof(V));
}

template <class T, class V> LES_MD_INLINE T sum_of(const V &value)
{
  T numbers[sizeof(V) / sizeof(T)], sum = 0;
  std::memcpy(numbers, &value, sizeof(V));
  for (const T number : numbers) sum += number;
  return sum;
}

// ---- sums over neighbours

// Components of an outcome that are summed at a time.
constexpr int most_outs = 7;

#define LES_MD_FOR_OUTS(outs, call)                                                                                    \
  switch (outs) {                                                                                                      \
    case 1: call(1); break;                                                                                            \
    case 2: call(2); break;                                                                                            \
    case 3: call(3); break;                                                                                            \
    case 4: call(4); break;                                                                                            \
    case 5: call(5); break;                                                                                            \
    case 6: call(6); break;                                                                                            \
    default: call(7); break;                                                                                           \
  }

// outs rows of a centre += Σ over two places of left [outs] · (radial · feature) [C], from channel c on
template <class V, int outs, class T>
LES_MD_INLINE void add_lanes(int64_t channels, int64_t c, const T *left0, const T *left1, const T *radial0,
                             const T *radial1, const T *feature0, const T *feature1, T *rows)
{
  const V right0 = load<V>(radial0 + c) * load<V>(feature0 + c), right1 = load<V>(radial1 + c) * load<V>(feature1 + c);
  for (int o = 0; o < outs; ++o) {
    T *row = rows + o * channels + c;
    store<V>(row, load<V>(row) + left0[o] * right0 + left1[o] * right1);
  }
}

template <int outs, class T>
LES_MD_INLINE void add_pair(int64_t channels, const T *left0, const T *left1, const T *radial0, const T *radial1,
                            const T *feature0, const T *feature1, T *rows)
{
  using V = typename Lanes<T>::type;
  constexpr int64_t lanes = sizeof(V) / sizeof(T);
  T own0[outs], own1[outs];
  for (int o = 0; o < outs; ++o) {
    own0[o] = left0[o];
    own1[o] = left1[o];
  }
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes)
    add_lanes<V, outs>(channels, c, own0, own1, radial0, radial1, feature0, feature1, rows);
  for (; c < channels; ++c) add_lanes<T, outs>(channels, c, own0, own1, radial0, radial1, feature0, feature1, rows);
}

// Cotangents of one place from channel c on; those of left are added to total.
template <class V, int outs, class T>
LES_MD_INLINE void pull_back_lanes(int64_t channels, int64_t c, const T *left, const T *radial, const T *feature,
                                   const T *rows, T *of_radial, T *of_feature, V *total)
{
  const V own_radial = load<V>(radial + c), own_feature = load<V>(feature + c), right = own_radial * own_feature;
  V sum{};
  for (int o = 0; o < outs; ++o) {
    const V cotangent = load<V>(rows + o * channels + c);
    sum += left[o] * cotangent;
    total[o] += right * cotangent;
  }
  store<V>(of_radial + c, load<V>(of_radial + c) + own_feature * sum);
  store<V>(of_feature + c, load<V>(of_feature + c) + own_radial * sum);
}

template <int outs, class T>
LES_MD_INLINE void pull_back_place(int64_t channels, const T *left, const T *radial, const T *feature, const T *rows,
                                   T *of_radial, T *of_feature, T *of_left)
{
  using V = typename Lanes<T>::type;
  constexpr int64_t lanes = sizeof(V) / sizeof(T);
  V total[outs] = {};
  T rest[outs] = {}, own[outs];
  for (int o = 0; o < outs; ++o) own[o] = left[o];
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes)
    pull_back_lanes<V, outs>(channels, c, own, radial, feature, rows, of_radial, of_feature, total);
  for (; c < channels; ++c)
    pull_back_lanes<T, outs>(channels, c, own, radial, feature, rows, of_radial, of_feature, rest);
  for (int o = 0; o < outs; ++o) of_left[o] = rest[o] + sum_of<T>(total[o]);
}

template <class T> LES_MD_INLINE void sum_all(const NeighborSum<T> &sum, int64_t first, int64_t last, const T *radial)
{
  const int64_t channels = sum.channels, dim = sum.dim, of_place = sum.paths * channels;
  for (int64_t group = first; group < last; ++group)
    for (int64_t k = 0; k < sum.group_size; k += 2) {
      const bool is_pair = k + 1 < sum.group_size;
      const int64_t place0 = group * sum.group_size + k, place1 = is_pair ? place0 + 1 : place0;
      const T *radial0 = radial + (place0 - first * sum.group_size) * of_place;
      const T *radial1 = radial + (place1 - first * sum.group_size) * of_place;
      const T *features0 = sum.features + sum.neighbour[place0] * dim * channels;
      const T *features1 = sum.features + sum.neighbour[place1] * dim * channels;
      int64_t at = 0;
      for (int64_t path = 0; path < sum.paths; ++path) {
        const int64_t outs = sum.out_dims[path];
        T *rows = sum.sums[path] + sum.centre_of_group[group] * outs * channels;
        for (int64_t d = 0; d < dim; ++d, at += outs)
          for (int64_t o = 0; o < outs; o += most_outs) {
            const T *left0 = sum.coupled + place0 * sum.width + at + o;
            const T none[most_outs] = {}, *left1 = is_pair ? sum.coupled + place1 * sum.width + at + o : none;
#define LES_MD_CALL(fixed)                                                                                             \
  add_pair<fixed>(channels, left0, left1, radial0 + path * channels, radial1 + path * channels,                        \
                  features0 + d * channels, features1 + d * channels, rows + o * channels)
            LES_MD_FOR_OUTS(outs - o, LES_MD_CALL)
#undef LES_MD_CALL
          }
      }
    }
}

template <class T>
LES_MD_INLINE void pull_back_all(const NeighborSum<T> &sum, int64_t first, int64_t last, const T *radial, T *of_radial,
                                 T *of_features, T *of_coupled)
{
  const int64_t channels = sum.channels, dim = sum.dim, of_place = sum.paths * channels;
  for (int64_t place = first * sum.group_size; place < last * sum.group_size; ++place) {
    const int64_t here = (place - first * sum.group_size) * of_place, node = sum.neighbour[place] * dim * channels;
    const int64_t centre = sum.centre_of_group[place / sum.group_size];
    int64_t at = place * sum.width;
    for (int64_t path = 0; path < sum.paths; ++path) {
      const int64_t outs = sum.out_dims[path], column = here + path * channels;
      const T *rows = sum.sums[path] + centre * outs * channels;
      for (int64_t d = 0; d < dim; ++d, at += outs)
        for (int64_t o = 0; o < outs; o += most_outs) {
          const int64_t feature = node + d * channels;
#define LES_MD_CALL(fixed)                                                                                             \
  pull_back_place<fixed>(channels, sum.coupled + at + o, radial + column, sum.features + feature,                      \
                         rows + o * channels, of_radial + column, of_features + feature, of_coupled + at + o)
          LES_MD_FOR_OUTS(outs - o, LES_MD_CALL)
#undef LES_MD_CALL
        }
    }
  }
}

// ---- symmetric products

// One monomial in the channels from the one that coefficients, x and y point to.
template <class V, int fixed_order, class T>
LES_MD_INLINE void add_monomial(const Polynomial<T> &p, int64_t run_time_order, const int64_t *factors,
                                const T *coefficients, const T *x, T *y)
{
  const int64_t order = fixed_order ? fixed_order : run_time_order;
  V product = load<V>(x + factors[0] * p.channels);
  for (int64_t k = 1; k < order; ++k) product *= load<V>(x + factors[k] * p.channels);
  for (int64_t o = 0; o < p.outs; ++o) {
    T *row = y + o * p.channels;
    store<V>(row, load<V>(row) + load<V>(coefficients + o * p.all * p.channels) * product);
  }
}

template <class V, int fixed_order, class T>
LES_MD_INLINE void pull_back_monomial(const Polynomial<T> &p, int64_t run_time_order, const int64_t *factors,
                                      const T *coefficients, const T *x, const T *of_y, T *of_x)
{
  const int64_t order = fixed_order ? fixed_order : run_time_order;
  V before[fixed_order ? fixed_order : Polynomial<T>::most_factors];    // the cotangent and the factors before each
  before[0] = load<V>(coefficients) * load<V>(of_y);
  for (int64_t o = 1; o < p.outs; ++o)
    before[0] += load<V>(coefficients + o * p.all * p.channels) * load<V>(of_y + o * p.channels);
  for (int64_t k = 1; k < order; ++k) before[k] = before[k - 1] * load<V>(x + factors[k - 1] * p.channels);
  V after{};
  after += 1;
  for (int64_t k = order - 1; k >= 0; --k) {
    T *row = of_x + factors[k] * p.channels;
    store<V>(row, load<V>(row) + before[k] * after);
    after *= load<V>(x + factors[k] * p.channels);
  }
}

template <class V, bool derivative, class T>
LES_MD_INLINE void polynomial_of_lanes(const Polynomial<T> &p, const T *coefficients, const T *x, T *y, const T *of_y,
                                       T *of_x)
{
  const int64_t *factors = p.monomials;
  for (int64_t order = 1; order <= p.highest; ++order)
    for (int64_t k = 0; k < p.counts[order - 1]; ++k, factors += p.highest, coefficients += p.channels) {
#define LES_MD_CALL(fixed)                                                                                             \
  if (derivative)                                                                                                      \
    pull_back_monomial<V, fixed>(p, order, factors, coefficients, x, of_y, of_x);                                      \
  else                                                                                                                 \
    add_monomial<V, fixed>(p, order, factors, coefficients, x, y)
      switch (order) {
        case 1: LES_MD_CALL(1); break;
        case 2: LES_MD_CALL(2); break;
        case 3: LES_MD_CALL(3); break;
        default: LES_MD_CALL(0); break;
      }
#undef LES_MD_CALL
    }
}

template <bool derivative, class T>
LES_MD_INLINE void polynomial_of_atoms(const Polynomial<T> &p, int64_t begin, int64_t end, T *y, const T *of_y, T *of_x)
{
  using V = typename Lanes<T>::type;
  constexpr int64_t lanes = sizeof(V) / sizeof(T);
  for (int64_t atom = begin; atom < end; ++atom) {
    const T *coefficients = p.coefficients + p.kinds[atom] * p.outs * p.all * p.channels;
    const int64_t of_x_at = atom * p.size * p.channels, of_y_at = atom * p.outs * p.channels;
#define LES_MD_CALL(V)                                                                                                 \
  polynomial_of_lanes<V, derivative>(p, coefficients + c, p.x + of_x_at + c, derivative ? nullptr : y + of_y_at + c,   \
                                     derivative ? of_y + of_y_at + c : nullptr, derivative ? of_x + of_x_at + c : nullptr)
    int64_t c = 0;
    for (; c + lanes <= p.channels; c += lanes) LES_MD_CALL(V);
    for (; c < p.channels; ++c) LES_MD_CALL(T);
#undef LES_MD_CALL
  }
}

}    // namespace

// ---- in both types of numbers

LES_MD_CLONES void sum_groups(const NeighborSum<float> &sum, int64_t first, int64_t last, const float *radial)
{
  sum_all(sum, first, last, radial);
}

LES_MD_CLONES void sum_groups(const NeighborSum<double> &sum, int64_t first, int64_t last, const double *radial)
{
  sum_all(sum, first, last, radial);
}

LES_MD_CLONES void pull_back_groups(const NeighborSum<float> &sum, int64_t first, int64_t last, const float *radial,
                                    float *of_radial, float *of_features, float *of_coupled)
{
  pull_back_all(sum, first, last, radial, of_radial, of_features, of_coupled);
}

LES_MD_CLONES void pull_back_groups(const NeighborSum<double> &sum, int64_t first, int64_t last, const double *radial,
                                    double *of_radial, double *of_features, double *of_coupled)
{
  pull_back_all(sum, first, last, radial, of_radial, of_features, of_coupled);
}

LES_MD_CLONES void add_values(const Polynomial<float> &polynomial, int64_t begin, int64_t end, float *y)
{
  polynomial_of_atoms<false>(polynomial, begin, end, y, static_cast<const float *>(nullptr), static_cast<float *>(nullptr));
}

LES_MD_CLONES void add_values(const Polynomial<double> &polynomial, int64_t begin, int64_t end, double *y)
{
  polynomial_of_atoms<false>(polynomial, begin, end, y, static_cast<const double *>(nullptr), static_cast<double *>(nullptr));
}

LES_MD_CLONES void add_derivatives(const Polynomial<float> &polynomial, int64_t begin, int64_t end, const float *of_y,
                                   float *of_x)
{
  polynomial_of_atoms<true>(polynomial, begin, end, static_cast<float *>(nullptr), of_y, of_x);
}

LES_MD_CLONES void add_derivatives(const Polynomial<double> &polynomial, int64_t begin, int64_t end, const double *of_y,
                                   double *of_x)
{
  polynomial_of_atoms<true>(polynomial, begin, end, static_cast<double *>(nullptr), of_y, of_x);
}

}    // namespace les_md
