#!/usr/bin/env bash
# Run a whole competition on this machine, with a real language model and real conversations.
#
#   bash scripts/quickstart.sh
#
# Make .venv, download SmolLM2-135M-Instruct (100 to 270 MB, once), and start a local chain and Hub. Four miners publish
# datasets, one validator evaluates them for an epoch, and the winner's receipt is replayed to the same bits. Files are
# written to .quickstart, which the next run replaces, and to the caches.
set -euo pipefail

# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

PYTHON="$VENV/bin/python"
RUN="$ROOT/.quickstart"
NET="$RUN/net"
# In the order of their commitments: copy comes after varied, whose rows it copies.
MINERS=(varied narrow copy outsider)
# Several processes share the cores: threads that spin while waiting would slow the others down.
export OMP_WAIT_POLICY=PASSIVE
export HF_HUB_DISABLE_TELEMETRY=1

say() { printf '\n==> %s\n' "$1"; }

# Print a value of localnet.json, which the local network writes, by its key.
net_value() {
    "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$NET/localnet.json" "$1"
}

say "Downloading the model (skipped if it is in the cache)"
MODEL="$("$PYTHON" -m template.localnet.models.download)"
echo "model: $MODEL"

say "Starting a local network: a chain with one block per second, a Hub, wallets, a subnet with ${#MINERS[@]} miners"
rm -rf "$RUN"
mkdir -p "$RUN"
"$PYTHON" contrib/sample/make_miners.py --out "$RUN/datasets"
"$PYTHON" -m template.localnet --dir "$NET" --miners "$(IFS=,; echo "${MINERS[*]}")" >"$RUN/localnet.log" 2>&1 &
NET_PID=$!
trap 'kill "$NET_PID" 2>/dev/null || true' EXIT
until [[ -f "$NET/localnet.json" ]]; do
    if ! kill -0 "$NET_PID" 2>/dev/null; then
        cat "$RUN/localnet.log" >&2
        exit 1
    fi
    sleep 0.2
done
# Keep settings for the real Hub, and proxies, away from the local one.
unset HF_TOKEN HUGGING_FACE_HUB_TOKEN HF_HUB_OFFLINE
export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost
HF_ENDPOINT="$(net_value hub_endpoint)"
HF_HOME="$RUN/hf_home"
export HF_ENDPOINT HF_HOME
CHAIN=(--netuid "$(net_value netuid)" --subtensor.network "$(net_value network)" --wallet.path "$(net_value wallets)")
COMPETITION=(--competition "$(net_value competition)")
SCORE=(--training_args contrib/sample/training_args.yaml --model_path "$MODEL")

for miner in "${MINERS[@]}"; do
    say "Miner $miner publishes its dataset and commits to it on chain"
    # The miner does not publish a dataset that a validator would reject. --force shows the validator rejecting it.
    HF_TOKEN="$(net_value token_prefix)$miner" "$PYTHON" neurons/miner.py "${CHAIN[@]}" "${COMPETITION[@]}" "${SCORE[@]}" \
        --wallet.name "$miner" --hf_repo_id "$miner/conversations" --dataset_path "$RUN/datasets/$miner" \
        --work_dir "$RUN/miner" --poll_seconds 0.5 --force --yes
done

say "The validator runs one epoch: download, check, evaluate, set weights (some minutes)"
"$PYTHON" neurons/validator.py "${CHAIN[@]}" "${COMPETITION[@]}" "${SCORE[@]}" --wallet.name validator \
    --state_dir "$RUN/validator" --poll_seconds 0.5 --max_epochs 1 --blocks_per_epoch 36000 --wandb.off

say "The leaderboard"
"$PYTHON" scripts/status.py --state_dir "$RUN/validator"

WINNER="$("$PYTHON" scripts/status.py --state_dir "$RUN/validator" --json |
    "$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["standings"][0]["key"]["hotkey"])')"
say "Anyone can replay a published loss: downloading the winner's inputs and evaluating them again"
"$PYTHON" scripts/compute_loss.py --verify "$RUN/validator/receipts/$WINNER"-*.json --model_path "$MODEL" \
    --work_dir "$RUN/verify"
