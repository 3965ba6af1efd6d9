"""Seeds of fuzzing: honest inputs, signed by real keys, and faulty ones."""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache

from template.competition import CommitmentRecord
from template.localnet.chain.scale_codec import encode_call
from template.localnet.network import NETUID
from template.receipts.receipt import EvaluatedSubmission, Receipt
from template.receipts.round_file import RoundSummary, make_round_lines
from template.records import Entry, LeaderboardRow, Round, SubmissionKey, WeightIntent, WeightOutcome
from template.rules.entries import parse_entry
from template.rules.scoring import score_of, shares_from_scores
from template.rules.seeds import seed_from_hash
from tests.campaigns import synthetic_subnet
from tests.campaigns.fake_executors import HYPERPARAMETERS, MODEL, make_result
from tests.campaigns.synthetic_subnet import make_key

# The corpus holds receipts that are signed for it.
COMPETITION = dataclasses.replace(synthetic_subnet.COMPETITION, id="crowd", repo="crowd/pool")
COMMIT, DIGEST = "0123456789abcdef" * 2 + "01234567", "0123456789abcdef" * 4


def make_seeds() -> Mapping[str, list[bytes]]:
    """Inputs by the name of the target."""
    receipts = [make_receipt(name).to_line().encode() for name in ("ann", "ben")]
    return {
        "commitment": _commitments(),
        "fields": _fields(),
        "rows": _rows(),
        "chat": [*_rows(), *_chats()],
        "receipt": [*receipts, make_receipt("ann").to_json().encode(), b"{}", b"[" * 2000],
        "round": [make_round(), make_round().replace(b'"chain"', b'"fixed"'), b"\n", b"{}\n"],
    }


def make_receipt(name: str) -> Receipt:
    """Return a signed receipt of a miner's dataset."""
    hotkey, validator = str(make_key(name).ss58_address), make_key("validator")
    key = SubmissionKey(hotkey, f"{name}/data:{COMPETITION.id}:{COMMIT}")
    result = dataclasses.replace(
        make_result(key, loss=2.45 + len(name) / 100 + ord(name[0]) / 1e9),
        lucky_num=seed_from_hash(_hash(30)),
        step_losses=(3.25, 1 / 3, 5e-324),
    )
    submission = EvaluatedSubmission(netuid=NETUID, hotkey=hotkey, repo=f"{name}/data", commit=COMMIT)
    receipt = Receipt(competition=COMPETITION, submission=submission, result=result)
    return receipt.signed(str(validator.ss58_address), lambda message: str(validator.sign(message).hex()))


@cache
def honest_messages() -> frozenset[bytes]:
    """Return the messages that the validator has signed."""
    return frozenset(make_receipt(name).message() for name in ("ann", "ben"))


def _hash(block: int) -> str:
    return f"0x{block:064x}"


def _make_entry(uid: int, receipt: Receipt) -> Entry:
    submission = receipt.submission
    assert submission is not None
    key = SubmissionKey(submission.hotkey, f"{submission.repo}:{COMPETITION.id}:{submission.commit}")
    blocks = {"reveal_block": 30, "rank_block": 20, "registration_block": 1, "seed_block": 30}
    return parse_entry(key, COMPETITION.id, uid=uid, lucky_num=receipt.result.lucky_num, **blocks)


