"""The resident model: its adapter, its dropout, its two halves, and where its weights come from."""

import itertools
import json
import math
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from template.config import TrainingArgs
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.localnet.hub.faults import FaultKind, HubFault, set_faults
from template.localnet.hub.server import HubServer
from template.localnet.hub.store import upload_files
from template.localnet.models.tiny import make_tiny_model
from template.training.dropout import CpuDropout
from template.training.layers import FusedRMSNorm
from template.training.lora import LoRALinear
from template.training.model import ScoringModel, digest_folder, load_model, load_tokenizer
from template.training.packing import pack_rows
from tests.fixtures.training import (
    CPU,
    DTYPES,
    MODEL_ID,
    ROOT,
    Bench,
    base_parameters,
    digests,
    encode,
    hidden_states,
    lay_out,
    make_args,
    make_rows,
    place_targets,
    shift_adapter,
    whole_losses,
)

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def model(bench: Bench) -> ScoringModel:
    """In bfloat16, with the subnet's own dropout."""
    return bench.load("bfloat16")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in tiny_model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def load(folder: Path | None, args: TrainingArgs | None = None, dtype: str = "float32") -> ScoringModel:
    return load_model(args or make_args(), device=CPU, dtype=DTYPES[dtype], model_path=folder)


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# The adapter.


def test_every_linear_layer_but_the_head_has_an_adapter(model: ScoringModel) -> None:
    adapted = {name.split(".lora_")[0].removeprefix("base_model.model.model.") for name in model.adapter_parameters}
    blocks = {name: "self_attn" if name in LINEARS[:4] else "mlp" for name in LINEARS}
    assert adapted == {f"layers.{layer}.{block}.{name}" for layer in (0, 1) for name, block in blocks.items()}
    assert len(model.adapter_parameters) == 2 * 2 * 7
    assert {min(value.shape) for value in model.adapter_parameters.values()} == {16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_float32_on_any_base_dtype(bench: Bench, dtype: str) -> None:
    model = bench.load(dtype)
    assert {value.dtype for value in model.adapter_parameters.values()} == {torch.float32}
    assert {value.dtype for value in base_parameters(model).values()} == {DTYPES[dtype]}
    assert model.dtype is DTYPES[dtype]
    assert len(base_parameters(model)) == 26


def test_reset_has_pefts_initial_distribution(model: ScoringModel) -> None:
    model.reset_adapter(7)
    for name, value in model.adapter_parameters.items():
        if "lora_B" in name:
            assert not value.any()
            continue
        expected = torch.empty_like(value)
        torch.nn.init.kaiming_uniform_(expected, a=math.sqrt(5), generator=torch.Generator().manual_seed(1))
        bound = 1 / math.sqrt(value.shape[1])
        assert 0.98 * bound < value.abs().max().item() <= bound
        assert value.std().item() == pytest.approx(expected.std().item(), rel=0.1)
        assert abs(value.mean().item()) < 0.1 * bound


def test_reset_depends_on_the_seed_only(model: ScoringModel) -> None:
    def after(lucky_num: int) -> dict[str, str]:
        model.reset_adapter(lucky_num)
        return digests(model.adapter_parameters)

    seven = after(7)
    with torch.no_grad():
        for value in model.adapter_parameters.values():
            value.add_(1.0)
            value.grad = torch.ones_like(value)
    torch.manual_seed(5)
    torch.rand(3)
    assert after(7) == seven
    assert all(value.grad is None for value in model.adapter_parameters.values())
    eight = after(8)
    assert all(eight[name] != seven[name] for name in seven if "lora_A" in name)


def test_layers_of_equal_shape_start_differently(model: ScoringModel) -> None:
    model.reset_adapter(7)
    starts = [value for name, value in digests(model.adapter_parameters).items() if "lora_A" in name]
    assert len(set(starts)) == 14


def test_initial_values_never_change_between_versions(bench: Bench) -> None:
    # Known values: whoever changes the order or the draw changes every score of every receipt.
    model = bench.load()
    model.reset_adapter(7)
    first = next(
        value for name, value in model.adapter_parameters.items() if name.endswith("q_proj.lora_A.default.weight")
    )
    assert first[0, :3].tolist() == pytest.approx(KNOWN_START, rel=1e-6)


KNOWN_START = [-0.102880314, -0.046790868, 0.045098633]


# Dropout.


def test_dropout_reaches_all_layers_by_a_private_stream(bench: Bench) -> None:
    model = bench.load(lora_dropout=0.5)
    pack = lay_out(range(50))

    def run(lucky_num: int) -> torch.Tensor:
        model.reset_adapter(lucky_num)
        shift_adapter(model)
        model.set_dropout(True)
        model.seed_dropout(lucky_num, 0, 0)
        with torch.no_grad():
            return hidden_states(model, pack)

    torch.manual_seed(1)
    first = run(7)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(run(7), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(run(8), first)
    layers = [module for module in model.network.modules() if isinstance(module, LoRALinear)]
    assert len(layers) == 14
    # One stream for all, so that no two layers of one shape drop the same.
    (dropout,) = {layer.dropout for layer in layers}
    assert isinstance(dropout, CpuDropout)
    assert dropout.keep_rate == 0.5
    model.set_dropout(False)
    assert not any(layer.dropout for layer in layers)


def test_dropout_differs_by_seed_step_and_pack(bench: Bench) -> None:
    model = bench.load(lora_dropout=0.5)
    assert isinstance(model.dropout, CpuDropout)
    drawn = set()
    for lucky_num in (7, 8, 71):
        model.reset_adapter(lucky_num)
        for step, pack in itertools.product((0, 1, 10, 11), repeat=2):
            model.seed_dropout(lucky_num, step, pack)
            drawn.add(tuple(model.dropout.draw(torch.Size([64])).tolist()))
    assert len(drawn) == 3 * 4 * 4


def test_zero_dropout_draws_nothing(bench: Bench) -> None:
    model = bench.load(lora_dropout=0.0)
    model.reset_adapter(7)
    model.set_dropout(True)
    model.seed_dropout(7, 0, 0)
    assert not any(layer.dropout for layer in model.network.modules() if isinstance(layer, LoRALinear))


# The forward.


def test_rows_of_a_pack_are_independent(bench: Bench) -> None:
    model = bench.load()
    rows = [row.input_ids for row in sorted(encode(model, make_rows(5, seed=3)), key=lambda row: -len(row.input_ids))]
    assert len({len(row) for row in rows}) > 3
    with torch.no_grad():
        together = hidden_states(model, lay_out(*rows)).split([len(row) for row in rows])
        for row, hidden in zip(rows, together, strict=True):
            torch.testing.assert_close(hidden, hidden_states(model, lay_out(row)), rtol=0, atol=1e-5)


def test_losses_of_a_pack_equal_the_plain_models(bench: Bench) -> None:
    model = bench.load()
    plain = transformers.AutoModelForCausalLM.from_pretrained(bench.model_path, dtype=torch.float32)
    rows = [place_targets(range(100), range(1, 100)), place_targets(range(200, 240), {2, 3, 39})]
    (pack,) = pack_rows(rows, [0, 1], 10**6, CPU)
    with torch.no_grad():
        ours = model.target_losses(pack)
        whole = [
            whole_losses(plain, row.input_ids)[[at - 1 for at, hit in enumerate(row.targets) if hit]] for row in rows
        ]
    assert ours.dtype is torch.float32
    torch.testing.assert_close(ours, torch.cat(whole), rtol=0, atol=1e-5)


def test_base_equals_the_weights_file(bench: Bench, tiny_model: Path) -> None:
    model = bench.load()
    ours = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): digest
        for name, digest in digests(base_parameters(model)).items()
    }
    assert ours == digests(load_file(tiny_model / "model.safetensors"))
    assert sum("norm" in name for name in ours) == 5
    assert sum(isinstance(module, FusedRMSNorm) for module in model.network.modules()) == 5


