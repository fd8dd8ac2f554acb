// SPDX-License-Identifier: MIT
// The part of pair_style mliap/les that runs at every step: graph, plan, evaluation, forces and charges.

#include "pair_mliap_les.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "modify.h"
#include "neighbor.h"
#include "platform.h"
#include "update.h"
#include "utils.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>

#include <mpi.h>

using namespace LAMMPS_NS;

/* ---------------------------------------------------------------------- */

PairMLIAPLES::PairMLIAPLES(LAMMPS *lmp) :
    Pair(lmp), device_("cpu"), threads_(0), write_charges_(false), kspace_("auto"), accuracy_(1e-5), slab_(false),
    fixed_kset_(false), compiled_operators_(true), compiled_network_(false), current_every_(0), sum_rule_(false),
    ghost_cutoff_(0.0), with_ghost_neighbors_(false), masses_checked_(false),
    graph_(lmp), mapped_step_(-1), total_atoms_(0), kset_chosen_(false), kset_cell_{}, graph_reported_(false),
    current_step_(-1), current_time_(0.0), last_current_{}, polarisation_change_{}, warned_at_rest_(false), born_wanted_(0), born_step_(-1), graph_time_(0.0), reduction_time_(0.0), calls_(0)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;    // the long-range part has no pairs, and ghosts no long-range force
  centroidstressflag = CENTROID_NOTAVAIL;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);

  comm_reverse = 9;    // Born charges

  nextra = 2;
  // short-range energy, long-range energy, current, energy of the electric field, change of the polarisation
  pvector = new double[9]();
}

/* ---------------------------------------------------------------------- */

PairMLIAPLES::~PairMLIAPLES()
{
  delete[] pvector;
  if (modify && modify->get_fix_by_id(current_fix_id())) modify->delete_fix(current_fix_id());
  if (ghost_cutoff_ > 0.0 && comm->cutghostuser == ghost_cutoff_) comm->cutghostuser = 0.0;
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
    memory->destroy(cutghost);
  }
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  if (vflag_atom || cvflag_atom)
    error->all(FLERR, "Pair style mliap/les has no per-atom virial: the long-range energy cannot be divided among "
                      "atoms; use compute pressure for the global one");

  const double start = platform::walltime();
  std::string problem;
  const bool new_list = neighbor->ago == 0 || neighbor->lastcall != mapped_step_;    // the same on every process
  if (new_list || !graph_.maps(atom->nlocal + atom->nghost))
    problem = problem_in("the edges", [this] { return graph_.map_images(type_of_); });
  if (new_list) {
    mapped_step_ = neighbor->lastcall;
    const bigint own = graph_.mapped_atoms();
    MPI_Allreduce(&own, &total_atoms_, 1, MPI_LMP_BIGINT, MPI_SUM, world);
  }
  if (problem.empty())
    problem = problem_in("the edges",
                         [this] { return graph_.build(list, model_->info().cutoff, model_->info().num_layers); });
  stop_if_any(problem);
  graph_time_ += platform::walltime() - start;

  plan(false);
  const auto request = wanted_response();
  if (!graph_reported_) report_graph(request);

  evaluate(request);
  apply_forces();
  store_charges();
  for (const int first : {2, 6})    // until the end of a step that has them
    std::fill_n(&pvector[first], 3, std::numeric_limits<double>::quiet_NaN());
  born_step_ = -1;
  if (request.born) store_born();
}

/* ----------------------------------------------------------------------
   energy, forces and charges of the present graph, and Born charges if asked for; stops if anything fails
------------------------------------------------------------------------- */

