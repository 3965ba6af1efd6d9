"""The comparison before a publication, the dry run, and what is said of the verdict."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scripts import check_dataset
from template.chain_records import ChainView
from template.competition import Incentives, Seeds
from template.constants import BLOCK_S
from template.localnet.hub.answers import Answer, Rule, set_answers
from template.localnet.network import NETUID
from template.miner import review
from template.miner.outlook import describe_outlook
from template.miner.publish import publish_dataset
from template.miner.sealed import after_blocks, seal_dataset
from template.rules.stands import align
from tests.fixtures import views
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.logs import log_lines
from tests.fixtures.miner import Killed, commits, configure, head, run
from tests.fixtures.network import LARGE, POOL, SMALL, Net, call_main, make_copy, use_hub, write_dataset

NOON = datetime(2027, 1, 1, 12, tzinfo=UTC).timestamp()
HOW = pytest.mark.parametrize("how", [(), ("--seal",)], ids=["open", "sealed"])


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    """A network in which bob has committed LARGE."""
    with Net(tmp_path / "network", ["alice", "bob"]) as net, use_hub(net, "alice"):
        net.submit("bob", LARGE)
        yield net


def write(net: Net, lines: list[str]) -> Path:
    return write_dataset(net.parts.folder / "copy", lines)


@HOW
def test_certain_duplicate_is_refused_before_any_write(net: Net, how: tuple[str, ...]) -> None:
    ended = run(net, path=write(net, make_copy()), more=("--yes", *how))
    assert ended.status == 6 and ended.output == ""
    expected = f"rejected (duplicate): shares 102 rows with the earlier dataset of {net.hotkey('bob')}"
    assert expected in ended.logs[-1] and "--force publishes it" in ended.logs[-1]
    assert commits(net) == 0 and head(net) is None


def test_forced_duplicate_is_published_with_a_warning(net: Net) -> None:
    ended = run(net, path=write(net, make_copy()), more=("--yes", "--force"))
    assert ended.status == 0 and commits(net) == 1
    assert any("WARNING a validator will probably reject this dataset (duplicate)" in line for line in ended.logs)


@HOW
def test_dry_run_shows_all_and_publishes_nothing(net: Net, how: tuple[str, ...]) -> None:
    ended = run(net, more=("--dry_run", *how))
    assert (ended.status, ended.output) == (0, "")
    text = "\n".join(ended.logs)
    assert "Would publish:\nfile " in text and "1 other hotkeys with a commitment, 1 datasets compared" in text
    assert "may share 9 of its 24 different rows with an earlier one" in text
    assert ended.logs[-1] == "Dry run: nothing was published." and "[y/N]" not in text
    assert commits(net) == 0 and head(net) is None


def test_dry_run_of_a_duplicate_has_its_status(net: Net) -> None:
    assert run(net, path=write(net, make_copy()), more=("--dry_run",)).status == 6
    assert run(net, path=write(net, make_copy()), more=("--dry_run", "--force")).status == 0
    assert commits(net) == 0


def test_dry_run_of_a_committed_file_uploads_nothing(net: Net) -> None:
    assert run(net).status == 0
    before = head(net)
    ended = run(net, more=("--dry_run",))
    assert ended.status == 0 and any("nothing new: alice/data:sample:" in line for line in ended.logs)
    assert head(net) == before and commits(net) == 1


def test_comparison_is_that_of_check_dataset(net: Net) -> None:
    rows = [*SMALL, *LARGE[:5]]
    shown: list[str] = []
    config = configure(net, rows)
    assert publish_dataset(config, net.chain("alice"), confirm=lambda text: bool(shown.append(text))) is None
    where = ["--netuid", NETUID, "--subtensor.network", net.network, "--competition", net.parts.competition]
    words = ["--dataset_path", config.dataset_path, "--work_dir", config.work_dir, "--hotkey", net.hotkey("alice")]
    checked = call_main(check_dataset.main, *where, *words).output
    compared = [line[13:] for line in shown[0].splitlines()[-3:]]
    assert compared[0].startswith("block ") and "shares 5 of 29 rows" in compared[1]
    assert "counts from block 360" in compared[2]
    assert all(line in checked.splitlines() for line in compared[:2])


@pytest.mark.parametrize("fault", ["status", "busy", "time"])
def test_dataset_that_cannot_be_read_blocks_nothing(net: Net, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "status":
        set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="bob/data"))
    elif fault == "busy":
        set_answers(net.hub.store.root, Rule(answer=Answer.QUOTA, repo="bob/data", seconds=301))
    else:
        monkeypatch.setattr(review, "COMPARE_S", -1.0)
    ended = run(net)
    assert ended.status == 0 and commits(net) == 1
    (warning,) = [line for line in ended.logs if "WARNING" in line]
    assert f"which may decide whether this one is a duplicate: the first is of {net.hotkey('bob')}: " in warning


def test_duplicate_that_is_not_certain_is_published_with_a_warning(tmp_path: Path) -> None:
    """A dataset that cannot be read may be earlier than the original, and make that one the duplicate."""
    with Net(tmp_path / "network", ["alice", "bob", "carol"]) as net, use_hub(net, "alice"):
        net.submit("carol", POOL[:20])
        net.submit("bob", LARGE)
        set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="carol/data"))
        ended = run(net, path=write(net, make_copy()))
        assert ended.status == 0 and commits(net) == 1
    first, second = [line.partition("WARNING ")[2] for line in ended.logs if "WARNING" in line]
    assert first.startswith("not compared with datasets=1") and "will probably reject this dataset (dup" in second


def verdict(logs: list[str]) -> list[str]:
    return [line.partition("verdict: ")[2] for line in logs if "verdict: " in line]


def test_published_dataset_is_told_its_round(net: Net) -> None:
    ended = run(net)
    block = int(ended.output.split()[-1])
    takes, pay, look, score = verdict(ended.logs)
    assert takes.startswith(f"the round of block {align(block, 360)} (about 20") and "later if" not in takes
    assert f"from block {align(block, 360) + 360} " in pay and "after 1 evaluations" in pay
    assert f"subnet check --netuid {NETUID} --hotkey {net.hotkey('alice')}" in look
    assert f"subnet score --as_validator --netuid {NETUID} --hotkey {net.hotkey('alice')}" in score


def test_update_is_told_its_wait(net: Net) -> None:
    text = net.parts.competition.read_text().replace("update_blocks: 0", "update_blocks: 7200")
    net.parts.competition.write_text(text)
    net.submit("alice", POOL[40:60])
    net.align(360)
    net.admin.advance(1)
    assert verdict(run(net).logs)[0].startswith("the round of block 7560 (about ")


def test_sealed_dataset_is_told_its_round_before_the_reveal(net: Net) -> None:
    def step(_: float) -> None:
        if commits(net):
            raise Killed
        net.admin.advance()

    chain = net.chain("alice")
    with pytest.raises(Killed):
        seal_dataset(configure(net), chain, schedule=after_blocks(700), confirm=lambda _: True, sleep=step)
    with log_lines() as logs, pytest.raises(Killed):
        seal_dataset(configure(net), chain, schedule=after_blocks(700), confirm=lambda _: True, sleep=step)
    takes, pay, *_ = verdict(logs)
    assert takes.startswith("the round of block 720 (about 20") and "from block 1080 (" in pay


def test_unknown_wait_is_named(net: Net) -> None:
    assert run(net).status == 0
    again = run(net)
    assert verdict(again.logs)[0].endswith("takes the dataset; later if it follows another dataset of yours")


def make_view(block: int) -> ChainView:
    return dataclasses.replace(views.make_view(block=block), timestamp=NOON)


@pytest.mark.parametrize(
    ("incentives", "counts_from", "taken", "paid"),
    [
        (Incentives(), 7200, "block 7200 (about 2027-01-01 13:00 UTC)", "block 15840 (about 2027-01-02 17:48 UTC)"),
        (Incentives(), 14400, "block 14400 (about 2027-01-02 13:00 UTC)", "block 23040 (about 2027-01-03 17:48 UTC)"),
        (Incentives(season_block=10800), 7200, "block 7200 (about", "block 19440 (about 2027-01-03 05:48 UTC)"),
        (Incentives(start_block=10800), 7200, "block 10800 (about", "block 19440 (about 2027-01-03 05:48 UTC)"),
    ],
)
def test_blocks_of_the_verdict(incentives: Incentives, counts_from: int, taken: str, paid: str) -> None:
    lines = describe_outlook(7199, make_view(6900), incentives, hotkey="5G", counts_from=counts_from)
    assert taken in lines[0] and f"after 48 evaluations, at {paid} at the earliest" in lines[1]


def test_random_seeds_promise_no_loss_to_compute() -> None:
    lines = describe_outlook(1, make_view(0), Incentives(seeds=Seeds.RANDOM), hotkey="5G", counts_from=360)
    assert not any("--as_validator" in line for line in lines)
    assert BLOCK_S == 12
