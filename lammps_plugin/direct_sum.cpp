// SPDX-License-Identifier: MIT

#include "direct_sum.h"

#include "vector_clones.h"

#include <algorithm>
#include <cmath>

namespace les_md {

namespace {

constexpr double two_pi = 6.283185307179586476925287;
// Charges whose phases are kept at a time, for all threads together.
constexpr int64_t block_size = 256;

// exp(i angle n) for n = first, ..., last, as real and imaginary parts
void powers(double angle, int64_t first, int64_t last, double *real, double *imaginary)
{
  const double c = std::cos(angle), s = std::sin(angle);
  double re = 1.0, im = 0.0;
  for (int64_t n = 0; n <= std::max(-first, last); ++n) {
    if (n <= last) {
      real[n - first] = re;
      imaginary[n - first] = im;
    }
    if (-n >= first) {
      real[-n - first] = re;
      imaginary[-n - first] = -im;
    }
    const double next = re * c - im * s;
    im = re * s + im * c;
    re = next;
  }
}

// line += factor * phases
LES_MD_CLONES void add_line(int64_t width, double re, double im, const double *__restrict phases,
                            double *__restrict line)
{
  const double *phase_im = phases + width;
  double *line_im = line + width;
  for (int64_t k = 0; k < width; ++k) {
    line[k] += re * phases[k] - im * phase_im[k];
    line_im[k] += re * phase_im[k] + im * phases[k];
  }
}

// Sums over a line of field times conjugate phases, and of slope times the same: real and imaginary parts
LES_MD_CLONES void sum_line(int64_t width, const double *__restrict phases, const double *__restrict field,
                            const double *__restrict slope, double *sums)
{
  const double *phase_im = phases + width, *field_im = field + width, *slope_im = slope + width;
  double s0 = 0.0, s1 = 0.0, s2 = 0.0, s3 = 0.0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t k = 0; k < width; ++k) {
    s0 += field[k] * phases[k] + field_im[k] * phase_im[k];
    s1 += field_im[k] * phases[k] - field[k] * phase_im[k];
    s2 += slope[k] * phases[k] + slope_im[k] * phase_im[k];
    s3 += slope_im[k] * phases[k] - slope[k] * phase_im[k];
  }
  sums[0] = s0;
  sums[1] = s1;
  sums[2] = s2;
  sums[3] = s3;
}

}    // namespace

DirectSum::DirectSum(const ReciprocalPlan &plan, int64_t channels) :
    ReciprocalSum(plan, channels), width_((2 * limits_[2] + 1 + 3) / 4 * 4)
{
  const int64_t lines = (limits_[0] + 1) * (2 * limits_[1] + 1), width3 = 2 * limits_[2] + 1;
  in_sum_.resize(lines);
  for (int64_t line = 0; line < lines; ++line)
    in_sum_[line] = std::any_of(weight() + line * width3, weight() + (line + 1) * width3,
                                [](double weight) { return weight != 0.0; });
  field_.assign(2 * width_ * lines * channels_, 0.0);
  slope_ = field_;
}

// Axis 1 from 0, axis 2 from -K2, then a line of axis 3; real parts and imaginary parts each
int64_t DirectSum::phases_of_atom() const
{
  return 2 * (limits_[0] + 1 + 2 * limits_[1] + 1 + width_);
}

void DirectSum::set_phases(const double *fractional, double *phases) const
{
  const int64_t count1 = limits_[0] + 1, count2 = 2 * limits_[1] + 1;
  double *phases2 = phases + 2 * count1, *phases3 = phases2 + 2 * count2;
  powers(two_pi * fractional[0], 0, limits_[0], phases, phases + count1);
  powers(two_pi * fractional[1], -limits_[1], limits_[1], phases2, phases2 + count2);
  std::fill_n(phases3, 2 * width_, 0.0);
  powers(two_pi * fractional[2], -limits_[2], limits_[2], phases3, phases3 + width_);
}

