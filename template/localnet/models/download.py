"""The small real model of the quickstart: SmolLM2-135M-Instruct in a folder of this user, fetched once.

    python -m template.localnet.models.download [--dir DIR]

prints the folder. A finished folder carries a manifest with the sha256 of every file, and each call checks all of
them, which takes under a second. The manifest holds no time and no path, so folders of one source are equal
everywhere. Where the files come from is `model_sources`' matter.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from template.errors import ConfigError, HostError, RemoteError, SubnetError
from template.localnet.models.sources import MODEL_ID, REVISION, SOURCES, Pin, Source

MANIFEST_FILE = "MANIFEST"  # no suffix: the digest of a model folder leaves it out


@dataclass(frozen=True)
class Manifest:
    """What a finished folder holds. `source` is a `Source.name`: the sources' weights differ slightly."""

    model: str
    revision: str
    source: str
    files: Mapping[str, Pin]


def default_model_dir() -> Path:
    """The model's folder in this user's cache: $XDG_CACHE_HOME, else ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    root = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    return root / "dataset-subnet" / f"{MODEL_ID.rpartition('/')[2]}-{REVISION[:7]}"


def download_small_model(target_dir: Path | None = None, *, sources: Sequence[Source] = SOURCES) -> Path:
    """The model's folder, ready for `from_pretrained`; fetched from the first source that answers if need be.

    target_dir: the folder itself, default `default_model_dir()`. It appears whole or not at all; processes that
    call at once wait for the first. A folder of ours that no longer matches its manifest is fetched again.
    Raises: RemoteError when no source can be reached; HostError on disk trouble or a checksum that does not match;
    ConfigError when `target_dir` holds something else.
    """
    target = (target_dir or default_model_dir()).expanduser().resolve()
    with _disk_errors(target), _alone(target):
        _refuse_foreign(target)
        manifest = read_manifest(target)
        if manifest is not None:
            logger.info("model folder={} source={} state=cached", target, manifest.source)
            return target
        build = target.parent / f".{target.name}.building"
        try:
            source = _build(build, sources)
            _replace(target, build / "model")
        finally:
            shutil.rmtree(build, ignore_errors=True)
        logger.info("model folder={} source={} state=fetched", target, source)
        return target


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished folder whose every file matches it; None when anything is absent or differs."""
    try:
        raw = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        files = {name: Pin(**pin) for name, pin in raw.pop("files").items()}
        manifest = Manifest(**raw, files=files)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        logger.warning("model folder={} has a manifest that cannot be read", folder)
        return None
    if (manifest.model, manifest.revision) != (MODEL_ID, REVISION):
        logger.warning("model folder={} holds {} at {}", folder, manifest.model, manifest.revision)
        return None
    found = _pins(folder)
    if found != manifest.files:
        names = sorted(name for name in found.keys() | manifest.files if found.get(name) != manifest.files.get(name))
        logger.warning("model folder={} was changed since it was fetched: {}", folder, ", ".join(names))
        return None
    return manifest


def _pins(folder: Path) -> dict[str, Pin]:
    """Size and sha256 of everything in `folder` but the manifest; what is no plain file has size -1."""
    pins = {}
    for path in sorted(folder.iterdir()):
        if path.name == MANIFEST_FILE:
            continue
        if not path.is_file():
            pins[path.name] = Pin(-1, "")
            continue
        with path.open("rb") as file:
            pins[path.name] = Pin(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    return pins


def _build(build: Path, sources: Sequence[Source]) -> str:
    """Fill `build/model` from the first source that answers and write its manifest; the source's name."""
    failures = []
    for source in sources:
        # What a killed process or the source before left behind.
        shutil.rmtree(build, ignore_errors=True)
        folder, scratch = build / "model", build / "scratch"
        folder.mkdir(parents=True)
        scratch.mkdir()
        _require_space(build, source.space_bytes)
        logger.info("fetching model={} source={}", MODEL_ID, source.name)
        try:
            source.fill(folder, scratch)
        except RemoteError as error:
            logger.info("source={} is out of reach: {}", source.name, error)
            failures.append(f"{source.name}: {error}")
            continue
        _write_manifest(folder, source.name)
        return source.name
    raise RemoteError(f"the model {MODEL_ID} cannot be fetched from anywhere; {'; '.join(failures)}")


def _write_manifest(folder: Path, source: str) -> None:
    files = {name: {"size": pin.size, "sha256": pin.sha256} for name, pin in _pins(folder).items()}
    manifest = {"model": MODEL_ID, "revision": REVISION, "source": source, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _replace(target: Path, folder: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)


def _refuse_foreign(target: Path) -> None:
    """Raises: ConfigError unless `target` is absent, an empty folder or a folder made here, which may be replaced."""
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--dir must be a folder or a name still free, not the file {target}")
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST_FILE).exists():
        raise ConfigError(f"--dir must be a new or empty folder; {target} holds files that were not put there by this")


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise HostError(f"{folder}: {needed // 10**6} MB of free disk are needed, and {free // 10**6} MB are left")


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock beside `target`, which the system releases with the process, however that ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # The lock file stays: removing it would let two processes lock two files of one name.
    with (target.parent / f".{target.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("model folder={} another process is fetching it; waiting", target)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Sources turn the network's errors into ours, so an OSError that gets here is this machine's disk."""
    try:
        yield
    except OSError as error:
        raise HostError(f"the model cannot be put in {target}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Print the model's folder; the exit status is 0 or that of the error, which is logged."""
    parser = argparse.ArgumentParser(description="Fetch the small real model of the quickstart, once.")
    parser.add_argument("--dir", type=Path, default=default_model_dir(), help="its folder (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        folder = download_small_model(arguments.dir)
    except SubnetError as error:
        logger.error("{}", error)
        return error.exit_code
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
