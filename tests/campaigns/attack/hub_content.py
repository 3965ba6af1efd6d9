"""Attacks by the content of a hostile Hub: refusals, redirects, listings, names."""

import json
import math
from typing import Any

from template import constants
from tests.campaigns.attack.hub_harness import (
    AGAIN,
    COMMIT,
    CONTENT,
    DIGEST,
    FILE,
    GIT_OID,
    LISTING,
    NO_FILE,
    NO_REPO,
    TAKEN,
    TOO_LARGE,
    WHOLE,
    attack,
)
from tests.fixtures.faulty_hub import FaultKind, HubFault

_NAME = constants.DATA_FILE
_ROW = {"type": "file", "path": _NAME, "size": len(CONTENT), "oid": GIT_OID}
_LARGE = {"oid": DIGEST, "size": len(CONTENT), "pointerSize": 130}


def _reply(body: str = "", *, pattern: str = LISTING, status: int = 200, **headers: str) -> HubFault:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return HubFault(kind=FaultKind.REPLY, status=status, headers=named, body=body, pattern=pattern)


def _listed(**changes: Any) -> HubFault:
    return _reply(json.dumps([_ROW | changes]))


_ANONYMOUS = "Invalid username or password."
_DISABLED = "Access to this resource is disabled."
_REFUSALS = (
    # The Hub's own answers about a repo, for which the miner is at fault.
    (401, {"X_Error_Code": "RepoNotFound"}, NO_REPO),
    (401, {"X_Error_Message": _ANONYMOUS}, NO_REPO),
    (403, {"X_Error_Message": _DISABLED}, NO_REPO),
    (403, {"X_Error_Code": "GatedRepo"}, NO_REPO),
    (404, {"X_Error_Code": "RepoNotFound"}, NO_REPO),
    (404, {"X_Error_Code": "RevisionNotFound"}, NO_REPO),
    (404, {"X_Error_Code": "EntryNotFound"}, NO_FILE),
    # Answers of a gateway, a broken or a lying Hub, for which no miner is at fault.
    *((status, {}, AGAIN) for status in (204, 205, 206, 300, 302, 304, 400, 401, 403, 404, 410, 418, 451, 500, 599)),
    *((status, {"X_Error_Code": "RepoNotFound"}, AGAIN) for status in (200, 206, 304, 400, 410, 418, 429, 500, 503)),
    *((status, {"X_Error_Code": "EntryNotFound"}, AGAIN) for status in (204, 304, 416, 502)),
    (404, {"X_Error_Code": "Everything"}, AGAIN),
    (404, {"X_Error_Message": _ANONYMOUS}, AGAIN),
)
_STATUSES = tuple(
    attack(
        f"HTTP {status} {' '.join(headers.values()) or 'alone'} to {what}",
        _reply(pattern=pattern, status=status, **headers),
        expected=expected,
    )
    for what, pattern in (("a listing", LISTING), ("a download", FILE))
    for status, headers, expected in _REFUSALS
)
_TURNS = (
    attack(
        "the commit is gone between listing and download",
        _reply(pattern=FILE, status=404, X_Error_Code="RevisionNotFound"),
        expected=NO_REPO,
    ),
    attack(
        "the repo turns private between listing and download",
        _reply(pattern=FILE, status=401, X_Error_Code="RepoNotFound"),
        expected=NO_REPO,
    ),
    attack(
        "the repo turns private between its commit and its listing",
        _reply(pattern=LISTING, status=401, X_Error_Code="RepoNotFound"),
        expected=NO_FILE,
        by="digest",
    ),
    attack(
        "the refusal's text is no JSON",
        _reply("<html>", pattern=LISTING, status=404, X_Error_Code="RepoNotFound"),
        expected=NO_REPO,
    ),
    attack("the refusal's text is a list", _reply("[[]]", pattern=LISTING, status=404, X_Error_Code="RepoNotFound")),
    attack(
        "the refusal's text is nested a thousand deep",
        _reply('{"error":' + "[" * 9999, pattern=LISTING, status=404, X_Error_Code="RepoNotFound"),
    ),
)
_WAITS = tuple(
    attack(f"429 with {name.replace('_', '-')} {value[:16]}", _reply(status=429, **{name: value}))
    for name, value in (
        ("Retry_After", "7"),
        ("Retry_After", "-7"),
        ("Retry_After", "9" * 400),
        ("Retry_After", "soon"),
        ("Retry_After", "Wed, 21 Oct 9999 07:28:00 GMT"),
        ("Retry_After", "Wed, 21 Oct 2015 07:28:00 +9999"),
        ("Retry_After", "0 , 1 Jan"),
        ("Retry_After", "1e9"),
        ("RateLimit", f'"api";r=0;t={"9" * 400}'),
        ("RateLimit", '"api";r=0;t=30'),
        ("RateLimit", '"api";' * 9000),
    )
)
_PATTERNS = attack(
    "429 with headers that the library's patterns are slow on",
    HubFault(
        kind=FaultKind.RAW,
        body='HTTP/1.1 429 Wait\r\nRateLimit: "api";r=0;t=1\r\nRateLimit-Policy: ' + "q=1" * 25_000 + "\r\n\r\n",
        pattern=LISTING,
    ),
)

