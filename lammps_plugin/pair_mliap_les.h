// SPDX-License-Identifier: MIT
// pair_style mliap/les: exported les_md models in LAMMPS. See docs/pair_mliap_les.md.

#ifndef LES_MD_PAIR_MLIAP_LES_H
#define LES_MD_PAIR_MLIAP_LES_H

#include "pair.h"

#include "les_model.h"
#include "unique_atom_graph.h"

#include <array>
#include <functional>
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
  void *extract(const char *, int &) override;
  void *extract_peratom(const char *, int &) override;
  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;

  // for FixMLIAPLESCurrent
  void tally_current();
  void warn_at_rest();

 private:
  void evaluate(const les_md::ResponseRequest &request);
  std::string problem_in(const std::string &what, const std::function<std::string()> &part) const;
  void stop_if_any(const std::string &problem, double order = 0.0) const;
  void warn_of_script(const std::string &reason);
  void plan(bool for_check);
  void reduce_density();
  std::string find_non_finite(double &nearest) const;
  void apply_forces();
  void store_charges();

  // in pair_mliap_les_settings.cpp
  void allocate();

  // in pair_mliap_les_init.cpp
  double needed_ghost_cutoff() const;
  void request_ghosts();
  void check_charges_of_others() const;
  void check_boundaries() const;
  void check_neighbor_settings() const;
  void check_masses();
  void check_launcher() const;

  // in pair_mliap_les_report.cpp
  void report_graph(const les_md::ResponseRequest &request);

  // in pair_mliap_les_response.cpp
  les_md::ResponseRequest wanted_response();
  void check_response(const std::string &what) const;
  void store_born();
  void integrate_current();
  void update_current_fix();
  std::string current_fix_id() const;
  void *extract_born(int &ncol);
  void read_field(char **values);
  bool field_varies() const;
  bool isolated() const;
  void check_field() const;
  std::array<double, 3> electric_field();
  void apply_field(double scale);

  std::string device_;
  int threads_;
  bool write_charges_;
  std::string kspace_;
  double accuracy_;
  bool slab_, fixed_kset_, compiled_operators_, compiled_network_;
  int current_every_;
  std::vector<std::string> field_text_;    // three numbers or v_names, or nothing
  bool sum_rule_;

  std::unique_ptr<les_md::LESModel> model_;
  std::vector<int> type_of_;    // model type of each atom type, -1 for NULL
  double ghost_cutoff_;         // what the instances of this style asked LAMMPS for, 0 if nothing
  bool with_ghost_neighbors_;
  bool masses_checked_;    // since the last pair_coeff

  UniqueAtomGraph graph_;
  les_md::Evaluation result_;
  bigint mapped_step_;    // step of the neighbor list the images were mapped for
  bigint total_atoms_;    // that take part, of all processes
  bool kset_chosen_;
  std::array<double, 9> kset_cell_;
  bool graph_reported_;

  std::vector<double> charge_;    // [nlocal,n_q], zero for atoms of NULL types
  std::vector<double *> charge_rows_;

  bigint current_step_;                        // of the last current, -1 if none is to be integrated from
  double current_time_;                        // of that step
  std::array<double, 3> last_current_;         // of the own atoms, as are the next
  std::array<double, 3> polarisation_change_;
  bool warned_at_rest_;

  int born_wanted_;               // set by fix pair for one evaluation
  bigint born_step_;              // step that born_ belongs to
  std::vector<double> born_;      // [nlocal + nghost,3,3], zero for atoms of NULL types
  std::vector<double *> born_rows_;

  double graph_time_, reduction_time_;
  bigint calls_;
};

}    // namespace LAMMPS_NS

#endif
