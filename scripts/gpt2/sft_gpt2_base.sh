#!/usr/bin/env bash
# Supervised fine-tuning of GPT-2 base (124M parameters).
# The recipe is for 4 GPUs: 32 examples a step.
#
#   bash scripts/gpt2/sft_gpt2_base.sh
#   GPUS=1 GRAD_ACC=8 bash scripts/gpt2/sft_gpt2_base.sh
#
# Edit a variable here or set it in the environment; scripts/lib/common.sh lists the others (GPUS, NNODES, SEED, ...).
set -euo pipefail

# model
CKPT_TYPE=${CKPT_TYPE:-gpt2}
CKPT_NAME=${CKPT_NAME:-gpt2-base}
CKPT_PATH=${CKPT_PATH:-model_hub/gpt2/gpt2-base} # a folder or a hub id (openai-community/gpt2)
# data: train.jsonl, dev.jsonl and valid.jsonl
DATA_DIR=${DATA_DIR:-data/dolly}
# hyper-parameters; a step sees BATCH_SIZE x GRAD_ACC x GPUS x NNODES examples
BATCH_SIZE=${BATCH_SIZE:-4}
GRAD_ACC=${GRAD_ACC:-2}
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-32}
EPOCH=${EPOCH:-20}
LR=${LR:-0.0005}
PRECISION=${PRECISION:-bf16} # bf16, fp16 or fp32; DS_CONFIG names another DeepSpeed file

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_sft "$@"
