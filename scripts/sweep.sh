#!/usr/bin/env bash
# Trains one run for each combination of values, one after the other, and prints a table of all.
#
#   bash scripts/sweep.sh scripts/tiny/kd_student.sh KD_OBJ="fkl todi" LR="0.003 0.005"
#   bash scripts/sweep.sh configs/runs/tiny_todi.yaml --kd-rate="0.5 0.8" -- --seed 20
#
# NAME="values" is a variable of the script, --flag="values" a flag; what follows -- goes to every run. Runs lie in
# SWEEP_DIR. Repeating the command skips finished runs and resumes an interrupted one. DRY_RUN=1 prints the commands.
set -euo pipefail

export SWEEP_DIR=${SWEEP_DIR:-} # default: outputs/sweeps/<name of the script>

caller_dir=$PWD # python.sh changes to the root of the repository
# shellcheck source=scripts/lib/python.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/python.sh"
export PYTHON
script=${1:-}
if [[ -n $script && -e $caller_dir/$script ]]; then script=$caller_dir/$script; fi
exec "$PYTHON" scripts/lib/sweep.py "$script" "${@:2}"
