# shellcheck shell=bash disable=SC2154
# What all families share. A family is the file scripts/<family>/family.sh, which names a teacher and a student and then
# sources this file; the scripts beside it source family.sh and call one of
#
#   sft_teacher FLAGS...    supervised fine-tuning of the teacher
#   sft_student FLAGS...    supervised fine-tuning of the student, the baseline of KD
#   kd_student FLAGS...     distils the teacher into the student by KD_OBJ; with ON_POLICY=gkd, distillm or
#                           distillm2, also on answers that the student samples (docs/onpolicy.md)
#
# The value of a variable comes from the environment, else the script, else family.sh, else this file, else the flag's
# default (code/arguments.py). flags.txt lists all variables, common.sh those of the launcher (GPUS, NNODES, ...).

DATA_DIR=${DATA_DIR:-data/dolly} # a folder with train, dev and valid; or one file, or a data set of the hub
# examples per step on all GPUs, however many there are; GRAD_ACC=N instead fixes the micro-batches per step
if [[ -z ${GRAD_ACC:-}${TOKENS_PER_MICRO_BATCH:-} ]]; then GLOBAL_BATCH=${GLOBAL_BATCH-${global_batch-32}}; fi
EVAL_GEN=${EVAL_GEN:-1}     # dev answers after each epoch: their ROUGE-L ranks the checkpoints
DO_SAMPLE=${DO_SAMPLE:-1}   # 0: greedy
# auto: what the GPUs have; or bf16, fp16, fp32. DS_CONFIG names a DeepSpeed file instead
if [[ -z ${DS_CONFIG:-} ]]; then PRECISION=${PRECISION:-auto}; fi

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# set_model TYPE NAME PATH
set_model() { CKPT_TYPE=${CKPT_TYPE:-$1} CKPT_NAME=${CKPT_NAME:-$2} CKPT_PATH=${CKPT_PATH:-$3}; }

sft_teacher() {
    set_model "$teacher_type" "$teacher_name" "$teacher_path"
    run_sft "$@"
}

sft_student() {
    set_model "$student_type" "$student_name" "$student_path"
    run_sft "$@"
}

kd_student() {
    set_model "$student_type" "$student_name" "$student_path"
    TEACHER_MODEL_NAME=${TEACHER_MODEL_NAME:-$teacher_name}
    run_kd "$@"
}
