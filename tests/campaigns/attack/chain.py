"""What chain data may do to whoever believes it: a table of attacks.

Commitments of every shape, by every hotkey and at every pace, are here; what a node may say is in `attack_nodes`, and
what receipts and round files may say in `attack_receipts`. After each, the honest must be paid what they are due, no
odd name may stand on the disk, and what a person is shown must be plain.
"""

import atexit
import hashlib
import itertools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from template.localnet.chain import pallets
from template.localnet.chain.ledger import Ledger
from template.localnet.chain.scale_codec import encode_string
from tests.campaigns.attack import nodes, receipts
from tests.campaigns.attack.environment import HONEST, LARGE, POOL, Arena, arena, make_file
from tests.campaigns.attack.runner import Attack

_BAD, _ABSENT, _SCORED = "miner: bad_commitment", "not there", "scored"
_WRONG, _DUPLICATE, _BEFORE = "miner: wrong_competition", "miner: duplicate", "miner: before_registration"
_SHA = "0123456789abcdef" * 4
_GOOD = f"mallory/data:arena:{_SHA[:40]}"
_FUTURE_ROUND = 2**40
_CROWD, _BLOCKS = 8, 40

_numbers = itertools.count()


@cache
def _stage() -> Arena:
    """The arena in which commitments are judged one after the other, by another hotkey each."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(arena(Path(stack.enter_context(tempfile.TemporaryDirectory()))))


def _raw(content: bytes) -> dict[str, bytes]:
    return {f"Raw{len(content)}": content}


def _said(what: str, expected: str, *fields: object) -> Attack:
    """Somebody commits these fields, and nobody knows them from another."""

    def run(_: Path) -> str:
        here, name = _stage(), f"mallory-{next(_numbers)}"
        here.register(name)
        here.commit(name, *fields)
        here.pass_rounds()
        return here.verdict(name)

    return Attack(name=what, run=run, expected=expected, max_seconds=30.0, max_memory=64)


def _texts() -> list[Attack]:
    """One Raw field each, with these bytes in it."""
    texts: dict[str, tuple[bytes, str]] = {
        "an empty text": (b"", _ABSENT),
        "128 letters": (b"x" * 128, _BAD),
        "128 colons": (b":" * 128, _BAD),
        "128 line feeds": (b"\n" * 128, _BAD),
        "a NUL in the repo": (b"mallory/da\0ta:arena:" + _SHA[:40].encode(), _BAD),
        "a NUL behind a good text": (_GOOD.encode() + b"\0", _BAD),
        "a line feed and a forged log line": (_GOOD.encode() + b"\nINFO weights set by mallory", _BAD),
        "a carriage return in front": (b"\r" + _GOOD.encode(), _BAD),
        "terminal escapes": (b"\x1b[2J\x1b]0;owned\x07\x1b[31m/x:arena:" + _SHA[:40].encode(), _BAD),
        "an 8-bit terminal escape": ("\x9b2J".encode() + _GOOD.encode(), _BAD),
        "a bidi override": ("mallory/\u202eatad:arena:".encode() + _SHA[:40].encode(), _BAD),
        "a zero-width joiner": ("mal\u200dlory/data:arena:".encode() + _SHA[:40].encode(), _BAD),
        "a byte order mark in front": (b"\xef\xbb\xbf" + _GOOD.encode(), _BAD),
        "letters that look alike": ("m\u0430llory/data:arena:".encode() + _SHA[:40].encode(), _BAD),
        "digits of another script": (_GOOD[:-1].encode() + "\u0663".encode(), _BAD),
        "full-width hex": (b"m/d:arena:" + "\uff10".encode() * 39, _BAD),
        "upper-case hex": (b"mallory/data:arena:" + _SHA[:40].upper().encode(), _BAD),
        "a commit of 39 digits": (_GOOD[:-1].encode(), _BAD),
        "a commit of 41 digits": (_GOOD.encode() + b"0", _BAD),
        "a branch": (b"mallory/data:arena:main", _BAD),
        "a ref": (b"mallory/data:arena:refs/pr/1", _BAD),
        "white space around": (b" " + _GOOD.encode() + b" ", _BAD),
        "white space between": (_GOOD.replace(":", " : ").encode(), _BAD),
        "a path upwards": (b"../x:arena:" + _SHA[:40].encode(), _BAD),
        "a path upwards in the middle": (b"a/../../b:arena:" + _SHA[:40].encode(), _BAD),
        "an absolute path": (b"/etc/passwd:arena:" + _SHA[:40].encode(), _BAD),
        "two dots as the repo": (b"mallory/..:arena:" + _SHA[:40].encode(), _BAD),
        "a dash in front": (b"-rf/data:arena:" + _SHA[:40].encode(), _BAD),
        "two dashes, which part folder names": (b"mal--lory/data:arena:" + _SHA[:40].encode(), _BAD),
        "percent escapes": (b"mallory%2f..%2f/x:arena:" + _SHA[:40].encode(), _BAD),
        "a backslash": (b"mallory\\data:arena:" + _SHA[:40].encode(), _BAD),
        "a url": (b"https://evil.example/x:arena:" + _SHA[:40].encode(), _BAD),
        "no owner": (b"data:arena:" + _SHA[:40].encode(), _BAD),
        "empty parts": (b"::", _BAD),
        "an empty competition": (b"mallory/data::" + _SHA[:40].encode(), _BAD),
        "an empty commit": (b"mallory/data:arena:", _BAD),
        "a fourth part": (_GOOD.encode() + b":", _BAD),
        "JSON": (b'{"hotkey": "ann", "score": 1}', _BAD),
        "a text that begins with 0x": (b"0x6d616c6c6f7279", _BAD),
        "a format string": (b"{}{0}%s%n{__class__}:arena:x", _BAD),
        "SQL": (b"x'); DROP TABLE verdicts;--", _BAD),
        "two dots as the competition": (b"mallory/data:..:" + _SHA[:40].encode(), _WRONG),
        "another competition": (_GOOD.replace("arena", "Arena").encode(), _WRONG),
        "bytes that are no UTF-8": (b"\xff\xfe" + _GOOD.encode(), _ABSENT),
        "an overlong slash": (b"mallory\xc0\xafdata:arena:" + _SHA[:40].encode(), _ABSENT),
        "a surrogate": (b"mallory/\xed\xa0\x80:arena:" + _SHA[:40].encode(), _ABSENT),
        "half a letter": (_GOOD.encode() + b"\xc3", _ABSENT),
    }
    return [_said(f"a commitment of {what}", expected, _raw(text)) for what, (text, expected) in texts.items()]


def _shapes() -> list[Attack]:
    """Variants of the chain's `Data`, and other numbers of fields than one."""
    good = _raw(_GOOD.encode())
    sealed = {"encrypted": b"no ciphertext", "reveal_round": _FUTURE_ROUND}
    shapes: dict[str, tuple[object, ...]] = {
        "no field": (),
        "three good fields": (good, good, good),
        "a good field beside None": (good, "None"),
        "a good field beside ResetBondsFlag": ("ResetBondsFlag", good),
        "the field None": ("None",),
        "the field ResetBondsFlag": ("ResetBondsFlag",),
        "a good text as BigRaw": ({"BigRaw": _GOOD.encode()},),
        "512 bytes of BigRaw": ({"BigRaw": b"\x1b[2J" * 128},),
        **{f"a hash as {name}": ({name: bytes(32)},) for name in ("BlakeTwo256", "Sha256", "Keccak256", "ShaThree256")},
        "a seal of garbage": ({"TimelockEncrypted": sealed},),
        "an empty seal": ({"TimelockEncrypted": {**sealed, "encrypted": b""}},),
        "a seal of 1,024 bytes": ({"TimelockEncrypted": {**sealed, "encrypted": b"\xff" * 1024}},),
        "a seal for round 0": ({"TimelockEncrypted": {**sealed, "reveal_round": 0}},),
        "a seal for the last round of all": ({"TimelockEncrypted": {**sealed, "reveal_round": 2**64 - 1}},),
        "a seal beside a good field": ({"TimelockEncrypted": sealed}, good),
        "three seals": ({"TimelockEncrypted": sealed},) * 3,
    }
    return [_said(what, _ABSENT, *fields) for what, fields in shapes.items()]


