# shellcheck shell=bash disable=SC2034
# GPT-2 with all weights: XL (1.5B parameters) is the teacher, base (124M) the student.
# The scripts of this folder source it. scripts/lib/recipe.sh has what all families share.

teacher_type=gpt2 # names the folder in outputs/
teacher_name=gpt2-xlarge
teacher_hub=openai-community/gpt2-xl
teacher_path=model_hub/gpt2/gpt2-xlarge # a folder or a hub id
student_type=gpt2
student_name=gpt2-base
student_hub=openai-community/gpt2
student_path=model_hub/gpt2/gpt2-base # a folder or a hub id
# the teacher of KD: a run folder, a checkpoint or a hub id
TEACHER_MODEL_PATH=${TEACHER_MODEL_PATH:-outputs/gpt2/gpt2-xlarge/sft}

BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-32}
EPOCH=${EPOCH:-20}
LR=${LR:-0.0005}
LORA_RANK=${LORA_RANK:-0} # above 0: train a LoRA adapter of this rank
LORA_ALPHA=${LORA_ALPHA:-8}

# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"
