#!/usr/bin/env bash
# Cuts the student of kd_student.sh and sft_student.sh out of the teacher that sft_teacher.sh fine-tuned.
#
#   bash scripts/smollm2/make_student.sh
#   bash scripts/smollm2/make_student.sh --layers 15 --choose least-effect --save-dir model_hub/smollm2/SmolLM2-15L
#
# Without flags of its own: both ends and every other layer between them, 18 of 30.
set -euo pipefail

# shellcheck source=scripts/smollm2/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
if [[ $# -eq 0 ]]; then
    set -- --keep-layers 0 1 2 3 5 7 9 11 13 15 17 19 21 23 25 27 28 29 --save-dir "$student_path"
fi
run_printed "$PYTHON" code/make_student.py --model-path "$TEACHER_MODEL_PATH" --data-dir "$DATA_DIR" "$@"
