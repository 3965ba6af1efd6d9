"""Write a leaderboard for the browser from the round files of validators.

    python scripts/leaderboard.py --rounds rounds/ --out site/
    python scripts/leaderboard.py --rounds owner/rounds other/rounds --out site/ --serve
    python scripts/leaderboard.py --rounds VALIDATOR --netuid 96 --subtensor.network finney --out site/ --every 600

--rounds takes round files, folders, dataset repos of the Hub, and hotkeys of validators, whose repo is found on chain.
The first validator is on the start page. --out gets a static site: open index.html as a file, or put the folder on any
web server. Its pages load nothing from elsewhere. What was read from round files is kept in --work_dir, so the next
call reads only new ones. Exit status: 0 written, 2 or 3 the command line is wrong or a source has no round file, 4 this
machine failed, 5 the Hub or the chain did not answer.
"""

import argparse
import functools
import gc
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

from loguru import logger
from tqdm import tqdm

from template import __version__, cli
from template.arguments import Parser, check_port
from template.errors import ConfigError, HostError, RemoteError
from template.files import check_folder, find_write_problem
from template.receipts.sources import RoundSource, read_signed
from template.site.archive import History, round_name
from template.site.extract import VERSION, Extract, extract_round
from template.site.pages import Site

_HUB_URL = "https://huggingface.co"
_PORT = 8080
# New files for each process that reads them.
_SHARE = 20


def build_parser() -> Parser:
    parser = cli.make_parser("leaderboard", __doc__)
    cli.add_round_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the site")
    serve_help = f"then serve the site on this machine, at port {_PORT} or PORT, until Ctrl-C"
    parser.add_argument("--serve", type=int, nargs="?", const=_PORT, metavar="PORT", help=serve_help)
    every_help = "read the sources and write the site again after every pause, until Ctrl-C"
    parser.add_argument("--every", type=float, metavar="SECONDS", help=every_help)
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the site and return the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Write the site, and serve and refresh it if asked to."""
    if args.every is not None and not args.every >= 1.0:
        raise ConfigError(f"--every must be at least 1 second, not {args.every}")
    if args.serve is not None:
        check_port("--serve", args.serve)
    folder = check_folder(args.out, "--out")
    build(args, folder)
    if args.serve is not None:
        serve(folder, args.serve)
    if args.serve is None and args.every is None:
        return 0
    try:
        while args.every is not None:
            time.sleep(args.every)
            refresh(args, folder)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    return 0


def refresh(args: argparse.Namespace, folder: Path) -> None:
    """Build again; a source that does not answer leaves the site as it is."""
    try:
        build(args, folder)
    except RemoteError as error:
        logger.warning("the site stays as it is: {}", error)


def build(args: argparse.Namespace, folder: Path) -> None:
    """Read the sources and write every page that changed."""
    # Millions of objects and hardly a circle: looking for those takes an eighth of the time.
    gc.disable()
    try:
        _build(args, folder)
    finally:
        gc.enable()


def _build(args: argparse.Namespace, folder: Path) -> None:
    started = time.monotonic()
    cache = args.work_dir / "site"
    if (problem := find_write_problem(cache)) is not None:
        logger.warning("--work_dir {}: {}; the next call reads all rounds again", args.work_dir, problem)
    paths: dict[str, Path] = {}
    histories = read_histories(cli.open_round_sources(args), cache, paths)

    def read_receipt(name: str, line: int) -> bytes:
        with paths[name].open("rb") as lines:
            return next(islice(lines, line - 1, None))

    written, size = 0, 0
    for name, content in Site(histories, hub_url(), read_receipt).pages():
        size += len(content)
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write(path, content)
            written += 1
    rounds = sum(len(history.rounds) for history in histories)
    seconds = time.monotonic() - started
    logger.info("site written to {} rounds={} files={} bytes={} seconds={:.1f}", folder, rounds, written, size, seconds)


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step, without a sync: the next call writes what a crash left. Raises: HostError."""
    temporary = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror or error}") from error


def hub_url() -> str:
    """Return the address that datasets are linked to."""
    url = os.environ.get("HF_ENDPOINT", _HUB_URL).rstrip("/")
    return url if url.startswith(("https://", "http://")) else _HUB_URL


