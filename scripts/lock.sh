#!/usr/bin/env bash
# Write requirements.lock: install this project with its `dev` extra into a fresh environment, and list every package
# with its version and the sha256 of every file of that release, wheels for other machines included.
#
#   bash scripts/lock.sh             keep every pin that setup.py allows, add missing packages
#   bash scripts/lock.sh --upgrade   take the newest versions that setup.py allows
#
# Hashes come from the index that pip is configured for, which may be a folder of files (file://). Edit the ranges in
# setup.py, never the lock file. Read the difference before you commit it: another torch, transformers, peft or
# tokenizers can change losses.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=scripts/python.sh
source "$ROOT/scripts/python.sh"
LOCK="$ROOT/requirements.lock"

case "${1:-}" in
    "") keep=true ;;
    --upgrade) keep=false ;;
    *) refuse_arguments "$0" "$1" ;;
esac

python="$(find_python)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

# Print `name==version` of every package in a lock file, torch included.
pins() {
    sed -n -E 's/^(# apart: )?([A-Za-z0-9._-]+==[^ ]+).*/\2/p' "$1"
}

# Print the packages of the fresh environment, without build labels such as +cpu, and without pip.
installed() {
    "$work/venv/bin/python" -m pip freeze --all --exclude-editable --exclude pip --exclude wheel | sed 's/+.*$//'
}

echo "==> A fresh environment in $work"
"$python" -m venv "$work/venv"
: > "$work/kept"
if $keep && [[ -f "$LOCK" ]]; then pins "$LOCK" > "$work/kept"; fi
echo "==> Installing the project, then with its dev extra"
for what in "$ROOT" "${ROOT}[dev]"; do
    "$work/venv/bin/python" -m pip install --quiet --constraint "$work/kept" --editable "$what"
    installed > "$work/all"
    [[ -f "$work/product" ]] || sed 's/==.*//' "$work/all" > "$work/product"
done
"$work/venv/bin/python" -m pip check

echo "==> Asking the index for the hashes"
# Read the index from pip's own settings.
index="$("$work/venv/bin/python" -c 'from pip._internal.commands import create_command
print(create_command("download").parse_args([])[0].index_url)')"
hashed() {
    "$work/venv/bin/python" "$ROOT/scripts/dev/lock_hashes.py" --index "$index"
}
# Select the lines of packages that the product needs, or (wanted=0) those that only tools need.
# shellcheck disable=SC2016  # awk's own variables
product='NR == FNR { ours[$0]; next } ($1 in ours) == wanted'
awk -F'==' -v wanted=1 "$product" "$work/product" "$work/all" | grep -v '^torch==' | hashed > "$work/ours"
awk -F'==' -v wanted=0 "$product" "$work/product" "$work/all" | hashed > "$work/tools"

{
    echo "# Exact versions and files of every package that the product, its tests and its checks need. Generated, do not"
    echo "# edit:"
    echo "#     bash scripts/lock.sh"
    echo "# Installed by scripts/setup.sh, which refuses a file whose sha256 is not here: those of all wheels and the"
    echo "# source of each release, as the index listed them."
    echo "#"
    echo "# torch is apart, by version alone and without a local label, so that each platform takes its own build (CPU,"
    echo "# CUDA, ROCm); what a CUDA build needs beyond this list, its own metadata asks for, by exact version."
    echo "# scripts/setup.sh reads the next line:"
    echo "# apart: $(grep '^torch==' "$work/all")"
    echo "#"
    echo "# --- the product"
    cat "$work/ours"
    echo "# --- tests, checks, Ray and the quickstart: WITHOUT_TOOLS=1 leaves them out"
    cat "$work/tools"
} > "$work/lock"
mv "$work/lock" "$LOCK"
echo "==> Wrote $LOCK: $(pins "$LOCK" | wc -l) packages"