_LOST = "{elsewhere}/{file}"
# Schemes by which a download must not be redirected.
_ADDRESSES = """
    file:///etc/passwd file://localhost/etc/passwd ftp://127.0.0.1:{port}/{file} ws://127.0.0.1:{port}/{file}
    gopher://127.0.0.1:{port}/x
"""

_REDIRECTS = (
    attack("the file is at a store", _reply(pattern=FILE, status=302, Location=_LOST), expected=TAKEN),
    attack(
        "the file is a rename and a store away",
        _reply(pattern=r"data\.jsonl$", status=307, Location="/{file}?renamed"),
        _reply(pattern="renamed", status=302, Location=_LOST),
        expected=TAKEN,
    ),
    *(
        attack(
            f"the store answers {status} {code}",
            _reply(pattern=FILE, status=302, Location=_LOST),
            elsewhere=[_reply(pattern=FILE, status=status, X_Error_Code=code)],
        )
        for status in (401, 403, 404)
        for code in ("RepoNotFound", "EntryNotFound", "RevisionNotFound", "None")
    ),
    attack(
        "the store sends other bytes",
        _reply(pattern=FILE, status=302, Location=_LOST),
        elsewhere=[HubFault(kind=FaultKind.WRONG)],
    ),
    attack(
        "the store never ends",
        _reply(pattern=FILE, status=302, Location=_LOST),
        elsewhere=[HubFault(kind=FaultKind.ENDLESS)],
    ),
    attack(
        "the store drips",
        _reply(pattern=FILE, status=302, Location=_LOST),
        elsewhere=[HubFault(kind=FaultKind.HEADER_DRIP, seconds=0.02)],
        is_slow=True,
    ),
    attack("the file points to itself", _reply(pattern=FILE, status=302, Location="/{file}")),
    attack(
        "six redirects",
        *(_reply(pattern=rf"\?{n}$", status=302, Location=f"/{{file}}?{n + 1}") for n in range(1, 6)),
        _reply(pattern=r"data\.jsonl$", status=302, Location="/{file}?1"),
    ),
    attack(
        "a listing with its question goes elsewhere",
        _reply(status=307, Location="{elsewhere}/api/datasets/alice/talk/paths-info/main"),
    ),
    attack("a listing is answered elsewhere", _reply(status=302, Location="{elsewhere}/api/datasets/alice/talk")),
    attack("a redirect to nowhere", _reply(pattern=FILE, status=302)),
    *(
        attack(f"a redirect to {place[:50]}", _reply(pattern=FILE, status=302, Location=place))
        for place in (
            *_ADDRESSES.split(),
            *("http://", "http://[", "http://a..b/", f"http://{'a' * 300}/", "http://127.0.0.1:99999/"),
            *("javascript:x", "data:text/plain,x", "\x01", "/" + "a" * 20_000),
        )
    ),
)

