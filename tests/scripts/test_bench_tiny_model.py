"""The tiny random model: the same files every time, and fit to be loaded and trained."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.bench.tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_tiny_model_is_the_same_in_another_process(tmp_path: Path) -> None:
    code = "import sys; from scripts.bench import tiny_model as tiny; tiny.make_tiny_model(tiny.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], cwd=ROOT, env=environment, check=True)
    assert _digests(make_tiny_model(tmp_path / "a")) == _digests(tmp_path / "b")


def test_seed_changes_weights_and_not_the_tokenizer(tmp_path: Path) -> None:
    zero, one = (_digests(make_tiny_model(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert {name for name in zero if zero[name] != one[name]} == {"model.safetensors"}


def test_making_a_tiny_model_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    make_tiny_model(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tiny_model_loads_and_computes_a_finite_loss(tmp_path: Path) -> None:
    make_tiny_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    network = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(network).__name__ == "Qwen2ForCausalLM"
    assert len(tokenizer) == network.config.vocab_size
    ids = tokenizer("<|im_start|>user\nHello<|im_end|>\n", add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.isfinite(network(ids, labels=ids).loss)


def test_tiny_tokenizer_takes_any_text_and_keeps_markers(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path))
    for text in ("héllo, wörld", "日本語 🙂", "tabs\tand\n\nlines  12", "\x00\x7f"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    for marker in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(tokenizer(marker, add_special_tokens=False).input_ids) == 1
