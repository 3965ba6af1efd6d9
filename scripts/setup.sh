#!/usr/bin/env bash
# Makes the environment that everything here runs in: .venv at the repository root, or $VENV.
#
#   bash scripts/setup.sh           to have it
#   source scripts/setup.sh         in another script: ROOT and VENV are then absolute paths
#
# Every file that pip fetches must have a sha256 of the lock file, but for torch, whose build depends on the machine, and
# the CUDA packages that its metadata pins. Nothing is done twice: what was installed is recorded inside the environment
# by digest. REQUIREMENTS_LOCK names another lock file: template/updates.py installs a release's packages before it
# switches to its code. WITHOUT_TOOLS=1 leaves out what only tests, checks, Ray and the quickstart need.
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

# `name==version` of every package in the lock file, without the hashes.
pins() {
    sed -n -E 's/^(# apart: )?([A-Za-z0-9._-]+==[^ ]+).*/\2/p' "$LOCK"
}

# The part of the lock file that is to be installed, as a lock file of its own.
chosen_part() {
    if [[ -n "${WITHOUT_TOOLS:-}" ]]; then sed '/^# --- tests/,$d' "$LOCK"; else cat "$LOCK"; fi
}

install_lock() {
    local wanted apart
    wanted="$(digest "$LOCK" ${WITHOUT_TOOLS:+without tools})"
    if [[ "$(cat "$VENV/.lock-sha256" 2>/dev/null)" == "$wanted" ]]; then return; fi
    echo "==> Installing the exact packages of $LOCK (a gigabyte or more, once: minutes)"
    rm -f "$VENV/.lock-sha256"
    chosen_part > "$VENV/.lock"
    # Without --no-deps, what the list forgot would be refused as well, but torch, which others ask for, would be too.
    if ! install --require-hashes --no-deps --requirement "$VENV/.lock"; then
        echo "error: the packages of $LOCK cannot be had as it names them; pip says above which, and why." >&2
        echo "       If a hash does not match, the file is not the one that was locked: do not install it." >&2
        exit 1
    fi
    apart="$(sed -n 's/^# apart: //p' "$LOCK")"
    # Constrained, so that nothing that was checked gives way to what torch would rather have.
    if [[ -n "$apart" ]]; then install --constraint <(pins) "$apart"; fi
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
# Remembered, so that what starts a neuron later does not install the tools after all. Set but empty takes it back.
if [[ -n "${WITHOUT_TOOLS:-}" ]]; then touch "$VENV/.without-tools"; fi
if [[ -n "${WITHOUT_TOOLS+set}" && -z "$WITHOUT_TOOLS" ]]; then rm -f "$VENV/.without-tools"; fi
if [[ -e "$VENV/.without-tools" ]]; then WITHOUT_TOOLS=1; fi
install_lock
install_project
echo "==> Environment ready: $VENV"
