"""Extract from a round file what the pages show, as JSON that can be cached. Pure."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from template.competition import Competition
from template.receipts.round_file import RoundHeader, WeightsLine
from template.site.words import explain_verdict, weights_outcome

# Of the extract. A change makes the cached ones useless.
VERSION = 4

_FOLDER_MODEL = re.compile(r"@[0-9a-f]{64}\b")


@dataclass(frozen=True)
class Row:
    """A hotkey's line in the table of a round. error: standard error of the loss."""

    hotkey: str
    entry: str
    uid: int
    verdict: str
    why: str
    runs: int
    loss: float | None
    error: float | None
    score: float
    credit: float
    weight: float


@dataclass(frozen=True)
class Evaluation:
    """line: of its receipt in the round file, None if it is in none of this validator's."""

    hotkey: str
    entry: str
    number: int
    seed: int
    seed_block: int | None
    loss: float | None
    receipt: str | None
    line: int | None


@dataclass(frozen=True)
class Extract:
    """A round. fault: of the signatures. inputs: names and values for people. best: loss of the last record.

    weights: submissions, each with its outcome in words and its rows (uid, weight, value as sent). verify_flags: what
    the replay of a receipt needs beside the receipt.
    """

    name: str
    netuid: int
    signer: str | None
    fault: str | None
    start_block: int
    opened_block: int
    end_block: int
    is_past: bool
    best: float
    outcome: str
    verify_flags: str
    inputs: Mapping[str, str]
    rows: tuple[Row, ...]
    evaluations: tuple[Evaluation, ...]
    weights: tuple[tuple[str, tuple[tuple[int, float, int | None], ...]], ...]

    def to_json(self) -> dict[str, Any]:
        """Return values for JSON, which `from_json` reads."""
        return {
            **vars(self),
            "rows": [list(vars(row).values()) for row in self.rows],
            "evaluations": [list(vars(run).values()) for run in self.evaluations],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Extract":
        rows = tuple(Row(*row) for row in values["rows"])
        return cls(**{**values, "rows": rows, "evaluations": tuple(Evaluation(*run) for run in values["evaluations"])})


def extract_round(header: RoundHeader, receipts: Sequence[bytes], name: str, fault: str | None) -> Extract:
    """Extract a round from its file. receipts: its lines. name: of the file. fault: of its signature."""
    lines = {hashlib.sha256(line).hexdigest(): index for index, line in enumerate(receipts, start=2)}
    records = [line.loss for line in header.ledger if line.credit > 0.0]
    return Extract(
        name=name,
        netuid=header.netuid,
        signer=header.signer,
        fault=fault if header.signer else "unsigned",
        start_block=header.start_block,
        opened_block=header.opened_block,
        end_block=header.end_block,
        is_past=header.is_past,
        best=min([header.competition.bench, *records]),
        outcome=weights_outcome(header),
        verify_flags=_verify_flags(header),
        inputs=_inputs(header),
        rows=_rows(header),
        evaluations=tuple(
            Evaluation(
                run.hotkey, run.entry, run.number, run.lucky_num, run.seed_block, run.loss, run.receipt,
                lines.get(run.receipt or ""),
            )
            for run in header.evaluations
        ),
        weights=tuple((_describe(line), _weights(line)) for line in header.weights),
    )  # fmt: skip


def _rows(header: RoundHeader) -> tuple[Row, ...]:
    ledger = {(line.hotkey, line.digest): line for line in header.ledger}
    rows = []
    for line in header.table:
        verdict = explain_verdict(line, header, ledger.get((line.hotkey, line.digest or "")))
        error = None if line.spread is None else line.spread / math.sqrt(line.runs)
        rows.append(Row(
            line.hotkey, line.entry, line.uid, verdict.code, verdict.why, line.runs, line.loss, error, line.score,
            line.credit, line.weight,
        ))  # fmt: skip
    return tuple(rows)


def _inputs(header: RoundHeader) -> dict[str, str]:
    competition, rules = header.competition, header.incentives
    return {
        "Blocks": f"{header.start_block} to {header.end_block}, opened at {header.opened_block}",
        "Hash of the first block": header.start_block_hash,
        "Competition": f"{competition.id}, {competition.repo}@{competition.eval_commit}",
        "Losses": f"benchmark {competition.bench:g}, score 1 at {competition.minb:g}, score 0 at {competition.maxb:g}",
        "Rules": f"{rules.reward.value}, {rules.evaluations} evaluations, {rules.slots} a round, "
        f"{rules.epsilon:g} of each improvement is not paid, "
        f"a credit halves every {rules.half_life_blocks} blocks",
        "Seeds": {"chain": "from the chain", "fixed": "one seed, chosen by the validator"}.get(
            header.lucky_num_from, "drawn by the validator"
        ),
        "Model": header.model,
        "Hyperparameters": header.hyperparameters_digest,
        "Version": header.version,
        "Receipts": f"{header.receipts} in this file",
    }


def _verify_flags(header: RoundHeader) -> str:
    is_own = header.competition.digest == Competition.from_defaults().digest
    # A Hub commit has 40 digits, and the digest of a folder 64.
    is_folder = _FOLDER_MODEL.search(header.model) is not None
    return ("" if is_own else " --any_competition") + (" --model_path MODEL_FOLDER" if is_folder else "")


def _describe(line: WeightsLine) -> str:
    what = "Earlier weights again" if line.is_repeat else "Weights of this round"
    if line.is_accepted:
        return f"{what}, on chain in block {line.included_block or line.block}"
    outcome = f"refused: {line.error}" if line.is_accepted is False else "outcome unknown when the file was written"
    return f"{what}, submitted at block {line.block}; {outcome}"


def _weights(line: WeightsLine) -> tuple[tuple[int, float, int | None], ...]:
    pairs = sorted(line.weights.items(), key=lambda pair: (-pair[1], int(pair[0])))
    return tuple((int(uid), weight, line.sent.get(uid)) for uid, weight in pairs if weight > 0.0)
