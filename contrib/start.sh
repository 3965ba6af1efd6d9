#!/usr/bin/env bash
# Start a neuron under a supervisor: complete an interrupted installation, then exec the neuron, so that process id,
# signals and exit code are the neuron's.
#
#   bash contrib/start.sh neurons/validator.py ARGUMENTS...
#   bash contrib/start.sh                                       only complete the installation
#
# VENV names another environment than .venv. An environment that scripts/setup.sh did not make is left unchanged. If the
# installation fails, the exit status is 4 (this machine failed, template/errors.py), whatever pip's own status is.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export VENV="${VENV:-.venv}"

if [[ -e "$VENV/.project-sha256" ]]; then
    # Wait for the lock of a running update (template/updates.py): otherwise setup would revert packages that the update
    # is installing. A user who may not write the lock file may not install packages either.
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
