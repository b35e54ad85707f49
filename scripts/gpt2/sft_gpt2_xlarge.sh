#!/usr/bin/env bash
# Supervised fine-tuning of GPT-2 XL (1.5B parameters), the teacher of kd_gpt2_base.sh.
#
#   bash scripts/gpt2/sft_gpt2_xlarge.sh
#   DS_CONFIG=configs/deepspeed/ds_config_zero2_bf16.json bash scripts/gpt2/sft_gpt2_xlarge.sh
#
# Edit a variable here or in family.sh, which has the models and hyper-parameters, or set it in the environment.
set -euo pipefail

EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-16}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-0} # 1: less memory, slower

# shellcheck source=scripts/gpt2/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_teacher "$@"
