#!/usr/bin/env bash
# LoRA fine-tuning of TinyLlama-1.1B.
# A step has 32 examples on any number of GPUs.
#
#   bash scripts/tinyllama/sft_tinyllama.sh
#   GPUS=1 BATCH_SIZE=4 bash scripts/tinyllama/sft_tinyllama.sh
#
# Edit a variable here or set it in the environment; scripts/lib/common.sh lists the others (GPUS, NNODES, SEED, ...).
set -euo pipefail

# model
CKPT_TYPE=${CKPT_TYPE:-tinyllama}
CKPT_NAME=${CKPT_NAME:-tinyllama-1.1b-3T}
# a folder or a hub id (TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T)
CKPT_PATH=${CKPT_PATH:-model_hub/tinyllama/tinyllama-1.1b-3T}
# data: train.jsonl, dev.jsonl and valid.jsonl
DATA_DIR=${DATA_DIR:-data/dolly}
# hyper-parameters
BATCH_SIZE=${BATCH_SIZE:-8} # examples of a micro-batch on one GPU
GLOBAL_BATCH=${GLOBAL_BATCH-32} # examples per step on all GPUs; GRAD_ACC=N instead fixes the micro-batches per step
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-16}
EPOCH=${EPOCH:-10}
LR=${LR:-0.001}
LORA_RANK=${LORA_RANK:-256} # 0: train all weights
LORA_ALPHA=${LORA_ALPHA:-8}
LORA_DROPOUT=${LORA_DROPOUT:-0.1}
# dev answers after each epoch: their ROUGE-L ranks the checkpoints
EVAL_GEN=${EVAL_GEN:-1}
DO_SAMPLE=${DO_SAMPLE:-1} # 0: greedy
# runtime
PRECISION=${PRECISION:-auto} # what the GPUs have; or bf16, fp16, fp32. DS_CONFIG names another DeepSpeed file

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_sft "$@"
