// SPDX-License-Identifier: MIT

#include "fix_mliap_les_current.h"

#include "error.h"
#include "pair_mliap_les.h"

using namespace LAMMPS_NS;

/* ---------------------------------------------------------------------- */

FixMLIAPLESCurrent::FixMLIAPLESCurrent(LAMMPS *lmp, int narg, char **arg) : Fix(lmp, narg, arg), pair_(nullptr)
{
  nevery = 1;
}

/* ---------------------------------------------------------------------- */

void FixMLIAPLESCurrent::belongs_to(PairMLIAPLES *pair, int every)
{
  pair_ = pair;
  nevery = every;
}

/* ---------------------------------------------------------------------- */

int FixMLIAPLESCurrent::setmask()
{
  return FixConst::END_OF_STEP;
}

/* ---------------------------------------------------------------------- */

void FixMLIAPLESCurrent::init()
{
  if (!pair_)
    error->all(FLERR, "Fix mliap/les/current is made by the pair style: give pair_style mliap/les current N instead");
}

/* ---------------------------------------------------------------------- */

void FixMLIAPLESCurrent::setup(int /*vflag*/)
{
  end_of_step();
  pair_->warn_at_rest();
}

/* ---------------------------------------------------------------------- */

void FixMLIAPLESCurrent::end_of_step()
{
  pair_->tally_current();
}
