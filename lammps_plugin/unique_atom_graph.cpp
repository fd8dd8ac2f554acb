// SPDX-License-Identifier: MIT

#include "unique_atom_graph.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "neigh_list.h"
#include "update.h"

#include <cmath>
#include <unordered_map>

using namespace LAMMPS_NS;

/* ---------------------------------------------------------------------- */

std::string UniqueAtomGraph::map_images(const std::vector<int> &type_of)
{
  const int nlocal = atom->nlocal;
  const int nall = nlocal + atom->nghost;
  const tagint *tag = atom->tag;
  const int *type = atom->type;

  unique_of_.assign(nall, -1);
  own_atoms_.clear();
  type_of_unique_.clear();
  std::unordered_map<tagint, int> unique_of_tag;
  unique_of_tag.reserve(nall);
  for (int i = 0; i < nall; ++i) {
    if (type_of[type[i]] < 0) continue;
    const auto [entry, is_new] = unique_of_tag.emplace(tag[i], static_cast<int>(type_of_unique_.size()));
    unique_of_[i] = entry->second;
    if (i < nlocal) {
      if (!is_new) return fmt::format("atom ID {} is not unique", tag[i]);
      own_atoms_.push_back(i);
    } else if (is_new && comm->nprocs == 1) {
      return fmt::format("ghost atom with ID {} has no owner", tag[i]);
    }
    if (is_new) type_of_unique_.push_back(type_of[type[i]]);
  }
  node_of_unique_.assign(type_of_unique_.size(), -1);
  return "";
}

/* ---------------------------------------------------------------------- */

// From the corner of a periodic box: then a box that changes about its centre does not move the mesh against the atoms.
const double *UniqueAtomGraph::origin() const
{
  static constexpr double zero[3] = {0.0, 0.0, 0.0};
  return domain->xperiodic || domain->yperiodic || domain->zperiodic ? domain->boxlo : zero;
}

/* ---------------------------------------------------------------------- */

std::string UniqueAtomGraph::build(const NeighList *list, double cutoff, int num_layers)
{
  const double *const *x = atom->x;
  const double *const origin = this->origin();
  const size_t own = own_atoms_.size();
  graph_.own = own;
  graph_.positions.resize(3 * own);
  node_atoms_ = own_atoms_;
  graph_.types.assign(type_of_unique_.begin(), type_of_unique_.begin() + own);
  std::fill(node_of_unique_.begin(), node_of_unique_.end(), -1);

  std::vector<std::pair<int, int>> centres;
  for (size_t node = 0; node < own; ++node) {
    const int i = own_atoms_[node];
    for (int a = 0; a < 3; ++a) {
      if (!std::isfinite(x[i][a]))
        return fmt::format("position of atom {} is not a number at step {}", atom->tag[i], update->ntimestep);
      graph_.positions[3 * node + a] = x[i][a] - origin[a];
    }
    node_of_unique_[node] = static_cast<int>(node);
    centres.emplace_back(i, static_cast<int>(node));
  }

  // Hop by hop: the atoms reached by the edges of one hop are the centres of the next. An atom may have several images
  // here; the one that is reached first lies within the receptive field, so its own neighbors are all present.
  size_t edges = 0;
  for (int hop = 0; hop < num_layers && !centres.empty(); ++hop) {
    reached_.clear();
    size_t bound = edges;
    for (const auto &centre : centres) bound += list->numneigh[centre.first];
    resize_edges(bound);    // what is there of the step before is overwritten
    for (const auto &[i, node] : centres) edges = add_edges_of(i, node, list, cutoff * cutoff, edges);
    centres.swap(reached_);
    if (hop == 0) own_edges_ = edges;
  }
  resize_edges(edges);
  if (own == 0) own_edges_ = 0;
  return "";
}

/* ---------------------------------------------------------------------- */

void UniqueAtomGraph::resize_edges(size_t edges)
{
  graph_.centre.resize(edges);
  graph_.neighbour.resize(edges);
  graph_.vectors.resize(3 * edges);
  edge_atoms_.resize(edges);
}

/* ----------------------------------------------------------------------
   writes the edges of an atom behind the others, for which there is room; returns how many there are then
------------------------------------------------------------------------- */

size_t UniqueAtomGraph::add_edges_of(int i, int64_t node, const NeighList *list, double limit, size_t edges)
{
  const double *const *x = atom->x;
  const double xi = x[i][0], yi = x[i][1], zi = x[i][2];
  const int *neighbors = list->firstneigh[i];
  const int count = list->numneigh[i];
  for (int jj = 0; jj < count; ++jj) {
    const int j = neighbors[jj] & NEIGHMASK;
    const int unique = unique_of_[j];
    if (unique < 0) continue;
    const double dx = x[j][0] - xi, dy = x[j][1] - yi, dz = x[j][2] - zi;
    // Whether a neighbor is within the cutoff cannot be foreseen: every one is written, and the next over those beyond.
    // (Not "<": a distance that is not a number is left to the model, which says so.)
    const bool beyond = dx * dx + dy * dy + dz * dz >= limit;
    int neighbour = node_of_unique_[unique];
    if (neighbour < 0 && !beyond) neighbour = add_node(j, unique);
    graph_.centre[edges] = node;
    graph_.neighbour[edges] = neighbour;
    double *vector = &graph_.vectors[3 * edges];
    vector[0] = dx;
    vector[1] = dy;
    vector[2] = dz;
    edge_atoms_[edges] = {i, j};
    edges += !beyond;
  }
  return edges;
}

/* ---------------------------------------------------------------------- */

int UniqueAtomGraph::add_node(int j, int unique)
{
  const double *const origin = this->origin();
  const int node = static_cast<int>(graph_.types.size());
  node_of_unique_[unique] = node;
  graph_.types.push_back(type_of_unique_[unique]);
  for (int a = 0; a < 3; ++a) graph_.positions.push_back(atom->x[j][a] - origin[a]);
  node_atoms_.push_back(j);
  reached_.emplace_back(j, node);
  return node;
}

/* ---------------------------------------------------------------------- */

double UniqueAtomGraph::memory_usage() const
{
  double bytes = static_cast<double>(graph_.vectors.capacity() + graph_.positions.capacity()) * sizeof(double);
  bytes += static_cast<double>(graph_.centre.capacity() + graph_.neighbour.capacity() + graph_.types.capacity()) *
      sizeof(int64_t);
  bytes += static_cast<double>(edge_atoms_.capacity()) * sizeof(edge_atoms_[0]);
  bytes += static_cast<double>(unique_of_.capacity() + type_of_unique_.capacity() + node_of_unique_.capacity() +
                               node_atoms_.capacity()) *
      sizeof(int);
  return bytes;
}
