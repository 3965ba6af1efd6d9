# shellcheck shell=bash
# Sourced by the other scripts: which Python this project runs on.

# Prints the command of a Python 3.11, or explains itself on stderr and fails.
find_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        # A version manager's shim may exist and still refuse to run, so ask instead of looking.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "error: this project needs Python 3.11, and none of python3.11, python3 and python is one." >&2
    echo "       Install it (Debian and Ubuntu: python3.11 and python3.11-venv) and run this again." >&2
    return 1
}
