"""Loading a model from a folder or the Hub: what is read, rejected and recorded."""

import dataclasses
import gc
import json
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from scripts.bench.tiny_model import make_tiny_model
from template.config import TrainingArgs
from template.errors import ConfigError, Reason, RemoteError, SubmissionError
from template.localnet.hub.store import upload_files
from template.training import model as model_module
from template.training.heap import return_freed_memory
from template.training.model import ScoringModel, load_model
from template.training.model_files import digest_folder
from tests.campaigns.measure import memory_kib
from tests.fixtures.faulty_hub import FaultKind, FaultyHub, HubFault, set_faults
from tests.fixtures.hub import TOKEN, use_endpoint
from tests.fixtures.training import (
    CPU,
    DTYPES,
    MODEL_ID,
    base_parameters,
    digests,
    edit_weights,
    make_args,
    needs_malloc_trim,
)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def load(folder: Path | None, args: TrainingArgs | None = None, dtype: str = "float32") -> ScoringModel:
    return load_model(args or make_args(), device=CPU, dtype=DTYPES[dtype], model_path=folder)


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


EMBEDDING = "model.embed_tokens.weight"


def remove(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in list(folder.glob(pattern)):
            path.unlink()

    return change


EVIL = "import pathlib; pathlib.Path('ran').touch()"


def add_code(folder: Path, file: str, kind: str, name: object) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {kind: name}}))
    (folder / "evil.py").write_text(EVIL)


def require_remote_code(folder: Path) -> None:
    add_code(folder, "config.json", "AutoConfig", "evil.Config")
    edit_config(folder, model_type="evil")


