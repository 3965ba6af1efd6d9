"""Asks a database of known vulnerabilities about every version in the lock file.

    python -m scripts.dev.audit_dependencies
    python -m scripts.dev.audit_dependencies --database http://127.0.0.1:8080

The database speaks the OSV API (https://google.github.io/osv.dev/api/), by default the public one: what it is asked
names packages and versions, nothing else. It is the advisories' word, not a look at the code. Exit status: 0 it knows
of nothing against any version that is locked, 1 it does (listed), 3 the lock file cannot be read, 5 it could not be
asked, or not about all: then nothing is known, neither good nor bad.
"""

import argparse
import json
import re
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from template.errors import ConfigError, RemoteError, SubnetError

_LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
_PIN = re.compile(r"(?:# apart: )?([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", re.MULTILINE)
_DATABASE = "https://api.osv.dev"
_TIMEOUT_S = 60.0
_MAX_BYTES = 64 << 20
# What the API takes in one question.
_MOST_AT_ONCE = 1000


@dataclass(frozen=True)
class Finding:
    """What the database holds against one version: the names of its advisories."""

    name: str
    version: str
    advisories: tuple[str, ...]


def read_pins(path: Path) -> list[tuple[str, str]]:
    """Name and version of every package in the lock file, torch included. Raises: ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--lock {path}: cannot be read: {error}") from error
    pins = [(match[1], match[2]) for line in lines if (match := _PIN.match(line))]
    if not pins:
        raise ConfigError(f"--lock {path}: names no version")
    return pins


def ask(database: str, pins: Sequence[tuple[str, str]]) -> list[Finding]:
    """What the database knows against the versions. Raises: RemoteError unless it answered about every one of them."""
    found = []
    for at in range(0, len(pins), _MOST_AT_ONCE):
        part = pins[at : at + _MOST_AT_ONCE]
        queries = [{"package": {"name": _normal(name), "ecosystem": "PyPI"}, "version": held} for name, held in part]
        results = _post(f"{database.rstrip('/')}/v1/querybatch", {"queries": queries})
        if len(results) != len(part):
            raise RemoteError(f"{database} answered about {len(results)} of {len(part)} versions")
        found += [Finding(*pin, tuple(ids)) for pin, ids in zip(part, results, strict=True) if ids]
    return found


def _normal(name: str) -> str:
    """The name as the database spells it. Source: https://packaging.python.org/specifications/name-normalization/"""
    return re.sub(r"[-_.]+", "-", name).lower()


def _post(url: str, question: object) -> list[list[str]]:
    """Of each result in the answer, the ids of its advisories. Raises: RemoteError when they are not to be had."""
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, data=json.dumps(question).encode(), headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            results = json.loads(answer.read(_MAX_BYTES))["results"]
        # One page of a list that goes on is enough to know that there is one.
        return [[str(entry["id"]) for entry in result.get("vulns") or ()] for result in results]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RemoteError(f"{url} could not be asked: {type(error).__name__}: {error}") from error


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="audit_dependencies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lock", type=Path, default=_LOCK, help="the lock file (default: this repository's)")
    parser.add_argument("--database", default=_DATABASE, metavar="URL", help="of the API (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what is known against the versions; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        pins = read_pins(args.lock)
        found = ask(args.database, pins)
    except SubnetError as error:
        print(f"NOT AUDITED, nothing is known either way: {error}", file=sys.stderr)
        return error.exit_code
    for finding in found:
        print(f"{finding.name} {finding.version}: {', '.join(finding.advisories)}")
    print(f"{len(pins)} versions asked about, {len(found)} with known vulnerabilities, by {args.database}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
