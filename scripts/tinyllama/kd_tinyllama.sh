#!/usr/bin/env bash
# Distils Llama-2-7B with the LoRA adapter of sft_teacher_llama2.sh into a LoRA adapter of TinyLlama-1.1B.
#
#   bash scripts/tinyllama/kd_tinyllama.sh
#   KD_OBJ=rkl bash scripts/tinyllama/kd_tinyllama.sh
#
# family.sh has the models and hyper-parameters, scripts/lib/recipe.sh what all families share. A variable that is set
# here, or in the environment, overrides both.
set -euo pipefail

KD_OBJ=${KD_OBJ:-todi} # cross_entropy fkl rkl js tvd sfkl srkl akl abkd todi adakd, or adakd+BASE
KD_RATE=${KD_RATE:-0.5} # weight of the divergence; 1 - KD_RATE is cross-entropy's
KD_TEMP=${KD_TEMP:-2.0}
TEACHER_CACHE=${TEACHER_CACHE:-} # outputs/llama2/llama2-7b-hf/cache: the teacher runs once, for all KD runs
BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU, which holds both models
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-1} # less memory, slower

# shellcheck source=scripts/tinyllama/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
kd_student "$@"
