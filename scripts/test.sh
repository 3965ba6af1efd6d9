#!/usr/bin/env bash
# Make the environment, check style and types, run the tests. Stop at the first failing step with its exit status.
#
#   bash scripts/test.sh                                 every test but those marked `gpu`
#   bash scripts/test.sh -m "not gpu and not slow"       the quick loop
#   bash scripts/test.sh tests/data/test_rows.py -x      further arguments go to pytest
#   bash scripts/test.sh tests/data -n 0                 in one process, for a debugger
set -euo pipefail

# shellcheck source=scripts/python.sh
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then refuse_arguments "$0" "$1"; fi
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
# Every worker and process would compile the same files again.
unset PYTHONDONTWRITEBYTECODE
# Three processes for two cores, since tests also wait. An -m or -n among the arguments replaces this one. A file's
# tests stay in one process, which makes their shared fixtures once; tests/conftest.py puts the long files first.
exec "$VENV/bin/python" -m pytest -m "not gpu" -n 3 --dist loadfile --no-loadscope-reorder "$@"
