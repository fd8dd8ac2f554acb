// SPDX-License-Identifier: MIT
// An exported les_md model behind plain C++ types: knows libtorch and nothing of LAMMPS.
// Units: eV, angstrom, elementary charges.

#ifndef LES_MD_LES_MODEL_H
#define LES_MD_LES_MODEL_H

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace les_md {

struct ModelInfo {
  std::string architecture, dtype;
  std::vector<std::string> elements;    // in type order
  double cutoff = 0.0;
  int n_q = 0;
  bool long_range = false;
};

// Nodes are unique atoms; edge k goes from centre[k] to neighbour[k], both node numbers,
// with vector r_neighbour - r_centre to the periodic image that is meant.
struct Graph {
  std::vector<int64_t> types;       // [N], positions in ModelInfo::elements
  std::vector<double> positions;    // [N,3]
  std::vector<int64_t> centre, neighbour;    // [E]
  std::vector<double> vectors;      // [E,3]
  std::array<double, 9> cell{};     // rows are lattice vectors; all zero for an isolated system
};

struct Evaluation {
  std::vector<double> short_range_energy;       // [N]
  std::vector<double> long_range_energy;        // [N], half of charge times potential
  std::vector<double> charge;                   // [N,n_q]
  std::vector<double> edge_gradient;            // [E,3], dE/d(edge vector) including the response of the charges
  std::vector<double> long_range_force;         // [N,3], at fixed charges
  std::array<double, 9> long_range_strain{};    // dE/d(strain) at fixed charges
};

struct ModelTimes {
  double forward = 0.0, backward = 0.0, electrostatics = 0.0;    // seconds, accumulated
};

class LESModel {
 public:
  // device: "cpu", "cuda", "cuda:N" or "auto". Throws std::runtime_error with a message for the user.
  LESModel(const std::string &path, const std::string &device);
  ~LESModel();

  const ModelInfo &info() const { return info_; }
  std::string device() const;
  void move_to(const std::string &device);

  // Node energies and charges, edge gradients, electrostatics of one configuration.
  // Throws std::runtime_error where the model fails.
  void evaluate(const Graph &graph, Evaluation &out);

  ModelTimes times;

  static void set_threads(int threads);

 private:
  struct Script;
  void run(const Graph &graph, Evaluation &out);

  std::unique_ptr<Script> script_;
  ModelInfo info_;
};

}    // namespace les_md

#endif
