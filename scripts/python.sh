# shellcheck shell=bash
# Sourced by the other scripts: find a Python that this project supports (python_requires in setup.py).

# Check that a command runs a supported Python.
is_supported() {
    # Run it: a version manager's shim can exist and still not work.
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

# Print the command of a supported Python, or print an error and fail. PYTHON names the only one to try.
find_python() {
    local candidate candidates=(python3.11 python3.12 python3.13 python3 python)
    if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: this project needs Python 3.11, 3.12 or 3.13, but none was found as ${candidates[*]}." >&2
    echo "       Install one (Debian and Ubuntu: python3 and python3-venv) and run this again." >&2
    return 1
}

# Called with a script and its arguments, of which it takes none: print the script's head comment and exit if there are.
refuse_arguments() {
    if (($# == 1)); then return; fi
    # The lines of the comment, without its marks.
    sed -n '2,/^set /{ /^#/s/^# \{0,1\}//p }' "$1"
    if [[ "$2" == --help || "$2" == -h ]]; then exit 0; fi
    echo "error: unknown argument $2" >&2
    exit 2
}
