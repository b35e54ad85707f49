#!/usr/bin/env bash
# Differences between evaluated runs with intervals and p-values, and the gap to the teacher that is closed.
#
#   bash scripts/compare.sh RUN_OR_CKPT RUN_OR_CKPT [RUN_OR_CKPT...] [--teacher RUN_OR_CKPT] [--metric rougeL] [FLAGS...]
#
# All of them evaluated by scripts/eval/run_eval.sh under the same settings (docs/evaluation.md). Paths are relative to
# the working directory or to the repository.
set -euo pipefail

caller_dir=$PWD # common.sh changes to the root of the repository
# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

[[ $# -ge 1 ]] || fail "pass two runs or more: bash $0 RUN_OR_CKPT RUN_OR_CKPT [RUN_OR_CKPT...] [FLAGS...]"
take_checkpoints "$caller_dir" "$@"
shift ${#checkpoints[@]}
run_printed "$PYTHON" code/compare.py "${checkpoints[@]}" "$@"
