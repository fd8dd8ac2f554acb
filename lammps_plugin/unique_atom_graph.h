// SPDX-License-Identifier: MIT
// The graph of one process: own atoms and what they reach, every atom a single node whatever its periodic images.

#ifndef LES_MD_UNIQUE_ATOM_GRAPH_H
#define LES_MD_UNIQUE_ATOM_GRAPH_H

#include "les_model.h"
#include "pointers.h"

#include <string>
#include <vector>

namespace LAMMPS_NS {

class NeighList;

// A message-passing network of L layers needs, for the energy of an atom, the edges of all atoms up to L - 1 edges away.
// Nodes are therefore the own atoms, the atoms L - 1 hops around them with their edges, and the atoms at the ends of
// those edges without. Own atoms come first.
class UniqueAtomGraph : protected Pointers {
 public:
  explicit UniqueAtomGraph(LAMMPS *lmp) : Pointers(lmp) {}

  // Finds which own and ghost atoms are images of each other; for a new neighbor list. type_of: model type of every atom
  // type, -1 for types that take no part. Returns what is wrong, or nothing.
  std::string map_images(const std::vector<int> &type_of);

  // Nodes and edges within the cutoff for the present positions. Returns what is wrong, or nothing.
  std::string build(const NeighList *list, double cutoff, int num_layers);

  const les_md::Graph &graph() const { return graph_; }
  // Atom that stands for an own node
  int own_atom(size_t node) const { return own_atoms_[node]; }
  // Atom, own or ghost, that stands for any node
  int node_atom(size_t node) const { return node_atoms_[node]; }
  // Atoms, own or ghost, at the ends of an edge; forces on them are the edge's
  int centre_atom(size_t edge) const { return edge_atoms_[edge].first; }
  int neighbour_atom(size_t edge) const { return edge_atoms_[edge].second; }
  // Edges that start at own atoms; they come first
  size_t own_edges() const { return own_edges_; }
  bigint mapped_atoms() const { return static_cast<bigint>(own_atoms_.size()); }
  bool maps(int nall) const { return unique_of_.size() == static_cast<size_t>(nall); }
  void clear() { unique_of_.clear(); }
  double memory_usage() const;

 private:
  const double *origin() const;
  void resize_edges(size_t edges);
  size_t add_edges_of(int atom, int64_t node, const NeighList *list, double limit, size_t edges);
  int add_node(int atom, int unique);

  std::vector<int> unique_of_;      // of each own and ghost atom; -1 for atoms that take no part
  std::vector<int> own_atoms_;      // unique atoms from 0 on are the own ones
  std::vector<int> type_of_unique_;
  std::vector<int> node_of_unique_;    // -1: not in the graph of this step

  les_md::Graph graph_;
  std::vector<int> node_atoms_;
  std::vector<std::pair<int, int>> edge_atoms_;
  std::vector<std::pair<int, int>> reached_;    // image and node of the atoms found last
  size_t own_edges_ = 0;
};

}    // namespace LAMMPS_NS

#endif
