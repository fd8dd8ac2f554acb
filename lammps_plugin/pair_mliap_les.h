// SPDX-License-Identifier: MIT
// pair_style mliap/les: exported les_md models in LAMMPS. See docs/pair_mliap_les.md.

#ifndef LES_MD_PAIR_MLIAP_LES_H
#define LES_MD_PAIR_MLIAP_LES_H

#include "pair.h"

#include "les_model.h"

#include <memory>
#include <string>
#include <vector>

namespace LAMMPS_NS {

class PairMLIAPLES : public Pair {
 public:
  explicit PairMLIAPLES(class LAMMPS *);
  ~PairMLIAPLES() override;

  void compute(int, int) override;
  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void finish() override;
  double memory_usage() override;
  void *extract_peratom(const char *, int &) override;

 private:
  void allocate();
  void check_boundaries() const;
  void check_neighbor_settings() const;
  void map_atoms_to_nodes();
  void build_graph();
  void apply_forces();
  void store_charges();
  [[noreturn]] void stop_non_finite(const std::string &what) const;

  std::string device_;
  int threads_;
  bool write_charges_;

  std::unique_ptr<les_md::LESModel> model_;
  std::vector<int> type_of_;    // model type of each atom type, -1 for NULL

  std::vector<int> node_of_;    // node of each own and ghost atom, -1 for atoms of NULL types
  std::vector<int> atom_of_;    // own atom of each node
  bigint mapped_step_;          // step of the neighbor list these two belong to
  les_md::Graph graph_;
  les_md::Evaluation result_;

  std::vector<double> charge_;    // [nlocal,n_q], zero for atoms of NULL types
  std::vector<double *> charge_rows_;

  double graph_time_;
  bigint calls_;
};

}    // namespace LAMMPS_NS

#endif
