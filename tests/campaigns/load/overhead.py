"""Measures everything around a score: admission, downloads, ticks, start-up, memory.

    python -m tests.campaigns.load.overhead
    python -m tests.campaigns.load.overhead --only tick,admission --json overhead.json

The code measured is the product's own, with its own clients, on a chain and a hub of this machine; only the model is
tiny. Each line tells what was measured and what is wanted of it. Exit status: 0 all is as wanted, 1 something is not, 2
or 3 the command line or another setting is wrong.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from template import cli, constants
from template.errors import ConfigError, HostError
from template.localnet.hub.server import serve_hub
from tests.campaigns.measure import Line

ROOT = Path(__file__).resolve().parents[3]
_PATIENCE_S = 300.0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaigns.load.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(BENCHES)} (default: all)")
    parser.add_argument("--json", dest="json_file", type=Path, metavar="FILE", help="the lines as JSON, too")
    parser.add_argument("--miners", type=int, default=256, help="datasets and uids (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=250, help="in each dataset (default: %(default)s)")
    parser.add_argument("--pool", type=int, default=20_000, help="rows of the pool (default: %(default)s)")
    parser.add_argument("--max_downloads", type=int, default=8, help="at once (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.05, help="of the hub, in seconds (default: %(default)s)")
    parser.add_argument("--scores", type=int, default=1000, help="of the tiny model, in a row (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of what is repeated (default: %(default)s)")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Checks the settings, measures, and writes the lines. Raises: ConfigError, HostError."""
    chosen = list(BENCHES) if args.only is None else args.only.split(",")
    if unknown := [name for name in chosen if name not in BENCHES]:
        raise ConfigError(f"--only must be some of {','.join(BENCHES)}, not {unknown[0]!r}")
    for flag in ("miners", "rows", "pool", "max_downloads", "scores", "repeats"):
        if getattr(args, flag) < 1:
            raise ConfigError(f"--{flag} must be positive, not {getattr(args, flag)}")
    if args.rows > args.pool:
        raise ConfigError("--rows must be at most --pool")
    with cli.quiet_logs(args):
        lines = measure(args, chosen)
    if args.json_file is not None:
        rows = [{**dataclasses.asdict(line), "is_met": line.is_met} for line in lines]
        args.json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if all(line.is_met for line in lines) else 1


def measure(args: argparse.Namespace, chosen: Sequence[str]) -> list[Line]:
    """The lines of the chosen benches, each printed when it is there."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as folder, serve_hub(Path(folder) / "hub") as endpoint:
        # The Hub's client reads it once, when it is imported.
        os.environ["HF_ENDPOINT"] = endpoint
        for name in chosen:
            (here := Path(folder) / name).mkdir()
            for line in BENCHES[name](args, here):
                print(line, flush=True)
                lines.append(line)
    return lines


def bench_admission(args: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Reading, keys, membership and copies of all datasets, in processor time."""
    import random

    from template.data.eval_set import read_eval_set_index
    from template.rules.duplicates import Candidate, match_duplicates
    from tests.campaigns.synthetic_subnet import make_lines

    lines, draw = make_lines(args.pool), random.Random(1)
    path = folder / constants.DATA_FILE
    path.write_text("\n".join(lines), encoding="utf-8")
    started = time.process_time()
    index = read_eval_set_index(path)
    yield Line(f"reading a pool of {args.pool:,} rows", time.process_time() - started, "s")
    samples = [draw.sample(lines, args.rows) for _ in range(args.miners)]

    def admit(files: list[bytes]) -> float:
        started = time.process_time()
        candidates = [
            Candidate(
                hotkey=str(number),
                commit="",
                block=number,
                row_keys=index.check(content, name=constants.DATA_FILE, max_rows=args.rows),
            )
            for number, content in enumerate(files)
        ]
        match_duplicates(candidates)
        return time.process_time() - started

    what = f"admission of {args.miners} x {args.rows} rows"
    copied = ["\n".join(sample).encode() for sample in samples]
    yield Line(f"{what}, lines as the pool has them", _median(lambda: admit(copied), args.repeats), "s", 1.0)
    other = ["\n".join(json.dumps(json.loads(line), sort_keys=True) for line in sample).encode() for sample in samples]
    yield Line(f"{what}, every line written otherwise", _median(lambda: admit(other), args.repeats), "s")


