#!/usr/bin/env bash
# Supervised fine-tuning of GPT-2 XL (1.5B parameters), the teacher of kd_gpt2_base.sh.
#
#   bash scripts/gpt2/sft_gpt2_xlarge.sh
#   DS_CONFIG=configs/deepspeed/ds_config_zero2_bf16.json bash scripts/gpt2/sft_gpt2_xlarge.sh
#
# family.sh has the models and hyper-parameters, scripts/lib/recipe.sh what all families share. A variable that is set
# here, or in the environment, overrides both.
set -euo pipefail

EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-16}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-0} # 1: less memory, slower

# shellcheck source=scripts/gpt2/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_teacher "$@"
