// SPDX-License-Identifier: MIT
// The part of pair_style mliap/les that reports: the work of the ranks, times and memory.

#include "pair_mliap_les.h"

#include "comm.h"
#include "timer.h"
#include "update.h"
#include "utils.h"

#include <mpi.h>
#include <sys/resource.h>

using namespace LAMMPS_NS;

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
