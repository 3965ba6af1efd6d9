"""Attacks on HTTP itself: bodies, lengths, codings, headers, broken connections."""

import socket
import zlib
from pathlib import Path

from tests.campaigns.attack.hub_harness import (
    CONTENT,
    FILE,
    LISTING,
    NO_REPO,
    TAKEN,
    WHOLE,
    attack,
    custom,
    fetch,
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
    headers = (("Content-Encoding", coding), *((name.replace("_", "-"), value) for name, value in more.items()))
    return HubFault(kind=FaultKind.REPLY, status=status, headers=headers, body=body.decode("latin-1"), pattern=pattern)


_DRIP_S = 0.02
_DRIPS = (
    attack("the listing drips", HubFault(kind=FaultKind.DRIP, seconds=_DRIP_S, pattern=LISTING), is_slow=True),
    attack("the file drips", HubFault(kind=FaultKind.DRIP, seconds=_DRIP_S, pattern=FILE), is_slow=True),
    attack("the header drips", HubFault(kind=FaultKind.HEADER_DRIP, seconds=_DRIP_S, pattern=FILE), is_slow=True),
    attack("whole header lines drip", _raw(_OK, "X-A: b\r\n", None, _DRIP_S), is_slow=True),
    attack("the listing's header drips", _raw(_OK, "X-A: b\r\n", None, _DRIP_S, pattern=LISTING), is_slow=True),
    attack("a chunk's size drips", _raw(f"{_CHUNKED}1;", "a", None, _DRIP_S), is_slow=True),
    attack("empty trailers drip", _raw(f"{_CHUNKED}0\r\n", "X-A: b\r\n", None, _DRIP_S), is_slow=True),
    attack("the refusal drips", _raw(f"{_GONE}\r\n", "x", None, _DRIP_S), is_slow=True),
    attack("silence, the connection open", _raw("", "", None, _DRIP_S), is_slow=True),
    attack("silence after the header", _raw(f"{_OK}Content-Length: 9\r\n\r\n", "", None, _DRIP_S), is_slow=True),
    attack("'continue' for ever, slowly", _raw("", "HTTP/1.1 100 Continue\r\n\r\n", None, _DRIP_S), is_slow=True),
)
_BODIES = (
    attack("the listing never ends", HubFault(kind=FaultKind.ENDLESS, pattern=LISTING)),
    attack("the whole listing never ends", HubFault(kind=FaultKind.ENDLESS, pattern=WHOLE), by="whole"),
    attack("the file never ends", HubFault(kind=FaultKind.ENDLESS, pattern=FILE)),
    attack("the file never ends, in chunks of a byte", _raw(_CHUNKED, "1\r\nx\r\n", None)),
    attack("the refusal never ends", _raw(f"{_GONE}\r\n", "x" * 4096, None)),
    attack(
        "a redirect with a body that never ends", _raw("HTTP/1.1 302 Found\r\nLocation: /a\r\n\r\n", "x" * 99, None)
    ),
    attack("half a file", HubFault(kind=FaultKind.TRUNCATE, pattern=FILE)),
    attack("all but a byte of the file", HubFault(kind=FaultKind.TRUNCATE, size=len(CONTENT) - 1, pattern=FILE)),
    attack("half a listing", HubFault(kind=FaultKind.TRUNCATE, pattern=LISTING)),
    attack("a file of other bytes", HubFault(kind=FaultKind.WRONG, pattern=FILE)),
    attack("a listing of other bytes", HubFault(kind=FaultKind.WRONG, pattern=LISTING)),
)
_LENGTHS = tuple(
    attack(f"the length declared is {what}", _raw(f"{_OK}{headers}\r\n{body}"), expected=expected)
    for what, headers, body, expected in (
        ("nothing, and the connection's end tells", "", _TEXT, TAKEN),
        ("more than comes", "Content-Length: 99999\r\n", _TEXT, "again later"),
        ("less than comes", "Content-Length: 10\r\n", _TEXT, "again later"),
        ("0", "Content-Length: 0\r\n", _TEXT, "again later"),
        ("negative", "Content-Length: -5\r\n", _TEXT, "again later"),
        ("a word", "Content-Length: many\r\n", _TEXT, "again later"),
        ("hexadecimal", "Content-Length: 0xff\r\n", _TEXT, "again later"),
        ("2**80", f"Content-Length: {2**80}\r\n", _TEXT, "again later"),
        ("2**62", f"Content-Length: {2**62}\r\n", _TEXT, "again later"),
        ("two lengths", f"Content-Length: {len(CONTENT)}\r\nContent-Length: 5\r\n", _TEXT, "again later"),
        ("a length beside chunks", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", _TEXT, "again later"),
        ("chunks that are none", "Transfer-Encoding: chunked\r\n", _TEXT, "again later"),
        ("a chunk of 2**80", "Transfer-Encoding: chunked\r\n", f"{2**80:x}\r\n{_TEXT}", "again later"),
        ("a chunk of -1", "Transfer-Encoding: chunked\r\n", f"-1\r\n{_TEXT}", "again later"),
        ("by a coding of its own", "Transfer-Encoding: gzip, chunked\r\n", _TEXT, "again later"),
    )
)
_BOMB = zlib.compress(bytes(32 * 2**20), 9)
_CODINGS = (
    attack("a listing of gzip", HubFault(kind=FaultKind.GZIP_BOMB, size=32 * 2**20, pattern=LISTING)),
    attack("a whole listing of gzip", HubFault(kind=FaultKind.GZIP_BOMB, size=32 * 2**20, pattern=WHOLE), by="whole"),
    attack("a file of gzip", HubFault(kind=FaultKind.GZIP_BOMB, size=32 * 2**20, pattern=FILE)),
    attack("a file of deflate", _coded("deflate", _BOMB)),
    attack("a file of deflate in deflate", _coded("deflate, deflate", zlib.compress(_BOMB, 9))),
    attack("a file that says br", _coded("br", CONTENT)),
    attack("a file that says zstd", _coded("zstd", CONTENT)),
    attack("a file that says identity and gzip", _coded("identity, gzip", CONTENT)),
    attack("a file of a coding nobody knows", _coded("rot13", CONTENT)),
    attack("a file that says identity", _coded(" Identity ", CONTENT), expected=TAKEN),
    attack("a refusal of deflate", _coded("deflate", _BOMB, pattern=LISTING, status=404, X_Error_Code="RepoNotFound")),
    *(
        attack(
            f"a refusal whose text is said to be {codec}",
            HubFault(
                kind=FaultKind.REPLY,
                status=404,
                headers=(("X-Error-Code", "RepoNotFound"), ("Content-Type", f"text/plain; charset={codec}")),
                body="a-b9" * 12_000,
                pattern=LISTING,
            ),
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
    attack(
        "an error code of 60 kB", _raw(f"HTTP/1.1 404 No\r\nX-Error-Code: {'b' * 60_000}\r\nContent-Length: 0\r\n\r\n")
    ),
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
    attack(f"the connection ends {what}", _raw(text, pattern=pattern))
    for pattern in (LISTING, FILE)
    for what, text in (
        (f"at once ({pattern})", ""),
        (f"in the status line ({pattern})", "HTTP/1.1 20"),
        (f"in a header ({pattern})", f"{_OK}Content-Le"),
        (f"before the body ({pattern})", f"{_OK}Content-Length: 500\r\n\r\n"),
        (f"in the body ({pattern})", f"{_OK}Content-Length: 500\r\n\r\n[{{"),
        (f"in a chunk ({pattern})", f"{_CHUNKED}ff\r\n["),
        (f"before the last chunk ({pattern})", f"{_CHUNKED}1\r\n[\r\n"),
    )
)


def _silent_tls(folder: Path) -> str:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        return fetch(folder, deadline_s=0.4, endpoint=f"https://127.0.0.1:{mute.getsockname()[1]}")


_TLS = (
    custom("a TLS handshake that is never answered", _silent_tls),
    custom("plain text where TLS was to begin", lambda folder: fetch(folder, endpoint=f"https{start_hubs().hub[4:]}")),
)

ATTACKS = (*_DRIPS, *_BODIES, *_LENGTHS, *_CODINGS, *_HEADERS, *_DROPS, *_TLS)
