#!/usr/bin/env bash
# Makes the environment that everything here runs in: .venv at the repository root, or $VENV.
#
#   bash scripts/setup.sh           to have it
#   source scripts/setup.sh         in another script: ROOT and VENV are then absolute paths
#
# Nothing is done twice: what was installed is recorded inside the environment by digest. REQUIREMENTS_LOCK names
# another lock file: template/updates.py installs a release's packages before it switches to its code.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=scripts/python.sh
source "$ROOT/scripts/python.sh"
VENV="${VENV:-$ROOT/.venv}"
case "$VENV" in /*) ;; *) VENV="$PWD/$VENV" ;; esac
LOCK="${REQUIREMENTS_LOCK:-$ROOT/requirements.lock}"
export ROOT VENV

# The sha256 of the files and words given.
digest() {
    "$VENV/bin/python" -c 'import hashlib, pathlib, sys
parts = [pathlib.Path(a).read_bytes() if pathlib.Path(a).is_file() else a.encode() for a in sys.argv[1:]]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())' "$@"
}

make_environment() {
    local python
    if [[ -x "$VENV/bin/python" ]]; then
        if ! "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
            echo "error: $VENV is not a working Python 3.11 environment; remove it and run this again." >&2
            exit 1
        fi
        # An interrupted `venv` leaves a Python without pip behind.
        if "$VENV/bin/python" -c 'import pip' 2>/dev/null; then return; fi
    fi
    python="$(find_python)" || exit 1
    echo "==> Making the environment $VENV with $python"
    if ! "$python" -m venv "$VENV"; then
        echo "error: $python could not make an environment. Debian and Ubuntu keep that in python3.11-venv." >&2
        exit 1
    fi
}

# Runs pip, telling its progress where somebody watches.
install() {
    local quiet=(--quiet)
    if [[ -t 1 ]]; then quiet=(); fi
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 \
        "$VENV/bin/python" -m pip install ${quiet[@]+"${quiet[@]}"} "$@"
}

install_lock() {
    local wanted
    wanted="$(digest "$LOCK")"
    if [[ "$(cat "$VENV/.lock-sha256" 2>/dev/null)" == "$wanted" ]]; then return; fi
    echo "==> Installing the exact packages of $LOCK (a gigabyte or more, once: minutes)"
    rm -f "$VENV/.lock-sha256"
    install --requirement "$LOCK"
    echo "$wanted" > "$VENV/.lock-sha256"
}

install_project() {
    local wanted
    # ROOT is part of it: an environment copied along with its tree still points at the old one.
    wanted="$(digest "$ROOT/setup.py" "$ROOT/pyproject.toml" "$ROOT/template/__init__.py" "$ROOT" "$VENV")"
    if [[ "$(cat "$VENV/.project-sha256" 2>/dev/null)" == "$wanted" ]]; then return; fi
    echo "==> Installing this project, editable"
    # The lock file holds every dependency and the build tool: nothing is left to fetch.
    install --no-deps --no-build-isolation --editable "$ROOT"
    echo "$wanted" > "$VENV/.project-sha256"
}

make_environment
install_lock
install_project
echo "==> Environment ready: $VENV"
