#!/usr/bin/env bash
# SeqKD: a teacher answers the prompts of a data set; the answers are a data folder like any other (docs/generation.md).
#
#   SAVE_DIR=data/dolly-teacher bash scripts/generate.sh TEACHER [FLAGS...]
#   DATA_DIR=data/dolly-teacher bash scripts/gpt2/kd_gpt2_base.sh    # trains on them; KD_OBJ=sft: by cross-entropy alone
#
# TEACHER is a checkpoint or the folder of a run (its best checkpoint), relative to the working directory or to the
# repository. The same command resumes what was interrupted. Edit a variable here or set it in the environment;
# scripts/lib/flags.txt lists the others (MAX_LENGTH, TOP_P, ...).
set -euo pipefail

DATA_DIR=${DATA_DIR:-data/dolly}
SPLITS=${SPLITS:-train}   # dev and valid are copied unless they are named
SEEDS=${SEEDS:-10}        # an answer to each prompt per seed; several need DO_SAMPLE=1
DO_SAMPLE=${DO_SAMPLE:-0} # 0: greedy

caller_dir=$PWD # common.sh changes to the root of the repository
# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

take_checkpoints "$caller_dir" "$@"
[[ ${#checkpoints[@]} -eq 1 ]] || fail "pass one teacher: SAVE_DIR=FOLDER bash $0 TEACHER [FLAGS...]"
shift
[[ -n ${SAVE_DIR:-} ]] || fail "SAVE_DIR: name the data folder with the answers"
read -r -a splits <<<"$SPLITS"
read -r -a seeds <<<"$SEEDS"
flags=(--model-path "${checkpoints[0]}" --splits "${splits[@]}" --seeds "${seeds[@]}")
pass generate
launch code/generate.py "${flags[@]}" "$@"
