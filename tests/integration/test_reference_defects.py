"""Defects of the public reference, first part: what a score is, and who gets what for it.

Each test is named after one defect, whose story its docstring tells, and says what holds here instead. The other parts
are `test_reference_defects_operation` and `test_reference_defects_project`.
"""

import dataclasses
import itertools
import json
import math
import sqlite3
from pathlib import Path

import pytest
import torch

from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError
from template.localnet.hub.faults import FaultKind, HubFault, set_faults
from template.localnet.hub.store import upload_files
from template.localnet.network import NETUID, make_hotkey
from template.records import Progress, SubmissionKey, Verdict
from template.rules.duplicates import Candidate
from template.rules.schedule import Policy
from template.train import train_lora
from template.training import loop
from template.validator.loop import MISSING_AGAIN_S
from template.workers import messages
from tests.fixtures.chain import submit
from tests.fixtures.fakes import make_result
from tests.fixtures.network import (
    LARGE,
    POOL,
    ROOT,
    SMALL,
    Net,
    SteppingChain,
    make_content,
    make_copy,
    make_line,
    run_bounded,
)
from tests.fixtures.reference_defects import SHORT, BackwardChain, weights_of
from tests.fixtures.training import BENCH_LOSS, Bench, make_row, make_rows, write_rows
from tests.fixtures.validator import log_lines, open_bench

FAILURES: dict[str, tuple[Exception, type[SubnetError]]] = {
    "no memory": (MemoryError("full"), HostError),
    "a device that fails": (RuntimeError("CUDA error: device-side assert triggered"), HostError),
    "a full disk": (OSError(28, "No space left on device"), HostError),
    "a bad row": (SubmissionError(Reason.MALFORMED, "line 3"), SubmissionError),
    "no Hub": (RemoteError("no answer"), RemoteError),
    "a bug": (KeyError("conversations"), KeyError),
}


