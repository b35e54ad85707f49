#!/usr/bin/env bash
# Scores of tiny models on data/sample/valid.jsonl.
#
#   bash scripts/tiny/evaluate.sh RUN_OR_CKPT [RUN_OR_CKPT...] [FLAGS...]
set -euo pipefail

export DATA_DIRS=${DATA_DIRS:-data/sample}
export SEEDS=${SEEDS:-10}
export EVAL_NUM=${EVAL_NUM:-}      # all rows
export DO_SAMPLE=${DO_SAMPLE:-0}   # greedy: sampling adds noise of the size of the differences to 300 short answers
export MAX_LENGTH=${MAX_LENGTH:-192}
export MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-128}
export EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-64}
export GPUS=${GPUS:-0}

exec bash "$(dirname "${BASH_SOURCE[0]}")/../eval/run_eval.sh" "$@"
