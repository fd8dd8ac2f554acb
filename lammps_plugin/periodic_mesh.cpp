// SPDX-License-Identifier: MIT

#include "periodic_mesh.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/fft_ifft2.h>
#include <ATen/ops/fft_irfft.h>
#include <ATen/ops/fft_rfftn.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>

namespace les_md {

namespace {

constexpr std::array<int64_t, 3> axes{1, 2, 3};    // of a mesh; channels come first
constexpr const char *outside = "a charge is not on the mesh of the long-range sum";

// Where wave number n stands in the output of an FFT of this many points.
int64_t place(int64_t n, int64_t points)
{
  return n < 0 ? n + points : n;
}

}    // namespace

PeriodicMesh::PeriodicMesh(const ReciprocalPlan &plan, const MeshPlan &mesh, int64_t channels) :
    ReciprocalSum(plan, channels), mesh_(mesh), padding_(mesh.order + 1)
{
  points_ = {mesh_.shape[1], mesh_.shape[2], mesh_.shape[0]};
  for (int axis = 0; axis < 3; ++axis) padded_points_[axis] = points_[axis] + padding_;
  padded_.resize(channels_ * padded_points_[0] * padded_points_[1] * padded_points_[2]);
  // Outside the sum it stays zero.
  spectrum_ = at::zeros({channels_, points_[0], points_[1], limits_[0] + 1}, at::TensorOptions(at::kComplexDouble));
}

MeshWindow PeriodicMesh::window() const
{
  const auto columns = static_cast<size_t>(2 * mesh_.order);
  return {mesh_.polynomials.data(), static_cast<int64_t>(mesh_.polynomials.size() / columns) - 1, mesh_.order};
}

// periodic_coordinates of mesh.py
void PeriodicMesh::locate(const double *positions)
{
  coordinates_.resize(3 * atoms_);
  for (int64_t i = 0; i < atoms_; ++i) {
    const auto at = fractional(positions + 3 * i);
    for (int axis = 0; axis < 3; ++axis) {
      const auto points = static_cast<double>(mesh_.shape[axis]);
      double coordinate = (at[axis] - std::floor(at[axis])) * points;
      if (coordinate < 0.5 * static_cast<double>(mesh_.order)) coordinate += points;
      coordinates_[3 * i + (axis + 2) % 3] = coordinate;
    }
  }
}

// Adds what lies beyond the cell to its periodic images; windows begin within the cell or right behind it.
void PeriodicMesh::fold(const double *padded, double *mesh, [[maybe_unused]] int threads) const
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
void PeriodicMesh::unfold(const double *mesh, double *padded, [[maybe_unused]] int threads) const
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

void PeriodicMesh::spread(int64_t atoms, const double *positions, const double *charges, int threads,
                          std::vector<double> &density)
{
  atoms_ = atoms;
  locate(positions);
  std::fill(padded_.begin(), padded_.end(), 0.0);
  if (!spread_on_mesh(window(), padded_points_, atoms_, channels_, coordinates_.data(), charges, padded_.data(), threads))
    throw std::runtime_error(outside);
  const at::Tensor mesh =
      at::empty({channels_, points_[0], points_[1], points_[2]}, at::TensorOptions(at::kDouble));
  fold(padded_.data(), mesh.mutable_data_ptr<double>(), threads);

  const at::Tensor transformed = at::fft_rfftn(mesh, std::nullopt, at::IntArrayRef(axes)).contiguous();
  const auto *waves = transformed.const_data_ptr<c10::complex<double>>();
  const double *deconvolution = mesh_.deconvolution.data();
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
  check(density);
  const int64_t width2 = 2 * limits_[1] + 1, width3 = 2 * limits_[2] + 1, kept = limits_[0] + 1;
  const double *weight = this->weight(), *deconvolution = mesh_.deconvolution.data();
  auto *spectrum = spectrum_.mutable_data_ptr<c10::complex<double>>();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t line = 0; line < channels_ * width2; ++line) {
    const int64_t channel = line / width2, n2 = line % width2 - limits_[1];
    for (int64_t n1 = 0; n1 < kept; ++n1) {
      // The inverse transform counts every wave vector off the plane n1 = 0 twice, as k and -k.
      const double share = n1 == 0 ? 2.0 : 1.0;
      int64_t at = (n1 * width2 + n2 + limits_[1]) * width3;
      const double *wave = density.data() + 2 * (channel * wave_vectors() + at);
      for (int64_t n3 = -limits_[2]; n3 <= limits_[2]; ++n3, ++at, wave += 2) {
        const double factor = share * weight[at] * deconvolution[at];
        spectrum[((channel * points_[0] + place(n2, points_[0])) * points_[1] + place(n3, points_[1])) * kept + n1] =
            c10::complex<double>(wave[0] * factor, -wave[1] * factor);
      }
    }
  }

  // Two axes for the wave numbers of the sum alone; the third transform fills the others with zeros.
  const at::Tensor lines = at::fft_ifft2(spectrum_, std::nullopt, {1, 2}, "forward");
  const at::Tensor potential = at::fft_irfft(lines, points_[2], 3, "forward").contiguous();
  unfold(potential.const_data_ptr<double>(), padded_.data(), threads);
  return strain_derivative(density);
}

void PeriodicMesh::values(int threads, double *potential, double *derivatives) const
{
  if (!gather_from_mesh(window(), padded_points_, atoms_, channels_, coordinates_.data(), padded_.data(), potential,
                        derivatives, threads))
    throw std::runtime_error(outside);
  for (int64_t k = 0; k < atoms_ * channels_; ++k, derivatives += 3) {
    std::rotate(derivatives, derivatives + 2, derivatives + 3);    // from the axes 2, 3, 1
    for (int axis = 0; axis < 3; ++axis) derivatives[axis] *= static_cast<double>(mesh_.shape[axis]);
  }
}

}    // namespace les_md
