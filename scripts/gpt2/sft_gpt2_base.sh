#!/usr/bin/env bash
# Supervised fine-tuning of GPT-2 base (124M parameters), the baseline of kd_gpt2_base.sh.
#
#   bash scripts/gpt2/sft_gpt2_base.sh
#   GPUS=1 LR=0.0003 bash scripts/gpt2/sft_gpt2_base.sh
#
# family.sh has the models and hyper-parameters, scripts/lib/recipe.sh what all families share. A variable that is set
# here, or in the environment, overrides both.
set -euo pipefail

# shellcheck source=scripts/gpt2/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_student "$@"
