#!/usr/bin/env bash
# Makes data/dolly from databricks-dolly-15k.   bash scripts/data/prepare_dolly.sh [--force] [FLAGS...]
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/prepare.sh" dolly "$@"
