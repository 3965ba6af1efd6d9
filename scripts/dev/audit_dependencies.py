"""Query a vulnerability database for every version in the lock file.

    python -m scripts.dev.audit_dependencies
    python -m scripts.dev.audit_dependencies --database http://127.0.0.1:8080

The database has the OSV API (https://google.github.io/osv.dev/api/), by default the public one. Queries contain only
names and versions of packages. Exit status: 0 no known vulnerability, 1 some (listed), 3 the lock file cannot be read,
5 the database did not answer for all packages, so nothing is known.
"""

import json
import re
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from template import cli
from template.errors import ConfigError, RemoteError, SubnetError

_LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
_PIN = re.compile(r"(?:# apart: )?([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", re.MULTILINE)
_DATABASE = "https://api.osv.dev"
_TIMEOUT_S = 60.0
_MAX_BYTES = 64 << 20
# The API's limit for one request.
_MAX_QUERIES = 1000


@dataclass(frozen=True)
class Finding:
    """The advisories of one version, by name."""

    name: str
    version: str
    advisories: tuple[str, ...]


def read_pins(path: Path) -> list[tuple[str, str]]:
    """Return name and version of every locked package, torch included."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--lock {path}: cannot be read: {error}") from error
    pins = [(match[1], match[2]) for line in lines if (match := _PIN.match(line))]
    if not pins:
        raise ConfigError(f"--lock {path}: names no version")
    return pins


def query(database: str, pins: Sequence[tuple[str, str]]) -> list[Finding]:
    """Return findings. Raises: RemoteError unless the answer covers every version."""
    findings = []
    for start in range(0, len(pins), _MAX_QUERIES):
        part = pins[start : start + _MAX_QUERIES]
        names = [{"name": _normalize(name), "ecosystem": "PyPI"} for name, _ in part]
        queries = [{"package": name, "version": pin[1]} for name, pin in zip(names, part, strict=True)]
        results = _post(f"{database.rstrip('/')}/v1/querybatch", {"queries": queries})
        if len(results) != len(part):
            raise RemoteError(f"{database} answered for {len(results)} of {len(part)} versions")
        findings += [Finding(*pin, tuple(ids)) for pin, ids in zip(part, results, strict=True) if ids]
    return findings


def _normalize(name: str) -> str:
    """Source: https://packaging.python.org/specifications/name-normalization/"""
    return re.sub(r"[-_.]+", "-", name).lower()


def _post(url: str, content: object) -> list[list[str]]:
    """Return the advisory ids of each result. Raises: RemoteError."""
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, data=json.dumps(content).encode(), headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            results = json.loads(answer.read(_MAX_BYTES))["results"]
        # Further pages of a result are not needed: one advisory is enough for a finding.
        return [[str(entry["id"]) for entry in result.get("vulns") or ()] for result in results]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RemoteError(f"query of {url} failed: {type(error).__name__}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings and return the exit status."""
    parser = cli.make_parser("audit_dependencies", __doc__)
    parser.add_argument("--lock", type=Path, default=_LOCK, help="the lock file")
    parser.add_argument("--database", default=_DATABASE, metavar="URL", help="of the API")
    args = parser.parse_args(argv)
    try:
        pins = read_pins(args.lock)
        findings = query(args.database, pins)
    except SubnetError as error:
        print(f"NOT AUDITED, nothing is known either way: {error}", file=sys.stderr)
        return error.exit_code
    for finding in findings:
        print(f"{finding.name} {finding.version}: {', '.join(finding.advisories)}")
    print(f"{len(pins)} versions, {len(findings)} with known vulnerabilities, by {args.database}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
