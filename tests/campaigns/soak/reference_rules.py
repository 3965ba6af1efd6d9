"""A second, plain implementation of the rules in docs/incentives.md."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.campaigns.soak.curve import Curve

_MAX_SHARED = 0.4
_MAX_VERSIONS = 8
_RECORD_RUNS = 4
_RUNS_A_ROUND = 2

Rank = tuple[int, int, bytes]


class Rules(NamedTuple):
    """The competition's incentives, and its curve."""

    curve: Curve
    epsilon: float
    sd: float
    evaluations: int
    hold: int
    slots: int
    half_life_blocks: int
    update_blocks: int
    blocks_per_epoch: int
    start_block: int


@dataclass
class Run:
    """Aligned blocks in a row at which a hotkey had one text."""

    text: str
    first: int
    last: int
    commit: int
    reveal: int
    registration: int
    missing: int = 0


@dataclass
class Version:
    """A downloaded dataset of a hotkey.

    public: the block and the commit block from which its rows were known. since: the block from which it counts, if it
    ever did. seeded: the block of its first seed.
    """

    text: str
    rows: frozenset[int]
    first: int
    last: int
    commit: int
    registration: int
    since: int
    public: tuple[int, int] = (0, 0)
    seeded: int = 0

    @property
    def counts(self) -> bool:
        return self.since <= self.last


@dataclass(frozen=True)
class Entered:
    """A dataset in the game. rank: of its pay; public: of who copied whom. replaced: by another, and no shield."""

    hotkey: str
    rows: frozenset[int]
    rank: Rank
    registration: int
    public: Rank
    seeded: int
    replaced: bool = False

    @property
    def key(self) -> tuple[str, frozenset[int]]:
        return self.hotkey, self.rows


class Estimate(NamedTuple):
    """The runs of a dataset, their mean, and the loss that is paid."""

    runs: int
    mean: float
    loss: float


class Confirmed(NamedTuple):
    """A line of the ledger."""

    entered: Entered
    estimate: Estimate
    frontier: float
    credit: float


class Planned(NamedTuple):
    """An evaluation of a round."""

    entered: Entered
    number: int
    seed_block: int


def next_aligned(block: int, period: int) -> int:
    return math.ceil(block / period) * period


def find_versions(runs: Iterable[Run], datasets: Mapping[str, frozenset[int]], rules: Rules) -> list[Version]:
    """Return a hotkey's versions since it registered, oldest first.

    Runs of the same rows without a gap are one version.
    """
    period, versions = rules.blocks_per_epoch, list[Version]()
    registration = max((run.registration for run in runs), default=0)
    counted: Version | None = None
    for run in sorted(runs, key=lambda run: run.first):
        if run.text not in datasets or run.registration != registration:
            continue
        rows, newest = datasets[run.text], versions[-1] if versions else None
        revealed = next_aligned(run.reveal, period)
        is_same = newest is not None and newest.rows == rows and max(run.first, revealed) <= newest.last + period
        if newest is not None and is_same and not run.missing:
            newest.text, newest.last = run.text, run.last
        else:
            # A late file counts from the second round after the last in which it was missing.
            since = max(run.first, run.missing + 2 * period if run.missing else 0)
            if any(version.rows == rows for version in versions):
                # A sealed dataset that stood before returns with its reveal.
                since = max(since, revealed)
            newest = Version(run.text, rows, run.first, run.last, run.commit, run.registration, since)
            readable = max(revealed, run.missing + period if run.missing else 0)
            newest.seeded = max(run.first, readable)
            newest.public = (newest.seeded, run.commit)
            versions.append(newest)
        if counted is not None and counted.rows != rows:
            newest.since = max(newest.since, next_aligned(counted.since + rules.update_blocks, period))
        same = [version for version in versions if version.rows == rows and version is not newest]
        newest.public = same[0].public if same else newest.public
        newest.seeded = next((version.seeded for version in same if version.counts), max(newest.since, newest.seeded))
        if newest.counts:
            counted = newest
    return versions


