# shellcheck shell=bash disable=SC2034
# Llama 3.2 with LoRA: Llama-3.2-3B is the teacher, Llama-3.2-1B the student.
# The scripts of this folder source it. scripts/lib/lora.sh has the hyper-parameters, recipe.sh what all families share.

teacher_type=llama3.2 # names the folder in outputs/
teacher_name=llama-3.2-3b
teacher_hub=meta-llama/Llama-3.2-3B
teacher_path=model_hub/llama3.2/Llama-3.2-3B # a folder or a hub id
student_type=llama3.2
student_name=llama-3.2-1b
student_hub=meta-llama/Llama-3.2-1B
student_path=model_hub/llama3.2/Llama-3.2-1B # a folder or a hub id

BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU

# shellcheck source=scripts/lib/lora.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/lora.sh"
