"""Seeds of fuzzing: honest inputs, signed by real keys, and faulty ones."""

import json
from collections.abc import Mapping
from functools import cache

from template.competition import CommitmentRecord
from template.localnet.chain.scale_codec import encode_call
from template.localnet.network import NETUID
from template.receipts.round_file import make_round_lines
from tests.fixtures.rounds import ACCOUNT, SIGNER, sign

COMMIT, DIGEST = "0123456789abcdef" * 2 + "01234567", "0123456789abcdef" * 4
RECEIPTS = tuple(ACCOUNT.receipts.values())
# All that the validator has signed.
HONEST_MESSAGES = frozenset(receipt.message() for receipt in RECEIPTS)


@cache
def make_seeds() -> Mapping[str, list[bytes]]:
    """Return inputs by the name of the target."""
    receipts = [receipt.to_line().encode() for receipt in RECEIPTS]
    lines = make_round_lines(ACCOUNT, signer=SIGNER, sign=sign)
    a_round = b"".join(line.encode() + b"\n" for line in lines)
    return {
        "commitment": _commitments(),
        "fields": _fields(),
        "rows": _rows(),
        "chat": [*_rows(), *_chats()],
        "receipt": [*receipts, RECEIPTS[0].to_json().encode(), b"{}", b"[" * 2000],
        "round": [a_round, a_round.replace(b'"chain"', b'"fixed"'), b"\n", b"{}\n"],
    }


def _commitments() -> list[bytes]:
    honest = [str(CommitmentRecord("owner/name_1.x", "1", commit)) for commit in (COMMIT, DIGEST)]
    sealed = [bytes([len(text) << 2 & 0xFF | 1, len(text) >> 6]) + text.encode() for text in honest]
    near = [f"a--b/c:1:{COMMIT}", f"a/b.git:1:{COMMIT}", f"a/b:1:{COMMIT[:-1]}G", f"a/b:1:{COMMIT}:"]
    near += ["0x6869", "a" * 129, "0x00", "0x" + sealed[1].hex()]
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