def bench_downloads(args: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """All datasets from a hub whose every answer comes late, one by one and side by side."""
    from template.localnet.hub.faults import FaultKind, HubFault, set_faults
    from template.localnet.hub.store import upload_files
    from template.records import SubmissionKey
    from tests.campaigns.synthetic_subnet import make_lines
    from tests.fixtures.views import make_entry

    root = folder.parent / "hub"
    content = "\n".join(make_lines(args.rows)).encode()
    entries = []
    for number in range(args.miners):
        commit = upload_files(root, f"miner-{number}/data", {constants.DATA_FILE: content})
        entries.append(make_entry(SubmissionKey(str(number), f"miner-{number}/data:1:{commit}")))
    # The first download of a process loads the Hub's client.
    _download(entries[:1], folder / "first", limit=1)
    set_faults(root, HubFault(kind=FaultKind.LATENCY, seconds=args.latency))
    try:
        alone = _download(entries, folder / "alone", limit=1)
        beside = _download(entries, folder / "beside", limit=args.max_downloads)
    finally:
        set_faults(root)
    what = f"{args.miners} downloads at {1000 * args.latency:g} ms an answer"
    yield Line(f"{what}, one by one", alone, "s")
    yield Line(f"{what}, {args.max_downloads} at once", beside, "s")
    least = 0.75 * min(args.max_downloads, args.miners)
    yield Line("times as fast side by side", alone / beside, "x", least, is_least=True)


def _download(entries: Sequence[Any], folder: Path, *, limit: int) -> float:
    from template.validator.downloads import Downloader

    started = time.monotonic()
    fetcher, waiting, missing = Downloader(limit), list(entries), len(entries)
    while missing:
        for entry in waiting[: fetcher.available_slots()]:
            waiting.remove(entry)
            fetcher.start(entry, folder / entry.key.hotkey, 0)
        fetcher.wait(_PATIENCE_S)
        for ended in fetcher.collect():
            ended.result()
            missing -= 1
    return time.monotonic() - started


def bench_tick(args: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Ticks of a validator that waits for its round to end, everybody being scored, and the end itself."""
    from template.data.eval_set import read_eval_set_index
    from template.localnet.hub.store import upload_files
    from template.rules.schedule import Policy
    from template.store.store import Store
    from template.validator.config import ValidatorConfig
    from template.validator.loop import Validator
    from tests.campaigns.synthetic_subnet import COMPETITION, Crowd, IdleExecutor, make_lines

    content = "\n".join(make_lines(max(args.rows, 1000))).encode()
    commit = upload_files(folder.parent / "hub", COMPETITION.repo, {"pool.jsonl": content})
    (path := folder / "pool.jsonl").write_bytes(content)
    crowd = Crowd(folder, args.miners)
    config = ValidatorConfig(
        competition=dataclasses.replace(COMPETITION, eval_commit=commit),
        policy=Policy(blocks_per_epoch=10_000, miner_duplicate_sample_size=args.miners),
        data_dir=folder / "data",
        eval_data_dir=folder / "eval_data",
        receipt_dir=folder / "receipts",
        round_dir=folder / "rounds",
        poll_s=0.0,
    )
    with crowd.chain, crowd.connect() as chain, Store(folder / "validator.sqlite3") as store:
        crowd.record_scores(store, config.competition, sorted(read_eval_set_index(path).canonical))
        validator = Validator(config, chain, store, IdleExecutor(), _fetcher(args))

        def tick(blocks: int = 0) -> float:
            if blocks:
                crowd.chain.advance(blocks)
            started = time.perf_counter()
            validator.tick()
            return time.perf_counter() - started

        for _ in range(8):
            tick(1)
        last = store.last_round()
        if last is None or not store.leaderboard(last.id) or not store.intents(last.id):
            raise HostError("the validator did not come to rest")
        count = 10 * args.repeats
        yield Line(f"a tick with nothing to do, {args.miners} uids", 1e3 * _median(tick, count), "ms", 10.0)
        yield Line("a tick on a new block, nothing new on it", 1e3 * _median(lambda: tick(1), count), "ms", 100.0)
        crowd.chain.advance(last.end_block - crowd.chain.block())
        yield Line(f"closing a round, {args.miners} receipts in its table", tick(), "s", 1.0)
        if validator.rounds_done != 1:
            raise HostError("the round did not close")


def _fetcher(args: argparse.Namespace) -> Any:
    from template.validator.downloads import Downloader

    return Downloader(args.max_downloads)


def bench_startup(args: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """From the start of neurons/validator.py to the end of its first tick, which waits for no model."""
    from template.localnet.hub.server import HubServer
    from template.localnet.models.tiny import make_tiny_model
    from template.localnet.network import NETUID, VALIDATOR, create_localnet
    from tests.campaigns.synthetic_subnet import COMPETITION, make_lines

    (sample := folder / "sample").mkdir()
    (sample / "pool.jsonl").write_text("\n".join(make_lines(args.pool)), encoding="utf-8")
    values = {**COMPETITION.to_dict(), "eval_commit": None}
    (sample / "competition.yaml").write_text(json.dumps(values), encoding="utf-8")
    model = make_tiny_model(folder / "model")
    with HubServer(folder.parent / "hub") as hub:
        net = create_localnet(folder / "net", hub, sample=sample, miners=[], block_time_s=0.0)
    command = [
        *(sys.executable, ROOT / "neurons" / "validator.py", "--logging.debug", "--wandb.off", "--device", "cpu"),
        *("--netuid", NETUID, "--subtensor.network", net.network, "--wallet.path", net.wallets),
        *("--wallet.name", VALIDATOR, "--competition", net.competition, "--model_path", model),
    ]
    seconds = []
    for number in range(min(args.repeats, 3)):
        seconds.append(_time_first_tick([*map(str, command), "--state_dir", str(folder / f"state-{number}")]))
    yield Line("from the start to the first tick's end", statistics.median(seconds), "s", 5.0)


def _time_first_tick(command: Sequence[str]) -> float:
    started = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            told = []
            for line in process.stderr:
                told.append(line)
                if "action=" in line:
                    return time.monotonic() - started
            raise HostError(f"the validator ended without a tick: {''.join(told[-3:])}")
        finally:
            process.kill()


def bench_memory(args: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """What this process holds after many scores in a row of different datasets and seeds."""
    from template.localnet.models.tiny import make_tiny_model
    from template.workers.executor import Evaluator
    from tests.campaigns.synthetic_subnet import COMPETITION, IdleExecutor, make_lines

    model = make_tiny_model(folder / "model")
    for seed, name in enumerate(["eval_data", *(f"data-{at}" for at in range(4))]):
        (folder / name).mkdir()
        # Short ones: what could stay behind is a score's, not a row's.
        lines = make_lines(8, seed=seed, words=17)
        (folder / name / constants.DATA_FILE).write_text("\n".join(lines), encoding="utf-8")
    evaluator = Evaluator(
        competition=COMPETITION,
        training_args=IdleExecutor.training_args,
        eval_data_dir=folder / "eval_data",
        model_path=model,
        device="cpu",
    )
    early = max(1, args.scores // 10)
    held: dict[int, float] = {}
    for done in range(1, args.scores + 1):
        evaluator.evaluate(folder / f"data-{done % 4}", done)
        if done in (early, args.scores):
            held[done] = _rss_mib()
    yield Line(f"memory after {early} scores of the tiny model", held[early], "MiB")
    yield Line(f"memory after {args.scores} scores", held[args.scores], "MiB")
    yield Line("memory gained in between", held[args.scores] - held[early], "MiB", 16.0)


def _rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _median(measure: Callable[[], float], count: int) -> float:
    return statistics.median(measure() for _ in range(count))


BENCHES: dict[str, Callable[[argparse.Namespace, Path], Iterator[Line]]] = {
    "admission": bench_admission,
    "downloads": bench_downloads,
    "tick": bench_tick,
    "startup": bench_startup,
    "memory": bench_memory,
}

if __name__ == "__main__":
    sys.exit(main())
