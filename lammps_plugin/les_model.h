// SPDX-License-Identifier: MIT
// An exported les_md model behind plain C++ types: knows libtorch and nothing of LAMMPS or MPI.
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
  int num_layers = 1;
  int n_q = 0;
  int num_columns = 0;       // of all latent variables of an atom, charges first
  bool multipoles = false;    // latent variables beyond charges
  bool responds = false;      // charges or dipoles are induced
  std::string latent;         // the latent variables in words
  bool long_range = false;
  bool response = false;    // the file offers Born charges to several processes
  bool mesh_parts = false;    // the file offers what is around the operators of mesh_operators.h
};

// What the long-range sum needs to know of the system, all processes together.
struct PlanRequest {
  std::array<double, 9> cell{};         // rows are lattice vectors; all zero for an isolated system
  std::array<double, 9> kset_cell{};    // the cell whose truncation chooses the wave vectors
  std::array<double, 6> bounds{};       // lowest, then highest coordinates of an isolated system
  int64_t atoms = 0;
  std::string kspace = "auto";
  double accuracy = 1e-5;
  bool slab = false;

  bool operator==(const PlanRequest &other) const
  {
    return cell == other.cell && kset_cell == other.kset_cell && bounds == other.bounds && atoms == other.atoms &&
        kspace == other.kspace && accuracy == other.accuracy && slab == other.slab;
  }
};

// Nodes are unique atoms, this process's own first; edge k goes from centre[k] to neighbour[k], both node numbers, with
// vector r_neighbour - r_centre to the periodic image that is meant. Edges from own nodes come first, sorted by centre.
struct Graph {
  std::vector<int64_t> types;       // [N], positions in ModelInfo::elements
  size_t own = 0;                   // nodes of this process
  std::vector<double> positions;    // [N,3]
  std::vector<int64_t> centre, neighbour;    // [E]
  std::vector<double> vectors;      // [E,3]
};

// What is asked of the electrical response; the same on all processes.
struct ResponseRequest {
  bool born = false;    // Born charges
  bool field = false;    // a uniform electric field acts, in V/angstrom
  std::array<double, 3> electric_field{};

  bool any() const { return born || field; }
};

// Energies, charges and forces of the own nodes; sums over processes are those of the whole system.
struct Evaluation {
  std::vector<double> short_range_energy;       // [own]
  std::vector<double> long_range_energy;        // [own], half of charge (and dipole, quadrupole) times potential
  std::vector<double> charge;                   // [own,n_q]
  std::vector<double> edge_gradient;            // [E,3], of the own nodes' energy, charges' response included
  std::vector<double> long_range_force;         // [own,3], at fixed charges
  std::array<double, 9> system_strain{};        // dE/d(strain) at fixed charges, the same on every process
  std::array<double, 9> atoms_strain{};         // what the own atoms add to it
  std::vector<double> born;    // [N,3,3], what the own atoms' charges add to Z* of every node, in e; if asked for
  // Of the electric field: in an isolated system its energy, with forces and strain that are part of those above; in any
  // other what the own atoms' charges add to the forces on every node. Empty where there is none.
  std::vector<double> field_energy;    // [own]
  std::vector<double> field_force;     // [N,3]
};

// Seconds, accumulated.
struct ModelTimes {
  double forward = 0.0, backward = 0.0, density = 0.0, solve = 0.0, gather = 0.0;
};

class LESModel {
 public:
  // device: "cpu", "cuda", "cuda:N" or "auto". Throws std::runtime_error with a message for the user, like all others.
  LESModel(const std::string &path, const std::string &device);
  ~LESModel();

  const ModelInfo &info() const { return info_; }
  std::string device() const;
  void move_to(const std::string &device);

  // Whether plans that follow use the compiled operators of the mesh, and the network those of network_operators.h: on
  // the CPU, where the file allows it. Otherwise, the loops are those in the file; results differ by rounding.
  void use_operators(bool compiled);
  bool has_network_operators() const;

  // Whether the network runs as les-export --compile compiled it, which loads native code of the file. Returns why it
  // cannot, if that is asked for; then TorchScript runs.
  std::string use_compiled(bool compiled);
  bool is_compiled() const;

  // How the long-range sum is done from now on. The same request as the last one costs nothing.
  void plan(const PlanRequest &request);
  // The plan in words.
  std::string describe_plan();

  // One evaluation is forward, a sum of the density over processes, and backward. With a request also the sums
  // that Born charges need are made, to be summed over processes like a density.
  // Where charges or dipoles are induced (info().responds), "induce" comes after the first sum, and makes another
  // density to be summed; then, where there is a request, "respond", which makes a third.
  void forward(const Graph &graph, const ResponseRequest &request);
  void induce(const Graph &graph, const ResponseRequest &request);
  void respond(const Graph &graph, const ResponseRequest &request);
  // Densities of the processes are summed; if this is true, they are put one after the other instead.
  bool density_is_list_of_atoms() const { return density_is_list_; }
  std::vector<double> &density() { return density_; }
  std::vector<double> &response_sums() { return response_sums_; }
  void backward(const Graph &graph, Evaluation &out, const ResponseRequest &request);
  // Backward passes of the network that a request adds to an evaluation of the present plan.
  int response_passes(const ResponseRequest &request);

  ModelTimes times;

  static void set_threads(int threads);

 private:
  struct Script;

  bool isolated() const { return request_.cell == std::array<double, 9>{}; }
  void make_blocks(const Graph &graph);
  void forward_block(const Graph &graph, size_t number);
  void sum_weights();
  void prepare_weights(const ResponseRequest &request);
  void long_range_terms(const Graph &graph, Evaluation &out, const ResponseRequest &request);

  std::unique_ptr<Script> script_;
  ModelInfo info_;
  PlanRequest request_;
  bool planned_ = false;
  bool density_is_list_ = false;
  bool operators_wanted_ = true;
  std::vector<double> density_, response_sums_;
  std::vector<int64_t> block_node_;    // node of a block for each node of the graph, -1 between uses
};

}    // namespace les_md

#endif
