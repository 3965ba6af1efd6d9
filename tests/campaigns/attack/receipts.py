"""Attacks on auditors, by false receipts and round files.

Each false file lies beside the honest ones of two rounds, which must stay consistent. "signature" and "inconsistent"
are what `scripts/audit.py` reports; a file that is neither is evaluated again, and a loss that was never computed
differs then.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from template.chain.client import verify_signature
from template.errors import ConfigError
from template.receipts.files import MAX_FILE_BYTES, MAX_LINE_BYTES, MAX_RECEIPTS, read_round
from template.receipts.receipt import Receipt, compare_receipt
from template.receipts.round_file import RoundHeader, digest_lines, make_round_lines
from template.receipts.verify import (
    check_across_files,
    check_against_chain,
    check_consistency,
    check_signatures,
    remarks,
)
from tests.campaigns.attack.runner import Attack
from tests.fixtures.chain import make_key
from tests.fixtures.rounds import SIGNER, by_digest, hash_of, make_account, sign

_SIGNATURE, _FINE, _SHA256 = "signature", "consistent", "sha256 of the receipts"
_ORDER = 2**252 + 27742317777372353535851937790883648493

Lines = list[str]
Edit = Callable[[dict[str, Any]], object]
Change = Callable[[Lines], Lines | bytes]


@cache
def _honest_lines(start_block: int) -> tuple[str, ...]:
    """Return the header and the two receipts of a round; each round has other datasets."""
    account = make_account(start_block=start_block, commit=f"{start_block:040x}")
    return tuple(make_round_lines(account, signer=SIGNER, sign=sign))


_earlier_lines, _later_lines = partial(_honest_lines, 36), partial(_honest_lines, 436)


def audit(path: Path, others: list[Path]) -> str:
    """Return the verdict on a file beside others."""
    try:
        file = read_round(path)
    except ConfigError as error:
        return f"damaged: {error}"
    header_fault, receipt_faults = check_signatures(file, verify_signature)
    remarks(file, by_digest(file))
    if header_fault or receipt_faults or file.header.signer != SIGNER:
        return _SIGNATURE
    faults = check_across_files({str(other): read_round(other).header for other in [*others, path]})[str(path)]
    faults += [*check_consistency(file, by_digest(file)), *check_against_chain(file.header, hash_of)]
    return f"inconsistent: {' '.join(faults)}" if faults else _FINE


def _attacked(what: str, expected: str, change: Change, *, name: str = "false.jsonl") -> Attack:
    """Return the attack of a file with the later round's lines changed.

    Args:
        expected: the kind of the finding, and words that its message holds.
    """

    def run(folder: Path) -> str:
        honest = [folder / "earlier.jsonl", folder / "later.jsonl"]
        for path, lines in zip(honest, (_earlier_lines(), _later_lines()), strict=True):
            path.write_text("".join(f"{line}\n" for line in lines))
        changed = change([*_later_lines()])
        content = changed if isinstance(changed, bytes) else "".join(f"{line}\n" for line in changed).encode()
        (path := folder / name).write_bytes(content)
        kind, _, words = expected.partition(": ")
        verdict = audit(path, honest)
        if {audit(other, honest) for other in honest} != {_FINE}:
            return f"{verdict}; the honest ones are not consistent"
        return expected if verdict.startswith(kind) and words in verdict else verdict

    return Attack(name=f"round file: {what}", run=run, expected=expected, max_seconds=60.0, max_memory=320, max_disk=72)


def _sign(message: bytes, who: str) -> str:
    return str(make_key(who).sign(message).hex())


def _resign(lines: Lines, edit: Edit = lambda _: None, who: str = "validator") -> Lines:
    """Return the file with another header, signed by the validator by default."""
    content, rest = json.loads(lines[0]), lines[1:]
    content |= {"receipts": len(rest), "receipts_sha256": digest_lines(rest), "signer": make_key(who).ss58_address}
    edit(content)
    header = RoundHeader.from_json(json.dumps(content), "edited")
    return [dataclasses.replace(header, signature=_sign(header.message(), who)).to_line(), *rest]


def _edit(lines: Lines, index: int, edit: Edit) -> Lines:
    """Change a line without signing anything."""
    content = json.loads(lines[index])
    edit(content)
    return [*lines[:index], json.dumps(content, sort_keys=True, separators=(",", ":")), *lines[index + 1 :]]


def _lie(lines: Lines, edit: Edit, who: str = "validator") -> Lines:
    """Sign another first receipt, and a header for it with the old leaderboard."""
    content = json.loads(lines[1])
    edit(content)
    receipt = Receipt.from_json(json.dumps({**content, "signature": None}), "edited")
    receipt = receipt.signed(make_key(who).ss58_address, lambda message: _sign(message, who))
    return _resign([lines[0], receipt.to_line(), *lines[2:]])


def _in(part: str | None = None, /, **changes: Any) -> Edit:
    """Return the edit of a part of the content, or of all of it."""
    return lambda content: (content if part is None else content[part]).update(changes)


def _respelt(how: str, signature: str) -> str:
    """Return another spelling of a signature, some of the same two numbers."""
    # The scalar's highest bit is a mark.
    mark, scalar = divmod(int.from_bytes(bytes.fromhex(signature)[32:], "little"), 2**255)
    if how == "plus the order":
        scalar += _ORDER
    elif how == "negated":
        scalar = _ORDER - scalar
    elif how == "unmarked":
        mark = 0
    return signature[:64] + (mark * 2**255 + scalar).to_bytes(32, "little").hex()


_SPELLINGS: dict[str, Callable[[str], str]] = {
    **{how: partial(_respelt, how) for how in ("plus the order", "negated", "unmarked")},
    "in upper case": str.upper,
    "with 0x": lambda text: "0x" + text,
    "with a blank": lambda text: text[:64] + " " + text[64:],
    "with digits of another script": lambda text: text.replace("1", "\u0661"),
    "cut": lambda text: text[:-2],
    "of zeros": lambda text: "0" * 128,
    "of nothing": lambda text: "",
}


def _signature(spell: Callable[[str], str]) -> Change:
    return lambda lines: _edit(lines, 0, lambda content: content.update(signature=spell(content["signature"])))


def _swap_losses(lines: Lines) -> Lines:
    first, second = (json.loads(line)["result"]["loss"] for line in lines[1:])
    return _resign(_edit(_edit(lines, 1, _in("result", loss=second)), 2, _in("result", loss=first)))


def _respell(line: str, how: Callable[[str], str] = lambda loss: f"{loss}0") -> str:
    """Return the line with its first loss spelt differently."""
    before, name, rest = line.partition('"loss":')
    loss, comma, behind = rest.partition(",")
    return f"{before}{name}{how(loss)}{comma}{behind}"


def _loss_in_header(value: str, lines: Lines) -> Lines:
    return [_respell(lines[0], lambda _: value), *lines[1:]]


def _earlier_receipt(lines: Lines) -> Lines:
    """Replace a receipt by the same miner's of the earlier round, for another dataset."""
    return _resign([lines[0], _earlier_lines()[1], *lines[2:]])