def _opened(what: str, expected: str, plaintext: bytes) -> Attack:
    """Somebody seals this, and the chain opens it."""

    def run(_: Path) -> str:
        here, name = _stage(), f"mallory-{next(_numbers)}"
        here.register(name)
        here.commit(name, {"TimelockEncrypted": {"encrypted": b"sealed", "reveal_round": _FUTURE_ROUND}})
        with Ledger(here.net.chain_file) as ledger, ledger.write() as state:
            pallets.reveal(state, here.hotkey(name), plaintext)
        here.pass_rounds()
        return here.verdict(name)

    return Attack(name=what, run=run, expected=expected, max_seconds=30.0, max_memory=64)


def _played(
    what: str, expected: str, play: Callable[[Arena], str], *, max_seconds: float = 60.0, max_memory: int = 96
) -> Attack:
    """Somebody plays with the rules, in an arena of its own. The disk is the chain's, the hub's and the state's."""

    def run(folder: Path) -> str:
        with arena(folder) as here:
            return play(here)

    return Attack(name=what, run=run, expected=expected, max_seconds=max_seconds, max_memory=max_memory, max_disk=32)


def _same_repo(here: Arena, *, is_one_block: bool) -> str:
    """Two hotkeys commit one repo at one commit; whoever was first is paid, and within a block one of them."""
    here.register("author", "thief")
    text = here.text("author/data", here.upload("author/data", LARGE))
    if is_one_block:
        with here.one_block():
            here.say("thief", text)
            here.say("author", text)
    else:
        here.say("author", text)
        here.say("thief", text)
    here.pass_rounds(2)
    told = [here.verdict("author"), here.verdict("thief")]
    return " and ".join(sorted(told) if is_one_block else told)


