#!/usr/bin/env bash
# Distils the tiny teacher, fine-tuned by sft_teacher.sh, into the tiny student. Runs on a CPU.
#
#   bash scripts/tiny/kd_student.sh
#   KD_OBJ=rkl bash scripts/tiny/kd_student.sh
#
# family.sh has the models and hyper-parameters, scripts/lib/recipe.sh what all families share. A variable that is set
# here, or in the environment, overrides both.
set -euo pipefail

KD_OBJ=${KD_OBJ:-todi} # cross_entropy fkl rkl js tvd sfkl srkl akl abkd todi adakd, or adakd+BASE
KD_RATE=${KD_RATE:-0.8} # weight of the divergence; 1 - KD_RATE is cross-entropy's
KD_TEMP=${KD_TEMP:-1.0}
TEACHER_CACHE=${TEACHER_CACHE:-} # outputs/tiny/teacher/cache: the teacher runs once, for all KD runs
# rows of the shipped sample; soft targets help most where the student sees few
if [[ -z ${DATA_DIR:-} ]]; then TRAIN_NUM=${TRAIN_NUM:-600}; fi
BATCH_SIZE=${BATCH_SIZE:-16} # examples per step of one process
EPOCH=${EPOCH:-24}
SAVE_INTERVAL=${SAVE_INTERVAL:-24} # only the last epoch counts: dev NLL rises long before the answers get worse
EVAL_INTERVAL=${EVAL_INTERVAL:-24}
LR=${LR:-0.005}

# shellcheck source=scripts/tiny/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
kd_student "$@"
