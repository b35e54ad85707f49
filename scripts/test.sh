#!/usr/bin/env bash
# Runs the tests; on a fresh machine it first makes the environment they need.
#
#   bash scripts/test.sh [PYTEST ARGUMENTS...]     e.g. tests/unit -k objectives; -n 0: in one process, for a debugger
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/lib/environment.sh
make_environment requirements-dev.txt
PYTHON=${PYTHON:-.venv/bin/python}

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# Two files at a time, each in one process; tests of tiny models gain nothing from a second thread.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
