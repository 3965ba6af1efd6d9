"""The wire campaign in small finds nothing, and finds a planted fault."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from template.localnet.node.server import NodeServer
from tests.campaigns.wire.run import METHODS, OPERATIONS, VALIDATOR, Campaign, make_world, open_campaign, run_calls
from tests.fixtures.chain import NETUID
from tests.fixtures.node import dial, record_requests

# Those that end at once, so that the run takes seconds.
QUICK_FAULTS = ("half_of_the_bytes", "missing_part", "error_null", "changed_bit", "in_a_list", "drop_after_answer")


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Campaign]:
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "cache"))
    with open_campaign(tmp_path, seed=3) as campaign:
        yield campaign


def test_calls_to_a_wrong_node_raise_typed_errors_in_time(campaign: Campaign) -> None:
    report = run_calls(campaign, 30, QUICK_FAULTS)
    assert report.calls == 30 and not report.findings, report.findings


def test_planted_faults_of_the_client_are_found(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(campaign._chain, "_call", fail)
    campaign.step("chain_getFinalizedHead", "null")
    assert any("KeyError escapes" in finding for finding in campaign.report.findings)


def test_every_method_that_the_client_sends_has_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "cache"))
    sent = record_requests(monkeypatch)
    with make_world(tmp_path) as local, NodeServer(local.path) as node, dial(node, NETUID, VALIDATOR) as chain:
        for operation in OPERATIONS:
            operation.call(chain)
    assert set(sent) == set(METHODS) - {"author_extrinsicUpdate"}
