"""Calls of the product's chain client to a node that gives wrong answers.

A call may raise a typed error, and must do so before its deadline. What it returns must be true, unless the fault left
an answer that a right node could have given.
"""

import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from template.chain.client import Chain
from template.chain_records import PublishOutcome, WeightOutcome
from template.errors import RemoteError, SubnetError
from template.localnet.chain.chain import LocalChain
from template.localnet.faults.answers import ANSWER_FAULTS, PLAUSIBLE_FAULTS
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID, SEALED, commit, make_key, make_local_chain, set_weights
from tests.fixtures.node import Wire, dial, open_wire

VALIDATOR, MINER, OTHER = make_key("validator"), make_key("miner"), make_key("other")
FAR_ROUND = 2**40
DEADLINE_S = 0.5
# Beyond the deadlines: closing a connection takes at most two seconds, and other work may hold the cores.
SLACK_S = 6.0
_RECOVERY_TRIES = 5
_FRESH_SHARE = 0.25
# Calls of an operation that never sent a method, after which it does not count as one that sends it.
_MISSES = 4

READ_METHODS = (
    "state_getRuntimeVersion",
    "state_call",
    "chain_getBlockHash",
    "chain_getFinalizedHead",
    "chain_getHeader",
    "state_getStorageAt",
    "state_getKeysPaged",
    "state_queryStorageAt",
)
WRITE_METHODS = (
    "account_nextIndex",
    "author_submitAndWatchExtrinsic",
    "author_extrinsicUpdate",
    "author_unwatchExtrinsic",
    "chain_getBlock",
)
# All that the client sends for these operations, and the notification that it receives.
METHODS = (*READ_METHODS, *WRITE_METHODS)


@dataclass(frozen=True)
class Operation:
    """A call of `Chain`, and the most exchanges that it makes."""

    name: str
    call: Callable[[Chain], Any]
    exchanges: int = 1
    is_write: bool = False


OPERATIONS = (
    Operation("view", lambda chain: chain.view()),
    Operation("snapshot", lambda chain: chain.snapshot(10)),
    Operation("block", lambda chain: chain.block()),
    Operation("block_hash", lambda chain: chain.block_hash(5)),
    Operation("commitment", lambda chain: chain.commitment(MINER.ss58_address)),
    Operation("commit_blocks", lambda chain: chain.commit_blocks_of_revealed({OTHER.ss58_address: 12})),
    Operation("weights", lambda chain: chain.weights(0, 13)),
    Operation("weight_commits", lambda chain: chain.weight_commits(VALIDATOR.ss58_address, 13)),
    Operation("prepare_weights", lambda chain: chain.prepare_weights({1: 1.0})),
    Operation("publish", lambda chain: chain.publish("text"), 3, is_write=True),
    Operation("publish_sealed", lambda chain: chain.publish_sealed("text", FAR_ROUND), 3, is_write=True),
    Operation("set_weights", lambda chain: set_weights(chain, {1: 1.0, 2: 0.5}), 3, is_write=True),
)


@dataclass
class Tally:
    """What the calls with one fault came to, and how long the slowest took."""

    errors: Counter[str] = field(default_factory=Counter)
    truths: int = 0
    others: int = 0
    slowest_s: float = 0.0

    def __str__(self) -> str:
        errors = ", ".join(f"{count} {name}" for name, count in sorted(self.errors.items())) or "none"
        return f"right {self.truths}, other {self.others}, slowest {self.slowest_s:.2f} s, errors: {errors}"


@dataclass
class Report:
    """The tallies by fault, and every finding."""

    tallies: dict[str, Tally] = field(default_factory=lambda: {kind: Tally() for kind in ANSWER_FAULTS})
    methods: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    calls: int = 0


def make_world(folder: Path) -> LocalChain:
    """Create a chain on which every read has a value."""
    local = make_local_chain(folder)
    local.set_hyperparameter("MaxSpace", 2**31)
    local.register(VALIDATOR.ss58_address, is_validator=True)
    local.register(MINER.ss58_address)
    local.register(OTHER.ss58_address)
    commit(local, MINER, {"Raw5": b"hello"})
    local.advance(11 - local.block() - 1)
    commit(local, OTHER, SEALED)
    local.reveal(OTHER.ss58_address, "opened")
    with local.write() as state:
        state.put("Weights", "0", [[1, 65535], [2, 32768]])
    return local