# Tokens.


def test_tokenize_adds_no_tokens(model: ScoringModel) -> None:
    plain = transformers.AutoTokenizer.from_pretrained(model.tokenizer.name_or_path)
    for text in ("", "hello", "<|im_start|>user\nhi<|im_end|>\n"):
        assert model.tokenize(text) == plain.convert_tokens_to_ids(plain.tokenize(text))
        assert load_tokenizer(make_args(), model_path=Path(plain.name_or_path))(text) == model.tokenize(text)


def test_token_without_embedding_is_malformed(folder: Path) -> None:
    edit_config(folder, vocab_size=500)
    edit_weights(folder, lambda weights: weights.update({EMBEDDING: weights[EMBEDDING][:500].clone()}))
    model = load(folder)
    assert max(model.tokenize("hello")) < 500
    rare = next(token for token in range(500, 512) if model.tokenizer.decode([token]).strip())
    with pytest.raises(SubmissionError) as caught:
        model.tokenize(model.tokenizer.decode([rare]))
    assert caught.value.reason is Reason.MALFORMED


# What a folder must hold.

EMBEDDING = "model.embed_tokens.weight"


def remove(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in list(folder.glob(pattern)):
            path.unlink()

    return change


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def require_remote_code(folder: Path) -> None:
    edit_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("import pathlib; pathlib.Path('ran').touch()", encoding="utf-8")


def drop_a_weight(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))


def truncate_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


