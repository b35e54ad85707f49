#!/usr/bin/env bash
# LoRA fine-tuning of TinyLlama-1.1B, the baseline of kd_tinyllama.sh.
#
#   bash scripts/tinyllama/sft_tinyllama.sh
#   GPUS=1 BATCH_SIZE=4 bash scripts/tinyllama/sft_tinyllama.sh
#
# family.sh has the models and hyper-parameters, scripts/lib/recipe.sh what all families share. A variable that is set
# here, or in the environment, overrides both.
set -euo pipefail

# shellcheck source=scripts/tinyllama/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_student "$@"