_LOSSES = ("1e400", "-1e400", "NaN", "Infinity", "true", '"6"')
_DAMAGED: dict[str, tuple[str, Change]] = {
    "an empty file": ("incomplete", lambda _: b""),
    "a file of line feeds": ("more than", lambda _: b"\n" * 5000),
    "a file cut in its last line": ("incomplete", lambda lines: "\n".join(lines).encode()[:-9]),
    "a file without its last line": ("after the header", lambda lines: lines[:-1]),
    "a file without its header": ("expected a JSON object", lambda lines: lines[1:]),
    "two headers": ("after the header", lambda lines: [lines[0], *lines]),
    "receipts in another order": (_SHA256, lambda lines: [lines[0], lines[2], lines[1]]),
    "a receipt twice": ("after the header", lambda lines: [*lines, lines[1]]),
    "carriage returns": (_SHA256, lambda lines: "".join(f"{line}\r\n" for line in lines).encode()),
    "a receipt with a loss spelt otherwise": (_SHA256, lambda lines: [lines[0], _respell(lines[1]), lines[2]]),
    **{f"a loss of {value}": ("loss: Input should be", partial(_loss_in_header, value)) for value in _LOSSES},
    "a number of 5,000 digits": ("4300 digits", lambda lines: [lines[0].replace('"uid":', '"uid":' + "9" * 5000, 1)]),
    "a key twice": (
        "duplicate key",
        lambda lines: [lines[0].replace('"queue":', '"queue":[],"queue":', 1), *lines[1:]],
    ),
    "a competition whose span no number holds": (
        "minb < bench",
        lambda lines: _edit(lines, 0, _in("competition", minb=-1e308, bench=0.0, maxb=1e308)),
    ),
    "a key too many": ("exactly the keys", lambda lines: _edit(lines, 0, _in(more=1))),
    "200,000 brackets": ("recursion", lambda lines: ["[" * 200_000 + "]" * 200_000, *lines[1:]]),
    "a line of 8 MiB and more": ("more than", lambda lines: b"{" + b" " * MAX_LINE_BYTES + b"}\n" + lines[1].encode()),
    "a file of 64 MiB and more": ("more than", lambda _: (b"x" * 2**20 + b"\n") * (MAX_FILE_BYTES // 2**20 + 2)),
    "more receipts than a subnet has": ("more than", lambda lines: [lines[0], *[lines[1]] * (MAX_RECEIPTS + 1)]),
    "bytes that are no UTF-8": ("not JSON", lambda lines: lines[0].encode().replace(b"ann/", b"\xff") + b"\n"),
    "a loss that was changed afterwards": (_SHA256, lambda lines: _edit(lines, 1, _in("result", loss=5.9))),
}
_FORGED: dict[str, Change] = {
    "a number of 4,000 digits": lambda lines: _edit(lines, 0, _in(end_block=10**3999)),
    "a table that was changed afterwards": lambda lines: _edit(lines, 0, lambda c: c["table"][0].update(score=1.0)),
    "two losses that were swapped": _swap_losses,
    "a header that another hotkey signed": lambda lines: _resign(lines, who="mallory"),
    "a signer that is no address": lambda lines: _edit(lines, 0, _in(signer="\x1b[2J")),
    "no signature": lambda lines: _edit(lines, 0, _in(signature=None)),
    "a receipt that another validator signed": lambda lines: _lie(lines, lambda _: None, "mallory"),
    **{f"a signature {how}": _signature(spell) for how, spell in _SPELLINGS.items()},
}
_LIES: dict[str, tuple[str, Edit]] = {
    "under another seed": ("evaluated with lucky_num", _in("result", lucky_num=7)),
    "of another netuid": ("netuid of the receipt", _in("submission", netuid=1)),
    "of another dataset": ("not in entries", _in("submission", repo="evil/data")),
    "of another hotkey": ("not in entries", _in("submission", hotkey="5" * 48)),
    "of another competition": ("competition of the receipt", _in("competition", bench=6.2)),
    "of another model": ("model of the receipt", _in("result", model_id="evil/model")),
    "of another revision": ("model of the receipt", _in("result", model_revision="f" * 40)),
    "of a local file": ("of a local file", _in(submission=None)),
    "with a loss that the table has not": ("names another receipt", _in("result", loss=5.9)),
}
_INCONSISTENT: dict[str, tuple[str, Change]] = {
    "a receipt twice, signed for": ("more than one receipt", lambda lines: _resign([*lines, lines[1]])),
    "a receipt of an earlier round": ("not in entries", _earlier_receipt),
    **{f"a receipt {what}": (word, partial(_lie, edit=edit)) for what, (word, edit) in _LIES.items()},
    "a round under another seed's block": ("has the hash", lambda lines: _resign(lines, _in(start_block_hash="0x00"))),
    "another version of the same round": (
        "another version",
        lambda lines: _resign(lines[:1], _in(table=[], weights=[], queue=[], entries=[])),
    ),
}
_HARMLESS: dict[str, Change] = {
    "a header with a loss spelt otherwise, so the same": lambda lines: [_respell(lines[0]), *lines[1:]],
    "an earlier round's file under a name of its own": lambda _: [*_earlier_lines()],
    "a signature taken apart and put together": _signature(partial(_respelt, "as it was")),
}


def _never_computed(_: Path) -> str:
    """A validator signs a loss that only training again disproves."""
    receipt = Receipt.from_json(_later_lines()[1], "the receipt")
    lie = dataclasses.replace(receipt, result=dataclasses.replace(receipt.result, loss=receipt.result.loss - 0.125))
    return str(compare_receipt(lie, receipt.result).verdict)


ATTACKS: tuple[Attack, ...] = (
    *(_attacked(what, f"damaged: {word}", change) for what, (word, change) in _DAMAGED.items()),
    *(_attacked(what, _SIGNATURE, change) for what, change in _FORGED.items()),
    *(_attacked(what, f"inconsistent: {word}", change) for what, (word, change) in _INCONSISTENT.items()),
    *(_attacked(what, _FINE, change) for what, change in _HARMLESS.items()),
    _attacked(
        "an earlier one under a later one's name",
        "inconsistent: name of another round",
        lambda _: [*_earlier_lines()],
        name=f"round-96-4321000-{SIGNER[:8]}.jsonl",
    ),
    Attack("receipt: a loss that was never computed", _never_computed, "different", max_seconds=60.0, max_memory=64),
)
