"""Attacks by the content of a hostile Hub: refusals, redirects, listings, names."""

import json
import math
from dataclasses import replace
from typing import Any

from template import constants
from tests.campaigns.attack.hub_harness import (
    AGAIN,
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
    reply,
)
from tests.campaigns.attack.runner import Attack
from tests.fixtures.faulty_hub import FaultKind, HubFault

_NAME = constants.DATA_FILE
_ROW = {"type": "file", "path": _NAME, "size": len(CONTENT), "oid": GIT_OID}
_LARGE = {"oid": DIGEST, "size": len(CONTENT), "pointerSize": 130}


def _listed(**changes: Any) -> HubFault:
    return reply(json.dumps([_ROW | changes]))


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
        reply(pattern=pattern, status=status, **headers),
        expected=expected,
    )
    for what, pattern in (("a listing", LISTING), ("a download", FILE))
    for status, headers, expected in _REFUSALS
)


def _refusal(code: str, *, status: int = 404, body: str = "", pattern: str = LISTING) -> HubFault:
    return reply(body, pattern=pattern, status=status, X_Error_Code=code)


_GONE = _refusal("RevisionNotFound", pattern=FILE)
_PRIVATE = _refusal("RepoNotFound", status=401)
_TURNS = (
    attack(
        "the commit is gone between listing and download", _refusal("RevisionNotFound", pattern=FILE), expected=NO_REPO
    ),
    attack("the repo turns private between listing and download", replace(_PRIVATE, pattern=FILE), expected=NO_REPO),
    attack("the repo of a digest is private", _PRIVATE, expected=NO_FILE, by="digest"),
    attack("the refusal's text is no JSON", _refusal("RepoNotFound", body="<html>"), expected=NO_REPO),
    attack("the refusal's text is a list", _refusal("RepoNotFound", body="[[]]")),
    attack("the refusal's text is nested a thousand deep", _refusal("RepoNotFound", body='{"error":' + "[" * 9999)),
)
_WAITS = tuple(
    attack(f"429 with {name.replace('_', '-')} {value[:16]}", reply(status=429, **{name: value}))
    for name, values in {
        "Retry_After": (
            *("7", "-7", "9" * 400, "soon", "0 , 1 Jan", "1e9"),
            *("Wed, 21 Oct 9999 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 +9999"),
        ),
        "RateLimit": (f'"api";r=0;t={"9" * 400}', '"api";r=0;t=30', '"api";' * 9000),
    }.items()
    for value in values
)
_SLOW_HEADERS = 'HTTP/1.1 429 Wait\r\nRateLimit: "api";r=0;t=1\r\nRateLimit-Policy: ' + "q=1" * 25_000 + "\r\n\r\n"
_PATTERNS = attack(
    "429 with headers that the library's patterns are slow on",
    HubFault(kind=FaultKind.RAW, body=_SLOW_HEADERS, pattern=LISTING),
)


def _moved(place: str, *, status: int = 302, pattern: str = FILE) -> HubFault:
    return reply(pattern=pattern, status=status, Location=place)


_TO_STORE = _moved("{elsewhere}/{file}")
_STORE_CODES = ("RepoNotFound", "EntryNotFound", "RevisionNotFound", "None")
# Schemes and addresses to which a download must not be redirected.
_ADDRESSES = (
    *("file:///etc/passwd", "file://localhost/etc/passwd", "ftp://127.0.0.1:{port}/{file}"),
    *("ws://127.0.0.1:{port}/{file}", "gopher://127.0.0.1:{port}/x"),
    *("http://", "http://[", "http://a..b/", f"http://{'a' * 300}/", "http://127.0.0.1:99999/"),
    *("javascript:x", "data:text/plain,x", "\x01", "/" + "a" * 20_000),
)
_REDIRECTS = (
    attack("the file is at a store", _TO_STORE, expected=TAKEN),
    attack(
        "the file is a rename and a store away",
        _moved("/{file}?renamed", status=307, pattern=r"data\.jsonl$"),
        replace(_TO_STORE, pattern="renamed"),
        expected=TAKEN,
    ),
    *(
        attack(f"the store answers {status} {code}", _TO_STORE, elsewhere=[_refusal(code, status=status, pattern=FILE)])
        for status in (401, 403, 404)
        for code in _STORE_CODES
    ),
    attack("the store sends other bytes", _TO_STORE, elsewhere=[HubFault(kind=FaultKind.WRONG)]),
    attack("the store never ends", _TO_STORE, elsewhere=[HubFault(kind=FaultKind.ENDLESS)]),
    attack(
        "the store drips",
        _TO_STORE,
        elsewhere=[HubFault(kind=FaultKind.HEADER_DRIP, seconds=0.02)],
        is_slow=True,
    ),
    attack("the file points to itself", _moved("/{file}")),
    attack(
        "six redirects",
        *(_moved(f"/{{file}}?{n + 1}", pattern=rf"\?{n}$") for n in range(1, 6)),
        _moved("/{file}?1", pattern=r"data\.jsonl$"),
    ),
    attack(
        "a listing with its question goes elsewhere",
        _moved("{elsewhere}/api/datasets/alice/talk/paths-info/main", status=307, pattern=LISTING),
    ),
    attack("a listing is answered elsewhere", _moved("{elsewhere}/api/datasets/alice/talk", pattern=LISTING)),
    attack("a redirect to nowhere", reply(pattern=FILE, status=302)),
    *(attack(f"a redirect to {place[:50]}", _moved(place)) for place in _ADDRESSES),
)

