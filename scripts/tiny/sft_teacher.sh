#!/usr/bin/env bash
# Supervised fine-tuning of the tiny teacher on the sample that comes with the repository. Runs on a CPU.
#
#   bash scripts/tiny/sft_teacher.sh
#   EPOCH=1 bash scripts/tiny/sft_teacher.sh
#
# family.sh has the models and hyper-parameters, scripts/lib/recipe.sh what all families share. A variable that is set
# here, or in the environment, overrides both.
set -euo pipefail

BATCH_SIZE=${BATCH_SIZE:-32} # examples per step of one process
EPOCH=${EPOCH:-3}
LR=${LR:-0.003}

# shellcheck source=scripts/tiny/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_teacher "$@"
