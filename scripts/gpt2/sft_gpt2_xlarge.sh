#!/usr/bin/env bash
# Supervised fine-tuning of GPT-2 XL (1.5B parameters), the teacher of kd_gpt2_base.sh.
# A step has 32 examples on any number of GPUs.
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
# hyper-parameters
BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU
GLOBAL_BATCH=${GLOBAL_BATCH-32} # examples per step on all GPUs; GRAD_ACC=N instead fixes the micro-batches per step
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-16}
EPOCH=${EPOCH:-20}
LR=${LR:-0.0005}
LORA_RANK=${LORA_RANK:-0} # above 0: train a LoRA adapter of this rank
LORA_ALPHA=${LORA_ALPHA:-8}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-0} # 1: less memory, slower
# dev answers after each epoch: their ROUGE-L ranks the checkpoints
EVAL_GEN=${EVAL_GEN:-1}
DO_SAMPLE=${DO_SAMPLE:-1} # 0: greedy
# runtime
PRECISION=${PRECISION:-auto} # what the GPUs have; or bf16, fp16, fp32. DS_CONFIG names another DeepSpeed file

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_sft "$@"
