// SPDX-License-Identifier: MIT

#include "periodic_mesh.h"

#include <ATen/ops/fft_ifft2.h>
#include <ATen/ops/fft_irfft.h>
#include <ATen/ops/fft_rfftn.h>

#include <algorithm>
#include <cmath>
#include <optional>

namespace les_md {

namespace {

constexpr double two_pi = 6.283185307179586476925287;
constexpr std::array<int64_t, 3> axes{1, 2, 3};    // of a mesh; channels come first

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

// Where wave number n stands in the output of an FFT of this many points.
int64_t place(int64_t n, int64_t points)
{
  return n < 0 ? n + points : n;
}

}    // namespace

PeriodicMesh::PeriodicMesh(const PeriodicMeshPlan &plan, int64_t channels) :
    plan_(plan), channels_(channels), order_(plan.polynomials.size(1) / 2), padding_(order_ + 1)
{
  for (torch::Tensor *tensor :
       {&plan_.cell, &plan_.polynomials, &plan_.deconvolution, &plan_.weight, &plan_.anisotropy})
    *tensor = tensor->contiguous();
  limits_ = {plan_.weight.size(0) - 1, (plan_.weight.size(1) - 1) / 2, (plan_.weight.size(2) - 1) / 2};
  inverse_cell_ = inverse(plan_.cell.const_data_ptr<double>());
  points_ = {plan_.shape[1], plan_.shape[2], plan_.shape[0]};
  for (int axis = 0; axis < 3; ++axis) padded_points_[axis] = points_[axis] + padding_;
  const auto real = torch::TensorOptions(torch::kFloat64);
  padded_ = torch::empty({channels_, padded_points_[0], padded_points_[1], padded_points_[2]}, real);
  // Outside the sum it stays zero.
  spectrum_ = torch::zeros({channels_, points_[0], points_[1], limits_[0] + 1}, real.dtype(torch::kComplexDouble));
}

MeshWindow PeriodicMesh::window() const
{
  return {plan_.polynomials.const_data_ptr<double>(), plan_.polynomials.size(0) - 1, order_};
}

// periodic_coordinates of mesh.py
void PeriodicMesh::locate(const double *positions, int64_t atoms)
{
  coordinates_.resize(3 * atoms);
  for (int64_t i = 0; i < atoms; ++i) {
    const double *r = positions + 3 * i;
    for (int axis = 0; axis < 3; ++axis) {
      const double *column = inverse_cell_.data() + axis;
      const double fractional = r[0] * column[0] + r[1] * column[3] + r[2] * column[6];
      const auto points = static_cast<double>(plan_.shape[axis]);
      double coordinate = (fractional - std::floor(fractional)) * points;
      if (coordinate < 0.5 * static_cast<double>(order_)) coordinate += points;
      coordinates_[3 * i + (axis + 2) % 3] = coordinate;
    }
  }
}

// Adds what lies beyond the cell to its periodic images; windows begin within the cell or right behind it.
void PeriodicMesh::fold(const double *padded, double *mesh, int threads) const
{
  const auto add_line = [&](const double *from, double *to) {
    for (int64_t k = 0; k < points_[2]; ++k) to[k] += from[k];
    for (int64_t k = 0; k < padding_; ++k) to[k % points_[2]] += from[points_[2] + k];
  };
  const int64_t lines = points_[0] * points_[1];
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t line = 0; line < channels_ * lines; ++line) {
    const int64_t channel = line / lines, i = line % lines / points_[1], j = line % points_[1];
    double *to = mesh + line * points_[2];
    std::fill_n(to, points_[2], 0.0);
    for (int64_t image1 = i; image1 < padded_points_[0]; image1 += points_[0])
      for (int64_t image2 = j; image2 < padded_points_[1]; image2 += points_[1])
        add_line(padded + ((channel * padded_points_[0] + image1) * padded_points_[1] + image2) * padded_points_[2],
                 to);
  }
}

// Continues a periodic mesh by the padding, the transpose of "fold".
void PeriodicMesh::unfold(const double *mesh, double *padded, int threads) const
{
  const int64_t lines = padded_points_[0] * padded_points_[1];
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t line = 0; line < channels_ * lines; ++line) {
    const int64_t channel = line / lines, i = line % lines / padded_points_[1], j = line % padded_points_[1];
    const double *from =
        mesh + ((channel * points_[0] + i % points_[0]) * points_[1] + j % points_[1]) * points_[2];
    double *to = padded + line * padded_points_[2];
    std::copy_n(from, points_[2], to);
    for (int64_t k = 0; k < padding_; ++k) to[points_[2] + k] = from[k % points_[2]];
  }
}

