#!/usr/bin/env bash
# Benchmarks of lm-evaluation-harness (package lm_eval) on a run, full or LoRA.
#
#   bash scripts/eval/lm_eval.sh RUN_OR_CKPT TASKS [FLAGS...]
#   bash scripts/eval/lm_eval.sh outputs/gpt2/gpt2-base/todi hellaswag,arc_easy --num_fewshot 5 --limit 100
#
# RUN_OR_CKPT is a checkpoint or the folder of a run (its best checkpoint), relative to the working directory or to the
# repository. TASKS are names of the harness, with commas. FLAGS go to `lm_eval run`. Results are written to
# <run>/eval/<checkpoint>/lm_eval; a task's data set comes from the hub.
set -euo pipefail

BATCH_SIZE=${BATCH_SIZE:-auto}

caller_dir=$PWD # common.sh changes to the root of the repository
# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

take_checkpoints "$caller_dir" "${1:-}"
[[ $# -ge 2 && $2 != -* ]] || fail "pass the run and the tasks: bash $0 RUN_OR_CKPT TASKS [FLAGS...]"
tasks=$2
shift 2
if ! dry_run && ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("lm_eval") is None)'; then
    fail "lm_eval is not installed: $PYTHON -m pip install lm_eval"
fi
arguments=$("$PYTHON" scripts/eval/lm_eval_model.py "${checkpoints[0]}") || exit
IFS=$'\t' read -r model_args output <<<"$arguments"
flags=(--model hf --model_args "$model_args" --tasks "$tasks" --batch_size "$BATCH_SIZE" --output_path "$output")
if [[ $DEVICE == cpu ]]; then flags+=(--device cpu); fi
run_printed "$PYTHON" -m lm_eval "${flags[@]}" "$@"
