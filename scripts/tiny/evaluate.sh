#!/usr/bin/env bash
# ROUGE-L of a tiny model on data/sample/valid.jsonl.
#
#   bash scripts/tiny/evaluate.sh RUN_OR_CKPT
set -euo pipefail

DATA_DIRS=${DATA_DIRS:-data/sample}
SEEDS=${SEEDS:-10}
DO_SAMPLE=${DO_SAMPLE:-0} # greedy: sampling adds noise of the size of the differences to 300 short answers
MAX_LENGTH=${MAX_LENGTH:-192}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-128}
GPUS=${GPUS:-0}

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_eval "$1" 64