def _late_publication(here: Arena, *, by_digest: bool) -> str:
    """Somebody commits early, and has a file in the repo only when the author's can be copied."""
    here.register("author", "thief")
    hidden = here.upload("thief/data", LARGE, is_private=True)
    digest = hashlib.sha256(make_file(LARGE)).hexdigest()
    here.say("thief", here.text("thief/data", digest if by_digest else hidden))
    here.pass_rounds(2)
    here.chain.advance(400)
    here.enter("author", LARGE)
    here.pass_rounds()
    here.hub.store.set_private("datasets", "thief/data", False)
    here.chain.advance(2000)
    here.pass_rounds(2)
    return f"{here.verdict('author')} and {here.verdict('thief')}"


def _recommit(here: Arena) -> str:
    """A crowd commits another text in every block, with no limit but the chain's blocks."""
    crowd = [f"crowd-{at}" for at in range(_CROWD)]
    here.register(*crowd)
    here.chain.set_hyperparameter("MaxSpace", 10**9)
    for block in range(_BLOCKS):
        with here.one_block():
            for name in crowd:
                here.say(name, here.text(f"{name}/x{block}", _SHA[:40]))
        here.tick()
    rows = len(here.store.submissions())
    here.pass_rounds()
    told = here.verdict("ann")
    here.chain.advance(7300)
    here.pass_rounds(2)
    return f"{told}, {rows} rows, a day later {len(here.store.submissions())}"


def _alternate(here: Arena) -> str:
    """Somebody commits two datasets in turn, in every block."""
    here.register("mallory")
    here.chain.set_hyperparameter("MaxSpace", 10**9)
    texts = [here.enter("mallory", rows, repo=repo) for repo, rows in (("m/a", POOL[:20]), ("m/b", POOL[20:40]))]
    for block in range(60):
        here.say("mallory", texts[block % 2])
        here.tick()
    here.pass_rounds(2)
    return f"{here.verdict('mallory')}, {here.executor.scored - len(HONEST)} scores"


def _left_behind(here: Arena) -> str:
    """Ten thousand hotkeys without a uid have commitments on chain."""
    with Ledger(here.net.chain_file) as ledger, ledger.write() as state:
        for number in range(10_000):
            text = here.text(f"gone-{number}/data", _SHA[:40]).encode()
            info = {"fields": [{f"Raw{len(text)}": "0x" + text.hex()}]}
            state.put("CommitmentOf", f"5{number:047d}", {"deposit": 0, "block": state.block, "info": info})
    here.pass_rounds()
    return f"{here.verdict('ann')}, {len(here.store.submissions())} rows"


