"""Weights at the chain's limits: recorded as sent, or refused with a reason."""

import dataclasses

import pytest

from template.receipts.files import read_round
from template.site.words import weights_outcome
from tests.fixtures.fakes import FakeEvaluator
from tests.fixtures.logs import log_lines
from tests.fixtures.network import SMALL, Net, SteppingChain, run_bounded
from tests.fixtures.validator import QUICK, open_bench


def test_weights_are_recorded_as_they_were_sent(net: Net) -> None:
    net.submit("alice", SMALL)
    net.admin.set_hyperparameter("MinAllowedWeights", 3)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        last = bench.store.last_accepted()
        (path,) = (net.parts.folder / "state" / "rounds").iterdir()
    uid = net.uid("alice")
    assert last is not None and last.weights == {uid: 1.0}
    assert last.sent == {0: 0, 1: 0, uid: 65535}
    assert net.chain("validator").weights(net.uid("validator"), net.admin.block()) == last.sent
    (line,) = read_round(path).header.weights
    assert line.sent == {"0": 0, "1": 0, str(uid): 65535}


def test_validator_without_a_permit_sends_nothing(net: Net) -> None:
    net.submit("alice", SMALL)
    net.admin.set_permit(net.hotkey("validator"), has_permit=False)
    with open_bench(net) as bench, log_lines("WARNING") as lines:
        run_bounded(bench.validator)
        last = bench.store.last_round()
        assert last is not None
        intents = bench.store.intents(last.id)
    assert {(intent.outcome and intent.outcome.error, len(intent.sent)) for intent in intents} == {
        ("NeuronNoValidatorPermit", 0)
    }
    assert net.count_calls("validator", "set_mechanism_weights") == 0
    assert any(line.startswith("ERROR") and "no validator_permit" in line and "add stake" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("validator", "no validator_permit"), ("alice", "has a stake weight of 0.000 on the subnet, and weights need")],
    ids=["permit", "stake"],
)
def test_missing_permit_or_stake_is_an_error_before_any_work(net: Net, name: str, sentence: str) -> None:
    net.submit("bob", SMALL)
    net.admin.set_permit(net.hotkey("validator"), has_permit=False)
    with open_bench(net, chain=SteppingChain(net, name)) as bench, log_lines("ERROR") as lines:
        bench.tick()
        assert bench.store.last_round() is None and bench.executor.running() == ()
    (line,) = lines
    assert line.startswith("ERROR weights would not count: ") and sentence in line


@pytest.mark.parametrize("is_chosen", [False, True])
def test_evaluations_on_a_cpu_that_nobody_chose_are_a_warning(
    net: Net, is_chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEvaluator, "load_model", lambda self: "org/model@abc cpu float32")
    with open_bench(net, is_device_chosen=is_chosen) as bench, log_lines("WARNING") as lines:
        bench.tick()
    warned = [line for line in lines if "evaluations run on the CPU, because no GPU was found" in line]
    assert len(warned) == (0 if is_chosen else 1)


def test_permit_that_comes_late_still_pays_the_round(net: Net) -> None:
    net.submit("alice", SMALL)
    net.admin.set_permit(net.hotkey("validator"), has_permit=False)
    with open_bench(net) as bench:
        bench.tick_until(lambda: False in bench.outcomes() if bench.store.last_round() else False)
        net.admin.set_permit(net.hotkey("validator"), has_permit=True)
        run_bounded(bench.validator)
        assert bench.outcomes()[-1] is True


@pytest.mark.parametrize(
    ("evaluations", "named", "share", "sentence"),
    [
        (2, "burned=100%", 1.0, "No dataset of this round is paid: all weight is for OWNER. If that is the subnet"),
        (1, "burned=0%", 0.0, ""),
    ],
)
def test_burned_weights_are_named_everywhere(
    net: Net, evaluations: int, named: str, share: float, sentence: str
) -> None:
    net.submit("alice", SMALL)
    # A dataset is paid after all its evaluations, of which a round makes one.
    incentives = dataclasses.replace(QUICK, evaluations=evaluations, hold=evaluations)
    with open_bench(net, incentives=incentives) as bench, log_lines() as lines:
        run_bounded(bench.validator)
        metrics = bench.store.heartbeat()
        (path,) = (net.parts.folder / "state" / "rounds").iterdir()
    (line,) = [line for line in lines if "weights set" in line]
    assert named in line and metrics is not None and metrics.burned == share
    outcome = weights_outcome(read_round(path).header)
    assert sentence.replace("OWNER", net.hotkey("owner")) in outcome and ("burns it" in outcome) == bool(share)
