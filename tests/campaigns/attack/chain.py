"""Attacks by chain data: commitments of every shape, by any hotkey, at any pace.

A node's lies are in `nodes`, receipts and round files in `receipts`. After each attack the honest miners must be paid
what they are due, no odd name may be on the disk, and what a person is shown must be printable.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from template.localnet.chain import pallets
from template.localnet.chain.scale_codec import encode_string
from tests.campaigns.attack import nodes, receipts
from tests.campaigns.attack.environment import HONEST, LARGE, POOL, Environment, in_environment, shared_environment
from tests.campaigns.attack.runner import Attack
from tests.campaigns.synthetic_subnet import FAR_REVEAL_ROUND, make_file
from tests.fixtures.chain import register_again

_BAD, _ABSENT, _EVALUATED = "miner: bad_commitment", "absent", "evaluated"
_WRONG, _DUPLICATE, _BEFORE = "miner: wrong_competition", "miner: duplicate", "miner: before_registration"
_SHA = "0123456789abcdef" * 4
_COMMIT = _SHA[:40].encode()
_GOOD = f"mallory/data:arena:{_SHA[:40]}"
_MINERS, _BLOCKS = 8, 40

_numbers = itertools.count()
_Act = Callable[[Environment, str], object]
# What one new hotkey does, its name and the expected verdict.
_Single = tuple[str, str, _Act]


def _act(env: Environment, act: _Act) -> str:
    """Let a new hotkey act; return its name."""
    miner = f"mallory-{next(_numbers)}"
    env.subnet.register(miner)
    act(env, miner)
    return miner


def _alone(name: str, expected: str, act: _Act) -> Attack:
    """Return the attack of a hotkey that acts and waits for its verdict."""

    def run(_: Path) -> str:
        env = shared_environment()
        miner = _act(env, act)
        env.pass_rounds()
        return env.verdict(miner)

    return Attack(name, run, expected, max_seconds=30.0, max_memory=64, is_long=True)


def _together(singles: Sequence[_Single]) -> Attack:
    """Return all of these attacks, in one round."""

    def run(_: Path) -> str:
        env = shared_environment()
        miners = [_act(env, act) for _, _, act in singles]
        env.pass_rounds(2)
        verdicts = [
            (name, expected, env.line(miner)) for (name, expected, _), miner in zip(singles, miners, strict=True)
        ]
        wrong = [f"{name}: {found}" for name, expected, found in verdicts if found != expected]
        return "; ".join([*wrong, *env.damage()])

    return Attack("every commitment in one round", run, "", max_seconds=30.0, max_memory=64)


def _committed(name: str, expected: str, *fields: object) -> _Single:
    return name, expected, lambda env, miner: env.subnet.commit_fields({miner: fields})


def _raw(content: bytes) -> dict[str, bytes]:
    return {f"Raw{len(content)}": content}


# One Raw field with these bytes.
_TEXTS: dict[str, tuple[bytes, str]] = {
    "an empty text": (b"", _ABSENT),
    "128 letters": (b"x" * 128, _BAD),
    "128 colons": (b":" * 128, _BAD),
    "128 line feeds": (b"\n" * 128, _BAD),
    "a NUL in the repo": (b"mallory/da\0ta:arena:" + _COMMIT, _BAD),
    "a NUL behind a good text": (_GOOD.encode() + b"\0", _BAD),
    "a line feed and a forged log line": (_GOOD.encode() + b"\nINFO weights set by mallory", _BAD),
    "a carriage return in front": (b"\r" + _GOOD.encode(), _BAD),
    "terminal escapes": (b"\x1b[2J\x1b]0;owned\x07\x1b[31m/x:arena:" + _COMMIT, _BAD),
    "an 8-bit terminal escape": ("\x9b2J".encode() + _GOOD.encode(), _BAD),
    "a bidi override": ("mallory/\u202eatad:arena:".encode() + _COMMIT, _BAD),
    "a zero-width joiner": ("mal\u200dlory/data:arena:".encode() + _COMMIT, _BAD),
    "a byte order mark in front": (b"\xef\xbb\xbf" + _GOOD.encode(), _BAD),
    "letters that look alike": ("m\u0430llory/data:arena:".encode() + _COMMIT, _BAD),
    "digits of another script": (_GOOD[:-1].encode() + "\u0663".encode(), _BAD),
    "full-width hex": (b"m/d:arena:" + "\uff10".encode() * 39, _BAD),
    "upper-case hex": (b"mallory/data:arena:" + _SHA[:40].upper().encode(), _BAD),
    "a commit of 39 digits": (_GOOD[:-1].encode(), _BAD),
    "a commit of 41 digits": (_GOOD.encode() + b"0", _BAD),
    "a branch": (b"mallory/data:arena:main", _BAD),
    "a ref": (b"mallory/data:arena:refs/pr/1", _BAD),
    "white space around": (b" " + _GOOD.encode() + b" ", _BAD),
    "white space between": (_GOOD.replace(":", " : ").encode(), _BAD),
    "a path upwards": (b"../x:arena:" + _COMMIT, _BAD),
    "a path upwards in the middle": (b"a/../../b:arena:" + _COMMIT, _BAD),
    "an absolute path": (b"/etc/passwd:arena:" + _COMMIT, _BAD),
    "two dots as the repo": (b"mallory/..:arena:" + _COMMIT, _BAD),
    "a dash in front": (b"-rf/data:arena:" + _COMMIT, _BAD),
    "two dashes, which part folder names": (b"mal--lory/data:arena:" + _COMMIT, _BAD),
    "percent escapes": (b"mallory%2f..%2f/x:arena:" + _COMMIT, _BAD),
    "a backslash": (b"mallory\\data:arena:" + _COMMIT, _BAD),
    "a url": (b"https://evil.example/x:arena:" + _COMMIT, _BAD),
    "no owner": (b"data:arena:" + _COMMIT, _BAD),
    "empty parts": (b"::", _BAD),
    "an empty competition": (b"mallory/data::" + _COMMIT, _BAD),
    "an empty commit": (b"mallory/data:arena:", _BAD),
    "a fourth part": (_GOOD.encode() + b":", _BAD),
    "JSON": (b'{"hotkey": "ann", "score": 1}', _BAD),
    "a text that begins with 0x": (b"0x6d616c6c6f7279", _BAD),
    "a format string": (b"{}{0}%s%n{__class__}:arena:x", _BAD),
    "SQL": (b"x'); DROP TABLE verdicts;--", _BAD),
    "two dots as the competition": (b"mallory/data:..:" + _COMMIT, _WRONG),
    "another competition": (_GOOD.replace("arena", "Environment").encode(), _WRONG),
    "bytes that are no UTF-8": (b"\xff\xfe" + _GOOD.encode(), _ABSENT),
    "an overlong slash": (b"mallory\xc0\xafdata:arena:" + _COMMIT, _ABSENT),
    "a surrogate": (b"mallory/\xed\xa0\x80:arena:" + _COMMIT, _ABSENT),
    "half a letter": (_GOOD.encode() + b"\xc3", _ABSENT),
}

# Other variants of the chain's `Data`, and other numbers of fields.
_FIELD = _raw(_GOOD.encode())
_SEALED = {"encrypted": b"no ciphertext", "reveal_round": FAR_REVEAL_ROUND}
_FIELDS: dict[str, tuple[object, ...]] = {
    "no field": (),
    "three good fields": (_FIELD, _FIELD, _FIELD),
    "a good field beside None": (_FIELD, "None"),
    "a good field beside ResetBondsFlag": ("ResetBondsFlag", _FIELD),
    "the field None": ("None",),
    "the field ResetBondsFlag": ("ResetBondsFlag",),
    "a good text as BigRaw": ({"BigRaw": _GOOD.encode()},),
    "512 bytes of BigRaw": ({"BigRaw": b"\x1b[2J" * 128},),
    **{f"a hash as {name}": ({name: bytes(32)},) for name in ("BlakeTwo256", "Sha256", "Keccak256", "ShaThree256")},
    "a seal of garbage": ({"TimelockEncrypted": _SEALED},),
    "an empty seal": ({"TimelockEncrypted": {**_SEALED, "encrypted": b""}},),
    "a seal of 1,024 bytes": ({"TimelockEncrypted": {**_SEALED, "encrypted": b"\xff" * 1024}},),
    "a seal for round 0": ({"TimelockEncrypted": {**_SEALED, "reveal_round": 0}},),
    "a seal for the last round of all": ({"TimelockEncrypted": {**_SEALED, "reveal_round": 2**64 - 1}},),
    "a seal beside a good field": ({"TimelockEncrypted": _SEALED}, _FIELD),
    "three seals": ({"TimelockEncrypted": _SEALED},) * 3,
}


def _revealed(what: str, expected: str, plaintext: bytes) -> _Single:
    """Return the attack in which a hotkey seals what the chain reveals as this."""

    def act(env: Environment, miner: str) -> None:
        env.subnet.seal(miner)
        with env.subnet.chain.write() as state:
            pallets.reveal(state, env.subnet.hotkey(miner), plaintext)

    return what, expected, act


def _both(env: Environment, first: str = "author", second: str = "thief") -> list[str]:
    env.pass_rounds(2)
    return [env.verdict(first), env.verdict(second)]


def _same_repo(env: Environment, *, is_one_block: bool) -> str:
    """Two hotkeys commit one repo at one commit: only the first is paid."""
    env.subnet.register("author", "thief")
    text = env.subnet.text("author/data", env.subnet.upload("author/data", LARGE))
    if is_one_block:
        env.subnet.commit_together({"thief": text, "author": text})
        return " and ".join(sorted(_both(env)))
    env.subnet.commit("author", text)
    env.subnet.commit("thief", text)
    return " and ".join(_both(env))


def _late_file(env: Environment, *, by_digest: bool) -> str:
    """A miner hides the file of its commitment, and shows it once another has published the same rows.

    Only who has the rows can commit to them, so they are the miner's, and the other's dataset is the duplicate.
    """
    env.subnet.register("hider", "other")
    hidden = env.subnet.upload("hider/data", LARGE, is_private=True)
    digest = hashlib.sha256(make_file(LARGE)).hexdigest()
    env.subnet.commit("hider", env.subnet.text("hider/data", digest if by_digest else hidden))
    env.pass_rounds(2)
    env.chain.advance(310)
    env.enter("other", LARGE)
    env.pass_rounds(2)
    env.hub.store.set_private("datasets", "hider/data", False)
    env.chain.advance(310)
    return " and ".join(_both(env, "hider", "other"))


def _recommit(env: Environment) -> str:
    """Some miners commit another text in every block, as fast as blocks come."""
    miners = [f"crowd-{number}" for number in range(_MINERS)]
    env.subnet.register(*miners)
    env.chain.set_hyperparameter("MaxSpace", 10**9)
    for block in range(_BLOCKS):
        env.subnet.commit_together({miner: env.subnet.text(f"{miner}/x{block}", _SHA[:40]) for miner in miners})
        env.tick()
    env.pass_rounds()
    return f"{env.verdict('ann')}, {env.stand_count()} stands"


def _alternate(env: Environment) -> str:
    """A miner commits two datasets in turn, in every block."""
    env.subnet.register("mallory")
    env.chain.set_hyperparameter("MaxSpace", 10**9)
    texts = [env.enter("mallory", rows, repo=repo) for repo, rows in (("m/a", POOL[:20]), ("m/b", POOL[20:40]))]
    for block in range(60):
        env.subnet.commit("mallory", texts[block % 2])
        env.tick()
    env.pass_rounds(2)
    return f"{env.verdict('mallory')}, {env.executor.completed - len(HONEST)} evaluations"


def _left_behind(env: Environment, count: int) -> str:
    """Thousands of hotkeys without a uid have commitments on the chain."""
    with env.subnet.chain.write() as state:
        for number in range(count):
            text = env.subnet.text(f"gone-{number}/data", _SHA[:40]).encode()
            info = {"fields": [{f"Raw{len(text)}": "0x" + text.hex()}]}
            state.put("CommitmentOf", f"5{number:047d}", {"deposit": 0, "block": state.block, "info": info})
    env.pass_rounds()
    return f"{env.verdict('ann')}, {env.stand_count()} stands"


def _earlier_life(env: Environment, *, is_sealed: bool) -> str:
    """A hotkey loses its uid and gets another: old commitments do not count."""
    env.subnet.register("mallory")
    text = env.enter("mallory", POOL[:20])
    if is_sealed:
        env.subnet.seal("mallory")
        env.subnet.reveal("mallory", text)
    register_again(env.chain, env.subnet.hotkey("mallory"))
    env.pass_rounds()
    return env.verdict("mallory")


def _copied_reveal(env: Environment) -> str:
    """A thief copies a revealed commitment in the block of its reveal."""
    env.subnet.register("author", "thief")
    for repo in ("author/data", "thief/data"):
        env.subnet.upload(repo, LARGE)
    digest = hashlib.sha256(make_file(LARGE)).hexdigest()
    env.subnet.seal("author")
    env.chain.advance(3)
    with env.subnet.one_block():
        env.subnet.commit("thief", env.subnet.text("thief/data", digest))
        env.subnet.reveal("author", env.subnet.text("author/data", digest))
    return " and ".join(_both(env))


def _change_tempo(env: Environment) -> str:
    """The owner changes the tempo in the middle of a round, again and again."""
    for tempo in (1, 65535, 2, 360, 7):
        for _ in range(3):
            env.tick()
        env.chain.set_hyperparameter("Tempo", tempo)
    env.pass_rounds(2)
    return env.verdict("ann")


def _forgotten(count: int, **limits: Any) -> Attack:
    play = partial(_left_behind, count=count)
    return in_environment(f"{count:,} commitments without a uid", f"{_EVALUATED}, 2 stands", play, **limits)


_PAIR = f"{_EVALUATED} and {_DUPLICATE}"
_STANDS = f"{_EVALUATED}, {_MINERS + 2} stands"
_PLAYS = (
    in_environment("one repo by two hotkeys", _PAIR, partial(_same_repo, is_one_block=False)),
    in_environment("one repo by two hotkeys in one block", _PAIR, partial(_same_repo, is_one_block=True)),
    in_environment("a promised file that comes late", _PAIR, partial(_late_file, by_digest=True)),
    in_environment("a private repo that opens late", _PAIR, partial(_late_file, by_digest=False)),
    in_environment("a revealed text copied in its block", _PAIR, _copied_reveal),
    in_environment(f"{_MINERS} hotkeys commit another text in every block", _STANDS, _recommit),
    in_environment("two datasets in turn in every block", f"{_EVALUATED}, 2 evaluations", _alternate),
    _forgotten(2_000, max_seconds=12.0, max_memory=64),
    _forgotten(10_000, max_seconds=60.0, max_memory=192, is_long=True),
    in_environment("a text of an earlier registration", _BEFORE, partial(_earlier_life, is_sealed=False)),
    in_environment("a seal of an earlier registration", _BEFORE, partial(_earlier_life, is_sealed=True)),
    in_environment("a tempo that changes within the round", _EVALUATED, _change_tempo),
)

_SINGLES: tuple[_Single, ...] = (
    *(_committed(f"a commitment of {what}", expected, _raw(text)) for what, (text, expected) in _TEXTS.items()),
    *(_committed(what, _ABSENT, *fields) for what, fields in _FIELDS.items()),
    _revealed("a seal that opens to a forged log line", _BAD, encode_string(_GOOD + "\n2026 INFO")),
    _revealed("a seal that opens to terminal escapes", _BAD, encode_string("\x1b[2J\u202e")),
    _revealed("a seal that opens to bytes without a length", _ABSENT, _GOOD.encode()),
    _revealed("a seal that opens to no UTF-8", _ABSENT, b"\x08\xff\xfe"),
    _revealed("a seal that opens to nothing", _ABSENT, b""),
    _revealed("a seal that opens to a length and no text", _BAD, b"\x00"),
    _revealed("a seal that opens to what begins with 0x", _BAD, encode_string("0xfffe")),
)

# In place of _SINGLES one by one, which takes a round each.
TOGETHER = _together(_SINGLES)
ATTACKS: tuple[Attack, ...] = (
    *(_alone(*single) for single in _SINGLES),
    *_PLAYS,
    *nodes.ATTACKS,
    *receipts.ATTACKS,
)