void DirectSum::spread(int64_t atoms, const double *positions, const double *charges, [[maybe_unused]] int threads,
                       std::vector<double> &density)
{
  atoms_ = atoms;
  fractional_.resize(3 * atoms);
  for (int64_t atom = 0; atom < atoms; ++atom) {
    const auto at = fractional(positions + 3 * atom);
    for (int axis = 0; axis < 3; ++axis) fractional_[3 * atom + axis] = at[axis] - std::floor(at[axis]);
  }

  const int64_t count1 = limits_[0] + 1, count2 = 2 * limits_[1] + 1, stride = phases_of_atom();
  std::vector<double> phases(std::min(atoms, block_size) * stride), lines(2 * width_ * count1 * count2 * channels_, 0.0);
  for (int64_t start = 0; start < atoms; start += block_size) {
    const int64_t block = std::min(block_size, atoms - start);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t atom = 0; atom < block; ++atom)
      set_phases(&fractional_[3 * (start + atom)], &phases[atom * stride]);
    // Each thread adds all charges of the block to planes of its own: sums do not depend on the number of threads.
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t plane = 0; plane < channels_ * count1; ++plane) {
      const int64_t channel = plane / count1, n1 = plane % count1;
      for (int64_t atom = 0; atom < block; ++atom) {
        const double q = charges[(start + atom) * channels_ + channel];
        const double *phases1 = &phases[atom * stride], *phases2 = phases1 + 2 * count1;
        const double re1 = q * phases1[n1], im1 = q * phases1[count1 + n1];
        for (int64_t n2 = 0; n2 < count2; ++n2) {
          if (!in_sum_[n1 * count2 + n2]) continue;
          const double re2 = phases2[n2], im2 = phases2[count2 + n2];
          add_line(width_, re1 * re2 - im1 * im2, re1 * im2 + im1 * re2, phases2 + 2 * count2,
                   &lines[2 * width_ * (plane * count2 + n2)]);
        }
      }
    }
  }

  const int64_t width3 = 2 * limits_[2] + 1;
  density.resize(2 * channels_ * wave_vectors());
  for (int64_t line = 0; line < channels_ * count1 * count2; ++line)
    for (int64_t k = 0; k < width3; ++k) {
      density[2 * (line * width3 + k)] = lines[2 * width_ * line + k];
      density[2 * (line * width3 + k) + 1] = lines[2 * width_ * line + width_ + k];
    }
}

std::array<double, 9> DirectSum::solve(const std::vector<double> &density, int)
{
  check(density);
  const int64_t width3 = 2 * limits_[2] + 1, lines = wave_vectors() / width3;
  for (int64_t line = 0; line < channels_ * lines; ++line)
    for (int64_t k = 0; k < width3; ++k)
      for (int64_t part = 0; part < 2; ++part) {
        const int64_t at = 2 * width_ * line + part * width_ + k;
        field_[at] = 2.0 * weight()[line % lines * width3 + k] * density[2 * (line * width3 + k) + part];
        slope_[at] = static_cast<double>(k - limits_[2]) * field_[at];
      }
  return strain_derivative(density);
}

// Re and, for the derivatives, 2 pi n_a Im of exp(-2 pi i n s) F(n), summed
void DirectSum::values([[maybe_unused]] int threads, double *potential, double *derivatives) const
{
  const int64_t count1 = limits_[0] + 1, count2 = 2 * limits_[1] + 1;
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> phases(phases_of_atom());
    const double *phases2 = phases.data() + 2 * count1, *phases3 = phases2 + 2 * count2;
#pragma omp for schedule(static)
    for (int64_t atom = 0; atom < atoms_; ++atom) {
      set_phases(&fractional_[3 * atom], phases.data());
      for (int64_t channel = 0; channel < channels_; ++channel) {
        double value = 0.0, along[3] = {0.0, 0.0, 0.0};
        for (int64_t n1 = 0; n1 < count1; ++n1) {
          const double re1 = phases[n1], im1 = phases[count1 + n1];
          for (int64_t n2 = 0; n2 < count2; ++n2) {
            if (!in_sum_[n1 * count2 + n2]) continue;
            const double re = re1 * phases2[n2] - im1 * phases2[count2 + n2];
            const double im = re1 * phases2[count2 + n2] + im1 * phases2[n2];
            const int64_t line = 2 * width_ * ((channel * count1 + n1) * count2 + n2);
            double sums[4];
            sum_line(width_, phases3, &field_[line], &slope_[line], sums);
            const double imaginary = sums[1] * re - sums[0] * im;    // times the conjugate of re + i im
            value += sums[0] * re + sums[1] * im;
            along[0] += static_cast<double>(n1) * imaginary;
            along[1] += static_cast<double>(n2 - limits_[1]) * imaginary;
            along[2] += sums[3] * re - sums[2] * im;
          }
        }
        potential[atom * channels_ + channel] = value;
        for (int axis = 0; axis < 3; ++axis)
          derivatives[3 * (atom * channels_ + channel) + axis] = two_pi * along[axis];
      }
    }
  }
}

}    // namespace les_md