_BAD_SIZES: tuple[object, ...] = (
    *(0, 1, -1, len(CONTENT) - 1, len(CONTENT) + 1, 2**63, 10**4000),
    *("9", 1.5, True, None, [], math.nan, math.inf),
)
_SIZES = tuple(
    attack(f"a size of {str(size)[:24]!r}", _listed(size=size), expected=expected)
    for expected, sizes in ((AGAIN, _BAD_SIZES), (TOO_LARGE, (constants.MAX_SUBMISSION_BYTES + 1,)))
    for size in sizes
)
_BAD_ROWS: dict[str, dict[str, object]] = {
    "another blob id": {"oid": "0" * 40},
    "no blob id": {"oid": None},
    "another sha256": {"lfs": _LARGE | {"oid": "0" * 64}},
    "a sha256 that is none": {"lfs": _LARGE | {"oid": None}},
    "half an entry of a store": {"lfs": {}},
    "a capital name": {"path": "Data.jsonl"},
    "another name": {"path": f"../{_NAME}"},
    "a name that is a list": {"path": [_NAME]},
    "a folder of the name": {"type": "directory"},
}
_DIGESTS = (
    attack("a listing with a store's sha256", _listed(oid="0" * 40, lfs=_LARGE), expected=TAKEN),
    *(attack(f"a listing with {what}", _listed(**changes)) for what, changes in _BAD_ROWS.items()),
)
_ODD_ANSWERS = (
    *("", "null", "{}", "[]", "7", '"text"', "[null]", "[[]]", "[{}]", "[NaN]", "\xff\xfe\xff"),
    *('{"id": 1, "sha": "main"}', '{"id": "a", "sha": null, "siblings": [null]}', '{"id": "a", "self": 1}'),
    *('[{"type": "file", "path": 1}]', '{"id": "a", "createdAt": "9" , "cardData": {"x": []}}'),
    *("[" * 100_000, '{"a":' * 40_000, "[" + "{}," * 80_000 + "{}]", "[" + "9" * 5000 + "]"),
)
_SHAPES = tuple(
    attack(f"the answer to {what} is {text[:24]!r}", reply(text, pattern=pattern), by=by)
    for what, pattern, by in (
        ("a listing", LISTING, "commit"),
        ("a listing of main", LISTING, "digest"),
        ("a whole", WHOLE, "whole"),
    )
    for text in _ODD_ANSWERS
)


def _siblings(*names: str) -> str:
    rows = [{"rfilename": name, "size": len(CONTENT), "blobId": GIT_OID} for name in names]
    return json.dumps({"id": "alice/talk", "sha": "a" * 40, "siblings": rows})


_BAD_NAMES = (
    *("../../../../etc/passwd.jsonl", "a/../../b.jsonl", "/etc/passwd.jsonl", "a//b.jsonl", "./b.jsonl"),
    *("\0.jsonl", "a\nb.jsonl", "\ud800.jsonl", "\u202elnosj.jsonl"),
)
_UNKNOWN_NAMES = ("?x=.jsonl", "#.jsonl", "%2e%2e%2fb.jsonl", "a" * 9999 + ".jsonl", "b.jsonl")


def _whole(name: str, *names: str, **options: Any) -> Attack:
    """Return the attack of a repo of which the Hub lists these files."""
    return attack(name, reply(_siblings(*names), pattern=WHOLE), by="whole", **options)


_NAMES = tuple(
    _whole(f"the one .jsonl is called {name[:24]!r}", name, expected=expected)
    for expected, names in ((AGAIN, _BAD_NAMES), (NO_FILE, _UNKNOWN_NAMES))
    for name in names
)
_CROWDS = (
    _whole("two names that differ in case", "a.jsonl", "A.jsonl", expected=NO_FILE),
    _whole("30,000 .jsonl files", *(f"{n}.jsonl" for n in range(30_000)), expected=NO_FILE, max_memory=64),
    # What the list takes when it is the first that this process reads.
    _whole("60,000 files beside the one .jsonl", *(str(n) for n in range(60_000)), _NAME, max_memory=24),
)

ATTACKS = (*_STATUSES, *_TURNS, *_WAITS, _PATTERNS, *_REDIRECTS, *_SIZES, *_DIGESTS, *_SHAPES, *_NAMES, *_CROWDS)
