"""The cached model folder: its manifest, damage, sources and concurrency."""

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from template.errors import ConfigError, HostError, RemoteError
from template.localnet.models.download import (
    MANIFEST_FILE,
    default_model_dir,
    download_small_model,
    main,
    read_manifest,
)
from template.localnet.models.sources import MODEL_ID, REVISION, Pin, Source

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = b"weights " * 1000


class Recorded:
    """A source that writes two small files and counts how often it was asked."""

    def __init__(self, name: str = "here", error: Exception | None = None) -> None:
        self.calls = 0
        self.error = error
        self.source = Source(name, 0, self.fill)

    def fill(self, folder: Path, scratch: Path) -> None:
        self.calls += 1
        (scratch / "download.tmp").write_bytes(b"left over")
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        if self.error is not None:
            raise self.error
        (folder / "config.json").write_text("{}")


def _contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_second_call_finds_the_folder_and_asks_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = Recorded()
    folder = download_small_model(tmp_path / "cache" / "m", sources=[recorded.source])
    assert download_small_model(folder, sources=[recorded.source]) == folder
    assert main(["--dir", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert recorded.calls == 1
    assert _contents(folder) == {"config.json", "model.safetensors", MANIFEST_FILE}
    assert _contents(folder.parent) == {"m", ".m.lock"}


def test_manifest_names_source_and_the_sha256_of_every_file(tmp_path: Path) -> None:
    folder = download_small_model(tmp_path / "m", sources=[Recorded("elsewhere").source])
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.model, manifest.revision, manifest.source) == (MODEL_ID, REVISION, "elsewhere")
    assert manifest.files["model.safetensors"] == Pin(len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert set(manifest.files) == {"config.json", "model.safetensors"}


def test_folders_of_one_source_are_equal_wherever_they_are(tmp_path: Path) -> None:
    manifests = [download_small_model(tmp_path / n, sources=[Recorded().source]) / MANIFEST_FILE for n in ("a", "b")]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes | None]]] = {
    "flipped byte": ("model.safetensors", lambda content: b"W" + content[1:]),
    "truncated": ("model.safetensors", lambda content: content[:-1]),
    "removed file": ("config.json", lambda content: None),
    "added file": ("adapter_config.json", lambda content: b"{}"),
    "added file below": ("sub/file", lambda content: b""),
    "broken manifest": (MANIFEST_FILE, lambda content: b'{"model": ['),
    "empty manifest": (MANIFEST_FILE, lambda content: b"[]"),
    "older manifest": (MANIFEST_FILE, lambda content: content.replace(REVISION.encode(), b"0" * 40)),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_folder_is_fetched_again(tmp_path: Path, what: str) -> None:
    recorded = Recorded()
    folder = download_small_model(tmp_path / "m", sources=[recorded.source])
    name, damage = DAMAGES[what]
    path = folder / name
    content = damage(path.read_bytes() if path.exists() else b"")
    path.unlink(missing_ok=True)
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert read_manifest(folder) is None
    download_small_model(folder, sources=[recorded.source])
    assert recorded.calls == 2
    assert _contents(folder) == {"config.json", "model.safetensors", MANIFEST_FILE}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_folder_of_someone_else_is_refused_and_untouched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for path, message in ((tmp_path, "new or empty folder"), (tmp_path / "thesis.tex", "not the file")):
        with pytest.raises(ConfigError, match=message):
            download_small_model(path, sources=[Recorded().source])
    assert main(["--dir", str(tmp_path)]) == ConfigError.exit_code
    assert capsys.readouterr().out == ""
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_next_source_serves_without_leftovers_of_the_first(tmp_path: Path) -> None:
    def fill(folder: Path, _scratch: Path) -> None:
        (folder / "config.json").write_text("{}")

    away = Recorded("away", RemoteError("broke off"))
    folder = download_small_model(tmp_path / "m", sources=[away.source, Source("near", 0, fill)])
    manifest = read_manifest(folder)
    assert manifest is not None and manifest.source == "near"
    assert _contents(folder) == {"config.json", MANIFEST_FILE}


def test_error_names_every_source_when_none_answers(tmp_path: Path) -> None:
    sources = [Recorded(name, RemoteError(f"{name} is down")).source for name in ("one", "two")]
    with pytest.raises(RemoteError, match=r"one is down.*two is down"):
        download_small_model(tmp_path / "m", sources=sources)
    assert _contents(tmp_path) == {".m.lock"}


def test_wrong_checksum_does_not_fall_through_to_the_next_source(tmp_path: Path) -> None:
    spoiled, spare = Recorded("spoiled", HostError("sha256 is wrong")), Recorded("spare")
    with pytest.raises(HostError, match="sha256"):
        download_small_model(tmp_path / "m", sources=[spoiled.source, spare.source])
    assert spare.calls == 0
    assert _contents(tmp_path) == {".m.lock"}


def test_full_disk_is_a_host_error(tmp_path: Path) -> None:
    full = Recorded(error=OSError(28, "No space left on device"))
    with pytest.raises(HostError, match="No space left"):
        download_small_model(tmp_path / "m", sources=[full.source])
    with pytest.raises(HostError, match="free disk"):
        download_small_model(tmp_path / "m", sources=[Source("here", 2**62, full.fill)])
    assert full.calls == 1, "too little is said before downloading"


def test_leftovers_of_a_killed_process_are_replaced(tmp_path: Path) -> None:
    stale = tmp_path / ".m.building" / "model"
    stale.mkdir(parents=True)
    (stale / "half.bin").write_bytes(b"half")
    folder = download_small_model(tmp_path / "m", sources=[Recorded().source])
    assert "half.bin" not in _contents(folder)
    assert _contents(tmp_path) == {"m", ".m.lock"}


_RACER = """
import sys, time
from pathlib import Path
from template.localnet.models.download import download_small_model
from template.localnet.models.sources import Source
def fill(folder, scratch):
    with open(sys.argv[2], "a") as log:
        log.write("asked\\n")
    time.sleep(0.5)
    (folder / "config.json").write_text("{}")
download_small_model(Path(sys.argv[1]), sources=[Source("slow", 0, fill)])
"""


def test_processes_that_call_at_once_fetch_once(tmp_path: Path) -> None:
    target, log = tmp_path / "m", tmp_path / "log"
    command = [sys.executable, "-c", _RACER, str(target), str(log)]
    # Both are held at the lock until both are up, so the race does not depend on who starts faster.
    with (tmp_path / ".m.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        racers = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        for racer in racers:
            assert racer.stderr is not None
            assert "waiting" in racer.stderr.readline()
    for racer in racers:
        _, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
    assert log.read_text() == "asked\n"
    assert read_manifest(target) is not None


def test_default_folder_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path in default_model_dir().parents
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unusable in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert tmp_path / "home" / ".cache" in default_model_dir().parents


@pytest.mark.slow
def test_real_model_answers_sensibly() -> None:
    folder = default_model_dir()
    manifest = read_manifest(folder)
    if manifest is None:
        pytest.skip(f"not fetched yet: python -m template.localnet.models.download puts it in {folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    # Digits are split off before anything else, so the spaces before them stay together.
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids
    answer = network.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=2)  # type: ignore[misc]
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])
