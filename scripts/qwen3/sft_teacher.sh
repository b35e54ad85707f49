#!/usr/bin/env bash
# LoRA fine-tuning of Qwen3-8B-Base, the teacher of kd_student.sh.
#
#   bash scripts/qwen3/sft_teacher.sh
#   GPUS=1 BATCH_SIZE=1 bash scripts/qwen3/sft_teacher.sh
#
# family.sh has the models, scripts/lib/lora.sh the hyper-parameters. A variable that is set here, or in the
# environment, overrides both.
set -euo pipefail

GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-1} # less memory, slower

# shellcheck source=scripts/qwen3/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_teacher "$@"
