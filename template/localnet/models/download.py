"""SmolLM2-135M-Instruct, the quickstart's model, in the user's cache.

    python -m template.localnet.models.download [--dir DIR]

prints the folder. Its manifest lists the sha256 of every file, and each call checks them all in under a second. The
manifest holds no time and no path, so folders from one source are equal everywhere.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from loguru import logger

from template.arguments import Parser
from template.errors import ConfigError, HostError, RemoteError, SubnetError
from template.localnet.models.sources import MODEL_ID, REVISION, SOURCES, Pin, Source, sha256_of

# Without a suffix, so that the digest of a model folder leaves it out.
MANIFEST_FILE = "MANIFEST"


@dataclass(frozen=True)
class Manifest:
    """Contents of a complete folder. The weights differ slightly between sources."""

    model: str
    revision: str
    source: str
    files: Mapping[str, Pin]


def default_model_dir() -> Path:
    """Return the model's folder in $XDG_CACHE_HOME, by default ~/.cache. Raises: ConfigError without a home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG specification ignores a relative path.
        folder = Path(cache).expanduser()
        root = folder if folder.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise ConfigError("this user has no home: set HOME, or name the folder with --dir") from error
    return root / "dataset-subnet" / f"{MODEL_ID.rpartition('/')[2]}-{REVISION[:7]}"


def download_small_model(target_dir: Path | None = None, *, sources: Sequence[Source] = SOURCES) -> Path:
    """Return the model's folder, downloaded from the first source that responds.

    It appears complete or not at all, concurrent calls wait for the first one, and a folder that differs from its
    manifest is downloaded again. Raises: RemoteError when every source is unreachable; HostError for a failed disk or
    checksum; ConfigError when `target_dir` holds other files.
    """
    target = (target_dir or default_model_dir()).resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            return _download(target, sources)
    except OSError as error:
        # Sources convert network errors, so this is the disk of this machine.
        raise HostError(f"cannot write the model to {target}: {error}") from error


def _download(target: Path, sources: Sequence[Source]) -> Path:
    _check_replaceable(target)
    manifest = read_manifest(target)
    if manifest is not None:
        logger.info("model folder={} source={} state=cached", target, manifest.source)
        return target
    build = target.parent / f".{target.name}.building"
    try:
        source = _build(build, sources)
        if target.exists():
            shutil.rmtree(target)
        (build / "model").rename(target)
    finally:
        shutil.rmtree(build, ignore_errors=True)
    logger.info("model folder={} source={} state=downloaded", target, source)
    return target


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder whose files all match it, else None."""
    try:
        raw = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        files = {name: Pin(**pin) for name, pin in raw.pop("files").items()}
        manifest = Manifest(**raw, files=files)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        logger.warning("model folder={} unreadable manifest", folder)
        return None
    if (manifest.model, manifest.revision) != (MODEL_ID, REVISION):
        logger.warning("model folder={} unexpected model={} revision={}", folder, manifest.model, manifest.revision)
        return None
    pins = _pin_files(folder)
    if pins != manifest.files:
        names = sorted(name for name in pins.keys() | manifest.files if pins.get(name) != manifest.files.get(name))
        logger.warning("model folder={} changed since its download: files={}", folder, ", ".join(names))
        return None
    return manifest


def _pin_files(folder: Path) -> dict[str, Pin]:
    """Return size and sha256 of everything but the manifest; size -1 for folders."""
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST_FILE)
    return {path.name: Pin(path.stat().st_size, sha256_of(path)) if path.is_file() else Pin(-1, "") for path in paths}


def _build(build: Path, sources: Sequence[Source]) -> str:
    """Fill `build/model` with its manifest; return the name of the source."""
    failures = []
    for source in sources:
        # Remove the files of a killed process or of the source before.
        shutil.rmtree(build, ignore_errors=True)
        folder, scratch = build / "model", build / "scratch"
        folder.mkdir(parents=True)
        scratch.mkdir()
        free = shutil.disk_usage(build).free
        if free < source.space_bytes:
            raise HostError(
                f"{build}: not enough free disk, {source.space_bytes // 10**6} MB needed, {free // 10**6} left"
            )
        logger.info("downloading model={} source={}", MODEL_ID, source.name)
        try:
            source.fill(folder, scratch)
        except RemoteError as error:
            logger.info("source={} unreachable: {}", source.name, error)
            failures.append(f"{source.name}: {error}")
            continue
        manifest = Manifest(model=MODEL_ID, revision=REVISION, source=source.name, files=_pin_files(folder))
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
        return source.name
    raise RemoteError(f"no source of {MODEL_ID} is reachable; {'; '.join(failures)}")


def _check_replaceable(target: Path) -> None:
    """Raise ConfigError if `target` holds anything but a downloaded model."""
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--dir must be a folder or an unused name, not the file {target}")
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST_FILE).exists():
        raise ConfigError(f"--dir must be a new or empty folder, and {target} holds other files")


def _lock(target: Path) -> AbstractContextManager[object]:
    """Acquire the lock beside `target`; the block's end releases it."""
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info("model folder={} waiting for another process that downloads it", target)
        return lock.acquire()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the model's folder; return 0 or the exit code of the logged error."""
    parser = Parser(description="Download the small real model of the quickstart, once.")
    folder_help = "its folder (default: dataset-subnet/ in $XDG_CACHE_HOME or ~/.cache)"
    parser.add_argument("--dir", type=Path, help=folder_help)
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
