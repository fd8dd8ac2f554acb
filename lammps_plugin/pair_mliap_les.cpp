// SPDX-License-Identifier: MIT

#include "pair_mliap_les.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "platform.h"
#include "timer.h"
#include "update.h"
#include "utils.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <new>

#include <mpi.h>
#include <sys/resource.h>

using namespace LAMMPS_NS;

/* ---------------------------------------------------------------------- */

PairMLIAPLES::PairMLIAPLES(LAMMPS *lmp) :
    Pair(lmp), device_("cpu"), threads_(0), write_charges_(false), kspace_("auto"), accuracy_(1e-5), slab_(false),
    fixed_kset_(false), compiled_operators_(true), compiled_network_(false), current_every_(0), sum_rule_(false), ghost_cutoff_(0.0), with_ghost_neighbors_(false),
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
  // These vectors are the first to grow with the system: no memory for them is a message, not the end of the program.
  const auto with_memory = [this](auto &&part) -> std::string {
    try {
      return part();
    } catch (const std::bad_alloc &) {
      return fmt::format("not enough memory for the edges of {} atoms at step {}", atom->nlocal, update->ntimestep);
    }
  };
  if (new_list || !graph_.maps(atom->nlocal + atom->nghost))
    problem = with_memory([this] { return graph_.map_images(type_of_); });
  if (new_list) {
    mapped_step_ = neighbor->lastcall;
    const bigint own = graph_.mapped_atoms();
    MPI_Allreduce(&own, &total_atoms_, 1, MPI_LMP_BIGINT, MPI_SUM, world);
  }
  if (problem.empty())
    problem = with_memory([this] { return graph_.build(list, model_->info().cutoff, model_->info().num_layers); });
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
    std::string problem;
    try {
      problem = part();
    } catch (const std::exception &failure) {
      problem = fmt::format("the model failed at step {}: {}", update->ntimestep, failure.what());
    }
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

  std::string problem;
  try {
    model_->plan(request);
  } catch (const std::exception &failure) {
    problem = failure.what();
  }
  stop_if_any(problem);
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
    std::vector<double> all(static_cast<size_t>(offsets.back()) + lengths.back());
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

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::allocate()
{
  allocated = 1;
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  memory->create(cutghost, n, n, "pair:cutghost");
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::settings(int narg, char **arg)
{
  device_ = "cpu";
  threads_ = 0;
  write_charges_ = false;
  kspace_ = "auto";
  accuracy_ = 1e-5;
  slab_ = fixed_kset_ = false;
  compiled_operators_ = true;
  compiled_network_ = false;
  current_every_ = 0;
  field_text_.clear();
  sum_rule_ = false;

  for (int iarg = 0; iarg < narg; iarg += 2) {
    const std::string keyword = arg[iarg];
    if (keyword != "device" && keyword != "threads" && keyword != "kspace" && keyword != "accuracy" &&
        keyword != "kset" && keyword != "slab" && keyword != "charges" && keyword != "current" &&
        keyword != "efield" && keyword != "asr" && keyword != "operators" && keyword != "compiled")
      error->all(FLERR,
                 "Unknown pair_style mliap/les keyword '{}': known are kspace, accuracy, kset, slab, charges, current, "
                 "efield, asr, operators, compiled, threads, device",
                 keyword);
    if (iarg + 1 >= narg) error->all(FLERR, "Pair_style mliap/les keyword '{}' needs a value", keyword);
    const std::string value = arg[iarg + 1];

    if (keyword == "device") {
      device_ = value;
    } else if (keyword == "threads") {
      threads_ = utils::inumeric(FLERR, value, false, lmp);
      if (threads_ < 1) error->all(FLERR, "Pair_style mliap/les threads must be at least 1, not {}", value);
    } else if (keyword == "kspace") {
      if (value != "auto" && value != "ewald" && value != "mesh")
        error->all(FLERR, "Unknown pair_style mliap/les kspace '{}': give auto, ewald or mesh", value);
      kspace_ = value;
    } else if (keyword == "accuracy") {
      accuracy_ = utils::numeric(FLERR, value, false, lmp);
    } else if (keyword == "kset") {
      if (value != "follow" && value != "fixed")
        error->all(FLERR, "Unknown pair_style mliap/les kset '{}': give follow or fixed", value);
      fixed_kset_ = value == "fixed";
    } else if (keyword == "operators") {
      if (value != "compiled" && value != "file")
        error->all(FLERR, "Unknown pair_style mliap/les operators '{}': give compiled or file", value);
      compiled_operators_ = value == "compiled";
    } else if (keyword == "compiled") {
      compiled_network_ = utils::logical(FLERR, value, false, lmp) == 1;
    } else if (keyword == "slab") {
      slab_ = utils::logical(FLERR, value, false, lmp) == 1;
    } else if (keyword == "current") {
      current_every_ = utils::inumeric(FLERR, value, false, lmp);
      if (current_every_ < 0)
        error->all(FLERR, "Pair_style mliap/les current must be a number of steps, or 0 for never, not {}", value);
    } else if (keyword == "efield") {
      if (iarg + 3 >= narg) error->all(FLERR, "Pair_style mliap/les keyword 'efield' needs three values: Ex Ey Ez");
      read_field(&arg[iarg + 1]);
      iarg += 2;
    } else if (keyword == "asr") {
      sum_rule_ = utils::logical(FLERR, value, false, lmp) == 1;
    } else {
      write_charges_ = utils::logical(FLERR, value, false, lmp) == 1;
    }
  }

  update_current_fix();
  std::string problem, in_script;
  if (model_) {    // the same style named again: pair_coeff stays valid
    try {
      model_->move_to(device_);
      model_->use_operators(compiled_operators_);
      in_script = model_->use_compiled(compiled_network_);
    } catch (const std::exception &failure) {
      problem = failure.what();
    }
  }
  stop_if_any(problem);
  warn_of_script(in_script);
}

// Of this process alone: others may have another processor.
void PairMLIAPLES::warn_of_script(const std::string &reason)
{
  if (!reason.empty()) error->warning(FLERR, "Pair style mliap/les runs the network in TorchScript: {}", reason);
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::coeff(int narg, char **arg)
{
  if (narg < 4)
    error->all(FLERR, "Pair_coeff for mliap/les needs: * * FILE and one element (or NULL) for each of the {} atom types",
               atom->ntypes);
  if (narg - 3 != atom->ntypes)
    error->all(FLERR, "Pair_coeff for mliap/les names {} elements for {} atom types: give one element or NULL per type",
               narg - 3, atom->ntypes);

  const std::string path = utils::get_potential_file_path(arg[2]);
  std::string problem, in_script;
  if (path.empty()) {
    problem = fmt::format("model file '{}' not found", arg[2]);
  } else {
    try {
      model_ = std::make_unique<les_md::LESModel>(path, device_);
      model_->use_operators(compiled_operators_);
      in_script = model_->use_compiled(compiled_network_);
    } catch (const std::exception &failure) {
      problem = failure.what();
    }
  }
  stop_if_any(problem);
  warn_of_script(in_script);
  graph_reported_ = false;
  const auto &info = model_->info();

  type_of_.assign(atom->ntypes + 1, -1);
  std::string mapping;
  for (int type = 1; type <= atom->ntypes; ++type) {
    const std::string name = arg[2 + type];
    mapping += fmt::format(" {}={}", type, name);
    if (name == "NULL") continue;
    const auto found = std::find(info.elements.begin(), info.elements.end(), name);
    if (found == info.elements.end()) {
      std::string known;
      for (const auto &element : info.elements) known += " " + element;
      error->all(FLERR, "Pair_coeff for mliap/les: model '{}' does not know element '{}'; it knows{}", arg[2], name,
                 known);
    }
    type_of_[type] = static_cast<int>(found - info.elements.begin());
  }

  if (!allocated) allocate();
  int pairs = 0;
  for (int i = 1; i <= atom->ntypes; ++i)
    for (int j = 1; j <= atom->ntypes; ++j) {
      setflag[i][j] = j >= i && type_of_[i] >= 0 && type_of_[j] >= 0;
      pairs += setflag[i][j];
    }
  if (pairs == 0) error->all(FLERR, "Pair_coeff for mliap/les maps no atom type to an element");

  update_current_fix();
  const int threads = threads_ > 0 ? threads_ : comm->nthreads;
  if (comm->me == 0)
    utils::logmesg(lmp, "mliap/les: {} ({}, {}{}), types{}, cutoff {:g}{}, {}, device {}, {} thread{}\n", arg[2],
                   info.architecture, info.dtype, model_->is_compiled() ? ", compiled" : "", mapping, info.cutoff, info.latent,
                   info.long_range ? "kspace " + kspace_ : "short range only", model_->device(), threads,
                   threads == 1 ? "" : "s");
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::init_style()
{
  const std::string units = update->unit_style;
  if (units != "metal" && units != "real")
    error->all(FLERR, "Pair style mliap/les works in units metal or real, not {}", units);
  if (!model_) error->all(FLERR, "Pair style mliap/les has no model: give pair_coeff * * FILE and the elements");
  if (domain->dimension != 3) error->all(FLERR, "Pair style mliap/les needs dimension 3");
  if (!force->newton_pair) error->all(FLERR, "Pair style mliap/les needs newton on for pairs");
  if (!atom->tag_enable) error->all(FLERR, "Pair style mliap/les needs atom IDs: remove atom_modify id no");
  if (write_charges_ && !atom->q_flag)
    error->all(FLERR, "Pair_style mliap/les charges yes needs an atom_style with charges (charge or full)");
  if (write_charges_ && model_->info().n_q != 1)
    error->all(FLERR, "Pair_style mliap/les charges yes needs a model with one charge per atom, this one has {}",
               model_->info().n_q);
  if (write_charges_) check_charges_of_others();
  if (current_every_ > 0) check_response("current");
  check_field();
  check_boundaries();
  check_neighbor_settings();

  if (slab_ && !(domain->xperiodic && domain->yperiodic && !domain->zperiodic))
    error->all(FLERR, "Pair_style mliap/les slab yes needs boundary p p f");
  if (slab_ && !model_->info().long_range)
    error->all(FLERR, "Pair_style mliap/les slab yes needs a model with long-range energy");

  les_md::LESModel::set_threads(threads_ > 0 ? threads_ : comm->nthreads);
  request_ghosts();
  neighbor->add_request(this, with_ghost_neighbors_ ? NeighConst::REQ_FULL | NeighConst::REQ_GHOST
                                                    : NeighConst::REQ_FULL);

  graph_.clear();
  mapped_step_ = -1;
  kset_chosen_ = false;
  plan(true);
  model_->times = {};
  graph_time_ = reduction_time_ = 0.0;
  calls_ = 0;
}

/* ----------------------------------------------------------------------
   on several processes a message-passing network needs ghosts, and neighbors of ghosts, from further than one cutoff
------------------------------------------------------------------------- */

double PairMLIAPLES::needed_ghost_cutoff() const
{
  if (!model_ || comm->nprocs == 1 || model_->info().num_layers == 1) return 0.0;
  return model_->info().num_layers * model_->info().cutoff + neighbor->skin;
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::request_ghosts()
{
  const auto &info = model_->info();
  const double needed = needed_ghost_cutoff();
  with_ghost_neighbors_ = needed > 0.0;
  ghostneigh = with_ghost_neighbors_ ? 1 : 0;

  // LAMMPS has one ghost cutoff for all instances of this style under pair_style hybrid.
  double needed_by_all = needed;
  bool by_user = comm->cutghostuser != 0.0 && comm->cutghostuser != ghost_cutoff_;
  const PairMLIAPLES *last = nullptr;
  for (int n = 1;; ++n) {
    const auto *other = dynamic_cast<const PairMLIAPLES *>(force->pair_match("^mliap/les", 0, n));
    if (!other || other == last) break;
    last = other;
    needed_by_all = std::max(needed_by_all, other->needed_ghost_cutoff());
    if (comm->cutghostuser == other->ghost_cutoff_) by_user = false;
  }
  ghost_cutoff_ = 0.0;
  if (!by_user) comm->cutghostuser = ghost_cutoff_ = needed_by_all;
  if (!with_ghost_neighbors_) return;

  if (comm->mode != Comm::SINGLE)
    error->all(FLERR,
               "Pair style mliap/les: a model of {} layers on several MPI ranks needs one ghost cutoff: use comm_modify "
               "mode single",
               info.num_layers);
  if (neighbor->style != Neighbor::BIN && neighbor->style != Neighbor::NSQ)
    error->all(FLERR,
               "Pair style mliap/les: a model of {} layers on several MPI ranks needs neighbors of ghost atoms, which "
               "LAMMPS lists with neighbor style bin or nsq only: use neighbor {:g} bin",
               info.num_layers, neighbor->skin);
  if (comm->cutghostuser < needed)
    error->all(FLERR,
               "Pair style mliap/les: the ghost cutoff {:g} of comm_modify is below the {:g} angstrom that {} layers of "
               "cutoff {:g} and the neighbor skin {:g} need on several MPI ranks: remove it, or use: comm_modify cutoff "
               "{:g}",
               comm->cutghostuser, needed, info.num_layers, info.cutoff, neighbor->skin,
               std::ceil(10.0 * needed_by_all) / 10.0);
}

/* ----------------------------------------------------------------------
   an atom has one charge: of two models under pair_style hybrid the second would overwrite what the first wrote
------------------------------------------------------------------------- */

void PairMLIAPLES::check_charges_of_others() const
{
  const PairMLIAPLES *last = nullptr;
  for (int n = 1;; ++n) {
    const auto *other = dynamic_cast<const PairMLIAPLES *>(force->pair_match("^mliap/les", 0, n));
    if (!other || other == last) break;
    last = other;
    if (other == this || !other->write_charges_ || !other->model_) continue;
    for (int type = 1; type <= atom->ntypes; ++type)
      if (type_of_[type] >= 0 && other->type_of_[type] >= 0)
        error->all(FLERR,
                   "Pair style mliap/les: two models with charges yes act on atom type {}, which has one charge: give "
                   "charges yes to one of them, and read the other's charges by fix pair",
                   type);
  }
}

/* ----------------------------------------------------------------------
   the reciprocal sum runs over the box, so the box must not follow the atoms
------------------------------------------------------------------------- */

void PairMLIAPLES::check_boundaries() const
{
  if (!model_->info().long_range) return;
  if (!domain->xperiodic && !domain->yperiodic && !domain->zperiodic) return;
  for (int dim = 0; dim < 3; ++dim)
    for (int side = 0; side < 2; ++side)
      if (domain->boundary[dim][side] > 1)
        error->all(FLERR,
                   "Pair style mliap/les: with periodic boundaries in one direction a shrink-wrapped one ({}) in "
                   "another would change the box of the long-range sum as atoms move: use a fixed boundary (f)",
                   domain->boundary[dim][side] == 2 ? "s" : "m");
}

/* ----------------------------------------------------------------------
   settings that would take pairs out of the neighbor list without a word
------------------------------------------------------------------------- */

void PairMLIAPLES::check_neighbor_settings() const
{
  if (neighbor->includegroup)
    error->all(FLERR, "Pair style mliap/les needs the neighbors of all atoms: remove neigh_modify include");

  bool excluded = neighbor->nex_group > 0 || neighbor->nex_mol > 0;
  for (int k = 0; k < neighbor->nex_type; ++k)
    if (type_of_[neighbor->ex1_type[k]] >= 0 && type_of_[neighbor->ex2_type[k]] >= 0) excluded = true;
  if (excluded)
    error->all(FLERR, "Pair style mliap/les needs all pairs within its cutoff: remove neigh_modify exclude");

  if (atom->molecular != Atom::ATOMIC && (atom->nbonds > 0 || atom->molecular == Atom::TEMPLATE))
    for (int k = 1; k <= 3; ++k)
      if (force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
        error->all(FLERR, "Pair style mliap/les needs bonded atoms in the neighbor list, special_bonds takes them out: "
                          "give special_bonds lj/coul 1.0 1.0 1.0");
}

/* ---------------------------------------------------------------------- */

double PairMLIAPLES::init_one(int i, int j)
{
  cutghost[i][j] = cutghost[j][i] = model_->info().cutoff;
  return model_->info().cutoff;
}

/* ----------------------------------------------------------------------
   what is not a number in the last evaluation, or nothing
   a bad pair spoils the charges, and so the results, of all processes: nearest tells which of them has it
------------------------------------------------------------------------- */

std::string PairMLIAPLES::find_non_finite(double &nearest) const
{
  const auto sum = [](const std::vector<double> &values) {
    double total = 0.0;
    for (const double value : values) total += value;
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

  // Forces on ghosts go home by reverse communication.
  double **f = atom->f;
  double w[6] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  for (size_t k = 0; k < graph.centre.size(); ++k) {
    const double *g = &result_.edge_gradient[3 * k], *r = &graph.vectors[3 * k];
    double *fi = f[graph_.centre_atom(k)], *fj = f[graph_.neighbour_atom(k)];
    for (int a = 0; a < 3; ++a) {
      fi[a] += scale * g[a];
      fj[a] -= scale * g[a];
    }
    w[0] -= r[0] * g[0];
    w[1] -= r[1] * g[1];
    w[2] -= r[2] * g[2];
    w[3] -= 0.5 * (r[0] * g[1] + r[1] * g[0]);
    w[4] -= 0.5 * (r[0] * g[2] + r[2] * g[0]);
    w[5] -= 0.5 * (r[1] * g[2] + r[2] * g[1]);
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
  const int n_q = model_->info().n_q;
  charge_.assign(static_cast<size_t>(n_q) * atom->nlocal, 0.0);
  for (size_t node = 0; node < graph_.graph().own; ++node) {
    const int i = graph_.own_atom(node);
    std::copy_n(&result_.charge[n_q * node], n_q, &charge_[static_cast<size_t>(n_q) * i]);
    if (write_charges_) atom->q[i] = charge_[i];
  }
}

/* ----------------------------------------------------------------------
   once: how the long-range sum is done, and what the ranks share beyond their own atoms and edges
------------------------------------------------------------------------- */

void PairMLIAPLES::report_graph(const les_md::ResponseRequest &request)
{
  graph_reported_ = true;
  const auto &graph = graph_.graph();
  const double mine[4] = {static_cast<double>(graph.own), static_cast<double>(graph.types.size()),
                          static_cast<double>(graph_.own_edges()), static_cast<double>(graph.centre.size())};
  double sum[4], most[4];
  MPI_Reduce(mine, sum, 4, MPI_DOUBLE, MPI_SUM, 0, world);
  MPI_Reduce(mine, most, 4, MPI_DOUBLE, MPI_MAX, 0, world);
  if (comm->me != 0) return;
  if (model_->info().long_range)
    utils::logmesg(lmp, "mliap/les: long-range sum by {}\n", model_->describe_plan());
  if (!field_text_.empty())
    utils::logmesg(lmp, "mliap/les: electric field {} {} {} V/angstrom {}\n", field_text_[0], field_text_[1],
                   field_text_[2], isolated() ? "with the energy -P.E" : "through Born charges, without an energy");
  if (request.any())
    utils::logmesg(lmp, "mliap/les: electrical response: {} more backward passes at step {}\n",
                   model_->response_passes(request), update->ntimestep);
  const auto ratio = [](double all, double ideal) { return ideal > 0.0 ? all / ideal : 1.0; };
  utils::logmesg(lmp,
                 "mliap/les: per rank {:.0f} own atoms (at most {:.0f}), {:.0f} nodes ({:.2f} times the own atoms), "
                 "{:.0f} edges ({:.2f} times those of own atoms)\n",
                 sum[0] / comm->nprocs, most[0], sum[1] / comm->nprocs, ratio(sum[1], sum[0]), sum[3] / comm->nprocs,
                 ratio(sum[3], sum[2]));
}

/* ----------------------------------------------------------------------
   mean time of the parts of a step, as the slowest rank has it, and memory
------------------------------------------------------------------------- */

void PairMLIAPLES::finish()
{
  if (calls_ == 0) return;
  const auto &t = model_->times;
  struct rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const double ms = 1000.0 / static_cast<double>(calls_);
  const double mine[9] = {ms * timer->get_wall(Timer::NEIGH),
                          ms * graph_time_,
                          ms * t.forward,
                          ms * t.density,
                          ms * reduction_time_,
                          ms * t.solve,
                          ms * t.gather,
                          ms * t.backward,
                          static_cast<double>(usage.ru_maxrss) / 1024.0};
  double most[9], sum[9];
  MPI_Reduce(mine, most, 9, MPI_DOUBLE, MPI_MAX, 0, world);
  MPI_Reduce(mine, sum, 9, MPI_DOUBLE, MPI_SUM, 0, world);
  if (comm->me != 0) return;
  static const char *const names[8] = {"neighbours", "graph", "network-forward", "density",
                                       "reduction",  "solve", "gather",          "network-backward"};
  std::string text = fmt::format("mliap/les: {} evaluations, ms each", calls_);
  if (comm->nprocs > 1) text += " (mean of the ranks, slowest)";
  text += ":";
  for (int k = 0; k < 8; ++k) {
    text += fmt::format(" {} {:.3f}", names[k], sum[k] / comm->nprocs);
    if (comm->nprocs > 1) text += fmt::format(" ({:.3f})", most[k]);
  }
  utils::logmesg(lmp, "{}\nmliap/les: peak memory per rank {:.0f} MB, at most {:.0f} MB\n", text,
                 sum[8] / comm->nprocs, most[8]);
}

/* ---------------------------------------------------------------------- */

double PairMLIAPLES::memory_usage()
{
  double bytes = Pair::memory_usage() + graph_.memory_usage();
  bytes += static_cast<double>(result_.edge_gradient.capacity() + result_.born.capacity() + born_.capacity()) *
      sizeof(double);
  if (model_) bytes += static_cast<double>(model_->density().capacity()) * sizeof(double);
  return bytes;
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
