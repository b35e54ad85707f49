#!/usr/bin/env bash
# Downloads databricks-dolly-15k into data/dolly.   bash scripts/data/prepare_dolly.sh [--force]
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
run_printed "$PYTHON" scripts/data/prepare_dolly.py "$@"
