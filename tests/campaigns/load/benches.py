"""The benches of `overhead`, imported once HF_ENDPOINT is set."""

import argparse
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from template.chain.client import Chain
from template.competition import Incentives, Reward, Seeds
from template.config import TrainingArgs
from template.constants import DATA_FILE
from template.data.eval_set import read_eval_set_index
from template.data.rows import content_digest
from template.errors import HostError
from template.hub.datasets import fetch_eval_set
from template.localnet.hub.store import upload_files
from template.localnet.network import NETUID
from template.receipts.receipt import EvaluatedSubmission, Receipt
from template.records import Dataset, Entry, EvaluationResult, Rank, RoundEvaluation, SubmissionKey
from template.rules.duplicates import Candidate, match_duplicates
from template.rules.schedule import Policy
from template.store.store import Store
from template.validator.config import ValidatorConfig
from template.validator.downloads import Downloader
from template.validator.loop import Validator
from template.workers.executor import Evaluator
from tests.campaigns.fake_executors import HYPERPARAMETERS, MODEL, MODEL_ID, FakeExecutor, make_result
from tests.campaigns.load.relay import Relay, Traffic
from tests.campaigns.measure import Figure, memory_kib
from tests.campaigns.process_under_test import ValidatorProcess
from tests.campaigns.synthetic_subnet import COMPETITION, SyntheticSubnet, make_file, make_rows
from tests.fixtures.chain import wallet_of
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.views import make_entry

_TIMEOUT_S = 300.0
# One evaluation confirms a dataset, and a round lasts for the whole bench.
_INCENTIVES = Incentives(
    reward=Reward.PROPORTIONAL, seeds=Seeds.RANDOM, evaluations=1, hold=1, update_blocks=0, blocks_per_epoch=10_000
)


