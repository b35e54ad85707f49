# shellcheck shell=bash disable=SC2034
# Llama with LoRA: Llama-2-7B is the teacher, TinyLlama-1.1B the student.
# The scripts of this folder source it. scripts/lib/lora.sh has the hyper-parameters, recipe.sh what all families share.

teacher_type=llama2 # names the folder in outputs/
teacher_name=llama2-7b-hf
teacher_hub=meta-llama/Llama-2-7b-hf
teacher_path=model_hub/llama2/llama2-7b-hf # a folder or a hub id
student_type=tinyllama
student_name=tinyllama-1.1b-3T
student_hub=TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T
student_path=model_hub/tinyllama/tinyllama-1.1b-3T # a folder or a hub id

BATCH_SIZE=${BATCH_SIZE:-8} # examples of a micro-batch on one GPU

# shellcheck source=scripts/lib/lora.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/lora.sh"