void PeriodicMesh::spread(const double *positions, const torch::Tensor &charges, int threads,
                          std::vector<double> &density)
{
  const torch::Tensor sources = charges.contiguous();
  const int64_t atoms = sources.size(0);
  TORCH_CHECK(sources.size(1) == channels_, "charges of ", sources.size(1), " channels on a mesh of ", channels_);
  locate(positions, atoms);
  padded_.zero_();
  const bool inside =
      spread_on_mesh(window(), padded_points_, atoms, channels_, coordinates_.data(),
                     sources.const_data_ptr<double>(), padded_.mutable_data_ptr<double>(), threads);
  TORCH_CHECK(inside, "a charge is not on the mesh of the long-range sum");
  const torch::Tensor mesh = torch::empty({channels_, points_[0], points_[1], points_[2]}, padded_.options());
  fold(padded_.const_data_ptr<double>(), mesh.mutable_data_ptr<double>(), threads);

  const torch::Tensor transformed = at::fft_rfftn(mesh, std::nullopt, at::IntArrayRef(axes)).contiguous();
  const auto *waves = transformed.const_data_ptr<c10::complex<double>>();
  const double *deconvolution = plan_.deconvolution.const_data_ptr<double>();
  const int64_t width2 = 2 * limits_[1] + 1, width3 = 2 * limits_[2] + 1, half = points_[2] / 2 + 1;
  density.resize(2 * channels_ * wave_vectors());
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t plane = 0; plane < channels_ * (limits_[0] + 1); ++plane) {
    const int64_t channel = plane / (limits_[0] + 1), n1 = plane % (limits_[0] + 1);
    const double *factor = deconvolution + n1 * width2 * width3;
    double *out = density.data() + 2 * plane * width2 * width3;
    for (int64_t n2 = -limits_[1]; n2 <= limits_[1]; ++n2)
      for (int64_t n3 = -limits_[2]; n3 <= limits_[2]; ++n3, ++factor, out += 2) {
        const auto wave =
            waves[((channel * points_[0] + place(n2, points_[0])) * points_[1] + place(n3, points_[1])) * half + n1];
        out[0] = wave.real() * *factor;
        out[1] = -wave.imag() * *factor;    // the FFT has exp(-i k r)
      }
  }
}