def bench_admission(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Time reading, checking and comparing all datasets, in processor time."""
    lines, draw = make_rows(args.pool), random.Random(1)
    path = folder / DATA_FILE
    path.write_bytes(make_file(lines))
    started = time.process_time()
    index = read_eval_set_index(path)
    yield Figure(f"reading a pool of {args.pool:,} rows", time.process_time() - started, "s")
    samples = [draw.sample(lines, args.rows) for _ in range(args.miners)]

    def admit(files: list[bytes]) -> float:
        started = time.process_time()
        datasets = [index.check(content, name=DATA_FILE, max_rows=args.rows) for content in files]
        match_duplicates(
            Candidate(hotkey=str(block), digest=dataset.digest, rank=Rank(block, 0, b""), row_keys=dataset.row_keys)
            for block, dataset in enumerate(datasets)
        )
        return time.process_time() - started

    what = f"admission of {args.miners} x {args.rows} rows"
    copied = [make_file(sample) for sample in samples]
    yield Figure(f"{what}, lines as the pool has them", _median(lambda: admit(copied), args.repeats), "s", 1.0)
    other = [make_file(json.dumps(json.loads(line), sort_keys=True) for line in sample) for sample in samples]
    yield Figure(f"{what}, every line written otherwise", _median(lambda: admit(other), args.repeats), "s")


def bench_downloads(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Download all datasets from a slow hub, one by one and several at a time."""
    root, files = folder.parent / "hub", {DATA_FILE: make_file(make_rows(args.rows))}
    commits = [upload_files(root, f"miner-{number}/data", files) for number in range(args.miners)]
    texts = [f"miner-{number}/data:1:{commit}" for number, commit in enumerate(commits)]
    entries = [make_entry(SubmissionKey(str(number), text)) for number, text in enumerate(texts)]
    # The first download of a process imports the Hub's client.
    _download(entries[:1], folder / "first", limit=1)
    set_faults(root, HubFault(kind=FaultKind.LATENCY, seconds=args.latency))
    try:
        alone = _download(entries, folder / "alone", limit=1)
        parallel = _download(entries, folder / "parallel", limit=args.max_downloads)
    finally:
        set_faults(root)
    what = f"{args.miners} downloads at {1000 * args.latency:g} ms an answer"
    yield Figure(f"{what}, one by one", alone, "s")
    yield Figure(f"{what}, {args.max_downloads} at once", parallel, "s")
    least = 0.75 * min(args.max_downloads, args.miners)
    yield Figure("times as fast side by side", alone / parallel, "x", least, is_least=True)


def _download(entries: Sequence[Entry], folder: Path, *, limit: int) -> float:
    started = time.monotonic()
    downloader, waiting, missing = Downloader(limit), list(entries), len(entries)
    while missing:
        for entry in waiting[: downloader.available_slots()]:
            waiting.remove(entry)
            downloader.start(entry, folder / entry.key.hotkey, 0)
        downloader.wait(_TIMEOUT_S)
        for download in downloader.collect():
            download.result()
            missing -= 1
    return time.monotonic() - started


class _RestingValidator:
    """A validator of a subnet in which everyone is evaluated and nothing is to be done.

    The hub that is served is the one of all benches. Raises: HostError when it does not come to rest.
    """

    def __init__(self, args: argparse.Namespace, folder: Path, subnet: SyntheticSubnet, chain: Chain) -> None:
        config = ValidatorConfig(
            competition=subnet.competition,
            incentives=_INCENTIVES,
            policy=Policy(blocks_per_epoch=_INCENTIVES.blocks_per_epoch, miner_duplicate_sample_size=args.miners),
            data_dir=folder / "data",
            eval_data_dir=folder / "eval_data",
            receipt_dir=folder / "receipts",
            round_dir=folder / "rounds",
            poll_s=0.0,
        )
        self._subnet = subnet
        self.store = Store(folder / "validator.sqlite3")
        _record_evaluations(args.miners, subnet, config, self.store)
        executor, downloader = FakeExecutor(lambda _: COMPETITION.bench), Downloader(args.max_downloads)
        self._validator = Validator(config, chain, self.store, executor, downloader)
        # Lookups of paid files begin after the downloads.
        ticks_at_rest = 0
        while ticks_at_rest < 8:
            self.tick(1)
            time.sleep(0.01)
            ticks_at_rest = ticks_at_rest + 1 if downloader.available_slots() == args.max_downloads else 0
        last = self.store.last_round()
        if last is None or not self.store.leaderboard(last.id) or not self.store.intents(last.id):
            raise HostError("the validator did not come to rest")
        self.end_block = last.end_block

    @property
    def rounds_done(self) -> int:
        return self._validator.rounds_done

    def tick(self, blocks: int = 0) -> float:
        """Tick so many blocks later; return the seconds of the tick."""
        if blocks:
            self._subnet.chain.advance(blocks)
        started = time.perf_counter()
        self._validator.tick()
        return time.perf_counter() - started


def _create_subnet(args: argparse.Namespace, folder: Path) -> SyntheticSubnet:
    (folder / "hub").symlink_to(folder.parent / "hub")
    pool = make_rows(max(args.rows, 1000))
    return SyntheticSubnet.create(folder, pool=pool, competition=COMPETITION.to_dict(), max_uids=args.miners + 2)


def bench_tick(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Time a validator's ticks once everyone is evaluated, and a round's end.

    The chain is in this process, so that the time is the validator's alone.
    """
    with _create_subnet(args, folder) as subnet, subnet.connect() as chain:
        validator = _RestingValidator(args, folder, subnet, chain)
        tick, count = validator.tick, 10 * args.repeats
        with validator.store:
            yield Figure(f"a tick with nothing to do, {args.miners} uids", 1e3 * _median(tick, count), "ms", 10.0)
            yield Figure("a tick on a new block, nothing new on it", 1e3 * _median(lambda: tick(1), count), "ms", 100.0)
            subnet.chain.advance(validator.end_block - subnet.chain.block())
            yield Figure(f"closing a round, {args.miners} in its table and ledger", tick(), "s", 1.0)
        if validator.rounds_done != 1:
            raise HostError("the round did not close")


def bench_wire(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Count the bytes and messages between a validator and its node in each tick.

    Bytes are those of the TCP stream: the client and the node compress messages.
    """
    with (
        _create_subnet(args, folder) as subnet,
        Relay(subnet.network) as relay,
        Chain(relay.url, NETUID, wallet=wallet_of(subnet.validator_key())) as chain,
    ):
        before = relay.traffic
        chain.view()
        yield from _traffic_figures("the first view of a connection, metadata included", relay, before)
        validator = _RestingValidator(args, folder, subnet, chain)
        with validator.store:
            for what, blocks in (("a tick with nothing to do", 0), ("a tick on a new block, nothing new on it", 1)):
                before = relay.traffic
                seconds = [validator.tick(blocks) for _ in range(args.repeats)]
                yield Figure(f"{what}, the node's time included", 1e3 * statistics.median(seconds), "ms")
                yield from _traffic_figures(f"{what}, {args.miners} uids", relay, before, args.repeats)


def _traffic_figures(what: str, relay: Relay, before: Traffic, count: int = 1) -> Iterator[Figure]:
    """Yield the traffic since `before`, for each of `count` repeats."""
    traffic = relay.traffic.since(before)
    yield Figure(f"{what}: requests", traffic.requests / count)
    yield Figure("    sent", traffic.sent_bytes / count, "bytes")
    yield Figure("    received", traffic.received_bytes / count, "bytes")


def _record_evaluations(miners: int, subnet: SyntheticSubnet, config: ValidatorConfig, store: Store) -> None:
    """Record datasets and losses of all, committed before an aligned block."""
    pool = sorted(read_eval_set_index(fetch_eval_set(subnet.competition, config.eval_data_dir, None, None)).canonical)
    eval_config = store.get_or_create_config(subnet.competition, HYPERPARAMETERS.digest, f"{MODEL} seeds random", 0.0)
    draw, names = random.Random(0), [f"miner-{number}" for number in range(miners)]
    texts = {name: subnet.text(f"{name}/data", f"{number:040x}") for number, name in enumerate(names)}
    subnet.register(*names)
    subnet.commit_together(texts)
    subnet.advance_to(config.policy.blocks_per_epoch)
    for name, text in texts.items():
        key = SubmissionKey(subnet.hotkey(name), text)
        result = make_result(key, loss=subnet.competition.minb + draw.random() * 0.1)
        repo, _, commit = text.split(":")
        submission = EvaluatedSubmission(netuid=NETUID, hotkey=key.hotkey, repo=repo, commit=commit)
        receipt = Receipt(competition=subnet.competition, submission=submission, result=result)
        rows = tuple(draw.sample(pool, min(subnet.competition.rows, len(pool))))
        dataset = Dataset(digest=content_digest(rows), row_keys=rows)
        store.record_dataset(subnet.competition, key, sha256=result.train_sha256, dataset=dataset, now=0.0)
        evaluation = RoundEvaluation(key=key, digest=dataset.digest, number=1, lucky_num=1, seed_block=None)
        recorded = EvaluationResult(
            loss=result.loss, seconds=1.0, receipt=receipt.to_json(), receipt_digest=receipt.digest
        )
        store.record_evaluation(eval_config, evaluation, recorded, 0.0)


def bench_startup(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Time neurons/validator.py from its start to the end of its first tick."""
    # Not for the benches without a model.
    from scripts.bench.tiny_model import make_tiny_model

    (folder / "hub").symlink_to(folder.parent / "hub")
    model = make_tiny_model(folder / "model")
    with SyntheticSubnet.create(folder, pool=make_rows(args.pool), competition=COMPETITION.to_dict()) as subnet:
        seconds = []
        for number in range(min(args.repeats, 3)):
            (home := folder / f"start-{number}").mkdir()
            validator = ValidatorProcess(
                subnet,
                home,
                hub_endpoint=os.environ["HF_ENDPOINT"],
                hooks="tests.campaigns.load.overhead",
                options={},
                flags={"--model_path": model, "--device": "cpu", "--logging.debug": None},
            )
            seconds.append(_time_first_tick(validator.start(stderr=subprocess.PIPE)))
    yield Figure("from the start to the first tick's end", statistics.median(seconds), "s", 5.0)


def _time_first_tick(process: "subprocess.Popen[bytes]") -> float:
    started = time.monotonic()
    with process:
        try:
            assert process.stderr is not None
            if not any(b"action=" in line for line in process.stderr):
                raise HostError("the validator ended without a tick")
            return time.monotonic() - started
        finally:
            process.kill()


def bench_memory(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Measure this process's memory after many evaluations."""
    from scripts.bench.tiny_model import make_tiny_model

    model = make_tiny_model(folder / "model")
    for seed, name in enumerate(["eval_data", *(f"data-{number}" for number in range(4))]):
        (folder / name).mkdir()
        # Short ones: memory that stays behind is an evaluation's, not a row's.
        (folder / name / DATA_FILE).write_bytes(make_file(make_rows(8, seed=seed, words=17)))
    evaluator = Evaluator(
        competition=COMPETITION,
        training_args=TrainingArgs(model_id=MODEL_ID, revision=None, hyperparameters=HYPERPARAMETERS),
        eval_data_dir=folder / "eval_data",
        model_path=model,
        device="cpu",
    )
    early = max(1, args.scores // 10)
    memory: dict[int, float] = {}
    for done in range(1, args.scores + 1):
        evaluator.evaluate(folder / f"data-{done % 4}", done)
        if done in (early, args.scores):
            memory[done] = memory_kib("VmRSS") / 1024
    yield Figure(f"memory after {early} evaluations of the tiny model", memory[early], "MiB")
    yield Figure(f"memory after {args.scores} evaluations", memory[args.scores], "MiB")
    yield Figure("memory gained in between", memory[args.scores] - memory[early], "MiB", 16.0)


def _median(measure: Callable[[], float], count: int) -> float:
    return statistics.median(measure() for _ in range(count))
