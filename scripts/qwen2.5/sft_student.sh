#!/usr/bin/env bash
# LoRA fine-tuning of Qwen2.5-0.5B, the baseline of kd_student.sh.
#
#   bash scripts/qwen2.5/sft_student.sh
#   LORA_RANK=0 LR=0.00001 bash scripts/qwen2.5/sft_student.sh    # all weights
#
# family.sh has the models, scripts/lib/lora.sh the hyper-parameters. A variable that is set here, or in the
# environment, overrides both.
set -euo pipefail

# shellcheck source=scripts/qwen2.5/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_student "$@"
