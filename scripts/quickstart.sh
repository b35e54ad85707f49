#!/usr/bin/env bash
# The whole way on a CPU in minutes: fine-tunes a tiny teacher and a tiny student, distils one into the other,
# evaluates all three, prints one table, and ends with the path of a report with pictures. On a fresh machine it first
# makes the environment.
#
#   bash scripts/quickstart.sh
#   KD_OBJ=adakd bash scripts/quickstart.sh        any objective
#   SEED=20 bash scripts/quickstart.sh             another seed, in a folder of its own
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export KD_OBJ=${KD_OBJ:-todi}
export SEED=${SEED:-10}

source scripts/lib/environment.sh
make_environment requirements.txt
export PYTHON=${PYTHON:-.venv/bin/python}

RUNS=outputs/quickstart/seed$SEED
if [[ ! -d model_hub/tiny/student-init ]]; then "$PYTHON" scripts/tiny/make_models.py; fi

# run NAME SCRIPT: trains afresh (an earlier run moves to previous/), evaluates on data/sample/valid.jsonl.
run() {
    SAVE_DIR=$RUNS/$1 bash "$2" --resume never
    bash scripts/tiny/evaluate.sh "$RUNS/$1"
}
run teacher scripts/tiny/sft_teacher.sh
run student-sft scripts/tiny/sft_student.sh
export TEACHER_MODEL_PATH=$RUNS/teacher
run "student-$KD_OBJ" scripts/tiny/kd_student.sh

runs=("$RUNS/teacher" "$RUNS/student-sft" "$RUNS/student-$KD_OBJ")
"$PYTHON" scripts/tiny/report.py "${runs[@]}"
"$PYTHON" code/report.py "${runs[@]}" --out "$RUNS/report.html" --no-paper >/dev/null

cat <<END

Next, five seeds of sampled answers, and another student of the same teacher:
  bash scripts/eval/run_eval.sh $RUNS/student-$KD_OBJ
  KD_OBJ=rkl TEACHER_MODEL_PATH=$RUNS/teacher bash scripts/tiny/kd_student.sh
Scores, curves and tokens of the three, in a browser (docs/report.md):
  $PWD/$RUNS/report.html
END
