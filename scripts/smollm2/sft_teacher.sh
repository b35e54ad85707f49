#!/usr/bin/env bash
# Supervised fine-tuning of SmolLM2-135M-Instruct, the teacher of kd_student.sh.
#
#   bash scripts/smollm2/sft_teacher.sh
#
# family.sh has the models and hyper-parameters, scripts/lib/recipe.sh what all families share. A variable that is set
# here, or in the environment, overrides both.
set -euo pipefail

EPOCH=${EPOCH:-1}
LR=${LR:-0.00005}

# shellcheck source=scripts/smollm2/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_teacher "$@"
