#!/usr/bin/env bash
# Makes a data set in data/: dolly, self-inst, vicuna, sinst or uinst (data/README.md).
#
#   bash scripts/data/prepare.sh SET [--source FILE_OR_FOLDER] [--output-dir FOLDER] [--force] [FLAGS...]
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_printed "$PYTHON" scripts/data/prepare.py "$@"
