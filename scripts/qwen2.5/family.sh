# shellcheck shell=bash disable=SC2034
# Qwen2.5 with LoRA: Qwen2.5-7B is the teacher, Qwen2.5-0.5B the student.
# Their heads have 152,064 and 151,936 rows; the loss takes the ids that both use.
# The scripts of this folder source it. scripts/lib/lora.sh has the hyper-parameters, recipe.sh what all families share.

teacher_type=qwen2.5 # names the folder in outputs/
teacher_name=qwen2.5-7b
teacher_hub=Qwen/Qwen2.5-7B
teacher_path=model_hub/qwen2.5/Qwen2.5-7B # a folder or a hub id
student_type=qwen2.5
student_name=qwen2.5-0.5b
student_hub=Qwen/Qwen2.5-0.5B
student_path=model_hub/qwen2.5/Qwen2.5-0.5B # a folder or a hub id

BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU

# shellcheck source=scripts/lib/lora.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/lora.sh"
