#!/usr/bin/env bash
# LoRA fine-tuning of TinyLlama-1.1B, the baseline of kd_tinyllama.sh.
#
#   bash scripts/tinyllama/sft_tinyllama.sh
#   GPUS=1 BATCH_SIZE=4 bash scripts/tinyllama/sft_tinyllama.sh
#
# Edit a variable here or in family.sh, which has the models and hyper-parameters, or set it in the environment.
set -euo pipefail

# shellcheck source=scripts/tinyllama/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_student "$@"
