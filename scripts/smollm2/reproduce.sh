#!/usr/bin/env bash
# From nothing to a table of methods: teacher, students, about 45 runs, their scores, paired differences. Takes hours on
# two cores; the same command resumes, skips what is done, and says what is left and when it will be done.
#
#   bash scripts/smollm2/reproduce.sh
#   bash scripts/smollm2/reproduce.sh plan      # only says what is left
#   bash scripts/smollm2/reproduce.sh table     # only prints the tables
#   RECORDS=FILE bash scripts/smollm2/reproduce.sh    # what is done; the file of another machine saves its runs
#   JOBS=2 bash scripts/smollm2/reproduce.sh          # two runs at a time, each on half of the cores
#   PRECISION=fp32 bash scripts/smollm2/reproduce.sh  # on a CPU without instructions for bf16 (preflight warns there)
#
# ROWS has the rows of Dolly (scripts/data/prepare_dolly.sh): the first 900 of its dev.jsonl train, the next 100 are
# dev, the first 500 of its valid.jsonl are scored.
set -euo pipefail

ROWS=${ROWS:-data/dolly}
RECORDS=${RECORDS:-outputs/smollm2/campaign/records.jsonl}
JOBS=${JOBS:-1}
export PRECISION=${PRECISION:-bf16} # of all runs

# shellcheck source=scripts/smollm2/family.sh
source "$(dirname "${BASH_SOURCE[0]}")/family.sh"
command=${1:-run}
campaign() { run_printed "$PYTHON" scripts/smollm2/campaign.py "$@" --records "$RECORDS" --jobs "$JOBS"; }
if [[ $command != run ]]; then
    campaign "$command"
    exit
fi

rows=data/dolly-900
if [[ ! -f $rows/valid.jsonl ]] && ! dry_run; then
    mkdir -p "$rows"
    sed -n 1,900p "$ROWS/dev.jsonl" >"$rows/train.jsonl"
    sed -n 901,1000p "$ROWS/dev.jsonl" >"$rows/dev.jsonl"
    sed -n 1,500p "$ROWS/valid.jsonl" >"$rows/valid.jsonl"
fi
if [[ ! -d $teacher_path ]]; then run_printed "$PYTHON" scripts/smollm2/unpack_teacher.py "$teacher_path"; fi

# Each step is skipped where it is finished already.
run_family_script() { env DATA_DIR="$rows" "$@"; }
run_family_script EVAL_GEN=0 SAVE_DIR="$TEACHER_MODEL_PATH" bash scripts/smollm2/sft_teacher.sh
if [[ ! -d $student_path ]]; then run_family_script bash scripts/smollm2/make_student.sh; fi
if [[ ! -d ${student_path/18L/12L} ]]; then
    run_family_script bash scripts/smollm2/make_student.sh --layers 12 --save-dir "${student_path/18L/12L}"
fi
campaign run
campaign table
