"""A validator that starts late from round files, without an archive node."""

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from neurons.validator import build_parser, make_config, read_bootstrap
from template import files
from template.chain.client import verify_signature
from template.chain_records import ChainSnapshot
from template.competition import CommitmentRecord, Incentives, Seeds
from template.config import load_training_args
from template.errors import ConfigError, RemoteError
from template.hub.repo_files import download_files
from template.localnet.hub.store import upload_files
from template.localnet.network import make_hotkey
from template.receipts.files import read_round
from template.records import Leaderboard, LeaderboardRow
from template.rules.schedule import Policy
from template.store.store import Store
from template.validator.bootstrap import RoundHistory, read_history
from tests.fixtures.audit import audit_files
from tests.fixtures.logs import log_lines
from tests.fixtures.network import LARGE, SMALL, Net, SteppingChain, make_content, make_copy, use_hub
from tests.fixtures.validator import QUICK, Bench, open_bench

PERIOD = 20
ROUNDS = 4
INCENTIVES = dataclasses.replace(QUICK, seeds=Seeds.CHAIN, evaluations=2, hold=2, blocks_per_epoch=PERIOD)


class PrunedChain(SteppingChain):
    """A chain whose nodes dropped the state of every past block."""

    def snapshot(self, block: int) -> ChainSnapshot:
        if block == self.block():
            return super().snapshot(block)
        raise RemoteError(f"could not read the subnet at block {block}: State discarded")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a network in which a validator saw every round; read-only."""
    folder = tmp_path_factory.mktemp("played") / "network"
    with Net(folder, ["alice", "bob", "carol"]) as net, use_hub(net):
        net.submit("alice", LARGE)
        policy = Policy(blocks_per_epoch=PERIOD, block_threshold=5)
        with open_bench(net, "first", policy=policy, incentives=INCENTIVES, lucky_num=None) as bench:
            bench.run_rounds(1)
            net.submit("bob", SMALL)
            bench.run_rounds(1)
            net.submit("carol", make_copy())
            bench.run_rounds(ROUNDS - 2)
    return folder


@pytest.fixture
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Net]:
    """A copy of a network: of the one in which the rounds were played, for a test of `rounds`."""
    name = "played" if "rounds" in request.fixturenames else "new_network"
    shutil.copytree(request.getfixturevalue(name), tmp_path / "network")
    with Net.open(tmp_path / "network") as net, use_hub(net):
        yield net


@pytest.fixture
def rounds(net: Net) -> Path:
    """The round files of the validator that saw every round, as its folder."""
    return net.parts.folder / "first" / "rounds"


def read(net: Net, folder: Path, incentives: Incentives = INCENTIVES) -> RoundHistory:
    digest = load_training_args(net.parts.folder / "first" / "args.yaml").hyperparameters.digest
    return read_history(
        folder.glob("round-*.jsonl"),
        netuid=net.chain("owner").netuid,
        competition=net.competition,
        incentives=incentives,
        hyperparameters_digest=digest,
        verify=verify_signature,
        round_dir=files.check_folder(net.parts.folder / "late" / "rounds", "--round_dir"),
    )


@contextmanager
def start_late(net: Net, history: RoundHistory, *, state: str = "late") -> Iterator[Bench]:
    policy = Policy(blocks_per_epoch=PERIOD, block_threshold=5, start_block=history.first_block or 0)
    chain = PrunedChain(net, "owner", blocks=0)
    with open_bench(
        net, state, policy=policy, incentives=INCENTIVES, chain=chain, history=history, lucky_num=None
    ) as bench:
        yield bench


def rows_of(store: Store) -> dict[str, LeaderboardRow]:
    last = store.last_round()
    assert last is not None
    return {row.hotkey: row for row in store.leaderboard(last.id)}


def test_late_validator_arrives_at_the_same_table(net: Net, rounds: Path) -> None:
    with log_lines() as lines, start_late(net, read(net, rounds)) as bench:
        bench.run_rounds(ROUNDS)
        late = rows_of(bench.store)
        last = bench.store.last_round()
        assert last is not None
        ledger = bench.store.ledger(last.id)
        assert not bench.evaluator.scored, "every loss is from a file"
    with Store(rounds.parent / "validator.sqlite3", is_read_only=True) as store:
        assert late == rows_of(store) and len(late) == 3
        first = store.last_round()
        assert first is not None and ledger == store.ledger(first.id) and ledger
    assert not [line for line in lines if "differs" in line]
    assert any("Not checked: losses" in line for line in lines)
    assert sum("no node has the state to check them" in line for line in lines) == ROUNDS


def test_late_validator_sets_the_same_weights_next(net: Net, rounds: Path) -> None:
    policy = Policy(blocks_per_epoch=PERIOD, block_threshold=5)
    chain = SteppingChain(net, "validator", blocks=0)
    first = open_bench(net, "first", policy=policy, incentives=INCENTIVES, chain=chain, lucky_num=None)
    with start_late(net, read(net, rounds)) as late, first as early:
        late.run_rounds(ROUNDS)
        late.tick_until(lambda: late.store.last_round_id() == ROUNDS + 1 and True in late.outcomes())
        early.tick_until(lambda: early.store.last_round_id() == ROUNDS + 1 and True in early.outcomes())
    weights = net.admin.weights(net.hotkey("owner"))
    assert weights == net.admin.weights(net.hotkey("validator")) and len(weights or ()) == 2


def test_audit_of_a_late_validator_is_clean(net: Net, rounds: Path) -> None:
    with start_late(net, read(net, rounds)) as bench:
        bench.run_rounds(ROUNDS)
    folder = net.parts.folder / "late" / "rounds"
    assert len(list(folder.iterdir())) == 2 * ROUNDS
    assert audit_files(net, [folder], INCENTIVES).findings == []


@pytest.fixture
def late_file(net: Net) -> Path:
    """The round files of a validator for which a promised file came after some rounds."""
    content = make_content(SMALL)
    record = CommitmentRecord("bob/data", net.competition.id, hashlib.sha256(content).hexdigest())
    policy = Policy(blocks_per_epoch=PERIOD, block_threshold=5)
    with open_bench(net, "first", policy=policy, incentives=INCENTIVES, lucky_num=None) as bench:
        key = net.commit("bob", str(record))
        bench.run_rounds(3)
        assert key not in bench.verdicts(), "its upload may still come"
        net.upload("bob", content)
        bench.run_rounds(4)
        assert bench.scored_hotkeys() == {key.hotkey}
    return net.parts.folder / "first" / "rounds"


def test_file_that_came_late_is_no_finding(net: Net, late_file: Path) -> None:
    headers = sorted((read_round(path).header for path in late_file.iterdir()), key=lambda header: header.start_block)
    assert (net.hotkey("bob"),) in [header.missing for header in headers]
    assert headers[-1].missing == () and audit_files(net, [late_file], INCENTIVES).findings == []


def test_bootstrap_knows_that_a_file_came_late(net: Net, late_file: Path) -> None:
    count = len(list(late_file.iterdir()))
    with start_late(net, read(net, late_file)) as bench:
        bench.run_rounds(count)
        late = rows_of(bench.store)
    with Store(late_file.parent / "validator.sqlite3", is_read_only=True) as store:
        assert late == rows_of(store) and late[net.hotkey("bob")].runs == 2


@pytest.mark.parametrize("is_other_model", [False, True])
def test_rounds_done_again_beside_the_first_are_clean(net: Net, rounds: Path, is_other_model: bool) -> None:
    """The validator lost its state, or its losses are of another model now."""
    policy = Policy(blocks_per_epoch=PERIOD, block_threshold=5, start_block=PERIOD)
    with open_bench(net, "again", policy=policy, incentives=INCENTIVES, lucky_num=None) as bench:
        start = bench.executor.start
        if is_other_model:
            bench.executor.start = lambda: f"{start()} v2"  # type: ignore[method-assign]
        bench.run_rounds(ROUNDS + 2)
    again = net.parts.folder / "again" / "rounds"
    for folders in ((rounds, again), (again, rounds)):
        assert audit_files(net, folders, INCENTIVES).findings == []


def test_loss_without_a_receipt_is_evaluated_here(net: Net, rounds: Path) -> None:
    history = RoundHistory(dataclasses.replace(read_round(path), receipts=()) for path in rounds.iterdir())
    with start_late(net, history) as bench:
        bench.run_rounds(ROUNDS)
        assert len(bench.evaluator.scored) == 4


def test_losses_of_another_model_are_not_taken(net: Net, rounds: Path) -> None:
    history = RoundHistory(
        dataclasses.replace(file, header=dataclasses.replace(file.header, model="another"))
        for file in map(read_round, rounds.iterdir())
    )
    with log_lines() as lines, start_late(net, history) as bench:
        bench.run_rounds(ROUNDS)
        assert len(bench.evaluator.scored) == 4
    assert any("losses of --bootstrap_rounds are of ['another'], here of Qwen" in line for line in lines)


def test_table_that_differs_is_told(net: Net, rounds: Path) -> None:
    history = read(net, rounds)
    block = history.first_block
    assert block is not None
    with log_lines() as lines:
        history.log_differences(block, Leaderboard([], []))
        history.log_differences(block + 1, Leaderboard([], []))
    assert f"round file of block {block} differs for hotkey={net.hotkey('alice')}" in lines[0]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"signature":"', '"signature":"00', "NOT VALID"),
        ('"loss":', '"lost":', "Field required"),
        ('"epsilon":0.0', '"epsilon":0.5', "its epsilon is another"),
    ],
)
def test_file_with_a_fault_is_left_out(net: Net, rounds: Path, old: str, new: str, fault: str) -> None:
    paths = sorted(rounds.iterdir())
    head, rest = paths[-1].read_text().split("\n", 1)
    assert old in head
    paths[-1].write_text("\n".join([head.replace(old, new), rest]))
    with log_lines() as lines:
        history = read(net, rounds)
    assert any("round file left out" in line and fault in line for line in lines)
    assert history.next_block((history.first_block or 0) + (ROUNDS - 1) * PERIOD) is None


def test_files_of_a_stranger_are_refused(net: Net, rounds: Path) -> None:
    history = read(net, rounds)
    net.admin.deregister(net.hotkey("validator"), replacement=make_hotkey(net.parts, "stranger"))
    with start_late(net, history) as bench, pytest.raises(ConfigError, match="signed the files, and is not on netuid"):
        bench.tick()


def test_files_of_two_validators_are_refused(net: Net, rounds: Path, tmp_path: Path) -> None:
    with start_late(net, read(net, rounds)) as bench:
        bench.run_rounds(1)
    both = net.parts.folder / "late" / "rounds"
    with pytest.raises(ConfigError, match=r"one validator, and has 5.*, 5"):
        read(net, both)


def test_no_usable_file_is_a_config_error(net: Net, rounds: Path) -> None:
    with pytest.raises(ConfigError, match="none that can be used"):
        read(net, rounds, dataclasses.replace(INCENTIVES, sd=0.5))


def test_file_of_another_chain_is_refused(net: Net, rounds: Path) -> None:
    history = read(net, rounds)
    block = history.first_block
    assert block is not None and history.snapshot(1, block + 1, "0x00") is None
    with pytest.raises(RemoteError, match=f"block {block} is of another chain"):
        history.snapshot(1, block, "0x00")


def test_round_files_are_downloaded_from_a_repo(net: Net, rounds: Path, tmp_path: Path) -> None:
    content = {path.name: path.read_bytes() for path in rounds.iterdir()}
    upload_files(net.hub.store.root, "first/rounds", {**content, "README.md": b"rounds"})
    download_files("first/rounds", "round-*.jsonl", tmp_path, max_bytes=10**7, token=None)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*l")} == content
    with pytest.raises(ConfigError, match="no/repo"):
        download_files("no/repo", "round-*.jsonl", tmp_path, max_bytes=10**7, token=None)


@pytest.mark.parametrize("source", ["folder", "first/rounds"])
def test_flag_takes_a_folder_or_a_repo(net: Net, rounds: Path, source: str, tmp_path: Path) -> None:
    upload_files(net.hub.store.root, "first/rounds", {path.name: path.read_bytes() for path in rounds.iterdir()})
    competition = tmp_path / "competition.yaml"
    rules = {**dataclasses.asdict(INCENTIVES), "reward": str(INCENTIVES.reward), "seeds": str(INCENTIVES.seeds)}
    content = yaml.safe_load(net.parts.competition.read_text())
    competition.write_text(yaml.safe_dump({**content, "incentives": rules}))
    source = str(rounds) if source == "folder" else source
    flags = [
        *net.chain_arguments("owner"),
        "--competition",
        str(competition),
        "--bootstrap_rounds",
        source,
        "--block_threshold",
        "5",
    ]
    args = build_parser().parse_args(flags)
    digest = load_training_args(net.parts.folder / "first" / "args.yaml").hyperparameters.digest
    history = read_bootstrap(args, make_config(args, tmp_path), digest, tmp_path)
    assert history.first_block == read(net, rounds).first_block
    net.hub.close()
    history = read_bootstrap(args, make_config(args, tmp_path), digest, tmp_path)
    assert history.first_block == read(net, rounds).first_block, "a restart does not need the Hub"


def test_flag_without_a_folder_or_repo_is_refused(net: Net, tmp_path: Path) -> None:
    args = build_parser().parse_args([*net.chain_arguments("owner"), "--bootstrap_rounds", "no folder"])
    with pytest.raises(ConfigError, match="--bootstrap_rounds must be a folder or a Hub id"):
        read_bootstrap(args, make_config(args, tmp_path), "", tmp_path)
