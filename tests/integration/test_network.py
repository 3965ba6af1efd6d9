"""A whole competition in processes: publish, evaluate, weigh, verify.

The slow runs happen once for the module; each test makes one claim about their results.
"""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import leaderboard
from template.constants import DATA_FILE
from template.errors import Reason
from template.localnet.__main__ import main as run_localnet
from template.receipts.files import read_receipt
from template.receipts.receipt import Receipt
from template.records import LeaderboardRow, Round, SubmissionKey, WeightIntent
from template.store.store import Store
from tests.fixtures.network import (
    COMPUTE_LOSS,
    LARGE,
    MINER,
    POOL,
    ROOT,
    SMALL,
    VALIDATOR,
    Ended,
    Net,
    Process,
    call_main,
    load_main,
    make_copy,
    run_process,
    use_hub,
    write_dataset,
    write_training_args,
)

pytestmark = pytest.mark.slow

# The chain stands still while a process runs, at the start of a round.
ROUND_BLOCKS = 20
ROUNDS = ("--blocks_per_epoch", str(ROUND_BLOCKS), "--block_threshold", "5", "--lucky_num_from", "chain")
MINERS = ["alice", "bob", "copycat", "outsider", "broken", "ghost"]


@dataclass(frozen=True)
class Outcome:
    """A validator's state after a process, and its weights on chain."""

    process: Process
    round: Round
    standings: dict[str, LeaderboardRow]
    intents: list[WeightIntent]
    receipts: dict[str, Receipt]
    receipt_times: dict[str, int]
    weights: dict[int, int] | None

    def hotkeys(self, text: str) -> list[str]:
        """Return the hotkeys of the log lines that contain `text`."""
        return [line.split("hotkey=")[1].split()[0] for line in self.process.lines(text)]