class Bomb:
    """Leaves a file named `ran` in the working directory of whoever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def pickle_as(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Bomb()))

    return change


UNUSABLE: dict[str, Callable[[Path], None]] = {
    "no config": remove("config.json"),
    "broken config": lambda folder: (folder / "config.json").write_text("{") and None,
    "no weights": remove("*.safetensors"),
    "pickled weights": pickle_weights,
    "code of its own": require_remote_code,
    "a missing weight": drop_a_weight,
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


# What a repository may hold beside the model: pickles that other loaders read, and code that others run.
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
EVIL = "import pathlib; pathlib.Path('ran').touch()"


def add_code(folder: Path, file: str, kind: str, name: object) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {kind: name}}))
    (folder / "evil.py").write_text(EVIL)


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


def test_missing_folder_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        load(tmp_path / "nowhere")


def test_non_finite_base_is_a_host_error(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights["model.norm.weight"].fill_(math.nan))
    with pytest.raises(HostError, match="not finite"):
        load(folder)


def test_failed_load_restores_settings(folder: Path) -> None:
    drop_a_weight(folder)
    before = torch.random.get_rng_state(), torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with pytest.raises(ConfigError):
        load(folder)
    after = torch.random.get_rng_state(), torch.get_num_threads(), torch.get_deterministic_debug_mode()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


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


def test_source_of_a_folder_is_its_digest(bench: Bench, model: ScoringModel) -> None:
    assert model.source.revision is None
    assert model.source.digest == digest_folder(bench.model_path)


def test_adapter_folder_is_rejected(folder: Path, tiny_model: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(folder)
    with pytest.raises(ConfigError):
        load(folder)


# The Hub.


def test_folder_named_like_the_model_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model(tmp_path / MODEL_ID)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--model_path"):
        load(None)


_HUB_CODE = """
import json, sys, time
time.sleep = lambda seconds: None  # the client waits half a minute in all before it gives up
from pathlib import Path
import torch
from tests.fixtures.training import CPU, base_parameters, digests, make_args
from template.errors import SubnetError
from template.training.model import load_model
from template.config import TrainingArgs

cache, *wanted = sys.argv[1:]
for name in wanted:
    model_id, _, revision = name.partition("@")
    args = TrainingArgs(model_id=model_id, revision=revision or None, hyperparameters=make_args().hyperparameters)
    try:
        model = load_model(args, device=CPU, dtype=torch.float32, cache_dir=Path(cache))
        embedding = next(value for name, value in digests(base_parameters(model)).items() if "embed_tokens" in name)
        print(json.dumps([model.source.revision, model.source.digest, embedding]))
    except SubnetError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def load_from_hub(endpoint: str, home: Path, *names: str) -> list[list[Any]]:
    """What a fresh process gets of each `model_id@revision`, or its error."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    output = subprocess.check_output(
        [sys.executable, "-c", _HUB_CODE, str(home / "cache"), *names],
        cwd=ROOT,
        env=environment,
        text=True,
        timeout=300,
    )
    return [json.loads(line) for line in output.splitlines()]


def embedding_digest(folder: Path) -> str:
    return digests(load_file(folder / "model.safetensors"))[EMBEDDING]


def test_hub_model_is_loaded_at_the_recorded_commit(tiny_model: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    root = tmp_path / "hub"
    with HubServer(root) as server:

        def add(folder: Path) -> str:
            files: dict[str, bytes | Path] = {path.name: path for path in folder.iterdir()}
            return upload_files(root, MODEL_ID, files, repo_type="model")

        first, second = add(tiny_model), add(other)
        upload_files(root, "google/gemma-2-2b-it", {"README.md": b"no model"}, repo_type="model")
        pickle_only = {path.name: path for path in tiny_model.iterdir() if path.suffix == ".json"}
        upload_files(root, "google/gemma-2-9b-it", {**pickle_only, "pytorch_model.bin": b"pickle"}, repo_type="model")
        newest, pinned, *errors = load_from_hub(
            server.endpoint,
            tmp_path / "home",
            MODEL_ID,
            f"{MODEL_ID}@{first}",
            "Qwen/Qwen2.5-3B-Instruct",
            f"{MODEL_ID}@{'0' * 40}",
            "google/gemma-2-2b-it",
            "google/gemma-2-9b-it",
        )
        set_faults(root, HubFault(kind=FaultKind.STATUS, status=503))
        (busy,) = load_from_hub(server.endpoint, tmp_path / "home-2", MODEL_ID)
    assert newest == [second, None, embedding_digest(other)]
    assert pinned == [first, None, embedding_digest(tiny_model)]
    assert [error[0] for error in errors] == ["ConfigError"] * 4, errors
    assert busy[0] == RemoteError.__name__


def test_unreachable_hub_is_a_remote_error(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound and never listening: refused at once
        closed.bind(("127.0.0.1", 0))
        (error,) = load_from_hub(f"http://127.0.0.1:{closed.getsockname()[1]}", tmp_path, MODEL_ID)
    assert error[0] == RemoteError.__name__