@pytest.mark.parametrize("name", FAILURES)
def test_01a_a_training_that_fails_returns_no_loss(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever went wrong while training, the benchmark loss was returned as if it had been measured."""
    error, expected = FAILURES[name]

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loop, "train_adapter", fail)
    with pytest.raises(expected):
        train_lora(7, BENCH_LOSS, 250, None, bench.data_dir, bench.eval_data_dir, bench.options())


@pytest.mark.parametrize("name", FAILURES)
def test_01b_a_training_that_fails_earns_nothing(net: Net, name: str) -> None:
    """It was stored as an eligible score, and paid."""
    key = net.submit("alice", LARGE)
    with open_bench(net, policy=SHORT, before=[FAILURES[name][0]] * 50) as bench:
        run_bounded(bench.validator)
        line = bench.lines()[key.hotkey]
        verdict = bench.store.verdicts(bench.eval_config).get(key)
    is_refused = FAILURES[name][1] is SubmissionError
    assert (line.loss, line.weight, line.reason) == (None, 0.0, Reason.MALFORMED if is_refused else None)
    assert (verdict is not None) == is_refused, "only what the miner did is a verdict"
    assert weights_of(net) == ({0: 65535} if is_refused else None)


def test_02a_a_blank_line_is_no_row_for_anybody(bench: Bench, tmp_path: Path) -> None:
    """The check dropped blank lines and the trainer did not, so one made it fail, and failing paid."""
    lines = [json.dumps(row) for row in make_rows(4, seed=1)]
    losses = []
    for name, text in (("plain", "\n".join(lines)), ("blank", "\n \n" + "\n\n\r\n".join(lines) + "\n\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").write_text(text)
        result = bench.run(data_dir=tmp_path / name)
        assert result.train_rows == 4
        losses.append(result.loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_02b_a_file_without_rows_is_refused(net: Net, bench: Bench, tmp_path: Path, content: bytes) -> None:
    """None of no rows were outside the pool, so an empty file passed the check, and failed to train."""
    key = net.submit("alice", content)
    with open_bench(net) as validating:
        run_bounded(validating.validator)
        assert validating.lines()[key.hotkey].reason is Reason.EMPTY
        assert validating.evaluator.scored == []
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(SubmissionError) as caught:
        bench.run(data_dir=tmp_path)
    assert caught.value.reason is Reason.EMPTY


def test_03_a_refused_submission_wins_nothing_however_early(net: Net) -> None:
    """The winner was the earliest of the best twentieth, the invalid and the copies among them."""
    net.submit("bob", [*POOL[:3], make_line(10**6)])
    key = net.submit("carol", LARGE)
    net.submit("alice", make_copy())
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        lines = bench.lines()
    assert {name: lines[net.hotkey(name)].reason for name in ("alice", "bob", "carol")} == {
        "alice": Reason.DUPLICATE,
        "bob": Reason.NOT_IN_POOL,
        "carol": None,
    }
    assert weights_of(net) == {net.uid("carol"): 65535} and lines[key.hotkey].weight == 1.0


def test_04_who_committed_nothing_that_can_be_read_disturbs_nobody(net: Net) -> None:
    """A miner without a commitment had no block to sort by, and the validator died while rewarding."""
    net.submit("alice", SMALL)
    two_fields = {"fields": [{"Raw1": b"a"}, {"Raw1": b"b"}]}
    key = net.chain("bob")._key
    assert submit(net.admin, key, "Commitments", "set_commitment", netuid=NETUID, info=two_fields).success
    net.submit("carol", LARGE)
    net.admin.deregister(net.hotkey("carol"))
    with log_lines() as told, open_bench(net) as bench:
        run_bounded(bench.validator)
        assert set(bench.lines()) == {net.hotkey("alice")}
    assert weights_of(net) == {net.uid("alice"): 65535}
    assert not [line for line in told if "bug" in line]


def test_05_a_winner_whose_uid_changed_hands_is_left_out_and_nothing_breaks(net: Net) -> None:
    """Looking for a winner's new uid raised, in exactly the case in which it was looked for."""
    winner = net.submit("alice", LARGE)
    net.submit("bob", SMALL)
    with log_lines() as told, open_bench(net) as bench:
        bench.tick_until(lambda: len(bench.evaluator.scored) == 1)
        net.admin.deregister(winner.hotkey, replacement=make_hotkey(net.parts, "stranger"))
        run_bounded(bench.validator)
        assert bench.lines()[winner.hotkey].weight > bench.lines()[net.hotkey("bob")].weight > 0
        assert bench.outcomes() == [True]
    assert weights_of(net) == {net.uid("bob"): 65535}
    assert not [line for line in told if "bug" in line]


def test_06_uid_zero_is_a_winner_like_any_other(net: Net) -> None:
    """A winner with the uid 0 was taken for no winner."""
    net.submit("owner", LARGE)
    key = net.submit("alice", [make_line(10**6)])
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        line = bench.lines()[net.hotkey("owner")]
        assert bench.lines()[key.hotkey].weight == 0.0
        assert (line.uid, line.weight, line.reason) == (0, 1.0, None)
        (intent,) = bench.store.intents(1)
    assert intent.weights == {0: 1.0} and intent.shares == {net.hotkey("owner"): 1.0}


def test_07a_the_seed_alone_decides_the_adapter_the_order_and_the_dropout(bench: Bench, tmp_path: Path) -> None:
    """The seed was drawn and never used: a score depended on what the process had computed before."""
    torch.manual_seed(1)
    first = bench.run(lucky_num=7)
    bench.run(lucky_num=8, data_dir=write_rows(tmp_path, make_rows(3, seed=4)))
    torch.manual_seed(2)
    second, other = bench.run(lucky_num=7), bench.run(lucky_num=8)
    assert (first.loss, first.step_losses) == (second.loss, second.step_losses)
    assert other.loss != first.loss and other.lucky_num == 8


def test_07b_the_seed_that_is_told_is_the_seed_of_every_score(net: Net) -> None:
    """What a validator drew had no part in what it scored."""
    for name, rows in (("alice", LARGE), ("bob", SMALL)):
        net.submit(name, rows)
    with open_bench(net, lucky_num=None) as bench:
        run_bounded(bench.validator)
        last = bench.store.last_round()
        assert last is not None and len(bench.evaluator.scored) == 2
        assert {seed for _, seed in bench.evaluator.scored} == {last.lucky_num}
        assert {one.result.lucky_num for one in bench.receipts().values()} == {last.lucky_num}


def test_08_a_score_sets_its_numeric_settings_itself_and_a_validator_sets_none(
    net: Net, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One module switched cuDNN's benchmark off at import, another switched it on in a constructor."""
    cudnn = torch.backends.cudnn
    seen = set()

    def look(_: Progress) -> None:
        seen.add((cudnn.benchmark, cudnn.deterministic, torch.get_deterministic_debug_mode()))

    for value in (False, True):
        monkeypatch.setattr(cudnn, "benchmark", value)
        monkeypatch.setattr(cudnn, "deterministic", value)
        with open_bench(net, f"state-{value}") as validating:
            validating.tick_until(lambda: validating.validator.evaluator is not None)
            bench.run(on_progress=look)
        assert (cudnn.benchmark, cudnn.deterministic) == (value, value), "the process keeps its own"
    assert seen == {(True, True, 2)}
    words = ("torch.backends", "deterministic_debug_mode", "use_deterministic", "set_num_threads", "manual_seed(")
    owners = {path.stem for path in (ROOT / "template").glob("*.py") if any(word in path.read_text() for word in words)}
    assert owners == {"numerics"}


def test_09a_a_training_that_diverges_has_no_loss_and_is_judged_once(net: Net) -> None:
    """A loss that was no number was stored as null, which read as not yet evaluated, again and again."""
    key = net.submit("alice", SMALL)
    policy = Policy(max_rounds=2, blocks_per_epoch=20, block_threshold=5)
    with open_bench(net, policy=policy, before=[SubmissionError(Reason.DIVERGED, "at step 3")]) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].reason is Reason.DIVERGED
        assert bench.evaluator.scored == []


def test_09b_a_loss_that_is_no_number_is_never_kept_sent_or_returned(
    net: Net, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing between the trainer and the database asked whether the loss was a number."""
    key = net.submit("alice", SMALL)
    with open_bench(net) as validating:
        validating.tick_until(lambda: validating.validator.evaluator is not None)
        result = dataclasses.replace(make_result(validating.evaluator, "0" * 64, rows=9, lucky_num=1), loss=math.nan)
        with pytest.raises(ValueError, match="JSON"):
            messages.encode(messages.Evaluated(result=result))
        with pytest.raises(sqlite3.IntegrityError):
            validating.store.record_verdict(validating.eval_config, key, Verdict(loss=math.nan), 1.0)
        assert validating.store.verdicts(validating.eval_config) == {}
    monkeypatch.setattr(loop, "LEARNING_RATE", 1e30)
    with pytest.raises(SubmissionError) as caught:
        bench.run()
    assert caught.value.reason is Reason.DIVERGED


def test_10a_a_hub_that_failed_once_costs_nobody_anything(net: Net) -> None:
    """A file that could not be had counted as judged for good."""
    key = net.submit("alice", LARGE)
    fault = HubFault(kind=FaultKind.STATUS, status=503, pattern="alice/data")
    set_faults(net.hub.store.root, fault)
    with open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=3)) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        assert bench.store.verdicts(bench.eval_config) == {} and weights_of(net) is None
        set_faults(net.hub.store.root)
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0


def test_10b_what_was_missing_is_looked_for_again(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that was not there yet was never asked for again."""
    commit = upload_files(net.hub.store.root, "alice/data", {"data.jsonl": make_content(SMALL)}, private=True)
    key = net.commit("alice", f"alice/data:{net.competition.id}:{commit}")
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].reason is Reason.MISSING_REPO
    settings = net.hub.store.root / "datasets" / "alice" / "data" / "repo.json"
    settings.write_text(settings.read_text().replace("true", "false"))
    monkeypatch.setattr("validator_fixtures._SECONDS", itertools.count(2_000_000 + int(MISSING_AGAIN_S), 12))
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert bench.lines()[key.hotkey].weight == 1.0


def test_10c_a_new_commit_is_judged_anew(net: Net) -> None:
    """The loss belonged to the miner, so a new revision kept that of the old one."""
    refused = net.submit("alice", [make_line(10**6)])
    with open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=2)) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        mended = net.submit("alice", SMALL)
        run_bounded(bench.validator)
        assert set(bench.store.verdicts(bench.eval_config)) == {refused, mended}
        assert bench.lines()[mended.hotkey].weight == 1.0


