# shellcheck shell=bash
# Sourced: changes to the root of the repository and finds Python (PYTHON; else .venv/bin/python if it exists).
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit
PYTHON=${PYTHON:-$(command -v .venv/bin/python || echo python)}
