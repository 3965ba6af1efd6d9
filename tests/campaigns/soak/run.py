"""A soak run: real validators on a synthetic subnet that fails in every way.

This process makes the blocks, and lets the validators' processes tick in between.
"""

import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

from scripts.bench.tiny_model import make_tiny_model
from template.localnet.chain.ledger import ChainFault
from template.localnet.chain.pallets import HYPERPARAMETERS
from template.store.store import Store
from tests.campaigns.clock import BlockClock
from tests.campaigns.command import Progress
from tests.campaigns.process_under_test import ValidatorProcess, find_orphans, write_training_args
from tests.campaigns.soak.event_log import LOG_FILE, EventLog
from tests.campaigns.soak.miners import BLOCKS_PER_EPOCH, Miners, create_subnet
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault

# Names of the validators, of their wallets and of their folders.
VALIDATORS = ("validator-0", "validator-1")
RATE_LIMIT_BLOCKS = 10
# Ticks without blocks in between, at most: how much work a block leaves time for.
_TICKS_PER_STEP = 12
# Chances per step of a spell of failures, and of the end of a validator or a worker. A short run has one of each.
_SPELL = 0.03
_END = 0.006
_STEPS_PER_ROUND = 11
# How often blocks come although a worker is busy, and the seconds of one wait for it.
_HURRY = 0.1
_WAIT_S = 0.5
# Quiet rounds at the end, at most, until everyone is evaluated and all weights are resolved.
_LAST_ROUNDS = 40

_HUB_FAULTS = (
    HubFault(kind=FaultKind.STATUS, status=503, pattern="/data"),
    HubFault(kind=FaultKind.STATUS, status=429, retry_after="60", pattern="/data"),
    HubFault(kind=FaultKind.DROP, pattern="/data"),
    HubFault(kind=FaultKind.TRUNCATE, pattern="/resolve-cache/"),
    HubFault(kind=FaultKind.WRONG, pattern="/resolve-cache/"),
    HubFault(kind=FaultKind.LATENCY, seconds=0.02, pattern="/data"),
)
_CHAIN_FAULTS: tuple[tuple[Any, ChainFault, int], ...] = (
    ("read", ChainFault.DISCONNECT, 1000),
    ("read", ChainFault.ERROR, 1000),
    ("connect", ChainFault.DISCONNECT, 1000),
    ("read", ChainFault.DISCONNECT, 3),
    ("write", ChainFault.DISCONNECT, 1),
    ("write", ChainFault.ERROR, 1),
    ("write", ChainFault.LOSE_ANSWER, 1),
)


