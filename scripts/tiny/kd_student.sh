#!/usr/bin/env bash
# Distils the tiny teacher, fine-tuned by sft_teacher.sh, into the tiny student.
# Runs on a CPU.
#
#   bash scripts/tiny/kd_student.sh
#   KD_OBJ=rkl bash scripts/tiny/kd_student.sh
#
# Edit a variable here or set it in the environment; scripts/lib/common.sh lists the others (GPUS, NNODES, SEED, ...).
set -euo pipefail

# objective
KD_OBJ=${KD_OBJ:-todi} # cross_entropy fkl rkl js tvd sfkl srkl akl abkd todi adakd, or adakd+BASE
KD_RATE=${KD_RATE:-0.8} # weight of the divergence; 1 - KD_RATE is cross-entropy's
KD_TEMP=${KD_TEMP:-1.0}
# model
CKPT_TYPE=${CKPT_TYPE:-tiny}
CKPT_NAME=${CKPT_NAME:-student}
CKPT_PATH=${CKPT_PATH:-model_hub/tiny/student-init} # random weights and a tokenizer
TEACHER_MODEL_NAME=${TEACHER_MODEL_NAME:-teacher}
TEACHER_MODEL_PATH=${TEACHER_MODEL_PATH:-outputs/tiny/teacher/sft} # a run folder or a checkpoint
TEACHER_CACHE=${TEACHER_CACHE:-} # outputs/tiny/teacher/cache: the teacher runs once, for all KD runs
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
run_kd "$@"
