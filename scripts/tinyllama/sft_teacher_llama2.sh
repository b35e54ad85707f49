#!/usr/bin/env bash
# LoRA fine-tuning of Llama-2-7B, the teacher of kd_tinyllama.sh.
# The recipe is for 4 GPUs: 32 examples a step.
#
#   bash scripts/tinyllama/sft_teacher_llama2.sh
#   GPUS=8 BATCH_SIZE=4 bash scripts/tinyllama/sft_teacher_llama2.sh
#
# Edit a variable here or set it in the environment; scripts/lib/common.sh lists the others (GPUS, NNODES, SEED, ...).
set -euo pipefail

# model
CKPT_TYPE=${CKPT_TYPE:-llama2}
CKPT_NAME=${CKPT_NAME:-llama2-7b-hf}
CKPT_PATH=${CKPT_PATH:-model_hub/llama2/llama2-7b-hf} # a folder or a hub id (meta-llama/Llama-2-7b-hf)
# data: train.jsonl, dev.jsonl and valid.jsonl
DATA_DIR=${DATA_DIR:-data/dolly}
# hyper-parameters; a step sees BATCH_SIZE x GRAD_ACC x GPUS x NNODES examples
BATCH_SIZE=${BATCH_SIZE:-8}
GRAD_ACC=${GRAD_ACC:-1}
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-16}
EPOCH=${EPOCH:-10}
LR=${LR:-0.001}
LORA_RANK=${LORA_RANK:-256} # 0: train all weights
LORA_ALPHA=${LORA_ALPHA:-8}
LORA_DROPOUT=${LORA_DROPOUT:-0.1}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-1}
PRECISION=${PRECISION:-bf16} # bf16, fp16 or fp32; DS_CONFIG names another DeepSpeed file

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_sft "$@"
