#!/usr/bin/env bash
# ROUGE-L of a full model or a LoRA adapter on the five instruction sets, mean and deviation over five seeds.
#
#   bash scripts/eval/run_eval.sh RUN_OR_CKPT [BATCH] [FLAGS...]
#
# RUN_OR_CKPT is a checkpoint, or the folder of a run (its best checkpoint). Sets whose folder is not there are skipped
# (data/README.md); if none is there, the run is evaluated on the data that it was trained on.
# Edit a variable here or set it in the environment; scripts/lib/common.sh lists the others (GPUS, MAX_LENGTH, ...).
set -euo pipefail

BASE_MODEL_PATH=${BASE_MODEL_PATH:-} # of an adapter; empty: the base that the adapter names
DATA_DIRS=${DATA_DIRS:-data/dolly:data/self-inst:data/vicuna:data/sinst/11_:data/uinst/11_} # colons between folders
SEEDS=${SEEDS:-10 20 30 40 50}
EVAL_NUM=${EVAL_NUM:-10000} # first rows of a set; cuts uinst/11_ only
DO_SAMPLE=${DO_SAMPLE:-1}   # 0: greedy

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_eval "$@"