def test_11a_the_evaluation_set_stays_what_the_competition_names(net: Net) -> None:
    """It was looked up on main again and again, so that miners of one day met different ones."""
    root = net.hub.store.root
    upload_files(root, "sample/pool", {"pool.jsonl": make_content([make_line(10**6 + n) for n in range(50)])})
    keys = net.submit("alice", SMALL), net.submit("bob", [make_line(10**6)])
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        assert [bench.lines()[key.hotkey].reason for key in keys] == [None, Reason.NOT_IN_POOL]
        held = (bench.validator.config.eval_data_dir / "data.jsonl").read_bytes()
    assert held == make_content(POOL)
    with pytest.raises(ConfigError, match="eval_commit"):
        dataclasses.replace(net.competition, eval_commit="main")


def test_11b_an_evaluation_repository_of_two_files_is_refused(net: Net) -> None:
    """The last file in the order of the folder's listing was taken."""
    files = {"a.jsonl": make_content(POOL), "b.jsonl": make_content(SMALL)}
    commit = upload_files(net.hub.store.root, "sample/pool", {**files})
    net.competition = dataclasses.replace(net.competition, eval_commit=commit)
    with open_bench(net) as bench, pytest.raises(ConfigError, match="exactly one"):
        bench.validator.tick()


def test_12a_a_commitment_counts_for_its_own_competition_and_registration(net: Net) -> None:
    """Any commitment that was on chain counted, for whatever competition and from whatever time."""
    root = net.hub.store.root
    elsewhere = net.commit("alice", f"alice/data:other:{upload_files(root, 'alice/data', {'data.jsonl': b'x'})}")
    old = net.submit("bob", LARGE)
    net.admin.deregister(old.hotkey)
    net.admin.register(old.hotkey)
    net.submit("carol", SMALL)
    with open_bench(net) as bench:
        run_bounded(bench.validator)
        reasons = [bench.lines()[key.hotkey].reason for key in (elsewhere, old)]
        assert len(bench.evaluator.scored) == 1
    assert reasons == [Reason.WRONG_COMPETITION, Reason.BEFORE_REGISTRATION]
    assert weights_of(net) == {net.uid("carol"): 65535}


