"""A subnet of hundreds of miners whose datasets are all scored: what a validator has around it while it waits.

Made in seconds, without wallets or models: keys come from names, and losses and receipts are put into the state file.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from template.chain.client import Chain, bt
from template.competition import Competition
from template.config import Hyperparameters, TrainingArgs
from template.localnet.chain.chain import LocalChain
from template.localnet.chain.substrate import LocalSubstrate
from template.localnet.network import NETUID
from template.receipts.receipt import EvaluatedSubmission, Receipt
from template.records import RunningEvaluation, SubmissionKey, TrainResult, Verdict
from template.store.store import Store
from template.workers.executor import CompletedJob

COMPETITION = dataclasses.replace(Competition.from_defaults(), id="crowd", repo="crowd/pool")
HYPERPARAMETERS = Hyperparameters(
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    num_train_epochs=1,
    lora_rank=4,
    lora_alpha=8,
    lora_dropout=0.1,
)
MODEL_ID = "Qwen/Qwen2.5-0.5B-Instruct"
MODEL = f"{MODEL_ID}@{'0' * 40} cpu float32"
_STEPS = 94
_WORDS = tuple(hashlib.sha256(bytes([at, salt])).hexdigest()[: 2 + at % 9] for salt in range(16) for at in range(256))


def make_lines(count: int, *, seed: int = 0, words: int = 170) -> list[str]:
    """Different rows of a chat dataset, by default of some 1.2 KB or 300 tokens each."""
    draw = random.Random(seed)
    return [
        json.dumps(
            {
                "conversations": [
                    {"role": "user", "content": f"{number}: " + " ".join(draw.choices(_WORDS, k=words * 5 // 17))},
                    {"role": "assistant", "content": '"' + "\n".join(draw.choices(_WORDS, k=words * 12 // 17)) + '"'},
                ]
            }
        )
        for number in range(count)
    ]


def make_key(name: str) -> Any:
    """A keypair that anyone can make from its name."""
    return bt.sp_core.Keypair.create_from_uri(f"//{name}")


class IdleExecutor:
    """An `Executor` whose one worker holds the model and is given nothing."""

    training_args = TrainingArgs(model_id=MODEL_ID, revision=None, hyperparameters=HYPERPARAMETERS)

    def start(self) -> str | None:
        return MODEL

    def idle_workers(self) -> int:
        return 1

    def submit(self, key: SubmissionKey, data_dir: Path, lucky_num: int) -> None:
        raise RuntimeError("there is nothing to score")

    def collect(self) -> list[CompletedJob]:
        return []

    def running(self) -> tuple[RunningEvaluation, ...]:
        return ()

    def tokens_per_s(self) -> float | None:
        return None

    def wait(self, timeout_s: float) -> None:
        pass

    def close(self) -> None:
        pass


class Crowd:
    """The chain in `folder`, stepped by hand, on which so many miners stand registered and committed."""

    def __init__(self, folder: Path, miners: int) -> None:
        self.path = folder / "chain.sqlite3"
        owner, self._validator = make_key("owner"), make_key("validator")
        self.chain = LocalChain.create(self.path, netuid=NETUID, owner_hotkey=owner.ss58_address, tempo=100_000)
        self.chain.set_hyperparameter("WeightsSetRateLimit", 1)
        self.chain.set_hyperparameter("MaxAllowedUids", miners + 2)
        self.chain.register(owner.ss58_address)
        self.chain.register(self._validator.ss58_address, is_validator=True)
        self.keys = [self._enter(number) for number in range(miners)]

    def _enter(self, number: int) -> SubmissionKey:
        key = make_key(f"miner-{number}")
        self.chain.register(key.ss58_address)
        text = f"miner-{number}/data:{COMPETITION.id}:{number:040x}"
        with self._connect(key) as link:
            link.publish(text)
        return SubmissionKey(str(key.ss58_address), text)

    def _connect(self, key: Any) -> Chain:
        wallet: Any = SimpleNamespace(hotkey=key)
        return Chain(self.chain.network, NETUID, wallet=wallet, substrate=LocalSubstrate(self.path))

    def connect(self) -> Chain:
        """The validator's connection."""
        return self._connect(self._validator)

    def record_scores(self, store: Store, competition: Competition, row_keys: Sequence[bytes]) -> None:
        """Has everybody checked and scored, each on other rows of `row_keys`."""
        eval_config = store.get_or_create_config(competition, HYPERPARAMETERS.digest, MODEL, 0.0)
        draw = random.Random(0)
        for key in self.keys:
            rows = draw.sample(row_keys, min(COMPETITION.rows, len(row_keys)))
            result = make_result(key, loss=COMPETITION.minb + draw.random() * 0.1)
            repo, _, commit = key.commitment.split(":")
            submission = EvaluatedSubmission(netuid=NETUID, hotkey=key.hotkey, repo=repo, commit=commit)
            receipt = Receipt(competition=competition, submission=submission, result=result)
            store.record_dataset(eval_config, key, sha256=result.train_sha256, row_keys=rows, now=0.0)
            store.record_verdict(
                eval_config, key, Verdict(loss=result.loss, seconds=1.0, receipt=receipt.to_json()), 0.0
            )


def make_result(key: SubmissionKey, *, loss: float) -> TrainResult:
    """What a worker would tell of a score with this loss, of the size that such results have."""
    return TrainResult(
        loss=loss,
        benchmark_loss=COMPETITION.bench,
        lucky_num=1,
        model_id=MODEL_ID,
        model_revision="0" * 40,
        model_digest=None,
        hyperparameters=HYPERPARAMETERS.to_dict(),
        hyperparameters_digest=HYPERPARAMETERS.digest,
        train_sha256=hashlib.sha256(key.commitment.encode()).hexdigest(),
        train_rows=COMPETITION.rows,
        train_tokens=75_000,
        eval_sha256="1" * 64,
        eval_rows=1_000,
        eval_skipped_rows=0,
        eval_tokens=300_000,
        step_losses=tuple(3.0 - number / _STEPS for number in range(_STEPS)),
        environment={"device": "cpu", "dtype": "float32", "threads": "1"},
        load_seconds=0.0,
        train_seconds=1.0,
        eval_seconds=1.0,
    )
