# shellcheck shell=bash disable=SC2034
# OpenLLaMA v2 with LoRA: OpenLLaMA-7B v2 is the teacher, OpenLLaMA-3B v2 the student.
# The pair of the AdaKD paper. The hub has pickled weights only: scripts/models/download.sh converts them.
# The scripts of this folder source it. scripts/lib/lora.sh has the hyper-parameters, recipe.sh what all families share.

teacher_type=openllama2 # names the folder in outputs/
teacher_name=open_llama_7b_v2
teacher_hub=openlm-research/open_llama_7b_v2
teacher_path=model_hub/openllama2/open_llama_7b_v2 # a folder or a hub id
student_type=openllama2
student_name=open_llama_3b_v2
student_hub=openlm-research/open_llama_3b_v2
student_path=model_hub/openllama2/open_llama_3b_v2 # a folder or a hub id

BATCH_SIZE=${BATCH_SIZE:-4} # examples of a micro-batch on one GPU

# shellcheck source=scripts/lib/lora.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/lora.sh"