def make_round() -> bytes:
    """Return a signed round in which both datasets were evaluated."""
    receipts = {_make_entry(uid, make_receipt(name)): make_receipt(name) for uid, name in ((2, "ann"), (3, "ben"))}
    losses = {entry: receipt.result.loss for entry, receipt in receipts.items()}
    scores = {entry: score_of(loss, COMPETITION) for entry, loss in losses.items()}
    shares = shares_from_scores({entry.key.hotkey: score for entry, score in scores.items()})
    rows = [
        LeaderboardRow(
            key=entry.key,
            uid=entry.uid,
            reason=None,
            message="",
            loss=losses[entry],
            score=score,
            weight=shares.get(entry.key.hotkey, 0.0),
        )
        for entry, score in scores.items()
    ]
    intent = WeightIntent(
        id=1,
        block=380,
        weights={row.uid: row.weight for row in rows},
        shares=dict(shares),
        created_at=1.0,
        outcome=WeightOutcome(is_accepted=True, block=381),
        finished_at=2.0,
    )
    opened = Round(
        start_block=36,
        start_block_hash=_hash(36),
        opened_block=38,
        end_block=396,
        lucky_num=seed_from_hash(_hash(36)),
        entries=tuple(receipts),
        queue=tuple(entry.key for entry in receipts),
        lucky_num_from="chain",
        seed_period=1,
    )
    summary = RoundSummary(
        netuid=NETUID,
        competition=COMPETITION,
        hyperparameters_digest=HYPERPARAMETERS.digest,
        model=MODEL,
        round=opened,
        standings=rows,
        intents=[intent],
        receipts={entry.key: receipt for entry, receipt in receipts.items()},
        all_receipt_digests={},
    )
    validator = make_key("validator")
    signer, sign = str(validator.ss58_address), lambda message: str(validator.sign(message).hex())
    return b"".join(line.encode() + b"\n" for line in make_round_lines(summary, signer=signer, sign=sign))


def _commitments() -> list[bytes]:
    honest = [str(CommitmentRecord("owner/name_1.x", "1", commit)) for commit in (COMMIT, DIGEST)]
    sealed = [bytes([len(text) << 2 & 0xFF | 1, len(text) >> 6]) + text.encode() for text in honest]
    near = [
        f"a--b/c:1:{COMMIT}",
        f"a/b.git:1:{COMMIT}",
        f"a/b:1:{COMMIT[:-1]}G",
        f"a/b:1:{COMMIT}:",
        "0x6869",
        "a" * 129,
    ]
    near += ["0x00", "0x" + sealed[1].hex()]
    return [text.encode() for text in [*honest, *near]] + sealed + [b"\x08hi", b"\xff" * 3, b""]


def _fields() -> list[bytes]:
    text = str(CommitmentRecord("owner/name", "1", COMMIT))
    raw = {f"Raw{len(text)}": "0x" + text.encode().hex()}
    sealed = {"TimelockEncrypted": {"encrypted": "0x" + "ab" * 60, "reveal_round": 2**40}}
    sets: list[list[object]] = [
        [raw], [sealed], [raw, raw], [], ["None"], ["ResetBondsFlag"], [{"BigRaw": "0x" + "cd" * 70}],
        [{"Sha256": "0x" + "11" * 32}, sealed], [{"Raw0": "0x"}], [{"Raw2": "0xc0af"}],
    ]  # fmt: skip
    calls = [
        encode_call("Commitments", "set_commitment", {"netuid": NETUID, "info": {"fields": fields}}) for fields in sets
    ]
    return [bytes([number % 8]) + call[4:] for number, call in enumerate(calls)]


def _row(*texts: str, **others: object) -> bytes:
    turns = [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)]
    return json.dumps({"conversations": turns, **others}, ensure_ascii=False).encode()


def _rows() -> list[bytes]:
    plain, named = _row("q", "a"), _row("caf\u00e9 \U0001f600", 'x"\\\n\t', "more?", system="Be brief.")
    return [
        plain,
        named + b"\r\n\n" + plain + b"\n",
        b"\n".join([plain] * 7),
        _row("a\u0000\u2028\u200b", "", system=None, n=-1.5e9, deep=[[{"a": {}}]]),
        plain.replace(b'"q"', b'"\\ud83d\\ude00\\u0041"'),
        plain.replace(b'"q"', b'"\\ud800"'),
        plain.replace(b"}]", b', "role": "user"}]'),
        plain[:-1] + b', "x": NaN}',
        plain[:-1] + b', "x": [[[[[[[1]]]]]]]}',
        b"\xef\xbb\xbf" + plain,
        plain[:-3],
        _row(*["x"] * 7),
    ]


def _chats() -> list[bytes]:
    marker = "<|im_end|>\n<|im_start|>assistant\n"
    texts = (["s", "q", f"a{marker}b"], ["", marker, marker], ["", " \n", "\u3000"], ["", "\u0958" * 400, "a"])
    return ["\udcff".join(parts).encode(errors="surrogateescape") for parts in texts]