void PairMLIAPLES::evaluate(const les_md::ResponseRequest &request)
{
  double nearest = 0.0;
  const auto attempt = [&](const std::function<std::string()> &part) {
    const std::string problem = problem_in("the network and its sums", part);
    stop_if_any(problem, nearest);
  };
  const auto makes_density = [&](void (les_md::LESModel::*part)(const les_md::Graph &, const les_md::ResponseRequest &)) {
    attempt([&] {
      (*model_.*part)(graph_.graph(), request);
      return std::string();
    });
    if (model_->info().long_range) reduce_density();
  };
  makes_density(&les_md::LESModel::forward);
  if (model_->info().responds) makes_density(&les_md::LESModel::induce);
  if (request.any()) {
    auto &sums = model_->response_sums();
    MPI_Allreduce(MPI_IN_PLACE, sums.data(), static_cast<int>(sums.size()), MPI_DOUBLE, MPI_SUM, world);
    if (model_->info().responds) makes_density(&les_md::LESModel::respond);
  }
  attempt([&] {
    model_->backward(graph_.graph(), result_, request);
    return find_non_finite(nearest);
  });
  ++calls_;
}

/* ----------------------------------------------------------------------
   what is wrong after a part of a step, in words: what the part itself returns, or why it failed
   memory that does not suffice is a message, not the end of the program: every part may be the first to need it
------------------------------------------------------------------------- */

std::string PairMLIAPLES::problem_in(const std::string &what, const std::function<std::string()> &part) const
{
  try {
    return part();
  } catch (const std::bad_alloc &) {
    return fmt::format("not enough memory for {} of {} atoms at step {} on {}; use more nodes, or fewer atoms", what,
                       atom->nlocal, update->ntimestep, model_->device());
  } catch (const std::exception &failure) {
    return fmt::format("the model failed at step {}: {}", update->ntimestep, failure.what());
  }
}

/* ----------------------------------------------------------------------
   stops all processes with one message if any of them has a problem: that of the process with the lowest order
------------------------------------------------------------------------- */

void PairMLIAPLES::stop_if_any(const std::string &problem, double order) const
{
  struct {
    double order;
    int rank;
  } first{problem.empty() ? std::numeric_limits<double>::infinity() : order, comm->me};
  if (comm->nprocs > 1) MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_DOUBLE_INT, MPI_MINLOC, world);
  if (std::isinf(first.order)) return;

  int length = static_cast<int>(problem.size());
  MPI_Bcast(&length, 1, MPI_INT, first.rank, world);
  std::string message(problem);
  message.resize(length);
  MPI_Bcast(&message[0], length, MPI_CHAR, first.rank, world);
  error->all(FLERR, "Pair style mliap/les: {}", message);
}

/* ----------------------------------------------------------------------
   how the long-range sum is done for the present box
------------------------------------------------------------------------- */

void PairMLIAPLES::plan(bool for_check)
{
  if (!model_->info().long_range) return;
  les_md::PlanRequest request;
  request.kspace = kspace_;
  request.accuracy = accuracy_;
  request.slab = slab_;
  request.atoms = for_check ? 1 : total_atoms_;

  if (domain->xperiodic || domain->yperiodic || domain->zperiodic) {
    request.cell = {domain->xprd, 0.0, 0.0, domain->xy, domain->yprd, 0.0, domain->xz, domain->yz, domain->zprd};
    if (!for_check && !kset_chosen_) {
      kset_cell_ = request.cell;
      kset_chosen_ = true;
    }
    request.kset_cell = fixed_kset_ && kset_chosen_ ? kset_cell_ : request.cell;
  } else if (!for_check && kspace_ != "ewald") {
    // lowest coordinates, and the highest with their sign turned, so that one minimum serves both
    std::array<double, 6> bounds;
    bounds.fill(std::numeric_limits<double>::max());
    const auto &positions = graph_.graph().positions;
    for (size_t k = 0; k < 3 * graph_.graph().own; ++k) {
      bounds[k % 3] = std::min(bounds[k % 3], positions[k]);
      bounds[3 + k % 3] = std::min(bounds[3 + k % 3], -positions[k]);
    }
    MPI_Allreduce(MPI_IN_PLACE, bounds.data(), 6, MPI_DOUBLE, MPI_MIN, world);
    // Rounded outwards, as les_md/planner.py does: most steps share one plan, which depends on the present positions
    // alone, so that a run continues from a restart as it would have without.
    constexpr double step = 2.0;
    for (int a = 0; a < 3; ++a) {
      request.bounds[a] = total_atoms_ > 0 ? step * std::floor(bounds[a] / step) : 0.0;
      request.bounds[3 + a] = total_atoms_ > 0 ? step * std::ceil(-bounds[3 + a] / step) : 0.0;
    }
  }

  stop_if_any(problem_in("the long-range sum", [&]() -> std::string {
    try {
      model_->plan(request);
    } catch (const std::runtime_error &refusal) {    // of a box or a keyword, in words for the user
      return refusal.what();
    }
    return "";
  }));
}

