"""Search for the rows of a better dataset by paired evaluations, within a budget.

A proposal is evaluated under the same seeds as the best one so far, in the same order, and dropped as soon as it is not
better on average. Rows are numbers: places in the pool. The search follows from its inputs and losses alone, so with
recorded losses it comes to the same point again.
"""

import json
import math
import os
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from template.errors import ConfigError, HostError
from template.rules.duplicates import max_shared
from template.serialization import read_record

Rows = tuple[int, ...]

# Of so many random swaps, the one with the best prediction is evaluated.
_SWAPS_DRAWN = 64
# Parts of the rows that a swap replaces.
_SWAP_PARTS = (4, 8, 16)


class Evaluation(NamedTuple):
    """A loss, and the seconds that it took."""

    loss: float
    seconds: float


Evaluate = Callable[[Rows, int], Evaluation]
"""(rows, lucky_num) -> loss"""


class OutOfBudget(Exception):
    """The budget has no room for another evaluation."""


@dataclass(kw_only=True)
class Budget:
    """Evaluations and seconds that a search may spend. None: without a limit."""

    evaluations: int | None = None
    seconds: float | None = None
    done: int = 0
    spent_s: float = 0.0
    _evaluating_s: float = 0.0

    def check(self) -> None:
        """Raises: OutOfBudget when another evaluation, as long as those before, would exceed a limit."""
        is_counted = self.evaluations is not None and self.done >= self.evaluations
        is_late = self.seconds is not None and self.spent_s + self._each_s > self.seconds
        if is_counted or is_late:
            raise OutOfBudget

    def charge(self, seconds: float) -> None:
        """Count an evaluation."""
        self.done += 1
        self.spent_s += seconds
        self._evaluating_s += seconds

    @property
    def _each_s(self) -> float:
        return self._evaluating_s / max(1, self.done)

    @property
    def left_s(self) -> float:
        """About how many seconds the search goes on."""
        by_count = math.inf if self.evaluations is None else (self.evaluations - self.done) * self._each_s
        by_time = math.inf if self.seconds is None else self.seconds - self.spent_s
        return max(0.0, min(by_count, by_time))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A proposal that was evaluated.

    difference: mean of its losses minus those of the best before it, under the same seeds; None for the first.
    is_better: it took the place of the best. is_complete: False if the budget ended before it was decided.
    """

    name: str
    rows: Rows
    difference: float | None
    is_better: bool
    is_complete: bool

    @property
    def outcome(self) -> str:
        """What became of it, in words."""
        if not self.is_complete:
            return "undecided, the budget is spent"
        return "better" if self.is_better else "dropped"


@dataclass
class Search:
    """The best proposal so far, and all that were tried. on_trial: called after each."""

    evaluate: Evaluate
    lucky_nums: Sequence[int]
    budget: Budget
    on_trial: Callable[[Trial], None] = lambda trial: None
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    _losses: dict[tuple[Rows, int], float] = field(default_factory=dict)

    def has_tried(self, rows: Rows) -> bool:
        return any(trial.rows == rows for trial in self.trials)

    def losses_of(self, trial: Trial) -> list[float]:
        """Return its losses in the order of the seeds, also those that later trials needed."""
        keys = [(trial.rows, lucky_num) for lucky_num in self.lucky_nums]
        return [self._losses[key] for key in keys if key in self._losses]

    def challenge(self, name: str, rows: Iterable[int]) -> None:
        """Evaluate a proposal against the best one. Raises: OutOfBudget."""
        proposal = tuple(sorted(rows))
        if self.has_tried(proposal):
            return
        differences, is_complete = self._compare(proposal)
        difference = statistics.fmean(differences) if differences else None
        is_better = is_complete and (difference is None or difference < 0.0)
        trial = Trial(name=name, rows=proposal, difference=difference, is_better=is_better, is_complete=is_complete)
        self.trials.append(trial)
        if trial.is_better:
            self.best = trial
        self.on_trial(trial)
        if not is_complete:
            raise OutOfBudget

    def _compare(self, proposal: Rows) -> tuple[list[float], bool]:
        """Return its losses minus the best one's up to the seed that decides, and whether the budget sufficed."""
        first_loss = self._loss(proposal, self.lucky_nums[0])
        if self.best is None:
            return [], True
        differences = [first_loss - self._loss(self.best.rows, self.lucky_nums[0])]
        try:
            for lucky_num in self.lucky_nums[1:]:
                if statistics.fmean(differences) >= 0.0:
                    break
                loss = self._loss(proposal, lucky_num)
                differences.append(loss - self._loss(self.best.rows, lucky_num))
        except OutOfBudget:
            return differences, False
        return differences, True

    def _loss(self, rows: Rows, lucky_num: int) -> float:
        if (rows, lucky_num) not in self._losses:
            self.budget.check()
            evaluation = self.evaluate(rows, lucky_num)
            self.budget.charge(evaluation.seconds)
            self._losses[rows, lucky_num] = evaluation.loss
        return self._losses[rows, lucky_num]


