// SPDX-License-Identifier: MIT
// The part of pair_style mliap/les that has to do with the electrical response: Born charges and the current.

#include "pair_mliap_les.h"

#include "fix_mliap_les_current.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "modify.h"
#include "update.h"

#include <algorithm>
#include <limits>

using namespace LAMMPS_NS;

/* ----------------------------------------------------------------------
   whether Born charges are needed at this step; the same on every process
------------------------------------------------------------------------- */

bool PairMLIAPLES::wants_response() const
{
  // Velocities have no meaning in a minimisation.
  const bool current = current_every_ > 0 && update->whichflag == 1 && update->ntimestep % current_every_ == 0;
  return born_wanted_ != 0 || current;
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::check_response(const std::string &what) const
{
  if (!model_) error->all(FLERR, "Pair style mliap/les: {} needs a model: give pair_coeff first", what);
  if (!model_->info().long_range)
    error->all(FLERR, "Pair style mliap/les: {} needs a model with charges, this one is short-range only", what);
  if (!model_->info().response)
    error->all(FLERR,
               "Pair style mliap/les: {} needs a model file of format 4 or newer, this one was written by an older "
               "les_md: export the checkpoint again",
               what);
}

/* ----------------------------------------------------------------------
   Born charges of the own atoms; what the charges of this process add to those of ghosts goes home
------------------------------------------------------------------------- */

void PairMLIAPLES::store_born()
{
  born_.assign(9 * static_cast<size_t>(std::max(atom->nlocal + atom->nghost, 1)), 0.0);
  for (size_t node = 0; node < graph_.graph().types.size(); ++node) {
    double *tensor = &born_[9 * static_cast<size_t>(graph_.node_atom(node))];
    for (int k = 0; k < 9; ++k) tensor[k] += result_.born[9 * node + k];
  }
  if (comm->nprocs > 1) comm->reverse_comm(this);
  born_step_ = update->ntimestep;
}

/* ---------------------------------------------------------------------- */

int PairMLIAPLES::pack_reverse_comm(int n, int first, double *buffer)
{
  std::copy_n(&born_[9 * static_cast<size_t>(first)], 9 * static_cast<size_t>(n), buffer);
  return 9 * n;
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::unpack_reverse_comm(int n, int *atoms, double *buffer)
{
  for (int k = 0; k < n; ++k)
    for (int m = 0; m < 9; ++m) born_[9 * static_cast<size_t>(atoms[k]) + m] += *buffer++;
}

/* ----------------------------------------------------------------------
   current of the own atoms, from the velocities as they are now; compute pair sums over processes
------------------------------------------------------------------------- */

void PairMLIAPLES::tally_current()
{
  if (born_step_ != update->ntimestep || update->ntimestep % current_every_) return;
  double *current = &pvector[2];
  current[0] = current[1] = current[2] = 0.0;
  for (int i = 0; i < atom->nlocal; ++i)
    for (int k = 0; k < 9; ++k) current[k / 3] += born_[9 * static_cast<size_t>(i) + k] * atom->v[i][k % 3];
}

/* ----------------------------------------------------------------------
   a fix tells when the step ends; it precedes whatever reads the current, since that names this style
------------------------------------------------------------------------- */

void PairMLIAPLES::update_current_fix()
{
  nextra = current_every_ > 0 ? 5 : 2;
  std::fill_n(&pvector[2], 3, std::numeric_limits<double>::quiet_NaN());
  if (!domain->box_exist) return;    // no fix without; pair_coeff comes back to it
  const std::string id = current_fix_id();
  Fix *fix = modify->get_fix_by_id(id);
  if (current_every_ == 0) {
    if (fix) modify->delete_fix(id);
    return;
  }
  if (!fix) fix = modify->add_fix(id + " all mliap/les/current");
  auto *mine = dynamic_cast<FixMLIAPLESCurrent *>(fix);
  if (!mine) error->all(FLERR, "Pair style mliap/les: the fix ID {} is taken; rename that fix", id);
  mine->belongs_to(this, current_every_);
}

/* ---------------------------------------------------------------------- */

std::string PairMLIAPLES::current_fix_id() const
{
  return fmt::format("mliap_les_current_{}", instance_me);
}

/* ----------------------------------------------------------------------
   the trigger of fix pair
------------------------------------------------------------------------- */

void *PairMLIAPLES::extract(const char *name, int &dim)
{
  if (std::string(name) != "born_flag") return nullptr;
  check_response("fix pair with born");
  dim = 0;
  return &born_wanted_;
}

/* ----------------------------------------------------------------------
   rows of nine: xx xy xz yx ..., polarisation before displacement
   fix pair asks for the number of columns when it is defined, and for the values in a run
------------------------------------------------------------------------- */

void *PairMLIAPLES::extract_born(int &ncol)
{
  check_response("fix pair with born");
  if (update->whichflag != 0 && born_step_ != update->ntimestep) {    // without the trigger: evaluated once more
    evaluate(true);
    store_born();
  }
  ncol = 9;
  const size_t rows = static_cast<size_t>(std::max(atom->nlocal, 1));
  born_.resize(std::max(born_.size(), 9 * rows), 0.0);
  born_rows_.resize(rows);
  for (size_t i = 0; i < rows; ++i) born_rows_[i] = &born_[9 * i];
  return born_rows_.data();
}
