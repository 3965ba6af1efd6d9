"""Add to each pin the sha256 of every file of its release.

    printf 'loguru==0.7.3\\n' | python -m scripts.dev.lock_hashes --index URL

scripts/lock.sh calls it with pip's index, which has the simple API as JSON or HTML, or is a folder of files (file://).
Downloads only lists of files. Exit status: 0 done, 4 a release or its hashes are not available: prints no pins then.
"""

import argparse
import json
import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

from template.errors import HostError

_ACCEPTED = "application/vnd.pypi.simple.v1+json, text/html;q=0.2"
_SHA256 = re.compile("[0-9a-f]{64}")
_SOURCES = (".tar.gz", ".zip", ".tar.bz2")
_TIMEOUT_S = 60.0
_THREADS = 8


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.targets += [value for name, value in attrs if name == "href" and value]


def list_files(index: str, name: str) -> dict[str, str | None]:
    """Return the sha256 of each file, None if the index lacks it. Raises: HostError."""
    page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', name).lower()}/"
    if page.startswith("file:"):
        page += "index.html"
    try:
        request = urllib.request.Request(page, headers={"Accept": _ACCEPTED})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            kind, content = answer.headers.get_content_type(), answer.read().decode()
    except (OSError, ValueError) as error:
        raise HostError(f"{name}: the index does not list its files: {error}") from error
    if kind.endswith("json"):
        return {file["filename"]: file["hashes"].get("sha256") for file in json.loads(content)["files"]}
    anchors = _Anchors()
    anchors.feed(content)
    parts = [urllib.parse.urlsplit(target) for target in anchors.targets]
    return {
        urllib.parse.unquote(part.path.rpartition("/")[2]): part.fragment.partition("sha256=")[2] or None
        for part in parts
    }


def version_of(file: str) -> str | None:
    """Return the version in the file name of a wheel or source, else None."""
    if file.endswith(".whl"):
        return file.split("-")[1]
    suffix = next((suffix for suffix in _SOURCES if file.endswith(suffix)), None)
    return None if suffix is None else file.removesuffix(suffix).rpartition("-")[2]


def hashes_of(index: str, pin: str) -> list[str]:
    """Return the sorted sha256 of a release `name==version`. Raises: HostError."""
    name, _, version = pin.partition("==")
    files = {file: digest for file, digest in list_files(index, name).items() if version_of(file) == version}
    bare = sorted(file for file, digest in files.items() if not _SHA256.fullmatch(digest or ""))
    if not files or bare:
        raise HostError(f"{pin}: the index has {f'no sha256 of {bare[0]}' if bare else 'no file of this release'}")
    return sorted({digest for digest in files.values() if digest})


def hashed_lines(index: str, pins: Iterable[str]) -> Iterator[str]:
    """Yield the pins in pip's hash-checking format. Raises: HostError."""
    listed = list(pins)
    with ThreadPoolExecutor(_THREADS) as pool:
        for pin, hashes in zip(listed, pool.map(lambda pin: hashes_of(index, pin), listed), strict=True):
            yield " \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in hashes)])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the pins with their hashes and return the exit status."""
    parser = argparse.ArgumentParser(prog="lock_hashes", description=__doc__)
    parser.add_argument("--index", required=True, metavar="URL", help="a simple index; pins come on stdin, one a line")
    args = parser.parse_args(argv)
    try:
        lines = list(hashed_lines(args.index, sys.stdin.read().split()))
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
