#!/usr/bin/env bash
# How a supervisor starts a neuron: completes an installation that was killed halfway, then becomes the neuron, so that
# process id, signals and exit code are the neuron's own.
#
#   bash contrib/start.sh neurons/validator.py ARGUMENTS...
#   bash contrib/start.sh                                       completes the installation, no more
#
# VENV names another environment than .venv. Only one that scripts/setup.sh has made is ever touched. Fails with 4, this
# machine's fault (template/errors.py), whatever it is that pip ends with.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export VENV="${VENV:-.venv}"

if [[ -e "$VENV/.project-sha256" ]]; then
    # The lock that an update holds (template/updates.py): packages that are being changed are not put back meanwhile.
    # Who may not write it installs nothing either.
    if lock="$(git rev-parse --absolute-git-dir 2>/dev/null)/updates.lock" && command -v flock >/dev/null &&
        { exec 9>>"$lock"; } 2>/dev/null; then
        flock 9
    fi
    bash scripts/setup.sh >&2 || exit 4
    exec 9>&-
fi

if (($#)); then
    exec "$VENV/bin/python" "$@"
fi