def shields(versions: Sequence[Version], text: str | None) -> list[Version]:
    """Return the present version and those that share too many rows with it.

    The newest version is taken if `text` is not among them.
    """
    if not versions:
        return []
    present = next((version for version in reversed(versions) if version.text == text), versions[-1])

    def is_close(other: Version) -> bool:
        least = min(len(present.rows), len(other.rows))
        return len(present.rows & other.rows) > most_shared(least)

    close = [version for version in versions if is_close(version)]
    return close if len(close) <= 2 * _MAX_VERSIONS else close[:_MAX_VERSIONS] + close[-_MAX_VERSIONS:]


def most_shared(rows: int) -> int:
    return math.floor(rows * _MAX_SHARED + 1e-9)


def find_duplicates(candidates: Iterable[Entered], period: int) -> set[tuple[str, frozenset[int]]]:
    """Return the datasets that share too many rows with another's earlier original.

    A late or sealed file is the last one of its block. The rows that nobody had before its commitment are its own from
    there on; a replaced one has them until it arrives.
    """
    steps: list[tuple[Rank, bool, Entered]] = []
    for candidate in candidates:
        block, commit, tie = candidate.public
        promise = next_aligned(commit, period)
        if promise < block:
            steps += [((promise, commit, tie), True, candidate), ((block, block, tie), False, candidate)]
        else:
            steps.append((candidate.public, False, candidate))
    originals: list[tuple[str, frozenset[int]]] = []
    known: set[int] = set()
    promises: dict[tuple[str, frozenset[int]], frozenset[int]] = {}
    duplicates = set()
    for _, is_promise, dataset in sorted(steps, key=lambda step: step[0]):
        foreign = dataset.rows - promises.get(dataset.key, frozenset())
        limit = most_shared(len(dataset.rows))
        is_duplicate = any(hotkey != dataset.hotkey and len(rows & foreign) > limit for hotkey, rows in originals)
        if is_promise and not is_duplicate:
            promises[dataset.key] = dataset.rows - known
            originals.append((dataset.hotkey, promises[dataset.key]))
            known |= promises[dataset.key]
        elif not is_promise:
            known |= dataset.rows
            if dataset.replaced:
                own = (dataset.hotkey, promises.get(dataset.key, frozenset()))
                originals = [original for original in originals if original != own]
            elif is_duplicate:
                duplicates.add(dataset.key)
            else:
                originals.append((dataset.hotkey, dataset.rows))
    return duplicates


def estimate(losses: Sequence[float], sd: float) -> Estimate:
    count, mean = len(losses), math.fsum(losses) / len(losses)
    spread = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / (count - 1)) if count > 1 else 0.0
    return Estimate(count, mean, mean + 2 * max(0.0, spread - sd) / math.sqrt(count))


def walk_ledger(
    entered: Iterable[Entered], losses: Mapping[tuple[str, frozenset[int]], Sequence[float]], rules: Rules
) -> list[Confirmed]:
    """Credit each record with the score that it adds, but for `epsilon`, to the best loss before it."""
    lines, best = [], rules.curve.bench
    for dataset in sorted(entered, key=lambda dataset: dataset.rank):
        runs = losses.get(dataset.key, ())
        if len(runs) < rules.evaluations:
            continue
        paid = estimate(runs, rules.sd)
        credit = max(0.0, rules.curve.score(paid.loss + rules.epsilon) - rules.curve.score(best))
        lines.append(Confirmed(dataset, paid, best, credit))
        best = paid.loss if credit > 0 else best
    return lines


def live_credits(
    ledger: Iterable[Confirmed], registrations: Mapping[str, int], block: int, rules: Rules
) -> dict[str, float]:
    """Return the value of each registered hotkey's credits at a block."""
    live: dict[str, float] = {}
    for line in ledger:
        hotkey = line.entered.hotkey
        if line.credit > 0 and registrations.get(hotkey) == line.entered.registration:
            halvings = max(0, block - line.entered.rank[0]) / rules.half_life_blocks
            live[hotkey] = live.get(hotkey, 0.0) + line.credit * 2**-halvings
    return live


