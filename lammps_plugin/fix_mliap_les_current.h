// SPDX-License-Identifier: MIT
// fix mliap/les/current: made by pair_style mliap/les with the keyword current, for the velocities at the end of a step.

#ifndef LES_MD_FIX_MLIAP_LES_CURRENT_H
#define LES_MD_FIX_MLIAP_LES_CURRENT_H

#include "fix.h"

namespace LAMMPS_NS {

// Forces are computed in the middle of a step, when the velocities are those of half a step before. The current needs
// Born charges and velocities of the same time.
class FixMLIAPLESCurrent : public Fix {
 public:
  FixMLIAPLESCurrent(class LAMMPS *, int, char **);

  void belongs_to(class PairMLIAPLES *pair, int every);
  int setmask() override;
  void init() override;
  void setup(int) override;
  void end_of_step() override;

 private:
  class PairMLIAPLES *pair_;
};

}    // namespace LAMMPS_NS

#endif
