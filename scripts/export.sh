#!/usr/bin/env bash
# Turns a run or a checkpoint into a folder that other programs serve: adapter merged, files that Transformers 4 and vLLM
# read, a model card. Prints the commands for vLLM and llama.cpp (docs/export.md).
#
#   bash scripts/export.sh RUN_OR_CKPT OUT [--dtype bfloat16] [--gguf] [--push-to-hub ORG/NAME]
#
# Paths are relative to the working directory; RUN_OR_CKPT also to the repository.
set -euo pipefail

caller_dir=$PWD # common.sh changes to the root of the repository
# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

[[ $# -ge 2 && $1 != -* && $2 != -* ]] || fail "pass the run and the folder: bash $0 RUN_OR_CKPT OUT [FLAGS...]"
take_checkpoints "$caller_dir" "$1"
out=$2
if [[ $out != /* ]]; then out=$caller_dir/$out; fi
shift 2
run_printed "$PYTHON" code/export.py --model-path "${checkpoints[0]}" --save-dir "$out" "$@"
