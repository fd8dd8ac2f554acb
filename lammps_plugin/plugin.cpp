// SPDX-License-Identifier: MIT

#include "plugin_interface.h"

#include "fix_mliap_les_current.h"
#include "pair_mliap_les.h"

#include "lammps.h"
#include "library.h"

#include <cstdio>

static void *create_pair_mliap_les(void *lmp)
{
  return new LAMMPS_NS::PairMLIAPLES(static_cast<LAMMPS_NS::LAMMPS *>(lmp));
}

static void *create_fix_mliap_les_current(void *lmp, int narg, char **arg)
{
  return new LAMMPS_NS::FixMLIAPLESCurrent(static_cast<LAMMPS_NS::LAMMPS *>(lmp), narg, arg);
}

void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  // LAMMPS_PLUGIN_PATH is inherited by child processes and may reach another LAMMPS, whose classes are laid out
  // otherwise: ask through the C interface, which is stable, before touching any C++ object.
  const int running = lammps_version(lmp);
  if (running != LES_LAMMPS_VERSION) {
    std::fprintf(stderr,
                 "les_md: pair style mliap/les was built for LAMMPS version %d and is not loaded into version %d\n",
                 LES_LAMMPS_VERSION, running);
    return;
  }

  LammpsPlugin plugin{};
  plugin.version = static_cast<LAMMPS_NS::LAMMPS *>(lmp)->version;
  plugin.style = "pair";
  plugin.name = "mliap/les";
  plugin.info = "machine-learning potentials with latent Ewald summation";
  plugin.author = "les_md";
  plugin.creator.v1 = &create_pair_mliap_les;
  plugin.handle = handle;
  const auto add = reinterpret_cast<LammpsPluginRegister>(regfunc);
  add(&plugin, lmp);

  plugin.style = "fix";
  plugin.name = "mliap/les/current";
  plugin.info = "the end of a step, for pair_style mliap/les current";
  plugin.creator.v2 = &create_fix_mliap_les_current;
  add(&plugin, lmp);
}