def is_hopeful(dataset: Entered, losses: Sequence[float], ledger: Iterable[Confirmed], rules: Rules) -> bool:
    """Return whether more evaluations may still make a record."""
    if not losses:
        return True
    paid = estimate(losses, rules.sd)
    earlier = [line.estimate.loss for line in ledger if line.credit > 0 and line.entered.rank < dataset.rank]
    return paid.loss < min(earlier, default=rules.curve.bench) - rules.epsilon + 2 * rules.sd / math.sqrt(paid.runs)


def plan(
    originals: Sequence[Entered],
    ledger: Sequence[Confirmed],
    losses: Mapping[tuple[str, frozenset[int]], Sequence[float]],
    recent: Mapping[str, int],
    block: int,
    rules: Rules,
) -> list[Planned]:
    """Plan the evaluations of a round.

    In turn: newcomers, some of records, half of datasets in progress, other first evaluations, and the rest.
    """

    def runs(dataset: Entered) -> Sequence[float]:
        return losses.get(dataset.key, ())

    def due(datasets: Iterable[Entered], most: int, until: int) -> list[Planned]:
        planned = []
        for dataset in datasets:
            done = len(runs(dataset))
            for number in range(done + 1, min(done + most, until) + 1):
                first = dataset.seeded if done < rules.evaluations else max(dataset.rank[0], dataset.public[0])
                seed_block = first + (number - 1) // _RUNS_A_ROUND * rules.blocks_per_epoch
                planned += [Planned(dataset, number, seed_block)] if seed_block <= block else []
        return planned

    confirmed = {line.entered.key for line in ledger}
    credited = {line.entered.key for line in ledger if line.credit > 0}
    records = sorted(
        (o for o in originals if o.key in credited and len(runs(o)) < rules.hold), key=lambda o: (len(runs(o)), o.rank)
    )
    unpaid = [o for o in originals if o.key not in confirmed]
    first = sorted((o for o in unpaid if not runs(o)), key=lambda o: (recent.get(o.hotkey, 0), o.rank))
    started = [o for o in unpaid if runs(o) and is_hopeful(o, runs(o), ledger, rules)]
    best = sorted(started, key=lambda o: (estimate(runs(o), rules.sd).mean, o.rank))
    oldest = sorted(started, key=lambda o: o.rank)
    turns: list[Entered] = []
    for pair in zip(best, oldest, strict=True):
        turns += [dataset for dataset in dict.fromkeys(pair) if dataset not in turns]
    of_records = due(records, _RUNS_A_ROUND, rules.hold)
    of_started = due(turns, _RUNS_A_ROUND, rules.evaluations)
    chosen = due((o for o in first if not recent.get(o.hotkey)), 1, 1)[: rules.slots]
    for queue, most in (
        (of_records, min(_RECORD_RUNS, rules.slots // 2)),
        (of_started, (rules.slots + 1) // 2),
        (due(first, 1, 1), rules.slots),
        (of_started, rules.slots),
        (of_records, rules.slots),
    ):
        left = [planned for planned in queue if planned not in chosen]
        chosen += left[: min(most, rules.slots - len(chosen))]
    return chosen


def seed_of(block_hash: str, digest: str, number: int) -> int:
    parts = bytes.fromhex(block_hash[2:]), bytes.fromhex(digest), number.to_bytes(4, "little")
    return int.from_bytes(hashlib.sha256(b"lucky_num\n" + b"".join(parts)).digest()[:4], "little")


def digest_of(texts: Iterable[tuple[str, str]]) -> str:
    """Return the digest of rows of one question and one answer."""
    rows = []
    for question, answer in texts:
        turns = [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]
        row = json.dumps({"conversations": turns, "system": None}, separators=(",", ":"), ensure_ascii=False)
        rows.append(hashlib.sha256(row.encode()).digest())
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()
