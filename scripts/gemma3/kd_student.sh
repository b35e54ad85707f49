#!/usr/bin/env bash
# Distils Gemma-3-1B with the LoRA adapter of sft_teacher.sh into a LoRA adapter of Gemma-3-270M.
#
#   bash scripts/gemma3/kd_student.sh
#   KD_OBJ=adakd KD_RATE=1 KD_TEMP=1 bash scripts/gemma3/kd_student.sh    # AdaKD as in its paper
#
# family.sh has the models, scripts/lib/lora.sh the hyper-parameters. A variable that is set here, or in the
# environment, overrides both.
set -euo pipefail

KD_OBJ=${KD_OBJ:-todi} # cross_entropy fkl rkl js tvd sfkl srkl akl abkd todi adakd, or adakd+BASE
KD_RATE=${KD_RATE:-0.5} # weight of the divergence; 1 - KD_RATE is cross-entropy's
KD_TEMP=${KD_TEMP:-2.0}
TEACHER_CACHE=${TEACHER_CACHE:-} # outputs/gemma3/gemma-3-1b-pt/cache: the teacher runs once, for all KD runs
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-1} # less memory, slower

# shellcheck source=scripts/gemma3/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
kd_student "$@"
