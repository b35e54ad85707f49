#!/usr/bin/env bash
# ROUGE-L and other scores of full models or LoRA adapters on the five instruction sets, mean and deviation over five
# seeds, in one table.
#
#   bash scripts/eval/run_eval.sh RUN_OR_CKPT [RUN_OR_CKPT...] [BATCH] [FLAGS...]
#
# RUN_OR_CKPT is a checkpoint or the folder of a run (its best checkpoint), relative to the working directory or to the
# repository. BATCH is a number. What is complete is not done again, so the same command resumes an interrupted
# evaluation (docs/evaluation.md). Missing data sets are skipped (data/README.md); if all are missing, the run is evaluated on the data that
# it was trained on.
# Edit a variable here or set it in the environment; scripts/lib/flags.txt lists the others (MAX_LENGTH, TOP_P, ...).
set -euo pipefail

BASE_MODEL_PATH=${BASE_MODEL_PATH:-} # of an adapter; empty: the base that the adapter names
DATA_DIRS=${DATA_DIRS:-data/dolly:data/self-inst:data/vicuna:data/sinst/11_:data/uinst/11_} # colons between folders or files
SEEDS=${SEEDS:-10 20 30 40 50}
EVAL_NUM=${EVAL_NUM-10000} # first rows of a set, cuts uinst/11_ only; empty: all
DO_SAMPLE=${DO_SAMPLE:-1}  # 0: greedy

caller_dir=$PWD # common.sh changes to the root of the repository
# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

take_checkpoints "$caller_dir" "$@"
shift ${#checkpoints[@]}
[[ ${#checkpoints[@]} -ge 1 ]] || fail "pass the checkpoint: bash $0 RUN_OR_CKPT [RUN_OR_CKPT...] [BATCH] [FLAGS...]"
if [[ $# -ge 1 && $1 != -* ]]; then
    # shellcheck disable=SC2034 # `pass` reads it
    EVAL_BATCH_SIZE=$1
    require_number EVAL_BATCH_SIZE 1 "BATCH is the prompts of a batch on one GPU"
    shift
fi
if [[ -n $BASE_MODEL_PATH ]]; then
    flags=(--model-path "$BASE_MODEL_PATH" --peft-path "${checkpoints[@]}")
else
    flags=(--model-path "${checkpoints[@]}")
fi

# is_there SET: a file, or a folder with the split in one of its forms (data/README.md)
is_there() {
    local form
    for form in jsonl json csv parquet; do [[ -f $1/${SPLIT:-valid}.$form ]] && return; done
    [[ -f $1 ]]
}
IFS=: read -r -a sets <<<"$DATA_DIRS"
present=()
for set in "${sets[@]}"; do
    if is_there "$set" || dry_run; then
        present+=("$set")
    else
        echo "skipped: $set has no ${SPLIT:-valid}.jsonl (or .json, .csv, .parquet)" >&2
    fi
done
if [[ ${#present[@]} -gt 0 ]]; then
    flags+=(--data-dir "${present[@]}")
elif printenv DATA_DIRS >/dev/null; then
    fail "DATA_DIRS=$DATA_DIRS: none of them is there; see data/README.md"
else
    for run in "${checkpoints[@]}"; do
        [[ -e $run ]] || fail "$run: no such run or checkpoint"
    done
    echo "none of the data sets is there (data/README.md): the run is evaluated on its own data" >&2
fi
read -r -a seeds <<<"$SEEDS"
flags+=(--seeds "${seeds[@]}")
pass eval
launch code/evaluate.py "${flags[@]}" "$@"
