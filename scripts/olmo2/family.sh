# shellcheck shell=bash disable=SC2034
# OLMo 2 with LoRA: OLMo-2-7B is the teacher, OLMo-2-1B the student.
# The scripts of this folder source it. scripts/lib/lora.sh has the hyper-parameters, recipe.sh what all families share.

teacher_type=olmo2 # names the folder in outputs/
teacher_name=olmo-2-1124-7b
teacher_hub=allenai/OLMo-2-1124-7B
teacher_path=model_hub/olmo2/OLMo-2-1124-7B # a folder or a hub id
student_type=olmo2
student_name=olmo-2-0425-1b
student_hub=allenai/OLMo-2-0425-1B
student_path=model_hub/olmo2/OLMo-2-0425-1B # a folder or a hub id

BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU
LORA_TARGETS=${LORA_TARGETS:-q_proj,v_proj} # PEFT has no choice of its own for OLMo 2

# shellcheck source=scripts/lib/lora.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/lora.sh"
