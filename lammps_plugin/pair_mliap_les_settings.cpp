// SPDX-License-Identifier: MIT
// The part of pair_style mliap/les that reads commands: pair_style with its keywords, and pair_coeff.

#include "pair_mliap_les.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "memory.h"
#include "utils.h"

#include <algorithm>

using namespace LAMMPS_NS;

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
        keyword != "efield" && keyword != "asr" && keyword != "operators" && keyword != "compiled") {
      if (keyword == "cutoff" || utils::is_double(keyword))
        error->all(FLERR, "Pair_style mliap/les takes no cutoff: it is that of the model");
      error->all(FLERR,
                 "Unknown pair_style mliap/les keyword '{}': known are kspace, accuracy, kset, slab, charges, current, "
                 "efield, asr, operators, compiled, threads, device",
                 keyword);
    }
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
  graph_reported_ = masses_checked_ = false;
  check_launcher();
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
                   info.architecture, info.dtype,
                   model_->is_compiled() ? ", compiled" : model_->has_network_operators() ? ", compiled operators" : "",
                   mapping, info.cutoff, info.latent, info.long_range ? "kspace " + kspace_ : "short range only", model_->device(), threads,
                   threads == 1 ? "" : "s");
}
