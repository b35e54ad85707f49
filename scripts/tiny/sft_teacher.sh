#!/usr/bin/env bash
# Supervised fine-tuning of the tiny teacher on the sample that comes with the repository.
# Runs on a CPU.
#
#   bash scripts/tiny/sft_teacher.sh
#   EPOCH=1 bash scripts/tiny/sft_teacher.sh
#
# Edit a variable here or set it in the environment; scripts/lib/common.sh lists the others (GPUS, NNODES, SEED, ...).
set -euo pipefail

# model
CKPT_TYPE=${CKPT_TYPE:-tiny}
CKPT_NAME=${CKPT_NAME:-teacher}
CKPT_PATH=${CKPT_PATH:-model_hub/tiny/teacher-init} # random weights and a tokenizer
# data: train.jsonl, dev.jsonl and valid.jsonl
DATA_DIR=${DATA_DIR:-data/sample}
MAX_LENGTH=${MAX_LENGTH:-192}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-128}
# hyper-parameters
BATCH_SIZE=${BATCH_SIZE:-32} # examples per step of one process
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-64}
EPOCH=${EPOCH:-3}
LR=${LR:-0.003}
WARMUP_RATIO=${WARMUP_RATIO:-0.05}
# runtime: one process on the CPU
GPUS=${GPUS:-0}
DS_CONFIG=${DS_CONFIG-configs/deepspeed/ds_config_zero0.json} # fp32

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_sft "$@"
