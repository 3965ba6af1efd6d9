#!/usr/bin/env bash
# Run a whole competition on this machine, with a real language model and real conversations.
#
#   bash scripts/quickstart.sh
#
# Make .venv, download SmolLM2-135M-Instruct (100 to 270 MB, once), and start a local chain and Hub. Four miners publish
# datasets: an honest one, one that improves on it, a copy and one with foreign rows. A validator evaluates them for two
# rounds. Then the first miner commits its rows again in another order, which gains nothing in the third round. At the
# end the best dataset's receipt is replayed to the same bits. Files are written to .quickstart, which the next run
# replaces, and to the caches. On a slow machine, BLOCK_SECONDS=4 gives every round more time. The chain listens on
# ws://127.0.0.1:9944; NODE_PORT=0 takes a free port.
set -euo pipefail

# shellcheck source=scripts/python.sh
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
refuse_arguments "$0" "$@"
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

PYTHON="$VENV/bin/python"
RUN="$ROOT/.quickstart"
NET="$RUN/net"
BLOCK_SECONDS="${BLOCK_SECONDS:-1}"
NODE_PORT="${NODE_PORT:-9944}"
# In the order of their commitments: copy comes after varied, whose rows it copies.
MINERS=(narrow varied copy outsider)
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

say "Starting a local network: a chain with a block every $BLOCK_SECONDS s, a Hub, wallets, ${#MINERS[@]} miners"
rm -rf "$RUN"
mkdir -p "$RUN"
"$PYTHON" -m template.localnet.sample --out "$RUN/datasets"
"$PYTHON" -m template.localnet --dir "$NET" --sample --miners "$(IFS=,; echo "${MINERS[*]}")" \
    --block_seconds "$BLOCK_SECONDS" --port "$NODE_PORT" --no-commit_reveal >"$RUN/localnet.log" 2>&1 &
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
# Of a chain that ends with this script: not for the caches in the user's home.
export BITTENSOR_RUNTIME_CACHE_DIR="$RUN/runtime_cache" BTCLI_TOKEN_SYMBOLS_CACHE="$RUN/token_symbols.json"
CHAIN=(--netuid "$(net_value netuid)" --subtensor.network "$(net_value network)" --wallet.path "$(net_value wallets)")
COMPETITION=(--competition "$(net_value competition)")
STATE="$RUN/validator"
SCORE=(--training_args template/localnet/sample/training_args.yaml --model_path "$MODEL")

publish() { # MINER DATASET
    # The miner does not publish a dataset that a validator would reject. --force shows the validator rejecting it.
    HF_TOKEN="$(net_value token_prefix)$1" "$PYTHON" neurons/miner.py "${CHAIN[@]}" "${COMPETITION[@]}" "${SCORE[@]}" \
        --wallet.name "$1" --hf_repo_id "$1/conversations" --dataset_path "$RUN/datasets/$2" \
        --work_dir "$RUN/miner" --poll_seconds 0.5 --force --yes
}

# Wait for the start of the next round, and print how many rounds have started since block $1.
next_round() {
    "$PYTHON" - "$NET" "$1" <<'END'
import sys, time
from pathlib import Path
from template.config import load_incentives
from template.localnet.chain.ledger import Ledger
net, period = Path(sys.argv[1]), load_incentives(Path(sys.argv[1], "competition.yaml")).blocks_per_epoch
with Ledger(net / "chain.sqlite3") as chain:
    start = -(-(chain.block() + 1) // period) * period
    while chain.block() < start:
        time.sleep(0.2)
print((start - int(sys.argv[2])) // period)
END
}

validate() { # ROUNDS WHEN
    "$PYTHON" neurons/validator.py "${CHAIN[@]}" "${COMPETITION[@]}" "${SCORE[@]}" --wallet.name validator \
        --state_dir "$STATE" --poll_seconds 0.5 --max_epochs "$1" --block_threshold 5 --wandb.off
    "$PYTHON" scripts/status.py --state_dir "$STATE" --json >"$RUN/status-$2.json"
    say "The leaderboard (the validator has ended after its rounds, which the status calls a problem)"
    "$PYTHON" scripts/status.py --state_dir "$STATE"
}

for miner in "${MINERS[@]}"; do
    say "Miner $miner commits to its dataset on chain and publishes it"
    publish "$miner" "$miner"
done

say "The validator runs two rounds: download, check, evaluate, set weights (a minute or two)"
next_round 0 >/dev/null
validate 2 before
# A slow machine sets a round's weights before its last evaluation ends. The next round pays it.
for _ in 1 2 3; do
    if "$PYTHON" -c 'import json, sys; sys.exit(len(json.load(open(sys.argv[1]))["ledger"]) < 2)' "$RUN/status-before.json"
    then break; fi
    validate 1 before
done

say "Miner narrow commits the same rows again, in another order, hoping for better seeds and another rank"
publish narrow again
LAST="$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["round"]["start_block"])' "$RUN/status-before.json")"
validate "$(next_round "$LAST")" after

say "What the second commitment gained"
"$PYTHON" - "$RUN" <<'END'
import json, sys
rows = []
for when in ("before", "after"):
    with open(f"{sys.argv[1]}/status-{when}.json") as file:
        (row,) = (row for row in json.load(file)["standings"] if row["key"]["entry"].startswith("narrow/"))
    rows.append(row)
    print(f"{when:8}loss {row['loss']!r}  runs {row['runs']}  weight {row['weight']:.6f}  {row['key']['entry']}")
first, second = rows
is_new = first["key"] != second["key"]
gained = (first["digest"], first["runs"], first["loss"]) != (second["digest"], second["runs"], second["loss"])
gained = gained or second["weight"] > first["weight"] + 1e-9
print("NOTHING" if is_new and not gained else "SOMETHING: please report this")
sys.exit(gained or not is_new)
END

say "btcli reads the same chain: the miners' commitments and the validator's weights by uid"
for read in commitments weights; do
    "$VENV/bin/btcli" query "$read" --netuid "$(net_value netuid)" --network "$(net_value network)"
done

WINNER="$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["standings"][0]["key"]["hotkey"])' \
    "$RUN/status-after.json")"
RECEIPTS=("$STATE/receipts/$WINNER"-*.json)
say "Anyone can replay a published loss: downloading the winner's inputs and evaluating them again"
"$PYTHON" scripts/compute_loss.py --verify "${RECEIPTS[0]}" "${COMPETITION[@]}" "${SCORE[@]}" --work_dir "$RUN/verify"
