#!/usr/bin/env bash
# Supervised fine-tuning of the tiny student, the baseline of kd_student.sh: the same rows and steps without the teacher.
# Runs on a CPU.
#
#   bash scripts/tiny/sft_student.sh
#   TRAIN_NUM=-1 bash scripts/tiny/sft_student.sh
KD_OBJ=cross_entropy exec bash "$(dirname "${BASH_SOURCE[0]}")/kd_student.sh" "$@"