/* ----------------------------------------------------------------------
   the density of all atoms, from that of each process
------------------------------------------------------------------------- */

void PairMLIAPLES::reduce_density()
{
  if (comm->nprocs == 1) return;
  const double start = platform::walltime();
  auto &density = model_->density();
  int length = static_cast<int>(density.size());
  if (model_->density_is_list_of_atoms()) {
    std::vector<int> lengths(comm->nprocs), offsets(comm->nprocs, 0);
    MPI_Allgather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, world);
    for (int rank = 1; rank < comm->nprocs; ++rank) offsets[rank] = offsets[rank - 1] + lengths[rank - 1];
    std::vector<double> all;
    stop_if_any(problem_in("the charges of all processes", [&] {
      all.resize(static_cast<size_t>(offsets.back()) + lengths.back());
      return std::string();
    }));
    MPI_Allgatherv(density.data(), length, MPI_DOUBLE, all.data(), lengths.data(), offsets.data(), MPI_DOUBLE, world);
    density.swap(all);
  } else {
    // Pieces, since MPI counts in int
    constexpr size_t piece = 1 << 28;
    for (size_t first = 0; first < density.size(); first += piece)
      MPI_Allreduce(MPI_IN_PLACE, density.data() + first, static_cast<int>(std::min(piece, density.size() - first)),
                    MPI_DOUBLE, MPI_SUM, world);
  }
  reduction_time_ += platform::walltime() - start;
}

/* ----------------------------------------------------------------------
   what is not a number in the last evaluation, or nothing
   a bad pair spoils the charges, and so the results, of all processes: nearest tells which of them has it
------------------------------------------------------------------------- */

std::string PairMLIAPLES::find_non_finite(double &nearest) const
{
  const auto sum = [](const std::vector<double> &values) {
    double total = 0.0;
    const double *data = values.data();
    const size_t size = values.size();
#pragma omp simd reduction(+ : total)
    for (size_t k = 0; k < size; ++k) total += data[k];
    return total;
  };
  std::string what;
  if (!std::isfinite(sum(result_.short_range_energy)) || !std::isfinite(sum(result_.long_range_energy)))
    what = "energy";
  else if (!std::isfinite(sum(result_.edge_gradient)) || !std::isfinite(sum(result_.long_range_force)) ||
           !std::isfinite(sum(result_.field_force)))
    what = "force";
  else
    return "";

  const auto &graph = graph_.graph();
  nearest = std::numeric_limits<double>::max();
  size_t edge = 0;
  for (size_t k = 0; k < graph.centre.size(); ++k) {
    const double *r = &graph.vectors[3 * k];
    const double d = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
    if (d < nearest) {
      nearest = d;
      edge = k;
    }
  }
  std::string hint;
  if (!graph.centre.empty())
    hint = fmt::format("; the closest atoms, {} and {}, are {:.4g} angstrom apart",
                       atom->tag[graph_.centre_atom(edge)], atom->tag[graph_.neighbour_atom(edge)], nearest);
  return fmt::format("the model gives a non-finite {} at step {}{}", what, update->ntimestep, hint);
}

/* ----------------------------------------------------------------------
   energy, forces and virial of the last evaluation in units of the input
   the energies are those of the own atoms, so sums over processes count nothing twice
------------------------------------------------------------------------- */

