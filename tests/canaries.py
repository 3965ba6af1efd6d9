"""Secrets planted in the environment of the whole test session, and the search for them in all that it leaves behind.

Every process that the tests start inherits them, or is given a Hub token of their kind. When the session ends, each
file below pytest's temporary folder and the session's home (logs, states, receipts, round files, wandb's files, the
local hub's records) is searched, and as they come the outputs of tests and processes; one hit fails the session. Apart
from that: the hub's own list of whose tokens it knows. Tests that write secrets on purpose make up their own.
"""

import base64
import os
import secrets
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

# What all of them have in common, so that one search finds any: hex digits, which JSON and URLs spell as they are.
_CORE = secrets.token_hex(16)

ENVIRONMENT = {
    # Of the form that wandb's keys have, which redaction cannot tell from a commit.
    "WANDB_API_KEY": _CORE + secrets.token_hex(4),
    "BT_PW_CANARY": f'pass "wörd" {_CORE}',
    "CANARY_ACCESS_KEY": f"{_CORE}==",
}

# In the hub's list of tokens they belong.
_EXPECTED_IN = "tokens.json"

_found: set[str] = set()
_HOMES: list[Path] = []


def hub_token(name: str) -> str:
    """A Hub token for `name`, which the local hub has to be told of."""
    return f"hf_{name}{_CORE}"


def plant(home: Path) -> None:
    """Puts the secrets into this process's environment; `home` is searched in the end, beside pytest's folder."""
    os.environ.update(ENVIRONMENT)
    _HOMES.append(home)


def needles(core: str = _CORE) -> dict[str, bytes]:
    """How the secret may be spelled, by name; of base64, what does not depend on the bytes around it."""
    raw = core.encode()
    spelled = {"as it is": raw, "in hex": raw.hex().encode(), "in capital hex": raw.hex().upper().encode()}
    spelled |= {f"in {name}": core.encode(name) for name in ("utf-16-le", "utf-32-le")}
    spelled |= {f"in base64, {shift}": base64.b64encode(b"\0" * shift + raw)[4:-4] for shift in range(3)}
    return {**spelled, "backwards": raw[::-1]}


def look(text: str | bytes | None, where: str) -> None:
    """Remembers `where` when the text, an output of some process, holds a secret."""
    if text:
        content = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        _found.update(f"{where} ({how})" for how in _spellings_in(content))


def _spellings_in(content: bytes) -> Iterator[str]:
    return (how for how, needle in needles().items() if content.find(needle) >= 0)


def _written_parts(path: Path) -> Iterator[bytes]:
    """What was ever written into a file, hole by hole: some tests make files of a terabyte that hold nothing."""
    with path.open("rb") as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                # No data after this.
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield os.pread(file.fileno(), end - start, start)


def search(folders: Iterable[Path]) -> list[str]:
    """Every regular file below the folders whose content or name holds a secret, and how it is spelled there."""
    found = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        found += [f"the name {path} ({how})" for how in _spellings_in(os.fsencode(path.name))]
        if path.is_symlink() or not path.is_file() or path.name == _EXPECTED_IN or path.stat().st_size == 0:
            continue
        for content in _written_parts(path):
            found += [f"{path} ({how})" for how in _spellings_in(content)]
    return found


_communicate = subprocess.Popen.communicate


def _watched(process: "subprocess.Popen[Any]", *arguments: Any, **named: Any) -> tuple[Any, Any]:
    outputs = _communicate(process, *arguments, **named)
    for text in outputs:
        look(text, f"an output of {process.args!r:.300}")
    return outputs


subprocess.Popen.communicate = _watched  # type: ignore[method-assign]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Looks at what a test printed and logged, and at what is told of its failure."""
    for title, text in report.sections:
        look(text, f"{report.nodeid}: {title}")
    look(report.longreprtext, f"{report.nodeid}: report")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the session when a secret is found anywhere."""
    factory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    made = factory._basetemp
    _found.update(search([*_HOMES, *([made] if made is not None else [])]))
    if _found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names where they were found."""
    if _found:
        terminalreporter.section("secrets of the environment were found", red=True)
        for where in sorted(_found):
            terminalreporter.line(where)
