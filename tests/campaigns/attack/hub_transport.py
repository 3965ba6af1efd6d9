"""Attacks on HTTP itself: bodies, lengths, codings, headers, broken connections."""

import socket
import zlib
from pathlib import Path
from typing import Any

from tests.campaigns.attack.hub_harness import (
    AGAIN,
    CONTENT,
    FILE,
    LISTING,
    NO_REPO,
    TAKEN,
    WHOLE,
    attack,
    custom,
    fetch,
    reply,
    start_hubs,
)
from tests.fixtures.faulty_hub import FaultKind, HubFault

_TEXT = CONTENT.decode()
_OK = "HTTP/1.1 200 OK\r\n"
_CHUNKED = f"{_OK}Transfer-Encoding: chunked\r\n\r\n"
_GONE = "HTTP/1.1 404 Not Found\r\nX-Error-Code: RepoNotFound\r\n"


def _raw(body: str, rest: str = "", repeat: int | None = 0, seconds: float = 0.0, *, pattern: str = FILE) -> HubFault:
    return HubFault(kind=FaultKind.RAW, body=body, rest=rest, repeat=repeat, seconds=seconds, pattern=pattern)


def _coded(coding: str, body: bytes, *, pattern: str = FILE, status: int = 200, **more: str) -> HubFault:
    return reply(body.decode("latin-1"), pattern=pattern, status=status, Content_Encoding=coding, **more)


def _fault(kind: FaultKind, pattern: str, **details: Any) -> HubFault:
    return HubFault(kind=kind, pattern=pattern, **details)


