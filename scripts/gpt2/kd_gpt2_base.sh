#!/usr/bin/env bash
# Distils GPT-2 XL, fine-tuned by sft_gpt2_xlarge.sh, into GPT-2 base.
# A step has 32 examples on any number of GPUs. AdaKD's own: KD_OBJ=adakd KD_RATE=1 KD_TEMP=1.
#
#   bash scripts/gpt2/kd_gpt2_base.sh
#   KD_OBJ=fkl bash scripts/gpt2/kd_gpt2_base.sh
#
# Edit a variable here or set it in the environment; scripts/lib/common.sh lists the others (GPUS, NNODES, SEED, ...).
set -euo pipefail

# objective
KD_OBJ=${KD_OBJ:-todi} # cross_entropy fkl rkl js tvd sfkl srkl akl abkd todi adakd, or adakd+BASE
KD_RATE=${KD_RATE:-0.5} # weight of the divergence; 1 - KD_RATE is cross-entropy's
KD_TEMP=${KD_TEMP:-2.0}
# model
CKPT_TYPE=${CKPT_TYPE:-gpt2}
CKPT_NAME=${CKPT_NAME:-gpt2-base}
CKPT_PATH=${CKPT_PATH:-model_hub/gpt2/gpt2-base} # a folder or a hub id (openai-community/gpt2)
TEACHER_MODEL_NAME=${TEACHER_MODEL_NAME:-gpt2-xlarge}
TEACHER_MODEL_PATH=${TEACHER_MODEL_PATH:-outputs/gpt2/gpt2-xlarge/sft} # a run folder, a checkpoint or a hub id
TEACHER_CACHE=${TEACHER_CACHE:-} # outputs/gpt2/gpt2-xlarge/cache: the teacher runs once, for all KD runs
# data: train.jsonl, dev.jsonl and valid.jsonl
DATA_DIR=${DATA_DIR:-data/dolly}
# hyper-parameters
BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU
GLOBAL_BATCH=${GLOBAL_BATCH-32} # examples per step on all GPUs; GRAD_ACC=N instead fixes the micro-batches per step
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-32}
EPOCH=${EPOCH:-20}
LR=${LR:-0.0005}
LORA_RANK=${LORA_RANK:-0} # above 0: train a LoRA adapter of this rank
LORA_ALPHA=${LORA_ALPHA:-8}
# dev answers after each epoch: their ROUGE-L ranks the checkpoints
EVAL_GEN=${EVAL_GEN:-1}
DO_SAMPLE=${DO_SAMPLE:-1} # 0: greedy
# runtime
PRECISION=${PRECISION:-auto} # what the GPUs have; or bf16, fp16, fp32. DS_CONFIG names another DeepSpeed file

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_kd "$@"
