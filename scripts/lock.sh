#!/usr/bin/env bash
# Writes requirements.lock: what a fresh environment holds after installing this project with its `dev` extra, each
# package with the sha256 of every file of its release as the index lists them, so that other machines' wheels are
# covered as well. The index is the one that pip is set up for; a folder of files (file://) does.
#
#   bash scripts/lock.sh             keeps every pin that setup.py still allows, and adds what is missing
#   bash scripts/lock.sh --upgrade   takes the newest versions that setup.py allows
#
# setup.py says what is wanted, in ranges; edit that, never the lock. Read the difference before you commit it:
# another torch, transformers, peft or tokenizers may mean other scores than the other validators'.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=scripts/python.sh
source "$ROOT/scripts/python.sh"
LOCK="$ROOT/requirements.lock"

case "${1:-}" in
    "") keep=true ;;
    --upgrade) keep=false ;;
    *) echo "usage: bash scripts/lock.sh [--upgrade]" >&2; exit 2 ;;
esac

python="$(find_python)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

# `name==version` of each package in the lock file given, torch included, without the hashes.
pins() {
    sed -n -E 's/^(# apart: )?([A-Za-z0-9._-]+==[^ ]+).*/\2/p' "$1"
}

# What the fresh environment holds. A label such as +cpu names one build. pip stays the one it came with.
held() {
    "$work/venv/bin/python" -m pip freeze --all --exclude-editable --exclude pip --exclude wheel | sed 's/+.*$//'
}

echo "==> A fresh environment in $work"
"$python" -m venv "$work/venv"
: > "$work/kept"
if $keep && [[ -f "$LOCK" ]]; then pins "$LOCK" > "$work/kept"; fi
echo "==> Installing the project, then with its dev extra"
for what in "$ROOT" "${ROOT}[dev]"; do
    "$work/venv/bin/python" -m pip install --quiet --constraint "$work/kept" --editable "$what"
    held > "$work/all"
    [[ -f "$work/product" ]] || sed 's/==.*//' "$work/all" > "$work/product"
done
"$work/venv/bin/python" -m pip check

echo "==> Asking the index for the hashes"
# pip's own reading of its settings: the index has no other name here.
index="$("$work/venv/bin/python" -c 'from pip._internal.commands import create_command
print(create_command("download").parse_args([])[0].index_url)')"
hashed() {
    "$work/venv/bin/python" "$ROOT/scripts/dev/lock_hashes.py" --index "$index"
}
# Whether a line's name is one of those that the product alone brought.
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
