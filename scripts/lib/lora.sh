# shellcheck shell=bash disable=SC2034,SC2154
# recipe.sh for families that train LoRA adapters, with the hyper-parameters of ToDi's TinyLlama scripts. family.sh
# sources it in place of recipe.sh.
#
#   LORA_RANK=0 LR=0.00001          trains all weights instead, into folders of its own
#   TEACHER_MODEL_PATH=outputs/... TEACHER_PEFT_PATH=
#                                   a teacher that was trained so

# the teacher of KD: a model, and its LoRA run or checkpoint (empty: none)
TEACHER_MODEL_PATH=${TEACHER_MODEL_PATH:-$teacher_path}
TEACHER_PEFT_PATH=${TEACHER_PEFT_PATH-outputs/$teacher_type/$teacher_name/sft}
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-16}
EPOCH=${EPOCH:-10}
LR=${LR:-0.001}
LORA_RANK=${LORA_RANK:-256} # 0: train all weights
LORA_ALPHA=${LORA_ALPHA:-8}
LORA_DROPOUT=${LORA_DROPOUT:-0.1}

# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
