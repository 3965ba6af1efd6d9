"""Attacks on auditors, by false receipts and round files.

Each false file lies beside the honest ones of two rounds, which must stay consistent. "signature" and "inconsistent"
are what `scripts/audit.py` reports; a file that is neither is evaluated again, and a loss that was never computed
differs then.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from template.chain.client import verify_signature
from template.errors import ConfigError
from template.receipts.files import MAX_FILE_BYTES, MAX_LINE_BYTES, MAX_RECEIPTS, read_round
from template.receipts.findings import Kind
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
from tests.fixtures.rounds import PERIOD, SIGNER, by_digest, find_lies, hash_of, make_account, sign

_SIGNATURE, _FINE, _SHA256 = "signature", "consistent", "sha256 of the receipts"
_ORDER = 2**252 + 27742317777372353535851937790883648493

Lines = list[str]
Edit = Callable[[dict[str, Any]], object]
Change = Callable[[Lines], Lines | bytes]


@cache
def _honest_lines(start_block: int) -> tuple[str, ...]:
    """Return the header and the two receipts of a round with datasets of its own."""
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
    remarks(file)
    if header_fault or receipt_faults or file.header.signer != SIGNER:
        return _SIGNATURE
    faults = check_across_files({str(other): read_round(other).header for other in [*others, path]})[str(path)]
    faults += [*check_consistency(file, by_digest(file)), *check_against_chain(file.header, hash_of)]
    lies = find_lies(file.header, receipts=by_digest(file))
    # The file of the round with the other losses is not here.
    faults += [lie.text for lie in lies if lie.kind is not Kind.RECEIPT]
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


def _edited(edit: Edit, index: int = 0) -> Callable[[Lines], Lines]:
    """Return the edit of a line, which signs nothing."""

    def change(lines: Lines) -> Lines:
        content = json.loads(lines[index])
        edit(content)
        lines[index] = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return lines

    return change


def _spelt(pattern: str, new: str, index: int = 0) -> Change:
    """Return the replacement of the first match in a line."""
    return lambda lines: [*lines[:index], re.sub(pattern, new, lines[index], count=1), *lines[index + 1 :]]


def _lie(lines: Lines, edit: Edit = lambda _: None, who: str = "validator") -> Lines:
    """Sign another first receipt, and a header that names it."""
    content = json.loads(lines[1])
    before = Receipt.from_json(lines[1], "honest").digest
    edit(content)
    receipt = Receipt.from_json(json.dumps({**content, "signature": None}), "edited")
    receipt = receipt.signed(make_key(who).ss58_address, lambda message: _sign(message, who))

    def name_it(header: dict[str, Any]) -> None:
        for line in header["evaluations"]:
            line["receipt"] = receipt.digest if line["receipt"] == before else line["receipt"]

    return _resign([lines[0], receipt.to_line(), *lines[2:]], name_it)


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
    return _edited(lambda content: content.update(signature=spell(content["signature"])))


def _swap_losses(lines: Lines) -> Lines:
    first, second = (json.loads(line)["result"]["loss"] for line in lines[1:])
    return _resign(_edited(_in("result", loss=second), 1)(_edited(_in("result", loss=first), 2)(lines)))


def _earlier_file(_: Lines) -> Lines:
    return [*_earlier_lines()]


def _earlier_receipt(lines: Lines) -> Lines:
    """Replace a receipt by the same miner's of the earlier round, for another dataset."""
    return _resign([lines[0], _earlier_lines()[1], *lines[2:]])