def _earlier_life(here: Arena, *, is_sealed: bool) -> str:
    """A hotkey loses its uid and comes back: what it committed before stands for nothing."""
    here.register("mallory")
    text = here.enter("mallory", POOL[:20])
    if is_sealed:
        here.commit("mallory", {"TimelockEncrypted": {"encrypted": b"sealed", "reveal_round": _FUTURE_ROUND}})
        here.chain.reveal(here.hotkey("mallory"), text)
    here.chain.deregister(here.hotkey("mallory"))
    here.register("mallory")
    here.pass_rounds()
    return here.verdict("mallory")


def _thief_of_a_seal(here: Arena) -> str:
    """Somebody copies what a seal opened to, in the block of the opening; the seal's own block is the earlier."""
    here.register("author", "thief")
    here.upload("author/data", LARGE)
    here.upload("thief/data", LARGE)
    digest = hashlib.sha256(make_file(LARGE)).hexdigest()
    here.commit("author", {"TimelockEncrypted": {"encrypted": b"sealed", "reveal_round": _FUTURE_ROUND}})
    here.chain.advance(3)
    with here.one_block():
        here.say("thief", here.text("thief/data", digest))
        here.chain.reveal(here.hotkey("author"), here.text("author/data", digest))
    here.pass_rounds(2)
    return f"{here.verdict('author')} and {here.verdict('thief')}"


def _cut_tempo(here: Arena) -> str:
    """The owner changes the tempo in the middle of a round, again and again."""
    for tempo in (1, 65535, 2, 360, 7):
        for _ in range(3):
            here.tick()
        here.chain.set_hyperparameter("Tempo", tempo)
    here.pass_rounds(2)
    return here.verdict("ann")


def _plays() -> list[Attack]:
    pair = f"{_SCORED} and {_DUPLICATE}"
    return [
        _played("one repo by two hotkeys", pair, lambda here: _same_repo(here, is_one_block=False)),
        _played(
            "one repo by two hotkeys in one block",
            f"{_DUPLICATE} and {_SCORED}",
            lambda here: _same_repo(here, is_one_block=True),
        ),
        _played("a promised file that comes late", pair, lambda here: _late_publication(here, by_digest=True)),
        _played("a private repo that opens late", pair, lambda here: _late_publication(here, by_digest=False)),
        _played("what a seal opened to, copied in its block", pair, _thief_of_a_seal),
        _played(
            f"{_CROWD} hotkeys commit another text in every block",
            f"{_SCORED}, {_BLOCKS * _CROWD + 2} rows, a day later {_CROWD + 2}",
            _recommit,
        ),
        _played("two datasets in turn in every block", f"{_SCORED}, 2 scores", _alternate),
        _played("10,000 commitments without a uid", f"{_SCORED}, 2 rows", _left_behind, max_memory=192),
        _played("a text of an earlier life", _BEFORE, lambda here: _earlier_life(here, is_sealed=False)),
        _played("a seal of an earlier life", _BEFORE, lambda here: _earlier_life(here, is_sealed=True)),
        _played("a tempo that changes within the round", _SCORED, _cut_tempo),
    ]


ATTACKS: tuple[Attack, ...] = (
    *_texts(),
    *_shapes(),
    _opened("a seal that opens to a forged log line", _BAD, encode_string(_GOOD + "\n2026 INFO")),
    _opened("a seal that opens to terminal escapes", _BAD, encode_string("\x1b[2J\u202e")),
    _opened("a seal that opens to bytes without a length", _ABSENT, _GOOD.encode()),
    _opened("a seal that opens to no UTF-8", _ABSENT, b"\x08\xff\xfe"),
    _opened("a seal that opens to nothing", _ABSENT, b""),
    _opened("a seal that opens to a length and no text", _BAD, b"\x00"),
    _opened("a seal that opens to what begins with 0x", _BAD, encode_string("0xfffe")),
    *_plays(),
    *nodes.ATTACKS,
    *receipts.ATTACKS,
)
