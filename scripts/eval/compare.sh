#!/usr/bin/env bash
# The same as scripts/compare.sh, beside the other scripts of evaluation.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../compare.sh" "$@"