class Arena:
    """A network with six submissions, one of them published by a miner process."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.net = Net(folder / "network", MINERS)
        self.model = model
        # Long enough to be interrupted.
        self.args = write_training_args(folder / "args.yaml", epochs=3)
        self.miner = run_process(
            MINER,
            *self.net.chain_arguments("alice"),
            *("--hf_repo_id", "alice/data", "--dataset_path", write_dataset(folder / "alice", LARGE)),
            *("--work_dir", folder / "work", "--poll_seconds", "0.05", "--yes"),
            env=self.net.environment("alice"),
        )
        self.net.submit("bob", SMALL)
        self.net.submit("copycat", make_copy())
        self.net.submit("outsider", [*POOL[:3], POOL[3].replace("it is", "it is not"), *POOL[4:9]])
        self.net.submit("broken", b'{"conversations": [\n')
        self.net.commit("ghost", f"ghost/nothing:{self.net.competition.id}:{'0' * 40}")
        self.net.align(ROUND_BLOCKS)

    def arguments(self, state: str, *more: object) -> list[object]:
        return [
            *self.net.chain_arguments("validator"),
            *("--state_dir", self.folder / state, "--training_args", self.args, "--model_path", self.model),
            *("--max_epochs", "1", "--poll_seconds", "0.05", "--wandb.off", *ROUNDS, *more),
        ]

    def start(self, state: str, *more: object) -> Process:
        return Process(VALIDATOR, *self.arguments(state, *more), env=self.net.environment("validator"))

    def compute_loss(self, *arguments: object) -> Ended:
        with use_hub(self.net, "bob"):
            return call_main(load_main(COMPUTE_LOSS), *arguments, "--model_path", self.model)

    def key(self, name: str) -> SubmissionKey:
        commitment = self.net.chain(name).commitment(self.net.hotkey(name))
        assert commitment is not None and commitment.text is not None
        return SubmissionKey(self.net.hotkey(name), commitment.text)

    def read(self, state: str, process: Process) -> Outcome:
        names = {self.net.hotkey(name): name for name in MINERS}
        with Store(self.folder / state / "validator.sqlite3", is_read_only=True) as store:
            last = store.last_round()
            assert last is not None
            standings = {names[line.key.hotkey]: line for line in store.leaderboard(last.id)}
            intents = store.intents(last.id)
        paths = list((self.folder / state / "receipts").glob("*.json"))
        read = [read_receipt(path) for path in paths]
        receipts = {names[receipt.submission.hotkey]: receipt for receipt in read if receipt.submission is not None}
        times = {path.name: path.stat().st_mtime_ns for path in paths}
        weights = self.net.admin.weights(self.net.hotkey("validator"))
        return Outcome(process, last, standings, intents, receipts, times, weights)


@pytest.fixture(scope="module")
def arena(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(tmp_path_factory.mktemp("arena"), tiny_model)
    with arena.net:
        yield arena


@dataclass(frozen=True)
class Interrupted:
    """One round through three processes: the first stopped, the second killed."""

    stopped: Outcome
    seconds_to_stop: float
    refused: Ended
    killed: Outcome
    end: Outcome


@pytest.fixture(scope="module")
def interrupted(arena: Arena) -> Interrupted:
    with arena.start("hurt") as first:
        first.wait_for("evaluating hotkey=")
        refused = call_main(load_main(VALIDATOR), *arena.arguments("hurt"))
        started = time.monotonic()
        first.send(signal.SIGTERM)
        first.finish()
        seconds_to_stop = time.monotonic() - started
    stopped = arena.read("hurt", first)
    with arena.start("hurt") as second:
        second.wait_for("evaluating hotkey=", count=2)
        second.send(signal.SIGKILL)
        second.finish()
    killed = arena.read("hurt", second)
    with arena.start("hurt") as third:
        third.finish()
    return Interrupted(stopped, seconds_to_stop, refused, killed, arena.read("hurt", third))


@pytest.fixture(scope="module")
def spine(arena: Arena, interrupted: Interrupted) -> Outcome:
    """The same round without interruption. Its seeds come from the same block."""
    arena.net.admin.advance(2)
    with arena.start("spine", "--publish_rounds", "validator/rounds") as process:
        process.finish()
    return arena.read("spine", process)


def test_a_miner_publishes_from_a_process(arena: Arena) -> None:
    output = arena.miner.output
    assert arena.miner.status == 0, arena.miner.logs
    assert output == f"{arena.key('alice').commitment} committed in block {output.split()[-1]}\n"


def test_the_validator_ends_by_itself_after_its_rounds(spine: Outcome) -> None:
    assert spine.process.status == 0, spine.process.logs
    assert spine.process.output == "", "stdout is for results, and a validator has none"
    assert not spine.process.lines("Traceback") and not spine.process.lines("bug")


def test_every_submission_has_its_verdict_with_its_reason(spine: Outcome) -> None:
    assert {name: line.reason for name, line in spine.standings.items()} == {
        "alice": None,
        "bob": None,
        "copycat": Reason.DUPLICATE,
        "outsider": Reason.NOT_IN_POOL,
        "broken": Reason.MALFORMED,
        "ghost": Reason.MISSING_REPO,
    }
    assert spine.standings["copycat"].message.startswith("shares 102 rows")
    assert "line 4" in spine.standings["outsider"].message
    assert "line 1" in spine.standings["broken"].message
    assert all(line.loss is None and line.weight == 0.0 for line in spine.standings.values() if line.reason)


def test_only_scores_have_weights_and_receipts(arena: Arena, spine: Outcome) -> None:
    alice, bob = spine.standings["alice"], spine.standings["bob"]
    assert alice.score > bob.score > 0.0, "the larger dataset is the better one"
    assert spine.weights is not None
    assert spine.weights[alice.uid] / spine.weights[bob.uid] == pytest.approx(alice.score / bob.score, rel=1e-4)
    assert spine.weights.keys() == {alice.uid, bob.uid} and spine.receipts.keys() == {"alice", "bob"}


def test_weights_are_set_once(spine: Outcome) -> None:
    (intent,) = spine.intents
    assert intent.outcome is not None and intent.outcome.is_accepted


def test_anyone_replays_a_receipt_to_the_last_bit(arena: Arena, spine: Outcome) -> None:
    (path,) = (arena.folder / "spine" / "receipts").glob(f"{arena.net.hotkey('bob')}-*.json")
    ended = arena.compute_loss("--verify", path, "--any_competition", "--work_dir", arena.folder / "offline")
    assert ended.status == 0, ended.logs
    loss = repr(spine.receipts["bob"].result.loss)
    competition, recorded, replayed, signature, *_, verdict = ended.output.splitlines()
    assert competition.startswith("competition  ")
    assert (recorded.split(), replayed.split()) == (["recorded", loss], ["replayed", loss])
    assert signature.endswith(f"valid, by {arena.net.hotkey('validator')}") and verdict == "IDENTICAL"


def test_site_from_the_hotkey_alone_has_receipts_that_replay(arena: Arena, spine: Outcome, tmp_path: Path) -> None:
    """The leaderboard finds the published rounds, and the command that it shows for a receipt says IDENTICAL."""
    sources = ["--rounds", arena.net.hotkey("validator"), "--netuid", "96", "--subtensor.network", arena.net.network]
    with use_hub(arena.net, "bob"):
        ended = call_main(leaderboard.main, *sources, "--out", tmp_path / "site", "--work_dir", tmp_path)
    assert ended.status == 0, ended.logs
    page = (tmp_path / "site" / "hotkeys" / f"{arena.net.hotkey('copycat')}.html").read_text()
    text = re.sub(r"<[^>]*>", "", page)
    alice = arena.net.hotkey("alice")
    assert f"Shares 102 rows with the earlier dataset of {alice[:6]}…{alice[-4:]}, which counts since block " in text
    assert f'href="../hotkeys/{alice}.html"' in page
    (path,) = (tmp_path / "site" / "receipts").glob(f"{arena.net.hotkey('bob')[:12]}-1-*.json")
    # site.js puts these flags behind `subnet score --verify FILE`.
    names = json.loads((tmp_path / "site" / "data" / "names.js").read_text().partition("=")[2].rstrip(";\n"))
    flags = names["validators"][0]["flags"].replace("MODEL_FOLDER", str(arena.model)).split()
    with use_hub(arena.net, "bob"):
        ended = call_main(load_main(COMPUTE_LOSS), "--verify", path, *flags, "--work_dir", arena.folder / "offline")
    assert ended.output.splitlines()[-1] == "IDENTICAL", ended.logs


def test_validator_and_script_give_the_same_bits(arena: Arena, spine: Outcome) -> None:
    ended = arena.compute_loss(
        *("--dataset_path", arena.folder / "alice" / DATA_FILE, "--json"),
        *("--lucky_num", spine.receipts["alice"].result.lucky_num),
        *("--competition", arena.net.parts.competition, "--training_args", arena.args),
        *("--eval_data_dir", write_dataset(arena.folder / "eval", POOL)),
    )
    assert json.loads(ended.output)["loss"] == spine.receipts["alice"].result.loss


def test_sigterm_ends_training_within_seconds(interrupted: Interrupted) -> None:
    assert interrupted.stopped.process.status == 0, interrupted.stopped.process.logs
    assert interrupted.seconds_to_stop < 10


def test_what_sigterm_interrupts_is_not_recorded(interrupted: Interrupted) -> None:
    after = interrupted.stopped
    assert len(after.hotkeys("evaluating hotkey=")) == 1
    assert not after.process.lines("evaluated hotkey=") and not after.process.lines("Traceback")
    assert not after.standings and not after.intents and not after.receipts


def test_a_second_validator_on_the_same_state_is_refused(interrupted: Interrupted) -> None:
    assert interrupted.refused.status == 3
    (line,) = interrupted.refused.logs
    assert "another validator" in line and "--state_dir" in line


def test_a_killed_validator_goes_on_with_its_round_and_seed(interrupted: Interrupted) -> None:
    assert interrupted.killed.process.status == -signal.SIGKILL
    assert interrupted.end.process.status == 0, interrupted.end.process.logs
    assert interrupted.stopped.round == interrupted.killed.round == interrupted.end.round


def test_no_recorded_score_is_computed_again(arena: Arena, interrupted: Interrupted) -> None:
    runs = (interrupted.stopped, interrupted.killed, interrupted.end)
    alice, bob = arena.net.hotkey("alice"), arena.net.hotkey("bob")
    assert [run.hotkeys("evaluating hotkey=") for run in runs] == [[alice], [alice, bob], [bob]]
    assert len(interrupted.killed.receipts) == 1, "the kill was to come before the second score"
    assert interrupted.killed.receipt_times.items() <= interrupted.end.receipt_times.items()


def test_interruptions_change_no_verdict_loss_or_weight(interrupted: Interrupted, spine: Outcome) -> None:
    assert interrupted.end.standings == spine.standings
    assert interrupted.end.weights == spine.weights


def test_the_local_network_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    arguments = ("--dir", folder, "--sample", "--miners", "alice, bob", "--block_seconds", "0.05", "--port", 0)
    with Process("template.localnet", *arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        process.wait_for("local network ready")
        parts = json.loads((folder / "localnet.json").read_text())
        for path in (parts["wallets"], parts["competition"], parts["chain_file"]):
            assert Path(path).exists(), path
        assert parts["hub_endpoint"].startswith("http://127.0.0.1:")
        assert {path.name for path in Path(parts["wallets"]).iterdir()} == {"owner", "validator", "alice", "bob"}
        process.send(signal.SIGTERM)
        assert process.finish(20) == 0, process.logs
    again = call_main(run_localnet, *arguments)
    assert again.status == 3 and "holds a local network" in again.logs[-1]
