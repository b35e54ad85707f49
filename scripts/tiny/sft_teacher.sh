#!/usr/bin/env bash
# Supervised fine-tuning of the tiny teacher on the sample that comes with the repository. Runs on a CPU.
#
#   bash scripts/tiny/sft_teacher.sh
#   EPOCH=1 bash scripts/tiny/sft_teacher.sh
#
# Edit a variable here or in family.sh, which has the models and hyper-parameters, or set it in the environment.
set -euo pipefail

BATCH_SIZE=${BATCH_SIZE:-32} # examples per step of one process
EPOCH=${EPOCH:-3}
LR=${LR:-0.003}

# shellcheck source=scripts/tiny/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_teacher "$@"
