#!/usr/bin/env bash
# A language model as the judge of two runs: wins, ties and losses with an interval, and how often the order decided.
#
#   bash scripts/eval/judge.sh RUN_OR_CKPT RUN_OR_CKPT [--eval-num 100] [--max-calls 2000] [FLAGS...]
#
# Both evaluated by scripts/eval/run_eval.sh under the same settings (docs/evaluation.md). Paths are relative to the
# working directory or to the repository. The same command resumes. Set these in the environment:
set -euo pipefail

export JUDGE_URL=${JUDGE_URL:-}         # an OpenAI-compatible endpoint, up to /v1: http://localhost:8000/v1
export JUDGE_MODEL=${JUDGE_MODEL:-}     # its name there
export JUDGE_API_KEY=${JUDGE_API_KEY:-} # if it needs one; it is never printed or written

caller_dir=$PWD # common.sh changes to the root of the repository
# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

[[ $# -ge 1 ]] || fail "pass two runs: bash $0 RUN_OR_CKPT RUN_OR_CKPT [FLAGS...]"
take_checkpoints "$caller_dir" "$@"
shift ${#checkpoints[@]}
run_printed "$PYTHON" code/judge.py "${checkpoints[@]}" "$@"
