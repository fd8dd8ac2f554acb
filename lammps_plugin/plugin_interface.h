// SPDX-License-Identifier: MIT
// The C interface of LAMMPS plugins, declared from its documentation ("Writing plugins" in the LAMMPS developer
// guide). Binary packages of LAMMPS ship their class headers but not this one.

#ifndef LES_MD_PLUGIN_INTERFACE_H
#define LES_MD_PLUGIN_INTERFACE_H

extern "C" {

struct LammpsPlugin {
  const char *version;    // LAMMPS version the plugin was compiled for
  const char *style;      // kind of style: "pair", "fix", ...
  const char *name;
  const char *info;
  const char *author;
  union {
    void *(*v1)(void *);                    // pair, bond, kspace ... styles: (lmp)
    void *(*v2)(void *, int, char **);      // fix, compute ... styles: (lmp, narg, arg)
  } creator;
  void *handle;
};

using LammpsPluginRegister = void (*)(LammpsPlugin *, void *);

// looked up by name in every plugin file: (lmp, handle, registration function)
void lammpsplugin_init(void *, void *, void *);
}

#endif
