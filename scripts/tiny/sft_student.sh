#!/usr/bin/env bash
# Supervised fine-tuning of the tiny student, the baseline of kd_student.sh.
# Runs on a CPU.
#
#   bash scripts/tiny/sft_student.sh
#   TRAIN_NUM=-1 bash scripts/tiny/sft_student.sh
#
# Edit a variable here or set it in the environment; scripts/lib/common.sh lists the others (GPUS, NNODES, SEED, ...).
set -euo pipefail

# model
CKPT_TYPE=${CKPT_TYPE:-tiny}
CKPT_NAME=${CKPT_NAME:-student}
CKPT_PATH=${CKPT_PATH:-model_hub/tiny/student-init} # random weights and a tokenizer
# data: train.jsonl, dev.jsonl and valid.jsonl
DATA_DIR=${DATA_DIR:-data/sample}
TRAIN_NUM=${TRAIN_NUM:-600} # rows; soft targets help most where the student sees few
MAX_LENGTH=${MAX_LENGTH:-192}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-128}
# hyper-parameters
BATCH_SIZE=${BATCH_SIZE:-16} # examples per step of one process
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-64}
EPOCH=${EPOCH:-24}
SAVE_INTERVAL=${SAVE_INTERVAL:-24} # only the last epoch counts: dev NLL rises long before the answers get worse
EVAL_INTERVAL=${EVAL_INTERVAL:-24}
LR=${LR:-0.005}
WARMUP_RATIO=${WARMUP_RATIO:-0.05}
# runtime: one process on the CPU
GPUS=${GPUS:-0}
DS_CONFIG=${DS_CONFIG-configs/deepspeed/ds_config_zero0.json} # fp32

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_sft "$@"
