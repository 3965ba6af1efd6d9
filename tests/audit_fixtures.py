"""An honest validator's round on a real hub, scored with the tiny model, and the auditor of it."""

import dataclasses
from pathlib import Path

from net_fixtures import (
    POOL,
    ROOT,
    SMALL,
    Ended,
    Net,
    call_main,
    load_main,
    write_dataset,
    write_training_args,
)

from template.chain import Chain
from template.competition import CommitmentRecord
from template.receipt import Receipt, ScoredSubmission
from template.records import TrainResult, WeightOutcome
from template.round_file import RoundAccount
from template.round_files import write_round
from template.seeds import seed_from_hash
from template.settings import load_training_args
from template.standing import make_standings, read_entry
from template.state import Round, RoundEntry, SubmissionKey, Verdict, WeightIntent
from template.workers import Scorer

AUDIT = ROOT / "scripts" / "audit.py"
NAMES = ("alice", "bob")
ROWS = {"alice": SMALL, "bob": POOL[40:60]}


@dataclasses.dataclass
class Office:
    """An honest validator's round of two datasets, and what an auditor of it needs."""

    net: Net
    folder: Path
    model: Path

    def __post_init__(self) -> None:
        self.args = write_training_args(self.folder / "args.yaml")
        self.eval_dir = write_dataset(self.folder / "eval", POOL)
        self.validator = self.net.chain("validator")
        self.commits = {name: self.net.upload(name, rows) for name, rows in ROWS.items()}
        self.net.admin.advance(50)
        self.entries = {name: self.make_entry(name) for name in NAMES}
        self.results = {name: self.score(ROWS[name], self.seed(name)) for name in NAMES}

    def make_entry(self, name: str) -> RoundEntry:
        record = CommitmentRecord(f"{name}/data", self.net.competition.id, self.commits[name])
        uid = self.net.uid(name)
        seed_block = 30 + uid
        return RoundEntry(
            key=SubmissionKey(self.net.hotkey(name), str(record)),
            uid=uid,
            block=20,
            rank_block=20,
            registration_block=1,
            lucky_num=seed_from_hash(self.validator.block_hash(seed_block)),
            seed_block=seed_block,
        )

    def seed(self, name: str) -> int:
        seed = self.entries[name].lucky_num
        assert seed is not None
        return seed

    def score(self, rows: list[str], lucky_num: int) -> TrainResult:
        folder = write_dataset(self.folder / "scored", rows)
        scorer = Scorer(
            competition=self.net.competition,
            training_args=load_training_args(self.args),
            eval_data_dir=self.eval_dir,
            model_path=self.model,
        )
        return scorer.score(folder, lucky_num)

    def receipt(self, name: str, signer: Chain | None = None, commit: str | None = None, **changed: object) -> Receipt:
        """The receipt of a dataset's score, or of a lie about it, signed."""
        signer = signer or self.validator
        submission = ScoredSubmission(
            netuid=self.validator.netuid,
            hotkey=self.net.hotkey(name),
            repo=f"{name}/data",
            commit=commit or self.commits[name],
        )
        result = dataclasses.replace(self.results[name], **changed)  # type: ignore[arg-type]
        receipt = Receipt(competition=self.net.competition, submission=submission, result=result)
        return receipt.signed(signer.hotkey, signer.sign)

    def write(self, folder: Path, *receipts: Receipt, **changed: object) -> Path:
        """A round file that follows from the receipts, signed by the validator."""
        by_key = {entry.key: entry for entry in self.entries.values()}
        for receipt in receipts:
            assert receipt.submission is not None
            record = CommitmentRecord(receipt.submission.repo, self.net.competition.id, receipt.submission.commit)
            old = next(key for key in by_key if key.hotkey == receipt.submission.hotkey)
            key = SubmissionKey(old.hotkey, str(record))
            by_key[key] = dataclasses.replace(by_key.pop(old), key=key)
        held = dict(zip((key_of(receipt) for receipt in receipts), receipts, strict=True))
        entries = sorted(by_key.values(), key=lambda entry: entry.uid)
        verdicts = {key: Verdict(loss=held[key.hotkey].result.loss) for key in by_key if key.hotkey in held}
        standings = make_standings(
            self.net.competition,
            {entry.key: read_entry(entry, self.net.competition) for entry in entries},
            verdicts,
            {},
            verdicts,
        )
        shares = {line.key.hotkey: line.weight for line in standings if line.weight > 0.0}
        weights = {line.uid: line.weight for line in standings if line.weight > 0.0}
        outcome = WeightOutcome(is_accepted=True, block=49)
        intent = WeightIntent(
            id=1, block=48, weights=weights, shares=shares, created_at=1.0, outcome=outcome, finished_at=2.0
        )
        result = self.results["alice"]
        current = Round(
            start_block=40,
            start_block_hash=self.validator.block_hash(40),
            opened_block=41,
            end_block=50,
            lucky_num=seed_from_hash(self.validator.block_hash(40)),
            entries=tuple(entries),
            queue=tuple(entry.key for entry in entries),
        )
        account = RoundAccount(
            netuid=self.validator.netuid,
            competition=self.net.competition,
            hyperparameters_digest=result.hyperparameters_digest,
            model=f"{result.model_id}@{result.model_digest} cpu float32",
            lucky_num_from="chain",
            round=current,
            standings=standings,
            intents=[intent],
            receipts={key: held[key.hotkey].to_json() for key in verdicts},
            all_receipt_digests={},
        )
        account = dataclasses.replace(account, **changed)  # type: ignore[arg-type]
        return write_round(folder, account, signer=self.validator.hotkey, sign=self.validator.sign)

    @property
    def settings(self) -> list[object]:
        return [
            *("--competition", self.net.parts.competition, "--training_args", self.args),
            *("--model_path", self.model, "--work_dir", self.folder / "work"),
        ]

    def audit(self, *arguments: object) -> Ended:
        return call_main(load_main(AUDIT), *arguments, *self.settings)


def key_of(receipt: Receipt) -> str:
    assert receipt.submission is not None
    return receipt.submission.hotkey
