// SPDX-License-Identifier: MIT

#include "pair_mliap_les.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "platform.h"
#include "update.h"
#include "utils.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

using namespace LAMMPS_NS;

/* ---------------------------------------------------------------------- */

PairMLIAPLES::PairMLIAPLES(LAMMPS *lmp) :
    Pair(lmp), device_("cpu"), threads_(0), write_charges_(false), mapped_step_(-1), graph_time_(0.0), calls_(0)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;    // forces go to own atoms only, so sum of f*r over ghosts is not the virial
  centroidstressflag = CENTROID_NOTAVAIL;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);

  nextra = 2;
  pvector = new double[nextra]();
}

/* ---------------------------------------------------------------------- */

PairMLIAPLES::~PairMLIAPLES()
{
  delete[] pvector;
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
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
  if (neighbor->ago == 0 || neighbor->lastcall != mapped_step_ ||
      node_of_.size() != static_cast<size_t>(atom->nlocal + atom->nghost))
    map_atoms_to_nodes();
  build_graph();
  graph_time_ += platform::walltime() - start;
  ++calls_;

  try {
    model_->evaluate(graph_, result_);
  } catch (const std::exception &failure) {
    error->one(FLERR, "Pair style mliap/les: the model failed at step {}: {}", update->ntimestep, failure.what());
  }

  apply_forces();
  store_charges();
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::allocate()
{
  allocated = 1;
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::settings(int narg, char **arg)
{
  device_ = "cpu";
  threads_ = 0;
  write_charges_ = false;

  for (int iarg = 0; iarg < narg; iarg += 2) {
    const std::string keyword = arg[iarg];
    if (keyword != "device" && keyword != "threads" && keyword != "kspace" && keyword != "charges")
      error->all(FLERR, "Unknown pair_style mliap/les keyword '{}': known are device, threads, kspace, charges",
                 keyword);
    if (iarg + 1 >= narg) error->all(FLERR, "Pair_style mliap/les keyword '{}' needs a value", keyword);
    const std::string value = arg[iarg + 1];

    if (keyword == "device") {
      device_ = value;
    } else if (keyword == "threads") {
      threads_ = utils::inumeric(FLERR, value, false, lmp);
      if (threads_ < 1) error->all(FLERR, "Pair_style mliap/les threads must be at least 1, not {}", value);
    } else if (keyword == "kspace") {
      if (value == "mesh")
        error->all(FLERR, "Pair_style mliap/les kspace mesh is not available in this version: use ewald");
      if (value != "auto" && value != "ewald")
        error->all(FLERR, "Unknown pair_style mliap/les kspace '{}': give auto or ewald", value);
    } else {
      write_charges_ = utils::logical(FLERR, value, false, lmp) == 1;
    }
  }

  if (model_) {    // the same style named again: pair_coeff stays valid
    try {
      model_->move_to(device_);
    } catch (const std::exception &failure) {
      error->all(FLERR, "Pair_style mliap/les: {}", failure.what());
    }
  }
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

  std::string path = utils::get_potential_file_path(arg[2]);
  if (path.empty()) error->all(FLERR, "Pair_coeff for mliap/les: model file '{}' not found", arg[2]);
  try {
    model_ = std::make_unique<les_md::LESModel>(path, device_);
  } catch (const std::exception &failure) {
    error->all(FLERR, "Pair_coeff for mliap/les: {}", failure.what());
  }
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

  const int threads = threads_ > 0 ? threads_ : comm->nthreads;
  if (comm->me == 0)
    utils::logmesg(lmp, "mliap/les: {} ({}, {}), types{}, cutoff {:g}, {}, device {}, {} thread{}\n", arg[2],
                   info.architecture, info.dtype, mapping, info.cutoff,
                   info.long_range ? "kspace ewald" : "short range only", model_->device(), threads,
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
  if (comm->nprocs > 1)
    error->all(FLERR, "Pair style mliap/les runs on one MPI rank in this version, not on {}: use its threads",
               comm->nprocs);
  if (!force->newton_pair) error->all(FLERR, "Pair style mliap/les needs newton on for pairs");
  if (!atom->tag_enable) error->all(FLERR, "Pair style mliap/les needs atom IDs: remove atom_modify id no");
  if (write_charges_ && !atom->q_flag)
    error->all(FLERR, "Pair_style mliap/les charges yes needs an atom_style with charges (charge or full)");
  if (write_charges_ && model_->info().n_q != 1)
    error->all(FLERR, "Pair_style mliap/les charges yes needs a model with one charge per atom, this one has {}",
               model_->info().n_q);
  check_boundaries();
  check_neighbor_settings();

  les_md::LESModel::set_threads(threads_ > 0 ? threads_ : comm->nthreads);
  neighbor->add_request(this, NeighConst::REQ_FULL);

  node_of_.clear();
  model_->times = {};
  graph_time_ = 0.0;
  calls_ = 0;
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

double PairMLIAPLES::init_one(int, int)
{
  return model_->info().cutoff;
}

/* ----------------------------------------------------------------------
   nodes are unique atoms: all periodic images of an atom share its node
------------------------------------------------------------------------- */

void PairMLIAPLES::map_atoms_to_nodes()
{
  const int nlocal = atom->nlocal;
  const int nall = nlocal + atom->nghost;
  const tagint *tag = atom->tag;
  const int *type = atom->type;

  mapped_step_ = neighbor->lastcall;
  node_of_.assign(nall, -1);
  atom_of_.clear();
  graph_.types.clear();
  std::unordered_map<tagint, int> node_of_tag;
  node_of_tag.reserve(nlocal);
  for (int i = 0; i < nlocal; ++i) {
    if (type_of_[type[i]] < 0) continue;
    node_of_[i] = static_cast<int>(atom_of_.size());
    node_of_tag[tag[i]] = node_of_[i];
    atom_of_.push_back(i);
    graph_.types.push_back(type_of_[type[i]]);
  }
  for (int i = nlocal; i < nall; ++i) {
    if (type_of_[type[i]] < 0) continue;
    const auto found = node_of_tag.find(tag[i]);
    if (found == node_of_tag.end())
      error->one(FLERR, "Pair style mliap/les: ghost atom with ID {} has no owner", tag[i]);
    node_of_[i] = found->second;
  }
}

/* ----------------------------------------------------------------------
   positions, box and all edges within the cutoff, from the neighbor list
------------------------------------------------------------------------- */

void PairMLIAPLES::build_graph()
{
  double **x = atom->x;
  graph_.positions.resize(3 * atom_of_.size());
  for (size_t node = 0; node < atom_of_.size(); ++node)
    for (int a = 0; a < 3; ++a) {
      const double value = x[atom_of_[node]][a];
      if (!std::isfinite(value))
        error->one(FLERR, "Pair style mliap/les: position of atom {} is not a number at step {}",
                   atom->tag[atom_of_[node]], update->ntimestep);
      graph_.positions[3 * node + a] = value;
    }

  graph_.cell.fill(0.0);
  if (domain->xperiodic || domain->yperiodic || domain->zperiodic)
    graph_.cell = {domain->xprd, 0.0, 0.0, domain->xy, domain->yprd, 0.0, domain->xz, domain->yz, domain->zprd};

  graph_.centre.clear();
  graph_.neighbour.clear();
  graph_.vectors.clear();
  const double limit = model_->info().cutoff * model_->info().cutoff;
  for (int ii = 0; ii < list->inum; ++ii) {
    const int i = list->ilist[ii];
    const int centre = node_of_[i];
    if (centre < 0) continue;
    const int *neighbors = list->firstneigh[i];
    for (int jj = 0; jj < list->numneigh[i]; ++jj) {
      const int j = neighbors[jj] & NEIGHMASK;
      if (node_of_[j] < 0) continue;
      const double dx = x[j][0] - x[i][0], dy = x[j][1] - x[i][1], dz = x[j][2] - x[i][2];
      if (dx * dx + dy * dy + dz * dz >= limit) continue;
      graph_.centre.push_back(centre);
      graph_.neighbour.push_back(node_of_[j]);
      graph_.vectors.insert(graph_.vectors.end(), {dx, dy, dz});
    }
  }
}

/* ----------------------------------------------------------------------
   energy, forces and virial of the last evaluation in units of the input
------------------------------------------------------------------------- */

void PairMLIAPLES::apply_forces()
{
  const bool real = utils::strmatch(update->unit_style, "^real");
  const double scale = real ? utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL) : 1.0;

  double short_range = 0.0, long_range = 0.0;
  for (size_t node = 0; node < atom_of_.size(); ++node) {
    short_range += result_.short_range_energy[node];
    long_range += result_.long_range_energy[node];
  }
  if (!std::isfinite(short_range) || !std::isfinite(long_range)) stop_non_finite("energy");
  short_range *= scale;
  long_range *= scale;

  double **f = atom->f;
  double w[6] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  double check = 0.0;
  for (size_t k = 0; k < graph_.centre.size(); ++k) {
    const double *g = &result_.edge_gradient[3 * k], *r = &graph_.vectors[3 * k];
    double *fi = f[atom_of_[graph_.centre[k]]], *fj = f[atom_of_[graph_.neighbour[k]]];
    for (int a = 0; a < 3; ++a) {
      fi[a] += scale * g[a];
      fj[a] -= scale * g[a];
      check += g[a];
    }
    w[0] -= r[0] * g[0];
    w[1] -= r[1] * g[1];
    w[2] -= r[2] * g[2];
    w[3] -= 0.5 * (r[0] * g[1] + r[1] * g[0]);
    w[4] -= 0.5 * (r[0] * g[2] + r[2] * g[0]);
    w[5] -= 0.5 * (r[1] * g[2] + r[2] * g[1]);
  }
  for (size_t node = 0; node < atom_of_.size(); ++node)
    for (int a = 0; a < 3; ++a) {
      f[atom_of_[node]][a] += scale * result_.long_range_force[3 * node + a];
      check += result_.long_range_force[3 * node + a];
    }
  if (!std::isfinite(check)) stop_non_finite("force");

  pvector[0] = short_range;
  pvector[1] = long_range;
  if (eflag_global) {
    eng_vdwl += short_range;
    eng_coul += long_range;
  }
  if (eflag_atom)
    for (size_t node = 0; node < atom_of_.size(); ++node)
      eatom[atom_of_[node]] += scale * (result_.short_range_energy[node] + result_.long_range_energy[node]);
  if (vflag_global) {
    const auto &s = result_.long_range_strain;
    w[0] -= s[0];
    w[1] -= s[4];
    w[2] -= s[8];
    w[3] -= 0.5 * (s[1] + s[3]);
    w[4] -= 0.5 * (s[2] + s[6]);
    w[5] -= 0.5 * (s[5] + s[7]);
    for (int k = 0; k < 6; ++k) virial[k] += scale * w[k];
  }
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::store_charges()
{
  const int n_q = model_->info().n_q;
  charge_.assign(static_cast<size_t>(n_q) * atom->nlocal, 0.0);
  for (size_t node = 0; node < atom_of_.size(); ++node)
    std::copy_n(&result_.charge[n_q * node], n_q, &charge_[static_cast<size_t>(n_q) * atom_of_[node]]);
  if (write_charges_)
    for (const int i : atom_of_) atom->q[i] = charge_[i];
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::stop_non_finite(const std::string &what) const
{
  double nearest = -1.0;
  size_t edge = 0;
  for (size_t k = 0; k < graph_.centre.size(); ++k) {
    const double *r = &graph_.vectors[3 * k];
    const double d = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
    if (nearest < 0.0 || d < nearest) {
      nearest = d;
      edge = k;
    }
  }
  std::string hint;
  if (nearest >= 0.0)
    hint = fmt::format("; the closest atoms, {} and {}, are {:.4g} angstrom apart",
                       atom->tag[atom_of_[graph_.centre[edge]]], atom->tag[atom_of_[graph_.neighbour[edge]]], nearest);
  error->one(FLERR, "Pair style mliap/les: the model gives a non-finite {} at step {}{}", what, update->ntimestep,
             hint);
}

/* ---------------------------------------------------------------------- */

void PairMLIAPLES::finish()
{
  if (comm->me != 0 || calls_ == 0) return;
  const auto &t = model_->times;
  const double ms = 1000.0 / static_cast<double>(calls_);
  utils::logmesg(lmp,
                 "mliap/les: {} evaluations, ms each: graph {:.3f} network-forward {:.3f} network-backward {:.3f} "
                 "electrostatics {:.3f}\n",
                 calls_, ms * graph_time_, ms * t.forward, ms * t.backward, ms * t.electrostatics);
}

/* ---------------------------------------------------------------------- */

double PairMLIAPLES::memory_usage()
{
  double bytes = Pair::memory_usage();
  bytes += static_cast<double>(graph_.vectors.capacity() + result_.edge_gradient.capacity()) * sizeof(double);
  bytes += static_cast<double>(graph_.centre.capacity() + graph_.neighbour.capacity()) * sizeof(int64_t);
  bytes += static_cast<double>(node_of_.capacity()) * sizeof(int);
  return bytes;
}

/* ----------------------------------------------------------------------
   latent charges for fix pair: a vector with one channel, an array with more
------------------------------------------------------------------------- */

void *PairMLIAPLES::extract_peratom(const char *name, int &ncol)
{
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
