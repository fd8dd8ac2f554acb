// SPDX-License-Identifier: MIT

#include "reciprocal_sum.h"

#include <stdexcept>

namespace les_md {

namespace {

std::array<double, 9> inverse(const double *m)
{
  const double c00 = m[4] * m[8] - m[5] * m[7], c01 = m[5] * m[6] - m[3] * m[8], c02 = m[3] * m[7] - m[4] * m[6];
  const double determinant = m[0] * c00 + m[1] * c01 + m[2] * c02;
  std::array<double, 9> result{c00, m[2] * m[7] - m[1] * m[8], m[1] * m[5] - m[2] * m[4],
                               c01, m[0] * m[8] - m[2] * m[6], m[2] * m[3] - m[0] * m[5],
                               c02, m[1] * m[6] - m[0] * m[7], m[0] * m[4] - m[1] * m[3]};
  for (double &entry : result) entry /= determinant;
  return result;
}

}    // namespace

ReciprocalSum::ReciprocalSum(const ReciprocalPlan &plan, int64_t channels) :
    channels_(channels), limits_(plan.limits), plan_(plan), inverse_cell_(inverse(plan.cell.data()))
{
}

void ReciprocalSum::check(const std::vector<double> &density) const
{
  if (static_cast<int64_t>(density.size()) != 2 * channels_ * wave_vectors())
    throw std::runtime_error("a density of another set of wave vectors");
}

std::array<double, 3> ReciprocalSum::fractional(const double *position) const
{
  std::array<double, 3> result{};
  for (int axis = 0; axis < 3; ++axis)
    result[axis] = position[0] * inverse_cell_[axis] + position[1] * inverse_cell_[3 + axis] +
        position[2] * inverse_cell_[6 + axis];
  return result;
}

// reciprocal_strain_derivative of ewald.py
std::array<double, 9> ReciprocalSum::strain_derivative(const std::vector<double> &density) const
{
  const double *weight = this->weight(), *anisotropy = plan_.anisotropy.data();
  double total = 0.0, moments[3][3] = {};    // energy; energy times anisotropy times n n
  int64_t at = 0;
  for (int64_t n1 = 0; n1 <= limits_[0]; ++n1)
    for (int64_t n2 = -limits_[1]; n2 <= limits_[1]; ++n2) {
      double of_line[3] = {0.0, 0.0, 0.0};    // scaled energy times 1, n3, n3^2
      for (int64_t n3 = -limits_[2]; n3 <= limits_[2]; ++n3, ++at) {
        double squares = 0.0;
        for (int64_t channel = 0; channel < channels_; ++channel) {
          const double *wave = density.data() + 2 * (channel * wave_vectors() + at);
          squares += wave[0] * wave[0] + wave[1] * wave[1];
        }
        const double energy = weight[at] * squares, scaled = energy * anisotropy[at];
        total += energy;
        of_line[0] += scaled;
        of_line[1] += scaled * static_cast<double>(n3);
        of_line[2] += scaled * static_cast<double>(n3 * n3);
      }
      const auto a = static_cast<double>(n1), b = static_cast<double>(n2);
      moments[0][0] += a * a * of_line[0];
      moments[0][1] += a * b * of_line[0];
      moments[0][2] += a * of_line[1];
      moments[1][1] += b * b * of_line[0];
      moments[1][2] += b * of_line[1];
      moments[2][2] += of_line[2];
    }
  for (int a = 0; a < 3; ++a)
    for (int b = 0; b < a; ++b) moments[a][b] = moments[b][a];

  // k = 2 pi n_a (column a of the inverse)
  constexpr double two_pi = 6.283185307179586476925287;
  std::array<double, 9> strain{};
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j)
      for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b)
          strain[3 * i + j] +=
              two_pi * two_pi * inverse_cell_[3 * i + a] * moments[a][b] * inverse_cell_[3 * j + b];
    strain[4 * i] -= total;
  }
  return strain;
}

void ReciprocalSum::gather(const double *charges, double self_potential, int threads, double *potential,
                           double *energies, double *forces) const
{
  std::vector<double> derivatives(3 * atoms_ * channels_);
  values(threads, potential, derivatives.data());
  const double *derivative = derivatives.data();
  for (int64_t atom = 0; atom < atoms_; ++atom, forces += 3) {
    double energy = 0.0, sum[3] = {0.0, 0.0, 0.0};
    for (int64_t channel = 0; channel < channels_; ++channel, ++charges, ++potential, derivative += 3) {
      *potential -= self_potential * *charges;
      energy += *charges * *potential;
      for (int a = 0; a < 3; ++a) sum[a] += *charges * derivative[a];
    }
    energies[atom] = 0.5 * energy;
    // r = s h: dE/dr = h^-1 dE/ds
    for (int i = 0; i < 3; ++i)
      forces[i] = -(inverse_cell_[3 * i] * sum[0] + inverse_cell_[3 * i + 1] * sum[1] + inverse_cell_[3 * i + 2] * sum[2]);
  }
}

}    // namespace les_md
