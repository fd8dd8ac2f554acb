// SPDX-License-Identifier: MIT
// The part of pair_style mliap/les that comes before a run: what LAMMPS is asked for, and settings that would spoil
// results without a word.

#include "pair_mliap_les.h"

#include "atomic_masses.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "neighbor.h"
#include "update.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include <mpi.h>

using namespace LAMMPS_NS;

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
  check_masses();

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
   elements in another order than the atom types give energies that mean nothing, and no error: masses tell. A mass that
   is no element's (deuterium, heavier hydrogens for longer time steps) is nobody's mistake.
------------------------------------------------------------------------- */

void PairMLIAPLES::check_masses()
{
  if (masses_checked_ || !atom->mass || atom->rmass) return;
  masses_checked_ = true;
  const auto &elements = model_->info().elements;
  const auto close = [](double mass, double standard) {
    return std::abs(mass - standard) <= std::max(0.01, 0.003 * standard);
  };
  std::string wrong;
  for (int type = 1; type <= atom->ntypes; ++type) {
    if (type_of_[type] < 0 || !atom->mass_setflag[type]) continue;
    const double mass = atom->mass[type];
    const std::string &own = elements[type_of_[type]];
    if (std::abs(mass - les_md::atomic_mass(own)) <= 0.5) continue;
    for (const auto &other : elements)
      if (other != own && close(mass, les_md::atomic_mass(other)))
        wrong += fmt::format("{}type {} is {} with the mass of {} ({:g})", wrong.empty() ? "" : ", ", type, own, other,
                             mass);
  }
  if (!wrong.empty() && comm->me == 0)
    error->warning(FLERR,
                   "Pair style mliap/les: {}. The elements of pair_coeff stand in the order of the atom types, whatever "
                   "their order in the model",
                   wrong);
}

/* ----------------------------------------------------------------------
   started by the mpiexec of another MPI library, every process is a whole run of its own
------------------------------------------------------------------------- */

void PairMLIAPLES::check_launcher() const
{
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (size > 1) return;
  for (const char *variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    const char *value = std::getenv(variable);
    if (!value || std::atoi(value) < 2) continue;
    error->warning(FLERR,
                   "Pair style mliap/les: {} processes were started, but each is a run of its own: mpiexec is that of "
                   "another MPI library than this LAMMPS was built with (lmp -h names it)",
                   value);
    return;
  }
}
