#!/usr/bin/env bash
# Distils SmolLM2-135M, fine-tuned by sft_teacher.sh, into 18 of its own layers, cut out by make_student.sh.
#
#   bash scripts/smollm2/kd_student.sh
#   KD_OBJ=fkl bash scripts/smollm2/kd_student.sh
#   KD_OBJ=adakd KD_RATE=1 KD_TEMP=1 bash scripts/smollm2/kd_student.sh    # AdaKD as in its paper
#
# family.sh has the models and hyper-parameters, scripts/lib/recipe.sh what all families share. A variable that is set
# here, or in the environment, overrides both.
set -euo pipefail

KD_OBJ=${KD_OBJ:-todi} # cross_entropy fkl rkl js tvd sfkl srkl akl abkd todi adakd, or adakd+BASE
KD_RATE=${KD_RATE:-0.5} # weight of the divergence; 1 - KD_RATE is cross-entropy's
KD_TEMP=${KD_TEMP:-2.0}
TEACHER_CACHE=${TEACHER_CACHE:-outputs/smollm2/smollm2-135m/cache} # the teacher runs once, for all KD runs

# shellcheck source=scripts/smollm2/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
kd_student "$@"
