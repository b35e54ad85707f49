#!/usr/bin/env bash
# LoRA fine-tuning of Llama-2-7B, the teacher of kd_tinyllama.sh.
#
#   bash scripts/tinyllama/sft_teacher_llama2.sh
#   GPUS=8 BATCH_SIZE=4 bash scripts/tinyllama/sft_teacher_llama2.sh
#
# family.sh has the models and hyper-parameters, scripts/lib/recipe.sh what all families share. A variable that is set
# here, or in the environment, overrides both.
set -euo pipefail

GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-1} # less memory, slower

# shellcheck source=scripts/tinyllama/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_teacher "$@"
