# shellcheck shell=bash
# Llama with LoRA: Llama-2-7B is the teacher, TinyLlama-1.1B the student.
# The scripts of this folder source it. scripts/lib/recipe.sh has what all families share.

teacher_type=llama2 # names the folder in outputs/
teacher_name=llama2-7b-hf
teacher_path=model_hub/llama2/llama2-7b-hf # a folder or a hub id (meta-llama/Llama-2-7b-hf)
student_type=tinyllama
student_name=tinyllama-1.1b-3T
# a folder or a hub id (TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T)
student_path=model_hub/tinyllama/tinyllama-1.1b-3T
# the teacher of KD: a model, and its LoRA run or checkpoint (empty: none)
TEACHER_MODEL_PATH=${TEACHER_MODEL_PATH:-$teacher_path}
TEACHER_PEFT_PATH=${TEACHER_PEFT_PATH-outputs/llama2/llama2-7b-hf/sft}

BATCH_SIZE=${BATCH_SIZE:-8} # examples of a micro-batch on one GPU
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-16}
EPOCH=${EPOCH:-10}
LR=${LR:-0.001}
LORA_RANK=${LORA_RANK:-256} # 0: train all weights
LORA_ALPHA=${LORA_ALPHA:-8}
LORA_DROPOUT=${LORA_DROPOUT:-0.1}

# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"