@dataclass(frozen=True)
class CopyRule:
    """Keeps proposals of `count` rows from being duplicates. others: the rows of each earlier dataset."""

    others: Sequence[Set[int]]
    count: int

    def start(self) -> Callable[[int], bool]:
        """Return a function that takes a row into a new proposal, False if that shares too many then."""
        limit, shared = max_shared(self.count), [0] * len(self.others)

        def take(row: int) -> bool:
            holders = [index for index, other in enumerate(self.others) if row in other]
            if any(shared[index] >= limit for index in holders):
                return False
            for index in holders:
                shared[index] += 1
            return True

        return take

    def allows(self, rows: Iterable[int]) -> bool:
        """Check a whole proposal."""
        return all(map(self.start(), rows))

    def take(self, order: Iterable[int]) -> Rows:
        """Return the first rows of an order that may be together, at most `count`."""
        take, chosen = self.start(), list[int]()
        for row in order:
            if len(chosen) < self.count and take(row):
                chosen.append(row)
        return tuple(chosen)


def swap_rows(
    search: Search, draw: random.Random, pool_size: int, rule: CopyRule, predict: Callable[[Rows], float]
) -> Iterator[tuple[str, Rows]]:
    """Yield proposals that replace some rows of the best one, until none is found any more.

    predict: higher for a proposal that is probably better.
    """
    while search.best is not None:
        inside = search.best.rows
        outside = sorted(set(range(pool_size)) - set(inside))
        size = min(max(1, len(inside) // draw.choice(_SWAP_PARTS)), len(outside))
        drawn = [
            tuple(sorted({*inside} - {*draw.sample(inside, size)} | {*draw.sample(outside, size)}))
            for _ in range(_SWAPS_DRAWN)
        ]
        usable = [rows for rows in drawn if rule.allows(rows) and not search.has_tried(rows)]
        if not usable:
            return
        yield f"swap of {size}", max(usable, key=predict)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of the journal. rows: `content_digest` of the dataset."""

    rows: str
    lucky_num: int
    loss: float
    seconds: float


class Journal:
    """The evaluations of a pool with one model on one machine, so that none is made twice.

    Several processes may append to one file. Raises: HostError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, int], Evaluation] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines() if path.exists() else []
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror or error}") from error
        for text in lines:
            try:
                line = read_record(_Line, json.loads(text), str(path))
            except (ValueError, ConfigError):
                continue  # cut off by a kill; the evaluation is made again
            self._known[line.rows, line.lucky_num] = Evaluation(line.loss, line.seconds)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, rows: str, lucky_num: int) -> Evaluation | None:
        return self._known.get((rows, lucky_num))

    def add(self, rows: str, lucky_num: int, evaluation: Evaluation) -> None:
        """Record an evaluation on disk."""
        values = {"rows": rows, "lucky_num": lucky_num, **evaluation._asdict()}
        self._known[rows, lucky_num] = evaluation
        try:
            with self._path.open("ab") as stream:
                # Begins with a line feed: the last line may have been cut off.
                stream.write(f"\n{json.dumps(values)}\n".encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise HostError(f"cannot write {self._path}: {error.strerror or error}") from error
