"""Commit `hello` with async-substrate-interface, and print what was read.

python substrate_interface.py ws://127.0.0.1:9944 7 //miner
"""

import json
import sys

from async_substrate_interface.sync_substrate import SubstrateInterface
from bittensor_wallet import Keypair

url, netuid, uri = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with SubstrateInterface(url, ss58_format=42) as substrate:
    tempo = substrate.query("SubtensorModule", "Tempo", [netuid])
    info = {"fields": [[{"Raw5": b"hello"}]]}
    call = substrate.compose_call("Commitments", "set_commitment", {"netuid": netuid, "info": info})
    extrinsic = substrate.create_signed_extrinsic(call, Keypair.create_from_uri(uri), era={"period": 16})
    receipt = substrate.submit_extrinsic(extrinsic, wait_for_finalization=True)
    (entry,) = substrate.query_map("Commitments", "CommitmentOf", [netuid])
    print(json.dumps({"tempo": tempo.value, "is_success": receipt.is_success, "hotkey": entry[0], "record": entry[1]}))