def _tie(key: SubmissionKey) -> tuple[int, bytes]:
    return Candidate(hotkey=key.hotkey, commit=key.commitment, block=0, row_keys=()).order


def test_12b_who_was_first_is_told_by_the_chain_and_not_by_the_poll(net: Net) -> None:
    """A commitment's time was that of the validator's last look, and so moved with each."""
    original = net.submit("alice", LARGE)
    copies = (make_copy()[n:] + make_copy()[:n] for n in itertools.count())
    texts = (f"bob/data:{net.competition.id}:{net.upload('bob', rows)}" for rows in copies)
    # Were both of one block, this copy would come first.
    copied = next(
        key for key in (SubmissionKey(net.hotkey("bob"), text) for text in texts) if _tie(key) < _tie(original)
    )
    net.commit("bob", copied.commitment)
    with open_bench(net, policy=dataclasses.replace(SHORT, max_rounds=2)) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        net.commit("alice", original.commitment)
        run_bounded(bench.validator)
        lines = bench.lines()
        seen = bench.store.submissions()[original]
    assert seen.block > seen.first_block, "committed again, which moves its block on chain and not its rank"
    assert lines[original.hotkey].weight == 1.0
    assert lines[copied.hotkey].reason is Reason.DUPLICATE


def test_13a_everybody_has_a_turn_and_nobody_two(net: Net) -> None:
    """Who was scored was drawn anew each time, so some never were."""
    for number, name in enumerate(("alice", "bob", "carol", "owner")):
        net.submit(name, POOL[20 * number : 20 * number + 20])
    policy = Policy(
        blocks_per_epoch=15, block_threshold=0, miner_sample_size=1, miner_duplicate_sample_size=1, max_rounds=4
    )
    with open_bench(net, policy=policy) as bench:
        run_bounded(bench.validator)
        assert len(bench.evaluator.scored) == len({sha256 for sha256, _ in bench.evaluator.scored}) == 4
        assert all(line.loss is not None for line in bench.lines().values())


