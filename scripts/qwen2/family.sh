# shellcheck shell=bash disable=SC2034
# Qwen2 with LoRA: Qwen2-7B is the teacher, Qwen2-1.5B the student.
# The pair of the AdaKD paper. Heads of 152,064 and 151,936 rows.
# The scripts of this folder source it. scripts/lib/lora.sh has the hyper-parameters, recipe.sh what all families share.

teacher_type=qwen2 # names the folder in outputs/
teacher_name=qwen2-7b
teacher_hub=Qwen/Qwen2-7B
teacher_path=model_hub/qwen2/Qwen2-7B # a folder or a hub id
student_type=qwen2
student_name=qwen2-1.5b
student_hub=Qwen/Qwen2-1.5B
student_path=model_hub/qwen2/Qwen2-1.5B # a folder or a hub id

BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU

# shellcheck source=scripts/lib/lora.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/lora.sh"
