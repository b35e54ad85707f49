#!/usr/bin/env bash
# Runs the tests; on a fresh machine it first makes the environment they need.
#
#   bash scripts/test.sh [PYTEST ARGUMENTS...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/lib/environment.sh
make_environment requirements-dev.txt
PYTHON=${PYTHON:-.venv/bin/python}

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m pytest "$@"