def read_histories(sources: Iterable[RoundSource], cache: Path, paths: dict[str, Path]) -> list[History]:
    """Read the rounds of every validator; add the files' paths by `round_name`.

    Of a round that was done again later, the first version counts: it has the weights.
    Raises: ConfigError without any round.
    """
    chosen: dict[tuple[int, str | None], dict[int, tuple[Extract, RoundSource, Path]]] = {}
    listed = [(source, path) for source in sources for path in source.paths]
    read = read_new(listed, cache)
    for source, path in tqdm(listed, desc="rounds", unit="file", disable=None):
        try:
            extract = read.get((source.signer, path)) or read_extract(path, source, cache)
        except ConfigError as error:
            logger.warning("left out: {}", error)
            continue
        rounds = chosen.setdefault((extract.netuid, extract.signer), {})
        known = rounds.get(extract.start_block)
        if known is None or extract.opened_block < known[0].opened_block:
            rounds[extract.start_block] = (extract, source, path)
    if not chosen:
        raise ConfigError("--rounds: no round file could be read")
    histories = []
    for rounds in chosen.values():
        ordered = [rounds[block] for block in sorted(rounds)]
        paths |= {round_name(extract): path for extract, _, path in ordered}
        _, source, path = ordered[-1]
        newest = read_signed(path, source, lambda *_: True).header
        histories.append(History([extract for extract, _, _ in ordered], newest, source.repo))
    return histories


def read_new(listed: Sequence[tuple[RoundSource, Path]], cache: Path) -> dict[tuple[str | None, Path], Extract]:
    """Read many new files in processes side by side. Return this one's, by signer and path; the cache has the others.

    What is not done here, after a fault, the caller reads. Other threads of this process would not survive in the
    processes, so beside them nothing is done here.
    """
    read: dict[tuple[str | None, Path], Extract] = {}
    new = [(source, path) for source, path in listed if not _is_cached(path, source, cache)]
    count = min(len(os.sched_getaffinity(0)), len(new) // _SHARE)
    if count < 2 or threading.active_count() > 1:
        return read
    # Imported once, which takes a second.
    from template.chain import wallets  # noqa: F401

    shares = [new[number::count] for number in range(count)]
    children = [pid for share in shares[1:] if (pid := _read_in_child(share, cache))]
    for source, path in tqdm(shares[0], desc=f"rounds, in {count} processes", unit=" files each", disable=None):
        with suppress(ConfigError):
            read[source.signer, path] = read_extract(path, source, cache)
    for pid in children:
        os.waitpid(pid, 0)
    return read


def _read_in_child(share: Sequence[tuple[RoundSource, Path]], cache: Path) -> int:
    if pid := os.fork():
        return pid
    try:
        for source, path in share:
            with suppress(ConfigError):
                read_extract(path, source, cache)
    finally:
        # Without what the parent does at its end.
        os._exit(0)


def _is_cached(path: Path, source: RoundSource, cache: Path) -> bool:
    try:
        return cache_file(path, source, cache).is_file()
    except ConfigError:
        return True  # The caller names the fault.


def cache_file(path: Path, source: RoundSource, cache: Path) -> Path:
    """Return where the cache has what was read from a round file. Raises: ConfigError."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    # The named hotkey decides about the signature, and the release about the words.
    key = hashlib.sha256(f"{digest} {source.signer} {__version__} {VERSION}".encode()).hexdigest()[:32]
    return cache / f"{key}.json"


def read_extract(path: Path, source: RoundSource, cache: Path) -> Extract:
    """Return what the pages show of a round file, from the cache if it is there. Raises: ConfigError."""
    cached = cache_file(path, source, cache)
    try:
        return Extract.from_json(json.loads(cached.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    from template.chain.wallets import verify_signature

    item = read_signed(path, source, verify_signature)
    extract = extract_round(item.header, item.receipts, path.name, item.fault)
    with suppress(HostError):
        # Only a cache, whose folder was tried at the start.
        write(cached, json.dumps(extract.to_json()).encode())
    return extract


def serve(folder: Path, port: int) -> str:
    """Serve the folder on loopback, in a thread; return its address."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    logger.info("serving {} until Ctrl-C", address)
    return address


if __name__ == "__main__":
    sys.exit(main())
