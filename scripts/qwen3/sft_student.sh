#!/usr/bin/env bash
# LoRA fine-tuning of Qwen3-0.6B-Base, the baseline of kd_student.sh.
#
#   bash scripts/qwen3/sft_student.sh
#   LORA_RANK=0 LR=0.00001 bash scripts/qwen3/sft_student.sh    # all weights
#
# family.sh has the models, scripts/lib/lora.sh the hyper-parameters. A variable that is set here, or in the
# environment, overrides both.
set -euo pipefail

# shellcheck source=scripts/qwen3/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_student "$@"