def save_adapter(folder: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(folder)


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncate_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


class Bomb:
    """Creates a file `ran` in the working directory when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def pickle_as(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Bomb()))

    return change


UNUSABLE: dict[str, Callable[[Path], None]] = {
    "no folder": shutil.rmtree,
    "an adapter": save_adapter,
    "no config": remove("config.json"),
    "a model with an adapter": lambda folder: (folder / "adapter_config.json").write_text("{}") and None,
    "broken config": lambda folder: (folder / "config.json").write_text("{") and None,
    "no weights": remove("*.safetensors"),
    "pickled weights": pickle_weights,
    "code of its own": require_remote_code,
    "a missing weight": lambda folder: edit_weights(folder, lambda weights: weights.pop("model.norm.weight")),
    "truncated weights": truncate_weights,
    "a pickle by the weights' name": pickle_as("model.safetensors"),
    "a pickle by the tokenizer's name": pickle_as("tokenizer.json"),
    "weights of another shape": lambda folder: edit_config(folder, vocab_size=600),
    "no tokenizer": remove("*token*"),
    "no language model": lambda folder: edit_config(folder, model_type="vit"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_folder_is_a_config_error(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    UNUSABLE[name](folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=str(folder)):
        load(folder)
    assert not Path("ran").exists()


# Files beside the model: pickles that other loaders read, and code that other loaders run.
BESIDE: dict[str, Callable[[Path], object]] = {
    "weights": pickle_as("pytorch_model.bin"),
    "a training run": lambda folder: [
        pickle_as(name)(folder)
        for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin")
    ],
    "a tokenizer's code": lambda folder: add_code(folder, "tokenizer_config.json", "AutoTokenizer", ["evil.Tok", None]),
    "a model's code": lambda folder: add_code(folder, "config.json", "AutoModelForCausalLM", "evil.Model"),
    "code that generates": lambda folder: [
        (folder / "custom_generate").mkdir(),
        (folder / "custom_generate" / "generate.py").write_text(EVIL),
    ],
}


@pytest.mark.parametrize("name", BESIDE)
def test_other_files_are_neither_unpickled_nor_run(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = digests(base_parameters(load(folder)))
    BESIDE[name](folder)
    monkeypatch.chdir(tmp_path)
    assert digests(base_parameters(load(folder))) == before
    assert not Path("ran").exists()


def test_bomb_of_these_tests_explodes_when_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("ran").exists()


def test_digest_covers_the_files_that_are_loaded(folder: Path) -> None:
    before = digest_folder(folder)
    (folder / "README.md").write_text("words", encoding="utf-8")
    (folder / "evil.py").write_text("pass", encoding="utf-8")
    assert digest_folder(folder) == before
    seen = {before}
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        path = folder / name
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(digest_folder(folder))
    (folder / "config.json").rename(folder / "other.json")
    assert len(seen | {digest_folder(folder)}) == 5


def test_source_of_a_folder_is_its_digest(folder: Path) -> None:
    source = load(folder).source
    assert (source.revision, source.digest) == (None, digest_folder(folder))


def test_folder_named_like_the_model_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model(tmp_path / MODEL_ID)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--model_path"):
        load(None)


LOSSES_AFTER_CHANGES = """
import sys
from pathlib import Path
from template.training.model import load_model
from tests.fixtures.training import CPU, DTYPES, make_args, pack_tokens
path = Path(sys.argv[1])
model = load_model(make_args(), device=CPU, dtype=DTYPES["float32"], model_path=path)
losses = lambda: model.target_losses(pack_tokens(range(40))).sum().item()
first, weights = losses(), path / "model.safetensors"
with weights.open("r+b") as file:
    file.seek(2000)
    file.write(bytes(weights.stat().st_size - 2000))
    file.flush()
    overwritten = losses()
    file.truncate(1000)
print(first == overwritten == losses())
"""


def test_file_changed_in_place_does_not_change_losses(folder: Path) -> None:
    # In another process, because reading what was cut off ends it.
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    edit_weights(folder, lambda tensors: tensors.update(weights))
    command = [sys.executable, "-c", LOSSES_AFTER_CHANGES, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@needs_malloc_trim
def test_loading_keeps_the_memory_of_the_weights_only(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder, hidden_size=1024, intermediate_size=4096)
    large = transformers.AutoModelForCausalLM.from_config(config)
    weights_kib = sum(weight.numel() for weight in large.parameters()) * 4 // 1024
    # Published models are bfloat16, so their weights are converted at load.
    large.to(torch.bfloat16).save_pretrained(folder)
    del large
    gc.collect()
    return_freed_memory()
    before = memory_kib("RssAnon")
    model = load(folder)
    grown = memory_kib("RssAnon") - before
    assert weights_kib <= grown < 1.5 * weights_kib, model.source


def test_file_changed_during_the_load_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_base = model_module._read_base

    def change(*args: Any) -> Any:
        edit_weights(folder, lambda weights: weights[EMBEDDING].add_(1.0))
        return read_base(*args)

    monkeypatch.setattr(model_module, "_read_base", change)
    with pytest.raises(ConfigError, match="changed while the model was loaded"):
        load(folder)


@pytest.fixture
def server(server: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> FaultyHub:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client's backoff
    use_endpoint(server, monkeypatch)
    return server


def load_from_hub(cache: Path, model_id: str = MODEL_ID, revision: str | None = None) -> ScoringModel:
    args = dataclasses.replace(make_args(), model_id=model_id, revision=revision)
    return load_model(args, device=CPU, dtype=torch.float32, cache_dir=cache)


def test_hub_model_is_loaded_at_the_recorded_commit(server: FaultyHub, tiny_model: Path, tmp_path: Path) -> None:
    folders = [tiny_model, make_tiny_model(tmp_path / "other", seed=1)]
    commits = [
        upload_files(server.store.root, MODEL_ID, {path.name: path for path in folder.iterdir()}, repo_type="model")
        for folder in folders
    ]
    for revision, index in ((None, 1), (commits[0], 0)):
        model = load_from_hub(tmp_path / "cache", revision=revision)
        assert (model.source.revision, model.source.digest) == (commits[index], None)
        weights = load_file(folders[index] / "model.safetensors")
        assert torch.equal(model.network.get_base_model().get_input_embeddings().weight, weights[EMBEDDING])


@pytest.mark.parametrize(
    ("model_id", "revision"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", None),
        (MODEL_ID, "0" * 40),
        ("google/gemma-2-2b-it", None),
        ("google/gemma-2-9b-it", None),
    ],
    ids=["no repo", "no commit", "no model", "pickled weights only"],
)
def test_missing_hub_model_is_a_config_error(
    server: FaultyHub,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_id: str,
    revision: str | None,
) -> None:
    # Without a token the Hub's answer about a missing repo is one that the library recognizes with https only.
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    files: dict[str, bytes | Path] = {path.name: path for path in tiny_model.iterdir()}
    upload_files(server.store.root, MODEL_ID, files, repo_type="model")
    upload_files(server.store.root, "google/gemma-2-2b-it", {"README.md": b"no model"}, repo_type="model")
    pickled = {name: path for name, path in files.items() if name.endswith(".json")} | {"pytorch_model.bin": b"pickle"}
    upload_files(server.store.root, "google/gemma-2-9b-it", pickled, repo_type="model")
    with pytest.raises(ConfigError):
        load_from_hub(tmp_path / "cache", model_id, revision)


def test_unreachable_hub_is_a_remote_error(server: FaultyHub, tmp_path: Path) -> None:
    set_faults(server.store.root, HubFault(kind=FaultKind.STATUS, status=503))
    with pytest.raises(RemoteError):
        load_from_hub(tmp_path / "busy")
    server.close()
    with pytest.raises(RemoteError):
        load_from_hub(tmp_path / "closed")


def test_token_without_embedding_is_malformed(folder: Path) -> None:
    edit_config(folder, vocab_size=500)
    edit_weights(folder, lambda weights: weights.update({EMBEDDING: weights[EMBEDDING][:500].clone()}))
    model = load(folder)
    assert max(model.tokenize("hello")) < 500
    rare = next(token for token in range(500, 512) if model.tokenizer.decode([token]).strip())
    with pytest.raises(SubmissionError) as caught:
        model.tokenize(model.tokenizer.decode([rare]))
    assert caught.value.reason is Reason.MALFORMED
