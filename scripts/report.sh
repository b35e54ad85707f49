#!/usr/bin/env bash
# One page about runs: scores, curves, tokens, comparisons, cost (docs/report.md).
#
#   bash scripts/report.sh RUN [RUN ...] [--out FILE]
#
# RUN is the folder of a run or a checkpoint, relative to the working directory or to the repository. The page of one
# run is RUN/report.html, that of several outputs/tables/<names of the runs>/report.html; every figure for papers is
# beside it, in report_figures/.
set -euo pipefail

caller_dir=$PWD # common.sh changes to the root of the repository
# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

[[ $# -ge 1 ]] || fail "pass the runs: bash $0 RUN [RUN ...] [--out FILE]"
words=()
previous=
for word in "$@"; do
    if [[ $previous == --out && $word != /* ]] || [[ $word != -* && -e $caller_dir/$word ]]; then
        word=$caller_dir/$word
    fi
    words+=("$word")
    previous=$word
done
run_printed "$PYTHON" code/report.py "${words[@]}"
