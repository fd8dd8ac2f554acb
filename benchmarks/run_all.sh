#!/usr/bin/env bash
# The benchmarks of a step, one after the other on one thread, their tables (and a figure) into a folder:
#   bash benchmarks/run_all.sh CHECKPOINT FOLDER          (or: make bench MODEL=CHECKPOINT)
# CHECKPOINT is of a MACE-LES model of water. What needs a package that is not installed is left out, with a word.
set -euo pipefail
model=$1
output=$2
python=${BENCH_PYTHON:-python}
here=$(dirname "$0")
export OMP_NUM_THREADS=1
mkdir -p "$output"

table() {
    local name=$1
    shift
    echo "== $name"
    # mace-torch says on import that it does without cuEquivariance
    "$python" -W ignore "$here/$@" | grep --line-buffered -v "^cuequivariance" | tee "$output/$name.txt"
}
has() { "$python" -W ignore -c "import $1" > /dev/null 2>&1; }

"$python" -W ignore "$here/compare_upstream.py" --model "$model" --output "$output"
"$python" -W ignore "$here/compare_upstream.py" --model water_rpbe_d3 --steps 40 --output "$output"
table step_time step_time.py --model water_rpbe_d3 --model "$model" --threads 1
table step_time_compiled step_time.py --model water_rpbe_d3 --threads 1 --compiled
table cace_network cace_network.py --model water_rpbe_d3
table ahead_of_time ahead_of_time.py
table network_operators network_operators.py --model "$model" --sizes 1
table electrostatics electrostatics.py --threads 1 --repeats 3
table openmm_step openmm_step.py --model "$model" --openmm-ml --threads 1 --steps 10
if has torchpme; then
    table torch_pme compare_torch_pme.py --threads 1 --repeats 5
    table torch_pme_float32 compare_torch_pme.py --threads 1 --repeats 5 --dtype float32
else
    echo "no comparison with torch-pme, which is not installed ($python -m pip install torch-pme)"
fi
