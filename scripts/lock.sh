#!/usr/bin/env bash
# Writes requirements.lock: what a fresh environment holds after installing this project with its `dev` extra.
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

echo "==> A fresh environment in $work"
"$python" -m venv "$work/venv"
constraints=()
if $keep && [[ -f "$LOCK" ]]; then constraints=(--constraint "$LOCK"); fi
echo "==> Installing the project with its dev extra"
"$work/venv/bin/python" -m pip install --quiet ${constraints[@]+"${constraints[@]}"} --editable "${ROOT}[dev]"
"$work/venv/bin/python" -m pip check

{
    echo "# Exact versions of every package that the product, its tests and its checks need. Generated, do not edit:"
    echo "#     bash scripts/lock.sh"
    echo "# Installed by scripts/setup.sh. Versions carry no local label (2.13.0, not 2.13.0+cpu), so that each platform"
    echo "# takes its own build of torch; what a CUDA build needs beyond this list, its own metadata asks for."
    # A label such as +cpu names one build. pip itself stays the one that the environment came with.
    "$work/venv/bin/python" -m pip freeze --all --exclude-editable --exclude pip --exclude wheel | sed 's/+.*$//'
} > "$work/lock"
mv "$work/lock" "$LOCK"
echo "==> Wrote $LOCK: $(grep -c '==' "$LOCK") packages"