_DRIP_S = 0.02
_DRIPS = tuple(
    attack(name, fault, is_slow=True)
    for name, fault in {
        "the listing drips": _fault(FaultKind.DRIP, LISTING, seconds=_DRIP_S),
        "the file drips": _fault(FaultKind.DRIP, FILE, seconds=_DRIP_S),
        "the header drips": _fault(FaultKind.HEADER_DRIP, FILE, seconds=_DRIP_S),
        "whole header lines drip": _raw(_OK, "X-A: b\r\n", None, _DRIP_S),
        "the listing's header drips": _raw(_OK, "X-A: b\r\n", None, _DRIP_S, pattern=LISTING),
        "a chunk's size drips": _raw(f"{_CHUNKED}1;", "a", None, _DRIP_S),
        "empty trailers drip": _raw(f"{_CHUNKED}0\r\n", "X-A: b\r\n", None, _DRIP_S),
        "the refusal drips": _raw(f"{_GONE}\r\n", "x", None, _DRIP_S),
        "silence, the connection open": _raw("", "", None, _DRIP_S),
        "silence after the header": _raw(f"{_OK}Content-Length: 9\r\n\r\n", "", None, _DRIP_S),
        "'continue' for ever, slowly": _raw("", "HTTP/1.1 100 Continue\r\n\r\n", None, _DRIP_S),
    }.items()
)
_REDIRECT = "HTTP/1.1 302 Found\r\nLocation: /a\r\n\r\n"
_BODIES = (
    attack("the listing never ends", _fault(FaultKind.ENDLESS, LISTING)),
    attack("the whole listing never ends", _fault(FaultKind.ENDLESS, WHOLE), by="whole"),
    attack("the file never ends", _fault(FaultKind.ENDLESS, FILE)),
    attack("the file never ends, in chunks of a byte", _raw(_CHUNKED, "1\r\nx\r\n", None)),
    attack("the refusal never ends", _raw(f"{_GONE}\r\n", "x" * 4096, None)),
    attack("a redirect with a body that never ends", _raw(_REDIRECT, "x" * 99, None)),
    attack("half a file", _fault(FaultKind.TRUNCATE, FILE)),
    attack("all but a byte of the file", _fault(FaultKind.TRUNCATE, FILE, size=len(CONTENT) - 1)),
    attack("half a listing", _fault(FaultKind.TRUNCATE, LISTING)),
    attack("a file of other bytes", _fault(FaultKind.WRONG, FILE)),
    attack("a listing of other bytes", _fault(FaultKind.WRONG, LISTING)),
)
_LENGTHS = tuple(
    attack(f"the length declared is {what}", _raw(f"{_OK}{headers}\r\n{body}"), expected=expected)
    for what, headers, body, expected in (
        ("nothing, and the connection's end tells", "", _TEXT, TAKEN),
        ("more than comes", "Content-Length: 99999\r\n", _TEXT, AGAIN),
        ("less than comes", "Content-Length: 10\r\n", _TEXT, AGAIN),
        ("0", "Content-Length: 0\r\n", _TEXT, AGAIN),
        ("negative", "Content-Length: -5\r\n", _TEXT, AGAIN),
        ("a word", "Content-Length: many\r\n", _TEXT, AGAIN),
        ("hexadecimal", "Content-Length: 0xff\r\n", _TEXT, AGAIN),
        ("2**80", f"Content-Length: {2**80}\r\n", _TEXT, AGAIN),
        ("2**62", f"Content-Length: {2**62}\r\n", _TEXT, AGAIN),
        ("two lengths", f"Content-Length: {len(CONTENT)}\r\nContent-Length: 5\r\n", _TEXT, AGAIN),
        ("a length beside chunks", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", _TEXT, AGAIN),
        ("chunks that are none", "Transfer-Encoding: chunked\r\n", _TEXT, AGAIN),
        ("a chunk of 2**80", "Transfer-Encoding: chunked\r\n", f"{2**80:x}\r\n{_TEXT}", AGAIN),
        ("a chunk of -1", "Transfer-Encoding: chunked\r\n", f"-1\r\n{_TEXT}", AGAIN),
        ("by a coding of its own", "Transfer-Encoding: gzip, chunked\r\n", _TEXT, AGAIN),
    )
)
_NOT_FOUND = {"X_Error_Code": "RepoNotFound"}
_BOMB = zlib.compress(bytes(32 * 2**20), 9)
_CODINGS = (
    attack("a listing of gzip", _fault(FaultKind.GZIP_BOMB, LISTING, size=32 * 2**20)),
    attack("a whole listing of gzip", _fault(FaultKind.GZIP_BOMB, WHOLE, size=32 * 2**20), by="whole"),
    attack("a file of gzip", _fault(FaultKind.GZIP_BOMB, FILE, size=32 * 2**20)),
    attack("a file of deflate", _coded("deflate", _BOMB)),
    attack("a file of deflate in deflate", _coded("deflate, deflate", zlib.compress(_BOMB, 9))),
    attack("a file that says br", _coded("br", CONTENT)),
    attack("a file that says zstd", _coded("zstd", CONTENT)),
    attack("a file that says identity and gzip", _coded("identity, gzip", CONTENT)),
    attack("a file of a coding nobody knows", _coded("rot13", CONTENT)),
    attack("a file that says identity", _coded(" Identity ", CONTENT), expected=TAKEN),
    attack("a refusal of deflate", _coded("deflate", _BOMB, pattern=LISTING, status=404, **_NOT_FOUND)),
    *(
        attack(
            f"a refusal whose text is said to be {codec}",
            reply("a-b9" * 12_000, status=404, **_NOT_FOUND, Content_Type=f"text/plain; charset={codec}"),
            expected=NO_REPO,
        )
        for codec in ("punycode", "zlib", "bz2", "hex", "idna", "rot13", "unicode_escape", "utf-16", "\u00e9")
    ),
)
_HEADERS = (
    attack("a hundred thousand headers", _raw(_OK, "X-A: b\r\n", 100_000)),
    attack("100 MB of headers", _raw(_OK, f"X-A: {'b' * 1000}\r\n", 100_000)),
    attack("headers that never end", _raw(_OK, "X-A: b\r\n", None)),
    attack("one header of 10 MB", _raw(f"{_OK}X-A: ", "b" * 1000, 10_000)),
    attack("one header that never ends", _raw(f"{_OK}X-A: ", "b" * 1000, None)),
    attack("a status line that never ends", _raw("HTTP/1.1 200 ", "OK", None)),
    attack("an error code of 60 kB", reply(pattern=FILE, status=404, X_Error_Code="b" * 60_000)),
    *(
        attack(f"{what} instead of HTTP", _raw(text))
        for what, text in (
            ("another protocol", "SSH-2.0-OpenSSH_9.6\r\n"),
            ("HTTP/2", "HTTP/2 200\r\n\r\n"),
            ("HTTP/0.9", _TEXT),
            ("zeros", "\0" * 1000),
            ("a header without a name", f"{_OK}: b\r\n\r\n"),
            ("a header with NUL", f"{_OK}X-A: a\0b\r\n\r\n"),
        )
    ),
    *(
        attack(
            f"a good file with {what}",
            _raw(f"{_OK}Content-Length: {len(CONTENT)}\r\n{headers}\r\n{_TEXT}"),
            expected=TAKEN,
        )
        for what, headers in (
            ("2,000 cookies", "".join(f"Set-Cookie: c{number}=v; Path=/\r\n" for number in range(2000))),
            ("1,000 warnings", "".join(f"X-HF-Warning: t{number}; w\r\n" for number in range(1000))),
            ("a store's headers", "X-Xet-Hash: a\r\nX-Xet-Refresh-Route: {elsewhere}/x\r\nX-Linked-Size: 5\r\n"),
            ("a next page elsewhere", 'Link: <{elsewhere}/x>; rel="next"\r\n'),
        )
    ),
)
_DROPS = tuple(
    attack(f"the connection ends {what} ({pattern})", _raw(text, pattern=pattern))
    for pattern in (LISTING, FILE)
    for what, text in {
        "at once": "",
        "in the status line": "HTTP/1.1 20",
        "in a header": f"{_OK}Content-Le",
        "before the body": f"{_OK}Content-Length: 500\r\n\r\n",
        "in the body": f"{_OK}Content-Length: 500\r\n\r\n[{{",
        "in a chunk": f"{_CHUNKED}ff\r\n[",
        "before the last chunk": f"{_CHUNKED}1\r\n[\r\n",
    }.items()
)


def _silent_tls(folder: Path) -> str:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        return fetch(folder, deadline_s=0.4, endpoint=f"https://127.0.0.1:{mute.getsockname()[1]}")


def _no_tls(folder: Path) -> str:
    return fetch(folder, endpoint=f"https{start_hubs().hub.removeprefix('http')}")


_TLS = (
    custom("a TLS handshake that is never answered", _silent_tls, AGAIN),
    custom("plain text where TLS was to begin", _no_tls, AGAIN),
)

ATTACKS = (*_DRIPS, *_BODIES, *_LENGTHS, *_CODINGS, *_HEADERS, *_DROPS, *_TLS)
