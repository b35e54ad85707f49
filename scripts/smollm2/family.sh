# shellcheck shell=bash disable=SC2034
# SmolLM2 with all weights: the 135M instruct model is the teacher, 18 of its 30 layers (92M parameters) the student.
# The scripts of this folder source it. scripts/lib/recipe.sh has what all families share.

teacher_type=smollm2 # names the folder in outputs/
teacher_name=smollm2-135m
teacher_hub=HuggingFaceTB/SmolLM2-135M-Instruct
teacher_path=model_hub/smollm2/SmolLM2-135M-Instruct # a folder or a hub id
student_type=smollm2
student_name=smollm2-18l
student_path=model_hub/smollm2/SmolLM2-18L # cut out of the trained teacher by make_student.sh
# the teacher of KD: a run folder, a checkpoint or a hub id
TEACHER_MODEL_PATH=${TEACHER_MODEL_PATH:-outputs/smollm2/smollm2-135m/sft}

BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-16}
EPOCH=${EPOCH:-2}
LR=${LR:-0.0003}
LORA_RANK=${LORA_RANK:-0} # above 0: train a LoRA adapter of this rank
LORA_ALPHA=${LORA_ALPHA:-8}
global_batch=8

# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"