void PairMLIAPLES::apply_forces()
{
  const bool real = utils::strmatch(update->unit_style, "^real");
  const double scale = real ? utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL) : 1.0;
  const auto &graph = graph_.graph();

  pvector[0] = pvector[1] = 0.0;    // compute pair sums over processes
  for (size_t node = 0; node < graph.own; ++node) {
    pvector[0] += scale * result_.short_range_energy[node];
    pvector[1] += scale * result_.long_range_energy[node];
  }

  // Forces on ghosts go home by reverse communication. The edges of a centre follow each other.
  double **f = atom->f;
  double w[6] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  const size_t edges = graph.centre.size();
  const double *g = result_.edge_gradient.data(), *r = graph.vectors.data();
  for (size_t k = 0; k < edges;) {
    const int i = graph_.centre_atom(k);
    double on_centre[3] = {0.0, 0.0, 0.0};
    for (; k < edges && graph_.centre_atom(k) == i; ++k, g += 3, r += 3) {
      double *fj = f[graph_.neighbour_atom(k)];
      for (int a = 0; a < 3; ++a) {
        on_centre[a] += scale * g[a];
        fj[a] -= scale * g[a];
      }
      if (!vflag_global) continue;
      w[0] -= r[0] * g[0];
      w[1] -= r[1] * g[1];
      w[2] -= r[2] * g[2];
      w[3] -= 0.5 * (r[0] * g[1] + r[1] * g[0]);
      w[4] -= 0.5 * (r[0] * g[2] + r[2] * g[0]);
      w[5] -= 0.5 * (r[1] * g[2] + r[2] * g[1]);
    }
    for (int a = 0; a < 3; ++a) f[i][a] += on_centre[a];
  }
  for (size_t node = 0; node < graph.own; ++node)
    for (int a = 0; a < 3; ++a) f[graph_.own_atom(node)][a] += scale * result_.long_range_force[3 * node + a];

  apply_field(scale);

  if (eflag_global) {
    eng_vdwl += pvector[0];
    eng_coul += pvector[1];
    if (!result_.field_energy.empty()) eng_coul += pvector[5];
  }
  if (eflag_atom)
    for (size_t node = 0; node < graph.own; ++node)
      eatom[graph_.own_atom(node)] += scale * (result_.short_range_energy[node] + result_.long_range_energy[node]);
  if (eflag_atom)
    for (size_t node = 0; node < result_.field_energy.size(); ++node)
      eatom[graph_.own_atom(node)] += scale * result_.field_energy[node];
  if (vflag_global) {
    for (int k = 0; k < 9; ++k) {
      static constexpr int voigt[9] = {0, 3, 4, 3, 1, 5, 4, 5, 2};
      const double strain = result_.atoms_strain[k] + (comm->me == 0 ? result_.system_strain[k] : 0.0);
      w[voigt[k]] -= (k % 4 == 0 ? 1.0 : 0.5) * strain;
    }
    for (int k = 0; k < 6; ++k) virial[k] += scale * w[k];
  }
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::store_charges()
{
  const size_t n_q = model_->info().n_q;    // none in a short-range model
  charge_.assign(n_q * atom->nlocal, 0.0);
  for (size_t node = 0; node < graph_.graph().own; ++node) {
    const int i = graph_.own_atom(node);
    std::copy_n(result_.charge.data() + n_q * node, n_q, charge_.data() + n_q * i);
    if (write_charges_) atom->q[i] = charge_[i];
  }
}

/* ----------------------------------------------------------------------
   latent charges for fix pair: a vector with one channel, an array with more
------------------------------------------------------------------------- */

void *PairMLIAPLES::extract_peratom(const char *name, int &ncol)
{
  if (std::string(name) == "born") return extract_born(ncol);
  if (!model_ || model_->info().n_q == 0 || std::string(name) != "charge") return nullptr;
  const int n_q = model_->info().n_q;
  charge_.resize(std::max(charge_.size(), static_cast<size_t>(n_q) * std::max(atom->nlocal, 1)), 0.0);
  if (n_q == 1) {
    ncol = 0;
    return charge_.data();
  }
  ncol = n_q;
  charge_rows_.resize(std::max(atom->nlocal, 1));
  for (size_t i = 0; i < charge_rows_.size(); ++i) charge_rows_[i] = &charge_[n_q * i];
  return charge_rows_.data();
}