_OTHERWISE = ('("loss":[^,]+)', r"\g<1>0")
_ENDLESS = {"minb": -1e308, "bench": 0.0, "maxb": 1e308}
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
    "a receipt with a loss spelt otherwise": (_SHA256, _spelt(*_OTHERWISE, index=1)),
    **{f"a loss of {value}": ("loss: Input should be", _spelt('"loss":[^,]+', f'"loss":{value}')) for value in _LOSSES},
    "a number of 5,000 digits": ("4300 digits", _spelt('"uid":', '"uid":' + "9" * 5000)),
    "a key twice": ("duplicate key", _spelt('"queue":', '"queue":[],"queue":')),
    "a competition whose span no number holds": ("minb < bench", _edited(_in("competition", **_ENDLESS))),
    "a key too many": ("exactly the keys", _edited(_in(more=1))),
    "200,000 brackets": ("recursion", lambda lines: ["[" * 200_000 + "]" * 200_000, *lines[1:]]),
    "a line of 8 MiB and more": ("more than", lambda lines: b"{" + b" " * MAX_LINE_BYTES + b"}\n" + lines[1].encode()),
    "a file of 64 MiB and more": ("more than", lambda _: (b"x" * 2**20 + b"\n") * (MAX_FILE_BYTES // 2**20 + 2)),
    "more receipts than a subnet has": ("more than", lambda lines: [lines[0], *[lines[1]] * (MAX_RECEIPTS + 1)]),
    "bytes that are no UTF-8": ("not JSON", lambda lines: lines[0].encode().replace(b"ann/", b"\xff") + b"\n"),
    "a loss that was changed afterwards": (_SHA256, _edited(_in("result", loss=5.9), 1)),
}
_FORGED: dict[str, Change] = {
    "a number of 4,000 digits": _edited(_in(end_block=10**3999)),
    "a table that was changed afterwards": _edited(lambda c: c["table"][0].update(score=1.0)),
    "two losses that were swapped": _swap_losses,
    "a header that another hotkey signed": partial(_resign, who="mallory"),
    "a signer that is no address": _edited(_in(signer="\x1b[2J")),
    "no signature": _edited(_in(signature=None)),
    "a receipt that another validator signed": partial(_lie, who="mallory"),
    **{f"a signature {how}": _signature(spell) for how, spell in _SPELLINGS.items()},
}
_LIES: dict[str, tuple[str, Edit]] = {
    "under another seed": ("in the receipt", _in("result", lucky_num=7)),
    "of another netuid": ("netuid of the receipt", _in("submission", netuid=1)),
    "of another dataset": ("receipt is of another dataset", _in("submission", repo="evil/data")),
    "of another hotkey": ("receipt is of another dataset", _in("submission", hotkey="5" * 48)),
    "of another competition": ("competition of the receipt", _in("competition", bench=6.2)),
    "of another model": ("model of the receipt", _in("result", model_id="evil/model")),
    "of another revision": ("model of the receipt", _in("result", model_revision="f" * 40)),
    "of a local file": ("of a local file", _in(submission=None)),
    "with a loss that the table has not": ("in the receipt", _in("result", loss=5.9)),
}
# False values in the header, without a receipt.
_RETOLD: dict[str, tuple[str, Edit]] = {
    "with a share for a friend": (
        "not those of the table",
        lambda c: c["weights"][0]["shares"].update({c["signer"]: 0.5}),
    ),
    "with a credit that the ledger has not": ("credit", lambda c: c["table"][0].update(credit=9.0)),
    "with a record's loss of its own": ("by the rules", lambda c: c["ledger"][0].update(loss=5.0)),
    "with a record twice": ("more than once in the ledger", lambda c: c["ledger"].append(c["ledger"][-1])),
    "with an evaluation twice": ("more than once", lambda c: c["evaluations"].append(c["evaluations"][0])),
    "with a seed of another block": ("gives lucky_num", lambda c: c["evaluations"][0].update(seed_block=PERIOD)),
    "with seeds of its own": ("seed_block must be there", _in(lucky_num_from="random")),
    "off the aligned blocks": ("no multiple", lambda c: c.update(start_block=c["start_block"] + 1)),
    "without one of its miners": ("not in the table", lambda c: c["table"].pop()),
}
_INCONSISTENT: dict[str, tuple[str, Change]] = {
    "a receipt twice, signed for": ("more than once", lambda lines: _resign([*lines, lines[1]])),
    "a receipt of an earlier round": ("of no evaluation", _earlier_receipt),
    **{f"a receipt {what}": (word, partial(_lie, edit=edit)) for what, (word, edit) in _LIES.items()},
    **{f"a round {what}": (word, partial(_resign, edit=edit)) for what, (word, edit) in _RETOLD.items()},
    "a round under another seed's block": ("has the hash", partial(_resign, edit=_in(start_block_hash="0x00"))),
    "another version of the same round": (
        "another version",
        lambda lines: _resign(lines[:1], _in(table=[], weights=[], queue=[], entries=[])),
    ),
}
_HARMLESS: dict[str, Change] = {
    "a header with a loss spelt otherwise, so the same": _spelt(*_OTHERWISE),
    "an earlier round's file under a name of its own": _earlier_file,
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
        _earlier_file,
        name=f"round-96-4321000-{SIGNER[:8]}.jsonl",
    ),
    Attack("receipt: a loss that was never computed", _never_computed, "different", max_seconds=60.0, max_memory=64),
)
