#!/usr/bin/env bash
# Trains what a run file describes, or repeats a run from its args.json.
#
#   bash scripts/run.sh configs/runs/qwen2.5_todi.yaml [--flag value ...]
#   bash scripts/run.sh outputs/.../args.json --save-dir outputs/again [--flag value ...]
#
# Appended flags override the file. GPUS, DRY_RUN=1, DOCTOR=1 and the other variables of the launcher work as in the
# family scripts (scripts/lib/common.sh); configs/README.md says what a run file may hold.
set -euo pipefail

caller_dir=$PWD # python.sh changes to the root of the repository
# shellcheck source=scripts/lib/python.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/python.sh"

if [[ $# -eq 0 ]]; then
    echo "pass the run file: bash $0 FILE.yaml|args.json [--flag value ...]" >&2
    exit 1
fi
file=$1
if [[ -e $caller_dir/$file ]]; then file=$caller_dir/$file; fi
shift
settings=$("$PYTHON" scripts/lib/run_file.py "$file" "$@") || exit
eval "$settings" # the launcher's variables, and the array `flags`
# shellcheck source=scripts/lib/common.sh
source scripts/lib/common.sh
launch code/distillation.py "${flags[@]}"
