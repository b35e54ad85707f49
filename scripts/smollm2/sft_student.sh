#!/usr/bin/env bash
# Supervised fine-tuning of the 18-layer student, the baseline of kd_student.sh.
#
#   bash scripts/smollm2/sft_student.sh
#   SEED=20 bash scripts/smollm2/sft_student.sh
#
# family.sh has the models and hyper-parameters, scripts/lib/recipe.sh what all families share. A variable that is set
# here, or in the environment, overrides both.
set -euo pipefail

# shellcheck source=scripts/smollm2/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
sft_student "$@"