_BAD_SIZES = [
    0,
    1,
    -1,
    len(CONTENT) - 1,
    len(CONTENT) + 1,
    2**63,
    10**4000,
    "9",
    1.5,
    True,
    None,
    [],
    math.nan,
    math.inf,
]
_SIZES = tuple(
    attack(f"a size of {str(size)[:24]!r}", _listed(size=size), expected=expected)
    for expected, sizes in ((AGAIN, _BAD_SIZES), (TOO_LARGE, [constants.MAX_SUBMISSION_BYTES + 1]))
    for size in sizes
)
_DIGESTS = tuple(
    attack(f"a listing with {what}", _listed(**changes), expected=expected)
    for what, changes, expected in (
        ("another blob id", {"oid": "0" * 40}, AGAIN),
        ("no blob id", {"oid": None}, AGAIN),
        ("a store's sha256", {"oid": "0" * 40, "lfs": _LARGE}, TAKEN),
        ("another sha256", {"lfs": _LARGE | {"oid": "0" * 64}}, AGAIN),
        ("a sha256 that is none", {"lfs": _LARGE | {"oid": None}}, AGAIN),
        ("half an entry of a store", {"lfs": {}}, AGAIN),
        ("a capital name", {"path": "Data.jsonl"}, AGAIN),
        ("another name", {"path": f"../{_NAME}"}, AGAIN),
        ("a name that is a list", {"path": [_NAME]}, AGAIN),
        ("a folder of the name", {"type": "directory"}, AGAIN),
    )
)
_ODD_ANSWERS = (
    *("", "null", "{}", "[]", "7", '"text"', "[null]", "[[]]", "[{}]", "[NaN]", "\xff\xfe\xff"),
    *('{"id": 1, "sha": "main"}', '{"id": "a", "sha": null, "siblings": [null]}', '{"id": "a", "self": 1}'),
    *('[{"type": "file", "path": 1}]', '{"id": "a", "createdAt": "9" , "cardData": {"x": []}}'),
    *("[" * 100_000, '{"a":' * 40_000, "[" + "{}," * 80_000 + "{}]", "[" + "9" * 5000 + "]"),
)
_SHAPES = tuple(
    attack(f"the answer to {what} is {text[:24]!r}", _reply(text, pattern=pattern), by=by)
    for what, pattern, by in (
        ("a listing", LISTING, "commit"),
        ("a commit", COMMIT, "digest"),
        ("a whole", WHOLE, "whole"),
    )
    for text in _ODD_ANSWERS
)


def _siblings(*names: str) -> str:
    rows = [{"rfilename": name, "size": len(CONTENT), "blobId": GIT_OID} for name in names]
    return json.dumps({"id": "alice/talk", "sha": "a" * 40, "siblings": rows})


_NAMES = tuple(
    attack(
        f"the one .jsonl is called {name[:24]!r}", _reply(_siblings(name), pattern=WHOLE), by="whole", expected=expected
    )
    for expected, names in (
        (
            AGAIN,
            (
                *("../../../../etc/passwd.jsonl", "a/../../b.jsonl", "/etc/passwd.jsonl", "a//b.jsonl", "./b.jsonl"),
                *("\0.jsonl", "a\nb.jsonl", "\ud800.jsonl", "\u202elnosj.jsonl"),
            ),
        ),
        (NO_FILE, ("?x=.jsonl", "#.jsonl", "%2e%2e%2fb.jsonl", "a" * 9999 + ".jsonl", "b.jsonl")),
    )
    for name in names
)
_CROWDS = (
    attack(
        "two names that differ in case",
        _reply(_siblings("a.jsonl", "A.jsonl"), pattern=WHOLE),
        by="whole",
        expected=NO_FILE,
    ),
    attack(
        "30,000 .jsonl files",
        _reply(_siblings(*(f"{n}.jsonl" for n in range(30_000))), pattern=WHOLE),
        by="whole",
        expected=NO_FILE,
        max_memory=64,
    ),
    attack(
        "60,000 files beside the one .jsonl",
        _reply(_siblings(*(str(n) for n in range(60_000)), _NAME), pattern=WHOLE),
        by="whole",
    ),
)

ATTACKS = (*_STATUSES, *_TURNS, *_WAITS, _PATTERNS, *_REDIRECTS, *_SIZES, *_DIGESTS, *_SHAPES, *_NAMES, *_CROWDS)