def test_13b_a_copy_that_was_scored_before_its_original_could_be_had_loses_its_share(net: Net) -> None:
    """A copy was found only where both happened to be drawn together."""
    net.submit("alice", LARGE)
    copied = net.submit("bob", make_copy())
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=503, pattern="alice/data"))
    policy = dataclasses.replace(SHORT, miner_sample_size=1, miner_duplicate_sample_size=2, max_rounds=3)
    with open_bench(net, policy=policy) as bench:
        bench.tick_until(lambda: bench.validator.rounds_done == 1)
        assert weights_of(net) == {net.uid("bob"): 65535}
        set_faults(net.hub.store.root)
        run_bounded(bench.validator)
        line = bench.lines()[copied.hotkey]
        assert line.reason is Reason.DUPLICATE and line.loss is not None and line.weight == 0.0
    assert weights_of(net) == {net.uid("alice"): 65535}


@pytest.mark.parametrize("kind", [SteppingChain, BackwardChain])
def test_14_rows_from_elsewhere_are_found_in_copies_too_in_any_order(net: Net, kind: type[SteppingChain]) -> None:
    """Where one looked for copies first, the check of their rows was left out."""
    foreign = make_line(10**6)
    net.submit("bob", [*LARGE[:103], foreign])
    original = net.submit("alice", LARGE)
    net.submit("carol", [*make_copy()[:103], foreign])
    with open_bench(net, chain=kind(net, "validator")) as bench:
        run_bounded(bench.validator)
        reasons = {name: bench.lines()[net.hotkey(name)].reason for name in ("alice", "bob", "carol")}
        assert bench.lines()[original.hotkey].weight == 1.0, "what is refused is nobody's original"
    assert reasons == {"alice": None, "bob": Reason.NOT_IN_POOL, "carol": Reason.NOT_IN_POOL}


def test_15a_no_system_null_and_a_last_question_without_an_answer_train_alike(bench: Bench, tmp_path: Path) -> None:
    """`"system": null`, as in the reference's own example, broke the trainer."""
    row = make_row("How many?", "Seven days")
    open_ended = {"conversations": [*row["conversations"], {"role": "user", "content": "And then?"}]}
    ways = {"missing": row, "null": {**row, "system": None}, "open": open_ended}
    results = [bench.run(data_dir=write_rows(tmp_path / name, [way])) for name, way in ways.items()]
    assert len({(result.loss, result.train_tokens) for result in results}) == 1
    said = bench.run(data_dir=write_rows(tmp_path / "said", [{**row, "system": "Be brief."}]))
    assert said.loss != results[0].loss


def test_15b_a_row_whose_answer_is_cut_away_is_refused_by_its_line(bench: Bench, tmp_path: Path) -> None:
    """A row of which no answer was left after the cut was trained on, without a target."""
    rows = [make_row("How many?", "Seven days"), make_row("days " * 3000, "Seven")]
    with pytest.raises(SubmissionError, match="line 2") as caught:
        bench.run(data_dir=write_rows(tmp_path, rows))
    assert caught.value.reason is Reason.NO_TARGET
