"""Publish round files in a dataset repo, and announce it on chain."""

from contextlib import AbstractContextManager

import pytest

from template.chain_records import ChainCommitment
from template.localnet.hub.answers import Answer, Rule, set_answers
from template.localnet.hub.store import BRANCH, HubStore
from template.rules.entries import find_entries
from template.rules.schedule import Policy
from tests.fixtures.network import SMALL, Net, run_bounded
from tests.fixtures.validator import Bench, open_bench

REPO = "validator/rounds"
TWO_ROUNDS = Policy(max_rounds=2, blocks_per_epoch=20, block_threshold=5)


ROUNDS = Policy(blocks_per_epoch=20, block_threshold=5)


def open_publisher(net: Net, policy: Policy, repo: str = REPO) -> AbstractContextManager[Bench]:
    return open_bench(net, policy=policy, publish_rounds=repo, hub_token=net.hub_token("validator"))


def publish(net: Net, policy: Policy = TWO_ROUNDS) -> None:
    """Run a validator to its end."""
    with open_publisher(net, policy) as bench:
        run_bounded(bench.validator)


def wait_for_warning(bench: Bench) -> str:
    """Run the validator until its status has a warning."""
    bench.tick_until(lambda: (activity := bench.store.heartbeat()) and activity.warnings)
    activity = bench.store.heartbeat()
    assert activity is not None
    return activity.warnings[0]


def published(net: Net) -> dict[str, bytes]:
    store = HubStore(net.hub.store.root)
    commit = store.commit_at(store.repo("datasets", REPO), BRANCH)
    names = [name for name in commit.files if name.startswith("round-")]
    return {name: store.blob_path(commit.files[name]).read_bytes() for name in names}


def written(net: Net) -> dict[str, bytes]:
    folder = net.parts.folder / "state" / "rounds"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def announcement(net: Net) -> ChainCommitment | None:
    return net.chain("validator").commitment(net.hotkey("validator"))


def test_repo_has_the_bytes_of_every_round_file(net: Net) -> None:
    net.submit("alice", SMALL)
    publish(net)
    assert published(net) == written(net) and len(written(net)) == 2


def test_files_from_before_the_flag_are_published_too(net: Net) -> None:
    net.submit("alice", SMALL)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
    publish(net)
    assert published(net) == written(net) and len(written(net)) == 3


def test_announcement_names_the_repo_and_is_no_entry(net: Net) -> None:
    net.submit("alice", SMALL)
    publish(net)
    own = announcement(net)
    assert own is not None and (own.rounds_repo, own.text) == (REPO, None)
    view = net.chain("validator").view()
    assert {key.hotkey for key in find_entries(view, net.competition)} == {net.hotkey("alice")}
    assert net.count_calls("validator", "set_commitment") == 1


def test_announcement_does_not_replace_a_dataset(net: Net) -> None:
    key = net.submit("validator", SMALL)
    with open_publisher(net, ROUNDS) as bench:
        assert "the commitment of this hotkey is a dataset" in wait_for_warning(bench)
    own = announcement(net)
    assert own is not None and own.text == key.commitment


def test_hub_that_fails_costs_no_round_and_is_a_warning(net: Net) -> None:
    net.submit("alice", SMALL)
    set_answers(net.hub.store.root, Rule(answer=Answer.UNAVAILABLE, repo=REPO))
    with open_publisher(net, ROUNDS) as bench:
        expected = f"--publish_rounds: round files wait for their upload to {REPO}: the Hub answered HTTP 503"
        assert wait_for_warning(bench).startswith(expected)
        bench.run_rounds(2)
        assert bench.weights() == {net.hotkey("alice"): 1.0} and announcement(net) is None
    set_answers(net.hub.store.root)
    publish(net)
    assert published(net) == written(net) and len(written(net)) >= 4


def test_refused_token_is_a_warning(net: Net) -> None:
    with open_publisher(net, ROUNDS, "alice/rounds") as bench:
        assert "the Hub does not let this token write to alice/rounds" in wait_for_warning(bench)


@pytest.mark.parametrize("text", [b"rounds:a/b", b"dataset-rounds:", b"dataset-rounds:a/b c", b"dataset-rounds:\xff"])
def test_other_big_fields_announce_nothing(net: Net, text: bytes) -> None:
    chain = net.chain("alice")
    assert chain._publish({"BigRaw": text}, None).is_accepted
    own = chain.commitment(chain.hotkey)
    assert own is not None and (own.rounds_repo, own.text) == (None, None)
