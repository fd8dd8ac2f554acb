// SPDX-License-Identifier: MIT
// The part of pair_style mliap/les that has to do with the electrical response: Born charges, current, electric field.

#include "pair_mliap_les.h"

#include "fix_mliap_les_current.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "fix.h"
#include "input.h"
#include "modify.h"
#include "update.h"
#include "utils.h"
#include "variable.h"

#include <algorithm>
#include <cmath>
#include <limits>

using namespace LAMMPS_NS;

/* ----------------------------------------------------------------------
   what is needed at this step; the same on every process
------------------------------------------------------------------------- */

les_md::ResponseRequest PairMLIAPLES::wanted_response()
{
  les_md::ResponseRequest request;
  // Velocities have no meaning in a minimisation, and atoms move without them.
  if (update->whichflag == 2) current_step_ = -1;
  const bool current = current_every_ > 0 && update->whichflag == 1 && update->ntimestep % current_every_ == 0;
  request.born = born_wanted_ != 0 || current;
  if (!field_text_.empty()) {
    request.electric_field = electric_field();
    request.field = request.electric_field != std::array<double, 3>{};
  }
  return request;
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
  std::copy_n(born_.data() + 9 * static_cast<size_t>(first), 9 * static_cast<size_t>(n), buffer);
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
  integrate_current();
}

/* ----------------------------------------------------------------------
   change of the polarisation: the integral of the current by trapezoids, from the first of a row of equally spaced steps
   where a run goes on from the last step of another, its first current (velocities may be new) replaces the other's last
------------------------------------------------------------------------- */

void PairMLIAPLES::integrate_current()
{
  const bigint step = update->ntimestep;
  const double time = update->atime + static_cast<double>(step - update->atimestep) * update->dt;
  if (current_step_ < 0 || (step != current_step_ && step != current_step_ + current_every_)) {
    polarisation_change_ = {};
  } else if (step != current_step_) {
    for (int a = 0; a < 3; ++a)
      polarisation_change_[a] += 0.5 * (time - current_time_) * (last_current_[a] + pvector[2 + a]);
  }
  current_step_ = step;
  current_time_ = time;
  for (int a = 0; a < 3; ++a) {
    last_current_[a] = pvector[2 + a];
    pvector[6 + a] = polarisation_change_[a];
  }
}

/* ----------------------------------------------------------------------
   once, at the start of a run or at a snapshot of rerun: there may have been no velocities to read
------------------------------------------------------------------------- */

void PairMLIAPLES::warn_at_rest()
{
  if (warned_at_rest_ || born_step_ != update->ntimestep || update->ntimestep % current_every_) return;
  int moving = 0, any = 0;
  for (int i = 0; i < atom->nlocal && !moving; ++i)
    moving = atom->v[i][0] != 0.0 || atom->v[i][1] != 0.0 || atom->v[i][2] != 0.0;
  MPI_Allreduce(&moving, &any, 1, MPI_INT, MPI_MAX, world);
  if (any) return;
  warned_at_rest_ = true;
  if (comm->me == 0)
    error->warning(FLERR,
                   "Pair style mliap/les: the current is zero at step {} because all velocities are: give velocities "
                   "(velocity all create, or vx vy vz in the dump that is read)",
                   update->ntimestep);
}

/* ----------------------------------------------------------------------
   a fix tells when the step ends; it precedes whatever reads the current, since that names this style
------------------------------------------------------------------------- */

void PairMLIAPLES::update_current_fix()
{
  nextra = current_every_ > 0 ? 9 : !field_text_.empty() ? 6 : 2;
  std::fill_n(&pvector[2], 7, std::numeric_limits<double>::quiet_NaN());
  if (field_text_.empty()) pvector[5] = 0.0;
  current_step_ = -1;
  warned_at_rest_ = false;
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
    les_md::ResponseRequest request;
    request.born = true;
    evaluate(request);
    store_born();
  }
  ncol = 9;
  const size_t rows = static_cast<size_t>(std::max(atom->nlocal, 1));
  born_.resize(std::max(born_.size(), 9 * rows), 0.0);
  born_rows_.resize(rows);
  for (size_t i = 0; i < rows; ++i) born_rows_[i] = &born_[9 * i];
  return born_rows_.data();
}

/* ---------------------------------------------------------------------- */

