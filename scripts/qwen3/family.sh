# shellcheck shell=bash disable=SC2034
# Qwen3 with LoRA: Qwen3-8B-Base is the teacher, Qwen3-0.6B-Base the student.
# The scripts of this folder source it. scripts/lib/lora.sh has the hyper-parameters, recipe.sh what all families share.

teacher_type=qwen3 # names the folder in outputs/
teacher_name=qwen3-8b-base
teacher_hub=Qwen/Qwen3-8B-Base
teacher_path=model_hub/qwen3/Qwen3-8B-Base # a folder or a hub id
student_type=qwen3
student_name=qwen3-0.6b-base
student_hub=Qwen/Qwen3-0.6B-Base
student_path=model_hub/qwen3/Qwen3-0.6B-Base # a folder or a hub id

BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU

# shellcheck source=scripts/lib/lora.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/lora.sh"
