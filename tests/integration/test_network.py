"""A whole competition in processes: publish, evaluate, weigh, verify.

The slow runs happen once for the module; each test makes one claim about their results.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from template.chain.client import verify_signature
from template.config import load_training_args
from template.constants import DATA_FILE, LOSS_VERSION
from template.errors import Reason
from template.receipts.files import read_receipt
from template.receipts.receipt import Receipt
from template.records import LeaderboardRow, Round, SubmissionKey, WeightIntent
from template.rules.scoring import score_of
from template.store.store import Store
from template.train import RunOptions, train_lora
from template.training.environment import machine_fingerprint
from tests.fixtures.network import (
    COMPUTE_LOSS,
    LARGE,
    MINER,
    POOL,
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

MINERS = ["alice", "bob", "copycat", "outsider", "broken", "ghost"]
SEED = 7
EPOCHS = 5


@dataclass(frozen=True)
class Outcome:
    """Contents of a validator's state folder, and its weights on chain."""

    process: Process | Ended
    round: Round
    standings: dict[str, LeaderboardRow]
    intents: list[WeightIntent]
    receipts: dict[str, Receipt]
    weights: dict[int, int] | None


class Arena:
    """A network with six submissions, two of them published by miner processes."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.net = Net(folder / "network", MINERS)
        self.model = model
        self.args = write_training_args(folder / "args.yaml")
        self.long_args = write_training_args(folder / "long.yaml", epochs=EPOCHS)
        self.miners = {
            "alice": self.mine("alice", LARGE),
            "bob": self.mine("bob", SMALL),
        }
        self.net.submit("copycat", make_copy())
        self.net.submit("outsider", [*POOL[:3], POOL[3].replace("it is", "it is not"), *POOL[4:9]])
        self.net.submit("broken", b'{"conversations": [\n')
        self.net.commit("ghost", f"ghost/nothing:{self.net.competition.id}:{'0' * 40}")
        self.net.admin.advance(2)

    def mine(self, name: str, lines: list[str]) -> Process:
        return run_process(
            MINER,
            *self.net.chain_arguments(name),
            *("--hf_repo_id", f"{name}/data", "--dataset_path", write_dataset(self.folder / name, lines)),
            *("--work_dir", self.folder / "work", "--poll_seconds", "0.05", "--yes"),
            env=self.net.environment(name),
        )

    def arguments(self, state: str, args: Path, *more: object) -> list[object]:
        return [
            *self.net.chain_arguments("validator"),
            *("--state_dir", self.folder / state, "--training_args", args, "--model_path", self.model),
            *("--max_epochs", "1", "--poll_seconds", "0.05"),
            "--wandb.off",
            *more,
        ]

    def start(self, state: str, args: Path, *more: object) -> Process:
        return Process(VALIDATOR, *self.arguments(state, args, *more), env=self.net.environment("validator"))

    def key(self, name: str) -> SubmissionKey:
        commitment = self.net.chain(name).commitment(self.net.hotkey(name))
        assert commitment is not None and commitment.text is not None
        return SubmissionKey(self.net.hotkey(name), commitment.text)

    def read(self, state: str, process: Process | Ended) -> Outcome:
        """Read the state folder, also of a running validator."""
        names = {self.net.hotkey(name): name for name in MINERS}
        with Store(self.folder / state / "validator.sqlite3", is_read_only=True) as store:
            last = store.last_round()
            assert last is not None
            standings = {names[line.key.hotkey]: line for line in store.leaderboard(last.id)}
            intents = store.intents(last.id)
        read = [read_receipt(path) for path in (self.folder / state / "receipts").glob("*.json")]
        receipts = {names[receipt.submission.hotkey]: receipt for receipt in read if receipt.submission is not None}
        weights = self.net.admin.weights(self.net.hotkey("validator"))
        return Outcome(process, last, standings, intents, receipts, weights)


def _lines(outcome: Outcome, text: str) -> list[str]:
    return [line for line in outcome.process.logs if text in line]


@pytest.fixture(scope="module")
def arena(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(tmp_path_factory.mktemp("arena"), tiny_model)
    with arena.net:
        yield arena


@pytest.fixture(scope="module")
def spine(arena: Arena) -> Outcome:
    with arena.start("spine", arena.args, "--lucky_num", SEED) as process:
        process.finish()
    return arena.read("spine", process)


def test_miners_publish_from_processes(arena: Arena) -> None:
    for name, process in arena.miners.items():
        assert process.status == 0, process.logs
        assert process.output == f"{arena.key(name).commitment} committed in block {process.output.split()[-1]}\n"


def test_the_validator_ends_by_itself_after_its_rounds(spine: Outcome) -> None:
    assert spine.process.status == 0, spine.process.logs
    assert spine.process.output == "", "stdout is for results, and a validator has none"
    assert not _lines(spine, "Traceback") and not _lines(spine, "bug")


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


def test_weights_on_chain_are_the_scores(arena: Arena, spine: Outcome) -> None:
    scores = {name: score_of(spine.receipts[name].result.loss, arena.net.competition) for name in ("alice", "bob")}
    assert scores["alice"] > scores["bob"] > 0.0, "the larger dataset is the better one"
    assert {name: spine.standings[name].score for name in scores} == scores
    assert spine.weights is not None
    assert set(spine.weights) == {arena.net.uid(name) for name in scores}
    total = sum(spine.weights.values())
    for name, score in scores.items():
        share = score / sum(scores.values())
        assert spine.standings[name].weight == pytest.approx(share, rel=1e-12)
        assert spine.weights[arena.net.uid(name)] / total == pytest.approx(share, abs=2e-5)


def test_weights_are_set_once(spine: Outcome) -> None:
    (intent,) = spine.intents
    assert intent.outcome is not None and intent.outcome.is_accepted


def test_only_evaluated_submissions_have_signed_receipts(arena: Arena, spine: Outcome) -> None:
    assert set(spine.receipts) == {"alice", "bob"}
    for name, receipt in spine.receipts.items():
        assert receipt.submission is not None and receipt.signature is not None
        assert SubmissionKey(receipt.submission.hotkey, arena.key(name).commitment) == arena.key(name)
        assert arena.key(name).commitment == (
            f"{receipt.submission.repo}:{arena.net.competition.id}:{receipt.submission.commit}"
        )
        assert receipt.signer == arena.net.hotkey("validator")
        assert verify_signature(receipt.signer, receipt.message(), receipt.signature)
        assert receipt.result.lucky_num == spine.round.lucky_num == SEED
        assert receipt.result.loss == spine.standings[name].loss


def test_the_stored_receipt_is_the_written_one(arena: Arena, spine: Outcome) -> None:
    competition, args = arena.net.competition, load_training_args(arena.args)
    with Store(arena.folder / "spine" / "validator.sqlite3") as store:
        result = spine.receipts["alice"].result
        device, dtype = result.environment["device"], result.environment["dtype"]
        machine = machine_fingerprint(torch.device(device), getattr(torch, dtype))
        model = f"{result.model_id}@{result.model_digest} {device} {dtype} score {LOSS_VERSION} on {machine}"
        eval_config = store.get_or_create_config(competition, args.hyperparameters.digest, model, 0.0)
        assert store.receipt(eval_config, arena.key("alice")) == spine.receipts["alice"].to_json()
        assert store.receipt(eval_config, arena.key("copycat")) is None


def test_anyone_replays_a_receipt_to_the_last_bit(arena: Arena, spine: Outcome) -> None:
    (path,) = (arena.folder / "spine" / "receipts").glob(f"{arena.net.hotkey('bob')}-*.json")
    process = run_process(
        COMPUTE_LOSS,
        *("--verify", path, "--model_path", arena.model, "--work_dir", arena.folder / "offline"),
        env=arena.net.environment("bob"),
    )
    assert process.status == 0, process.logs
    lines = process.output.splitlines()
    assert lines[-1] == "IDENTICAL"
    assert lines[0].split() == ["recorded", repr(spine.receipts["bob"].result.loss)]
    assert lines[1].split() == ["replayed", repr(spine.receipts["bob"].result.loss)]
    assert lines[2].endswith(f"valid, by {arena.net.hotkey('validator')}")


def test_validator_script_and_function_give_the_same_bits(arena: Arena, spine: Outcome) -> None:
    eval_dir = write_dataset(arena.folder / "eval", POOL)
    process = run_process(
        COMPUTE_LOSS,
        *("--dataset_path", arena.folder / "alice" / DATA_FILE, "--lucky_num", SEED, "--json"),
        *("--competition", arena.net.parts.competition, "--eval_data_dir", eval_dir),
        *("--training_args", arena.args, "--model_path", arena.model),
        env=arena.net.environment("alice"),
    )
    assert process.status == 0, process.logs
    result = spine.receipts["alice"].result
    options = RunOptions(training_args=load_training_args(arena.args), model_path=arena.model)
    competition = arena.net.competition
    direct = train_lora(
        SEED,
        competition.bench,
        competition.rows,
        data_dir=arena.folder / "alice",
        eval_data_dir=eval_dir,
        options=options,
    )
    assert json.loads(process.output)["loss"] == result.loss == direct


@dataclass(frozen=True)
class Interrupted:
    """One round through three processes: stopped, killed, and undisturbed."""

    seconds_to_stop: float
    after_stop: Outcome
    files_after_stop: set[str]
    refused: Ended
    after_kill: Outcome
    receipt_times: dict[str, int]
    end: Outcome
    receipt_times_at_end: dict[str, int]
    undisturbed: Outcome


def _receipt_times(arena: Arena, state: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (arena.folder / state / "receipts").glob("*")}


@pytest.fixture(scope="module")
def interrupted(arena: Arena, spine: Outcome) -> Interrupted:
    arena.net.admin.advance(2)
    with arena.start("hurt", arena.long_args) as first:
        first.wait_for("evaluating hotkey=")
        refused = call_main(load_main(VALIDATOR), *arena.arguments("hurt", arena.long_args))
        started = time.monotonic()
        first.send(signal.SIGTERM)
        first.finish()
        seconds_to_stop = time.monotonic() - started
    after_stop = arena.read("hurt", first)
    files_after_stop = set(_receipt_times(arena, "hurt"))
    with arena.start("hurt", arena.long_args) as second:
        second.wait_for("evaluating hotkey=", count=2)
        second.send(signal.SIGKILL)
        second.finish()
    after_kill, receipt_times = arena.read("hurt", second), _receipt_times(arena, "hurt")
    with arena.start("hurt", arena.long_args) as third:
        third.finish()
    end = arena.read("hurt", third)
    seed = after_stop.round.lucky_num
    calm_arguments = arena.arguments("calm", arena.long_args, "--dont_set_weights", "--lucky_num", seed)
    with use_hub(arena.net):
        calm = call_main(load_main(VALIDATOR), *calm_arguments)
    return Interrupted(
        seconds_to_stop,
        after_stop,
        files_after_stop,
        refused,
        after_kill,
        receipt_times,
        end,
        _receipt_times(arena, "hurt"),
        arena.read("calm", calm),
    )


def test_sigterm_ends_training_within_seconds(interrupted: Interrupted) -> None:
    assert interrupted.after_stop.process.status == 0, interrupted.after_stop.process.logs
    assert interrupted.seconds_to_stop < 10


def test_what_sigterm_interrupts_is_not_recorded(interrupted: Interrupted) -> None:
    after = interrupted.after_stop
    assert len(_lines(after, "evaluating hotkey=")) == 1
    assert not _lines(after, "evaluated hotkey=") and not _lines(after, "Traceback")
    assert not after.standings and not after.intents and not interrupted.files_after_stop


def test_a_second_validator_on_the_same_state_is_refused(interrupted: Interrupted) -> None:
    assert interrupted.refused.status == 3
    (line,) = interrupted.refused.logs
    assert "another validator" in line and "--state_dir" in line


def test_a_killed_validator_goes_on_with_its_round_and_seed(interrupted: Interrupted) -> None:
    assert interrupted.after_kill.process.status == -signal.SIGKILL
    assert interrupted.end.process.status == 0, interrupted.end.process.logs
    assert interrupted.after_stop.round == interrupted.after_kill.round == interrupted.end.round


def test_no_recorded_score_is_computed_again(arena: Arena, interrupted: Interrupted) -> None:
    runs = (interrupted.after_stop, interrupted.after_kill, interrupted.end)
    started = [[_hotkey_of(line) for line in _lines(run, "evaluating hotkey=")] for run in runs]
    alice, bob = arena.net.hotkey("alice"), arena.net.hotkey("bob")
    assert started == [[alice], [alice, bob], [bob]]
    assert len(interrupted.receipt_times) == 1, "the kill was to come before the second score"
    assert interrupted.receipt_times.items() <= interrupted.receipt_times_at_end.items()


def _hotkey_of(line: str) -> str:
    return line.split("hotkey=")[1].split()[0]


def test_interruptions_change_no_verdict_loss_or_weight(arena: Arena, interrupted: Interrupted) -> None:
    assert interrupted.undisturbed.process.status == 0, interrupted.undisturbed.process.logs
    assert interrupted.end.standings == interrupted.undisturbed.standings
    weights = interrupted.end.weights
    assert weights is not None
    largest = max(line.weight for line in interrupted.undisturbed.standings.values())
    for name, line in interrupted.undisturbed.standings.items():
        assert weights.get(arena.net.uid(name), 0) == pytest.approx(line.weight / largest * 65535, abs=1)


def test_the_local_network_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    arguments = ("--dir", folder, "--miners", "alice, bob", "--block_seconds", "0.05")
    with Process("template.localnet", *arguments, env=environment) as process:
        process.wait_for("local network ready")
        parts = json.loads((folder / "localnet.json").read_text())
        for path in (parts["wallets"], parts["competition"], parts["network"].removeprefix("sim:")):
            assert Path(path).exists(), path
        assert parts["hub_endpoint"].startswith("http://127.0.0.1:")
        assert {path.name for path in Path(parts["wallets"]).iterdir()} == {"owner", "validator", "alice", "bob"}
        process.send(signal.SIGTERM)
        assert process.finish(20) == 0, process.logs
    again = run_process("template.localnet", *arguments, env=environment)
    assert again.status == 3
    assert "holds a local network" in again.logs[-1]
