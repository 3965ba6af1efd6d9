"""Requests that no client sends: the node answers each with a result or an error."""

import json
import random

from tests.fixtures.node import Wire

REQUESTS = 2000
VALUES = (
    *(None, True, -1, 0, 2**70, 1.5, "", "0x", "0x1", "zz", "0x" + "00" * 32, "0x" + "ff" * 200, [], {}, [[]], ["0x"]),
    *("SubnetInfoRuntimeApi_get_metagraph", "Metadata_metadata_at_version", "0x0f000000", "\u0000", "é"),
)


def test_every_random_request_has_an_answer(wire: Wire) -> None:
    draw = random.Random(0)
    methods = [name for name in wire.result("rpc_methods")["methods"] if not name.startswith("localnet_")]
    for number in range(REQUESTS):
        params = [draw.choice(VALUES) for _ in range(draw.randrange(5))]
        request = {"jsonrpc": "2.0", "id": number, "method": draw.choice(methods), "params": params}
        answer = wire.send(json.dumps(request))
        while "id" not in answer:  # an update of a subscription
            answer = wire.receive()
        assert answer["id"] == number and ("result" in answer) != ("error" in answer), (request, answer)


def test_random_bytes_of_an_extrinsic_are_refused(wire: Wire) -> None:
    draw = random.Random(0)
    for _ in range(200):
        data = bytes([draw.choice((0x84, 0x04, draw.randrange(256))) for _ in range(draw.randrange(300))])
        assert wire.call("author_submitExtrinsic", "0x" + data.hex())["error"]["code"] == 1001