std::array<double, 9> PeriodicMesh::solve(const std::vector<double> &density, int threads)
{
  const int64_t width2 = 2 * limits_[1] + 1, width3 = 2 * limits_[2] + 1, kept = limits_[0] + 1;
  TORCH_CHECK(static_cast<int64_t>(density.size()) == 2 * channels_ * wave_vectors(),
              "a density of another set of wave vectors");
  const double *weight = plan_.weight.const_data_ptr<double>();
  const double *anisotropy = plan_.anisotropy.const_data_ptr<double>();
  const double *deconvolution = plan_.deconvolution.const_data_ptr<double>();
  auto *spectrum = spectrum_.mutable_data_ptr<c10::complex<double>>();

  // By planes, so that sums do not depend on the number of threads: energy, and energy times anisotropy times n n
  const int64_t planes = limits_[0] + 1;
  std::vector<std::array<double, 7>> sums(planes);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t n1 = 0; n1 < planes; ++n1) {
    std::array<double, 7> of_plane{};
    // The inverse transform counts every wave vector off the plane n1 = 0 twice, as k and -k.
    const double share = n1 == 0 ? 2.0 : 1.0;
    int64_t at = n1 * width2 * width3;
    for (int64_t n2 = -limits_[1]; n2 <= limits_[1]; ++n2) {
      std::array<double, 3> of_line{};    // scaled energy times 1, n3, n3^2
      for (int64_t n3 = -limits_[2]; n3 <= limits_[2]; ++n3, ++at) {
        double squares = 0.0;
        const double factor = share * weight[at] * deconvolution[at];
        for (int64_t channel = 0; channel < channels_; ++channel) {
          const double *wave = density.data() + 2 * (channel * wave_vectors() + at);
          squares += wave[0] * wave[0] + wave[1] * wave[1];
          spectrum[((channel * points_[0] + place(n2, points_[0])) * points_[1] + place(n3, points_[1])) * kept + n1] =
              c10::complex<double>(wave[0] * factor, -wave[1] * factor);
        }
        const double energy = weight[at] * squares, scaled = energy * anisotropy[at];
        of_plane[0] += energy;
        of_line[0] += scaled;
        of_line[1] += scaled * static_cast<double>(n3);
        of_line[2] += scaled * static_cast<double>(n3 * n3);
      }
      const auto a = static_cast<double>(n1), b = static_cast<double>(n2);
      of_plane[1] += a * a * of_line[0];
      of_plane[2] += a * b * of_line[0];
      of_plane[3] += a * of_line[1];
      of_plane[4] += b * b * of_line[0];
      of_plane[5] += b * of_line[1];
      of_plane[6] += of_line[2];
    }
    sums[n1] = of_plane;
  }
  std::array<double, 7> total{};
  for (const auto &of_plane : sums)
    for (size_t k = 0; k < total.size(); ++k) total[k] += of_plane[k];

  // Two axes for the wave numbers of the sum alone; the third transform fills the others with zeros.
  const torch::Tensor lines = at::fft_ifft2(spectrum_, std::nullopt, {1, 2}, "forward");
  const torch::Tensor potential = at::fft_irfft(lines, points_[2], 3, "forward").contiguous();
  unfold(potential.const_data_ptr<double>(), padded_.mutable_data_ptr<double>(), threads);

  // k = 2 pi n_a (row a of the inverse's transpose)
  const double moments[3][3] = {
      {total[1], total[2], total[3]}, {total[2], total[4], total[5]}, {total[3], total[5], total[6]}};
  std::array<double, 9> strain{};
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j)
      for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b)
          strain[3 * i + j] +=
              two_pi * two_pi * inverse_cell_[3 * i + a] * moments[a][b] * inverse_cell_[3 * j + b];
    strain[4 * i] -= total[0];
  }
  return strain;
}

torch::Tensor PeriodicMesh::gather(const torch::Tensor &charges, double self_potential, int threads, double *energies,
                                   double *forces) const
{
  const torch::Tensor sources = charges.contiguous();
  const int64_t atoms = sources.size(0);
  TORCH_CHECK(atoms == static_cast<int64_t>(coordinates_.size() / 3), "charges are not those that were spread");
  const torch::Tensor potential = torch::empty({atoms, channels_}, sources.options());
  std::vector<double> derivatives(3 * atoms * channels_);
  const bool inside = gather_from_mesh(window(), padded_points_, atoms, channels_, coordinates_.data(),
                                       padded_.const_data_ptr<double>(), potential.mutable_data_ptr<double>(),
                                       derivatives.data(), threads);
  TORCH_CHECK(inside, "a charge is not on the mesh of the long-range sum");

  // r = s h, coordinate = s points: dE/dr = h^-1 (points dE/d(coordinate)); axis a stands at (a + 2) % 3
  std::array<double, 9> gradient_of{};
  for (int i = 0; i < 3; ++i)
    for (int a = 0; a < 3; ++a)
      gradient_of[3 * i + (a + 2) % 3] = inverse_cell_[3 * i + a] * static_cast<double>(plan_.shape[a]);
  const double *charge = sources.const_data_ptr<double>();
  double *value = potential.mutable_data_ptr<double>();
  const double *derivative = derivatives.data();
  for (int64_t atom = 0; atom < atoms; ++atom, forces += 3) {
    double energy = 0.0, sum[3] = {0.0, 0.0, 0.0};
    for (int64_t channel = 0; channel < channels_; ++channel, ++charge, ++value, derivative += 3) {
      *value -= self_potential * *charge;
      energy += *charge * *value;
      for (int a = 0; a < 3; ++a) sum[a] += *charge * derivative[a];
    }
    energies[atom] = 0.5 * energy;
    for (int i = 0; i < 3; ++i)
      forces[i] = -(gradient_of[3 * i] * sum[0] + gradient_of[3 * i + 1] * sum[1] + gradient_of[3 * i + 2] * sum[2]);
  }
  return potential;
}

}    // namespace les_md
