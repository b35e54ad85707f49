#!/usr/bin/env bash
# Supervised fine-tuning of GPT-2 XL (1.5B parameters), the teacher of kd_gpt2_base.sh.
# The recipe is for 4 GPUs: 32 examples a step.
#
#   bash scripts/gpt2/sft_gpt2_xlarge.sh
#   DS_CONFIG=configs/deepspeed/ds_config_zero2_bf16.json bash scripts/gpt2/sft_gpt2_xlarge.sh
#
# Edit a variable here or set it in the environment; scripts/lib/common.sh lists the others (GPUS, NNODES, SEED, ...).
set -euo pipefail

# model
CKPT_TYPE=${CKPT_TYPE:-gpt2}
CKPT_NAME=${CKPT_NAME:-gpt2-xlarge}
CKPT_PATH=${CKPT_PATH:-model_hub/gpt2/gpt2-xlarge} # a folder or a hub id (openai-community/gpt2-xl)
# data: train.jsonl, dev.jsonl and valid.jsonl
DATA_DIR=${DATA_DIR:-data/dolly}
# hyper-parameters; a step sees BATCH_SIZE x GRAD_ACC x GPUS x NNODES examples
BATCH_SIZE=${BATCH_SIZE:-4}
GRAD_ACC=${GRAD_ACC:-2}
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-16}
EPOCH=${EPOCH:-20}
LR=${LR:-0.0005}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-0} # 1: less memory, slower
PRECISION=${PRECISION:-bf16} # bf16, fp16 or fp32; DS_CONFIG names another DeepSpeed file

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_sft "$@"
