#!/usr/bin/env bash
# ROUGE-L of a LoRA adapter on the five instruction sets, mean and deviation over five seeds.
#
#   bash scripts/eval/run_eval_lora.sh LORA_CKPT_PATH [BATCH] [FLAGS...]
#
# LORA_CKPT_PATH is a checkpoint, or the folder of a run. Sets whose folder is not there are skipped; see
# data/README.md. Edit a variable here or set it in the environment; scripts/lib/common.sh lists the others.
set -euo pipefail

BASE_MODEL_PATH=${BASE_MODEL_PATH:-} # the adapter's base model; empty: the one that the adapter names
DATA_DIRS=${DATA_DIRS:-data/dolly:data/self-inst:data/vicuna:data/sinst/11_:data/uinst/11_} # colons between folders
SEEDS=${SEEDS:-10 20 30 40 50}
EVAL_NUM=${EVAL_NUM:-10000} # first rows of a set; cuts uinst/11_ only

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_eval adapter_config.json "$@"
