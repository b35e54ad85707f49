#!/usr/bin/env bash
# Downloads teacher and student of a family into the folders in which its scripts look for them (model_hub/README.md).
#
#   bash scripts/models/download.sh FAMILY                       qwen2.5, gpt2, ...: a folder of scripts/
#   REVISION=<commit> bash scripts/models/download.sh FAMILY --only student
#   bash scripts/models/download.sh openllama2 --convert         pickled weights become safetensors
#
# Repeating the command resumes an interrupted download, of the commit that it began with. Each folder gets
# download.json: hub id, revision, commit. Gated models need an accepted licence and a token (hf auth login, HF_TOKEN).
# shellcheck disable=SC2154 # family.sh sets the paths
set -euo pipefail

REVISION=${REVISION:-main} # branch, tag or commit; of the one model of --only, if it is a commit

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
family=${1:-}
if [[ -z $family || ! -f $scripts/$family/family.sh ]]; then
    families=$(cd "$scripts" && echo */family.sh)
    echo "$0: '$family' is no family; pass one of: ${families//\/family.sh/}" >&2
    exit 1
fi
shift
# shellcheck disable=SC1090 # one of the families
source "$scripts/$family/family.sh"
models=()
if [[ -n ${teacher_hub:-} ]]; then models+=(--teacher "$teacher_hub" "$teacher_path"); fi
if [[ -n ${student_hub:-} ]]; then models+=(--student "$student_hub" "$student_path"); fi
[[ ${#models[@]} -gt 0 ]] || fail "$family: its models are not on the hub; see scripts/$family"
run_printed "$PYTHON" scripts/models/download.py "${models[@]}" --revision "$REVISION" "$@"