class SoakValidator:
    """A validator's process in lockstep with the run."""

    def __init__(self, name: str, process: ValidatorProcess, log: EventLog) -> None:
        self.name, self.process, self._log = name, process, log
        self.is_busy, self.is_loaded = True, False
        self._start()

    def _start(self) -> None:
        self._popen = self.process.start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._read_status()

    def _read_status(self) -> None:
        assert self._popen.stdout is not None
        if line := self._popen.stdout.readline():
            status = json.loads(line)
            self.is_busy, self.is_loaded = status["is_busy"], status["is_loaded"]
        else:
            self._log.write("failed to go on", validator=self.name, status=self._popen.wait())
            self.restart()

    def send(self, line: str) -> None:
        """Have the validator obey a line of `hooks.Lockstep`."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{line}\n".encode())
        self._popen.stdin.flush()
        self._read_status()

    def restart(self) -> None:
        """Kill the validator between two ticks and start it again."""
        self.process.kill()
        self._log.write("validator restarted", validator=self.name)
        self._check_orphans()
        self._start()

    def _check_orphans(self) -> None:
        for orphan in find_orphans(self.process.pid):
            self._log.write("failed", error=f"{self.name}: left over: {orphan}")

    def kill_worker(self) -> None:
        """Kill the worker, once it holds the model: one that never did ends the validator."""
        pid = self.process.worker_pid()
        if pid is not None and self.is_loaded:
            os.kill(pid, signal.SIGKILL)
            self._log.write("worker killed", validator=self.name, is_busy=self.is_busy)

    def close(self) -> None:
        if self.process.is_alive and self._popen.stdin is not None:
            # The validator ends when no further turn can come.
            self._popen.stdin.close()
            self.process.terminate(30.0)
        self._check_orphans()
        for line in self.process.logged_bugs():
            self._log.write("failed", error=f"{self.name}: {line}")

    def is_settled(self) -> bool:
        """Return whether everyone is evaluated and all weights have outcomes."""
        with Store(self.process.state_file, is_read_only=True) as store:
            last = store.last_round(with_leaderboard=True)
            if last is None or any(row.reason is None and row.loss is None for row in store.leaderboard(last.id)):
                return False
            newest = store.last_round_id() or 0
            intents = [intent for number in (newest - 1, newest) for intent in store.intents(number)]
            return all(intent.outcome is not None for intent in intents)


class Soak:
    """A run in a new folder; to be closed."""

    def __init__(self, folder: Path, *, miners: int, seed: int, progress: Progress) -> None:
        self._progress = progress
        self._rng = random.Random(f"weather {seed}")
        # How often it is drawn from depends on the machine's speed.
        self._hurry_rng = random.Random(f"hurry {seed}")
        self.subnet = create_subnet(folder, miners=miners, validators=VALIDATORS)
        self.subnet.chain.set_hyperparameter("WeightsSetRateLimit", RATE_LIMIT_BLOCKS)
        self.hub = FaultyHub(self.subnet.hub_root)
        self.clock = BlockClock(self.subnet.net.chain_file)
        self.log = EventLog(folder / LOG_FILE, self.clock)
        self.miners = Miners(self.subnet, self.log, count=miners, quiet_blocks=BLOCKS_PER_EPOCH // 2, seed=seed)
        make_tiny_model(folder / "model")
        write_training_args(folder / "training_args.yaml")
        self.validators = [SoakValidator(name, self._make_process(folder, name), self.log) for name in VALIDATORS]
        self._spells: dict[str, tuple[int, Any]] = {}
        self._end_chance = _END

    def _make_process(self, folder: Path, name: str) -> ValidatorProcess:
        return ValidatorProcess(
            self.subnet,
            folder / name,
            hub_endpoint=self.hub.endpoint,
            hooks="tests.campaigns.soak.hooks",
            options={
                "log_file": str(folder / LOG_FILE),
                "chain_file": str(self.subnet.net.chain_file),
                "validator": name,
            },
            flags={
                "--block_threshold": 8,
                "--poll_seconds": 0.0005,
                "--training_args": folder / "training_args.yaml",
                "--model_path": folder / "model",
                "--device": "cpu",
            },
            wallet=name,
            state_dir=folder / name,
        )

    def close(self) -> None:
        for validator in self.validators:
            validator.close()
        self.log.close()
        self.clock.close()
        self.hub.close()
        self.subnet.close()

    @property
    def round(self) -> int:
        """Rounds since the first block."""
        return (self.subnet.chain.block() - self.miners.first_block) // BLOCKS_PER_EPOCH

    def run(self, rounds: int, *, events_per_round: float = 3.0) -> None:
        """Run stormy rounds, then quiet ones in which everything must come to its end."""
        self._end_chance = max(_END, 1 / (rounds * _STEPS_PER_ROUND))
        while self.round < rounds:
            self._pass_round(events=events_per_round / _STEPS_PER_ROUND, is_stormy=True)
            if self.round == 1:
                # In each run at least once.
                self.validators[0].restart()
        for kind in list(self._spells):
            self._end_spell(kind)
        while self.round < rounds + _LAST_ROUNDS and not (self.round >= rounds + 3 and self._is_settled()):
            self._pass_round(events=0.0, is_stormy=False)
        self.log.write("finished", is_settled=self._is_settled(), blocks=self.subnet.chain.block())

    def _is_settled(self) -> bool:
        return all(validator.is_settled() for validator in self.validators)

    def _pass_round(self, *, events: float, is_stormy: bool) -> None:
        now = self.round
        while self.round == now:
            self._step(events=events, is_stormy=is_stormy)
        self._progress(f"round={self.round} block={self.subnet.chain.block()} spells={sorted(self._spells)}")

    def _step(self, *, events: float, is_stormy: bool) -> None:
        self.miners.step(events=events)
        if is_stormy:
            self._change_spells()
            self._end_something()
        for validator in self.validators:
            self._set_chain_faults(is_on=self._rng.random() < 0.9)
            validator.send(f"tick {_TICKS_PER_STEP}")
            self._set_chain_faults(is_on=False)
        # Blocks mostly wait for the workers; now and then an evaluation outlasts some of them.
        while (
            busy := [validator for validator in self.validators if validator.is_busy]
        ) and self._hurry_rng.random() > _HURRY:
            busy[0].send(f"wait {_WAIT_S}")
            for validator in busy:
                validator.send("tick 1")

    def _change_spells(self) -> None:
        """Begin and end spells of failures of the hub and the chain."""
        head, rng = self.subnet.chain.block(), self._rng
        for kind, (until, _) in list(self._spells.items()):
            if head >= until:
                self._end_spell(kind)
        kind = rng.choice(["hub", "chain", "refusal"])
        if kind in self._spells or rng.random() > _SPELL:
            return
        blocks = rng.choice([1, 3, 10, 30, 60])
        fault: Any = None
        if kind == "hub":
            fault = rng.choice(_HUB_FAULTS)
            self.subnet.set_hub_faults(fault)
        elif kind == "chain":
            fault = rng.choice(_CHAIN_FAULTS)
            # Writes are few: the spell is to meet one.
            blocks = max(blocks, BLOCKS_PER_EPOCH) if fault[0] == "write" else blocks
        else:
            blocks = rng.choice([4, 30, 200])
            self.subnet.chain.set_hyperparameter("StakeThreshold", 10**18)
        self._spells[kind] = (head + blocks, fault)
        self.log.write("spell", kind=kind, blocks=blocks, fault=str(fault))

    def _end_spell(self, kind: str) -> None:
        del self._spells[kind]
        if kind == "hub":
            self.subnet.set_hub_faults()
        elif kind == "refusal":
            self.subnet.chain.set_hyperparameter("StakeThreshold", HYPERPARAMETERS["StakeThreshold"])

    def _set_chain_faults(self, *, is_on: bool) -> None:
        """Set the chain's present fault for the ticks of one validator."""
        if "chain" in self._spells:
            kind, fault, calls = self._spells["chain"][1]
            self.subnet.chain.set_fault(kind, fault, calls=calls if is_on else 0)

    def _end_something(self) -> None:
        """Kill a validator or a worker now and then."""
        validator = self._rng.choice(self.validators)
        if self._rng.random() < self._end_chance:
            validator.restart()
        if self._rng.random() < self._end_chance:
            validator.kill_worker()
