# shellcheck shell=bash disable=SC2034
# Gemma 3 with LoRA: Gemma-3-1B is the teacher, Gemma-3-270M the student.
# The sizes without a vision tower.
# The scripts of this folder source it. scripts/lib/lora.sh has the hyper-parameters, recipe.sh what all families share.

teacher_type=gemma3 # names the folder in outputs/
teacher_name=gemma-3-1b-pt
teacher_hub=google/gemma-3-1b-pt
teacher_path=model_hub/gemma3/gemma-3-1b-pt # a folder or a hub id
student_type=gemma3
student_name=gemma-3-270m
student_hub=google/gemma-3-270m
student_path=model_hub/gemma3/gemma-3-270m # a folder or a hub id

BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU

# shellcheck source=scripts/lib/lora.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/lora.sh"
