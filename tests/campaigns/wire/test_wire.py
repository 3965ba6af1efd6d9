"""The wire campaign in small finds nothing, and finds a planted fault."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns.wire.run import Campaign, open_campaign, run_calls

# Those that end at once, so that the run takes seconds.
QUICK_FAULTS = ("half_of_the_bytes", "missing_part", "error_null", "number_frame", "drop_in_answer", "close")


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
