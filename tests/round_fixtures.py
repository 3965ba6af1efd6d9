"""An honest validator's account of one round, with made-up scores, and everything that is found wrong with a file."""

import dataclasses
from pathlib import Path

from chain_fixtures import make_key
from fakes import FakeScorer, make_result

from template.chain import verify_signature
from template.competition import CommitmentRecord, Competition
from template.errors import Reason
from template.receipt import Receipt, ScoredSubmission
from template.records import WeightOutcome
from template.round_check import find_bad_signatures, find_chain_conflicts, find_inconsistencies
from template.round_file import RoundAccount, RoundFile
from template.seeds import seed_from_hash
from template.settings import load_training_args
from template.standing import make_standings, read_entry
from template.state import Round, RoundEntry, SubmissionKey, Verdict, WeightIntent

VALIDATOR = make_key("validator")
SIGNER = VALIDATOR.ss58_address
COMPETITION = dataclasses.replace(Competition.from_defaults(), bench=6.1, minb=5.8, maxb=6.8)
SCORER = FakeScorer(competition=COMPETITION, training_args=load_training_args(), eval_data_dir=Path("unused"))
MODEL = f"{SCORER.training_args.model_id}@{'0' * 64} cpu float32"


def sign(message: bytes) -> str:
    return str(VALIDATOR.sign(message).hex())


def hash_of(block: int) -> str:
    return f"0x{block:064x}"


def make_receipt(entry: RoundEntry) -> Receipt:
    record = CommitmentRecord.parse(entry.key.entry)
    assert entry.lucky_num is not None
    result = make_result(SCORER, "ab" * 32, rows=12 + entry.uid, lucky_num=entry.lucky_num)
    submission = ScoredSubmission(netuid=96, hotkey=entry.key.hotkey, repo=record.namespace, commit=record.commit)
    return Receipt(competition=COMPETITION, submission=submission, result=result).signed(SIGNER, sign)


def make_account(*, lucky_num_from: str = "chain") -> RoundAccount:
    """Three were to be scored: two were, in this round, one is refused; a fourth has its loss from an earlier round."""
    entries = []
    for uid, name in enumerate(("ann", "ben", "cat", "dan"), start=2):
        hotkey, seed_block = make_key(name).ss58_address, 30 + uid
        key = (hotkey, f"{name}/data:{COMPETITION.id}:{'c' * 40}")
        seed = seed_from_hash(hash_of(seed_block))
        entry = RoundEntry(
            key=SubmissionKey(*key),
            uid=uid,
            block=seed_block,
            rank_block=20,
            registration_block=1,
            lucky_num=seed,
            seed_block=seed_block,
        )
        entries.append(entry)
    ann, ben, cat, dan = entries
    receipts = {entry.key: make_receipt(entry) for entry in (ann, ben, dan)}
    entries[3] = dataclasses.replace(dan, lucky_num=None, seed_block=None)
    verdicts = {key: Verdict(loss=receipt.result.loss) for key, receipt in receipts.items()}
    verdicts[cat.key] = Verdict(reason=Reason.NOT_IN_POOL, message="24 rows are not in the pool")
    standings = make_standings(
        COMPETITION, {entry.key: read_entry(entry, COMPETITION) for entry in entries}, verdicts, {}, verdicts
    )
    shares = {line.key.hotkey: line.weight for line in standings if line.weight > 0}
    intent = WeightIntent(
        id=1,
        block=380,
        weights={line.uid: line.weight for line in standings if line.weight > 0},
        shares=shares,
        created_at=1.0,
        outcome=WeightOutcome(is_accepted=True, block=381),
        finished_at=2.0,
    )
    current = Round(
        start_block=36,
        start_block_hash=hash_of(36),
        opened_block=38,
        end_block=396,
        lucky_num=seed_from_hash(hash_of(36)),
        entries=tuple(entries),
        queue=(ann.key, cat.key, ben.key),
        id=7,
    )
    return RoundAccount(
        netuid=96,
        competition=COMPETITION,
        hyperparameters_digest=SCORER.training_args.hyperparameters.digest,
        model=MODEL,
        lucky_num_from=lucky_num_from,
        round=current,
        standings=standings,
        intents=[intent],
        receipts={key: receipts[key].to_json() for key in (ben.key, ann.key)},
        seed_period=1,
        all_receipt_digests={dan.key: receipts[dan.key].digest},
    )


ACCOUNT = make_account()


def known(file: RoundFile) -> dict[str, Receipt]:
    return {receipt.digest: receipt for receipt in file.receipts}


def complaints(file: RoundFile) -> list[str]:
    """Everything that is wrong with a file, signatures included."""
    header_wrong, receipts_wrong = find_bad_signatures(file, verify_signature)
    return [
        *([f"header: {header_wrong}"] if header_wrong else []),
        *(f"receipt {at}: {wrong}" for at, wrong in receipts_wrong.items()),
        *find_inconsistencies(file, known(file)),
        *find_chain_conflicts(file.header, hash_of),
    ]