bool PairMLIAPLES::isolated() const
{
  return !domain->xperiodic && !domain->yperiodic && !domain->zperiodic;
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::read_field(char **values)
{
  for (int k = 0; k < 3; ++k) {
    const std::string text = values[k];
    if (!utils::strmatch(text, "^v_")) utils::numeric(FLERR, text, false, lmp);    // stops if it is not a number
    field_text_.push_back(text);
  }
}

/* ---------------------------------------------------------------------- */

bool PairMLIAPLES::field_varies() const
{
  return std::any_of(field_text_.begin(), field_text_.end(),
                     [](const std::string &text) { return utils::strmatch(text, "^v_"); });
}

/* ----------------------------------------------------------------------
   that there is such a field, and that nothing needs of it what it does not have
------------------------------------------------------------------------- */

void PairMLIAPLES::check_field() const
{
  if (field_text_.empty()) {
    if (sum_rule_) error->all(FLERR, "Pair_style mliap/les asr yes is about the forces of a field: give efield too");
    return;
  }
  check_response("efield");
  for (const auto &text : field_text_) {
    if (!utils::strmatch(text, "^v_")) continue;
    const int variable = input->variable->find(text.c_str() + 2);
    if (variable < 0) error->all(FLERR, "Pair style mliap/les: variable {} of efield does not exist", text.substr(2));
    if (!input->variable->equalstyle(variable))
      error->all(FLERR, "Pair style mliap/les: variable {} of efield is not of style equal", text.substr(2));
  }
  if (update->whichflag == 2 && field_varies())
    error->all(FLERR, "Pair style mliap/les: a field given by variables has no energy to minimise: give numbers");
  if (isolated()) {
    if (sum_rule_)
      error->all(FLERR, "Pair_style mliap/les asr yes is for periodic systems: in an isolated one the forces of the "
                        "field are derivatives of its energy");
    return;
  }
  if (update->whichflag == 2)
    error->all(FLERR, "Pair style mliap/les: a field has no energy in a system with periodic directions, so that "
                      "nothing can be minimised in it");
  for (const auto *fix : modify->get_fix_list())
    if (fix->box_change & (Fix::BOX_CHANGE_SIZE | Fix::BOX_CHANGE_SHAPE) && !utils::strmatch(fix->style, "^deform"))
      error->all(FLERR,
                 "Pair style mliap/les: the pressure does not contain the field in a system with periodic directions, "
                 "so that fix {} cannot control it: use a fixed box",
                 fix->style);
}

/* ----------------------------------------------------------------------
   in V/angstrom, at this step
------------------------------------------------------------------------- */

std::array<double, 3> PairMLIAPLES::electric_field()
{
  std::array<double, 3> field{};
  const bool varies = field_varies();
  if (varies) modify->clearstep_compute();
  for (int k = 0; k < 3; ++k) {
    const std::string &text = field_text_[k];
    if (utils::strmatch(text, "^v_")) {
      const int variable = input->variable->find(text.c_str() + 2);
      if (variable < 0) error->all(FLERR, "Pair style mliap/les: variable {} of efield is gone", text.substr(2));
      field[k] = input->variable->compute_equal(variable);
      if (!std::isfinite(field[k]))
        error->all(FLERR, "Pair style mliap/les: variable {} of efield is not a number at step {}", text.substr(2),
                   update->ntimestep);
    } else {
      field[k] = utils::numeric(FLERR, text, false, lmp);
    }
  }
  if (varies) modify->addstep_compute(update->ntimestep + 1);
  return field;
}

/* ----------------------------------------------------------------------
   energy of the field in an isolated system, whose forces are among the others; its forces in any other system
   forces on ghosts go home by reverse communication
------------------------------------------------------------------------- */

void PairMLIAPLES::apply_field(double scale)
{
  if (field_text_.empty()) return;
  pvector[5] = isolated() ? 0.0 : std::numeric_limits<double>::quiet_NaN();
  for (const double energy : result_.field_energy) pvector[5] += scale * energy;

  const auto &force = result_.field_force;
  double **f = atom->f;
  double sum[3] = {0.0, 0.0, 0.0};
  for (size_t k = 0; k < force.size(); ++k) {
    f[graph_.node_atom(k / 3)][k % 3] += scale * force[k];
    sum[k % 3] += scale * force[k];
  }
  if (!sum_rule_) return;
  MPI_Allreduce(MPI_IN_PLACE, sum, 3, MPI_DOUBLE, MPI_SUM, world);
  for (size_t node = 0; node < graph_.graph().own; ++node)
    for (int a = 0; a < 3; ++a) f[graph_.own_atom(node)][a] -= sum[a] / static_cast<double>(total_atoms_);
}
