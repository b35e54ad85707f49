# shellcheck shell=bash
# Tiny models for the sample data and a CPU. make_models.py makes both: random weights and a tokenizer.
# The scripts of this folder source it. scripts/lib/recipe.sh has what all families share.

teacher_type=tiny # names the folder in outputs/
teacher_name=teacher
teacher_path=model_hub/tiny/teacher-init
student_type=tiny
student_name=student
student_path=model_hub/tiny/student-init
# the teacher of KD: a run folder or a checkpoint
TEACHER_MODEL_PATH=${TEACHER_MODEL_PATH:-outputs/tiny/teacher/sft}

DATA_DIR=${DATA_DIR:-data/sample}
MAX_LENGTH=${MAX_LENGTH:-192}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-128}
global_batch= # a step is BATCH_SIZE examples per process
EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-64}
WARMUP_RATIO=${WARMUP_RATIO:-0.05}
EVAL_GEN=${EVAL_GEN:-0}
DO_SAMPLE=${DO_SAMPLE:-0}
# one process on the CPU, in fp32
GPUS=${GPUS:-0}
DS_CONFIG=${DS_CONFIG-configs/deepspeed/ds_config_zero0.json}

# shellcheck source=scripts/lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"
