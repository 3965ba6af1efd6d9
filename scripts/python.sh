# shellcheck shell=bash
# Sourced by the other scripts: find the Python that this project needs.

# Print the command of a Python 3.11, or print an error and fail.
find_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        # Run it: a version manager's shim can exist and still not work.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "error: this project needs Python 3.11, but python3.11, python3 and python are missing or other versions." >&2
    echo "       Install it (Debian and Ubuntu: python3.11 and python3.11-venv) and run this again." >&2
    return 1
}