class Campaign:
    """One client and one node; a fault for each call."""

    def __init__(self, local: LocalChain, node: NodeServer, wire: Wire, cache: Path, seed: int) -> None:
        self.report = Report()
        self._local = local
        self._wire = wire
        self._cache = cache
        self._draw = random.Random(seed)
        self._truths: dict[str, Any] = {}
        self._tries: Counter[tuple[str, str]] = Counter()
        self._met: set[tuple[str, str]] = set()
        self._chain = dial(node, NETUID, VALIDATOR, deadline_s=DEADLINE_S)
        # It meets no fault, and has the metadata in memory before a fault damages the cache on disk.
        self._right = dial(node, NETUID, VALIDATOR, deadline_s=300)
        self._right.view()

    def close(self) -> None:
        self.disconnect()
        self._right.close()

    def disconnect(self) -> None:
        """Close the connection that meets the faults."""
        self._chain.close()

    def shuffled_pairs(self, kinds: Sequence[str]) -> list[tuple[str, str]]:
        """Return these faults of every method, in a random order."""
        pairs = [(method, kind) for method in METHODS for kind in kinds]
        self._draw.shuffle(pairs)
        return pairs

    def step(self, method: str, kind: str) -> None:
        """Make a call whose node gives this fault, and judge it if the fault was met."""
        operation = self._choose(method)
        expected = None if operation.is_write else self._truth(operation)
        if self._draw.random() < _FRESH_SHARE:
            self._chain.close()
            shutil.rmtree(self._cache, ignore_errors=True)
        head, calls = self._local.block(), self._draw.choice((1, 1, 2, 100))
        self._wire.result("localnet_setAnswerFault", method, kind, calls)
        started = time.monotonic()
        outcome = self._attempt(operation, kind)
        seconds = time.monotonic() - started
        is_met = self._wire.result("localnet_setAnswerFault", method, kind, 0) < calls
        self._tries[operation.name, method] += 1
        if is_met:
            self._met.add((operation.name, method))
            self._judge(operation, method, kind, outcome, expected, self._landed(head), seconds)
            self._recover(f"{operation.name}, {method}, {kind}")

    def _choose(self, method: str) -> Operation:
        def may_send(operation: Operation) -> bool:
            pair = operation.name, method
            return pair in self._met or self._tries[pair] < _MISSES

        operations = [each for each in OPERATIONS if each.is_write or method in READ_METHODS]
        return self._draw.choice([each for each in operations if may_send(each)] or operations)

    def _truth(self, operation: Operation) -> Any:
        """Return what the operation answers without a fault."""
        if operation.name not in self._truths:
            self._truths[operation.name] = operation.call(self._right)
        return self._truths[operation.name]

    def _attempt(self, operation: Operation, kind: str) -> Any:
        try:
            return operation.call(self._chain)
        except SubnetError as error:
            return error
        except BaseException as error:
            self.report.findings[f"{operation.name}: {type(error).__name__} escapes at {kind}: {error}"] += 1
            if isinstance(error, KeyboardInterrupt):
                raise
            return error

    def _landed(self, head: int) -> int:
        """Count the calls in the blocks after `head`."""
        return sum(len(self._local.records(block)) for block in range(head + 1, self._local.block() + 1))

    def _judge(
        self,
        operation: Operation,
        method: str,
        kind: str,
        outcome: Any,
        expected: Any,
        landed: int,
        seconds: float,
    ) -> None:
        tally, where = self.report.tallies[kind], f"{operation.name}, {method}, {kind}"
        tally.slowest_s = max(tally.slowest_s, seconds)
        self.report.methods[method] += 1
        self.report.calls += 1
        if seconds > operation.exchanges * DEADLINE_S + SLACK_S:
            self.report.findings[f"{where}: {seconds:.1f} s"] += 1
        if landed:
            self._truths.clear()
        if isinstance(outcome, BaseException):
            tally.errors[type(outcome).__name__] += 1
            return
        is_true = outcome == expected
        if not is_true and not operation.is_write:
            # A call whose answer was lost may land in a block after the truth was read.
            self._truths.clear()
            is_true = outcome == self._truth(operation)
        if isinstance(outcome, PublishOutcome | WeightOutcome):
            is_true = outcome.is_accepted == bool(landed)
            if landed > 1:
                self.report.findings[f"{where}: landed {landed} times"] += 1
        tally.truths += is_true
        tally.others += not is_true
        if not is_true and (operation.is_write or kind not in PLAUSIBLE_FAULTS):
            self.report.findings[f"{where}: returned {str(outcome)[:200]}"] += 1

    def _recover(self, where: str) -> None:
        """Check that the client works again once the fault is over."""
        for _ in range(_RECOVERY_TRIES):
            try:
                if self._chain.block() == self._local.block():
                    return
            except RemoteError:
                pass
            # The client remembers the number of a block, also a wrong one.
            self._local.advance(1)
            self._truths.clear()
        self.report.findings[f"{where}: no recovery"] += 1
        self._chain.close()


@contextmanager
def open_campaign(folder: Path, seed: int) -> Iterator[Campaign]:
    """Start the chain and its node in a folder. The runtime cache is `folder`/cache."""
    with make_world(folder) as local, NodeServer(local.path) as node, open_wire(node) as wire:
        campaign = Campaign(local, node, wire, folder / "cache", seed)
        try:
            yield campaign
        finally:
            campaign.close()


def run_calls(
    campaign: Campaign,
    calls: int,
    kinds: Sequence[str] = ANSWER_FAULTS,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Make calls until so many met their fault: every fault of every method in turn."""
    threads, report = threading.active_count(), campaign.report
    while report.calls < calls:
        for method, kind in campaign.shuffled_pairs(kinds):
            if report.calls < calls:
                campaign.step(method, kind)
        progress(f"{report.calls:,} calls, {len(report.findings)} findings")
    campaign.disconnect()
    if threading.active_count() > threads:
        report.findings[f"{threading.active_count() - threads} threads are left"] += 1
    return report
