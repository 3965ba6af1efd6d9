#!/usr/bin/env bash
# Makes the environment, checks style and types, runs the tests; the first failure ends it, with its exit status.
#
#   bash scripts/test.sh                          everything but the tests marked `gpu`
#   bash scripts/test.sh -m "not gpu and not slow"
#   bash scripts/test.sh tests/data/test_rows.py -x    further arguments go to pytest
set -euo pipefail

# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

step() {
    echo "==> $1"
    shift
    "$VENV/bin/python" -m "$@"
}

step "Lint" ruff check .
step "Format" ruff format --check .
step "Types" mypy
echo "==> Tests"
# A second -m among the arguments replaces this one.
exec "$VENV/bin/python" -m pytest -m "not gpu" "$@"
