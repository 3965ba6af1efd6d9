#!/usr/bin/env bash
# Make the environment: .venv in the repository's root, or $VENV.
#
#   bash scripts/setup.sh
#   source scripts/setup.sh         in another script; sets ROOT and VENV to absolute paths
#
# It uses Python 3.11, 3.12 or 3.13; PYTHON names one. Where `uv` is installed, it makes the environment, with a Python
# of its own if there is none, and installs the packages; otherwise, and with INSTALLER=pip, venv and pip do.
#
# Every downloaded package must match a sha256 in the lock file, except torch, whose build depends on the machine, the
# CUDA packages that torch pins, and the pip that uv adds. Digests inside the environment record what is installed, so a
# second run does nothing. REQUIREMENTS_LOCK names another lock file: template/updates.py installs a release's packages
# before it checks out its code. WITHOUT_TOOLS=1 skips packages that only tests, checks, Ray and the quickstart need.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=scripts/python.sh
source "$ROOT/scripts/python.sh"
if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then refuse_arguments "$0" "$@"; fi
VENV="${VENV:-$ROOT/.venv}"
case "$VENV" in /*) ;; *) VENV="$PWD/$VENV" ;; esac
LOCK="${REQUIREMENTS_LOCK:-$ROOT/requirements.lock}"
INSTALLER="${INSTALLER:-$(if command -v uv >/dev/null; then echo uv; else echo pip; fi)}"
export ROOT VENV

# Print one sha256 over the arguments: the content of files, the text of other arguments.
digest() {
    "$VENV/bin/python" -c 'import hashlib, pathlib, sys
parts = [pathlib.Path(a).read_bytes() if pathlib.Path(a).is_file() else a.encode() for a in sys.argv[1:]]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())' "$@"
}

make_environment() {
    local python
    if [[ -x "$VENV/bin/python" ]]; then
        if ! is_supported "$VENV/bin/python"; then
            echo "error: $VENV has no working Python 3.11, 3.12 or 3.13. Remove it and run this again." >&2
            exit 1
        fi
        # An interrupted `venv` leaves a Python without pip.
        if "$VENV/bin/python" -c 'import pip' 2>/dev/null; then return; fi
    fi
    if [[ "$INSTALLER" == uv ]]; then
        python="${PYTHON:-$(find_python 2>/dev/null || echo 3.11)}"
        echo "==> Making the environment $VENV with $python, by uv"
        # Seeded with pip, by which the quickstart downloads its model.
        uv venv --quiet --seed --allow-existing --python "$python" "$VENV" || exit 1
        return
    fi
    python="$(find_python)" || exit 1
    echo "==> Making the environment $VENV with $python"
    if ! "$python" -m venv "$VENV"; then
        echo "error: $python cannot make an environment. On Debian and Ubuntu, install python3-venv." >&2
        exit 1
    fi
}

# Run `uv pip install` or `pip install`, with its progress on a terminal only.
install() {
    local quiet=(--quiet)
    if [[ -t 1 ]]; then quiet=(); fi
    if [[ "$INSTALLER" == uv ]]; then
        uv pip install --python "$VENV/bin/python" ${quiet[@]+"${quiet[@]}"} "$@"
        return
    fi
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 \
        "$VENV/bin/python" -m pip install ${quiet[@]+"${quiet[@]}"} "$@"
}

# Print `name==version` of every package in the lock file.
pins() {
    sed -n -E 's/^(# apart: )?([A-Za-z0-9._-]+==[^ ]+).*/\2/p' "$LOCK"
}

# Print the part of the lock file to install.
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
    # --no-deps, because other packages depend on torch, which has no hash here.
    if ! install --require-hashes --no-deps --requirement "$VENV/.lock"; then
        echo "error: the packages of $LOCK could not be installed; the message of $INSTALLER is above." >&2
        echo "       If a hash does not match, the file is not the locked one: do not install it." >&2
        exit 1
    fi
    apart="$(sed -n 's/^# apart: //p' "$LOCK")"
    # Constrained, so that torch cannot replace a package whose hash was checked.
    if [[ -n "$apart" ]]; then install --constraint <(pins) "$apart"; fi
    echo "$wanted" > "$VENV/.lock-sha256"
}

install_project() {
    local wanted
    # ROOT is part of the digest: an environment that was copied with its tree still points to the old tree.
    wanted="$(digest "$ROOT/setup.py" "$ROOT/pyproject.toml" "$ROOT/template/__init__.py" "$ROOT" "$VENV")"
    if [[ "$(cat "$VENV/.project-sha256" 2>/dev/null)" == "$wanted" ]]; then return; fi
    echo "==> Installing this project, editable"
    # The lock file has every dependency and the build tool, so nothing is downloaded.
    install --no-deps --no-build-isolation --editable "$ROOT"
    echo "$wanted" > "$VENV/.project-sha256"
}

make_environment
# Remember WITHOUT_TOOLS, so that contrib/start.sh does not install the tools later. Empty but set forgets it.
if [[ -n "${WITHOUT_TOOLS:-}" ]]; then touch "$VENV/.without-tools"; fi
if [[ -n "${WITHOUT_TOOLS+set}" && -z "$WITHOUT_TOOLS" ]]; then rm -f "$VENV/.without-tools"; fi
if [[ -e "$VENV/.without-tools" ]]; then WITHOUT_TOOLS=1; fi
install_lock
install_project
echo "==> Environment ready: $VENV"
