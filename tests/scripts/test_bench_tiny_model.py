"""The tiny random model: the same files every time, fit to be trained."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.bench.tiny_model import make_tiny_model
from tests.fixtures.network import ROOT


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.slow
def test_tiny_model_is_the_same_in_another_process(tiny_model: Path, tmp_path: Path) -> None:
    code = "import sys; from scripts.bench import tiny_model as tiny; tiny.make_tiny_model(tiny.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, env=environment, check=True)
    assert digests(tmp_path) == digests(tiny_model)


def test_seed_changes_the_weights_alone(tiny_model: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    plain, seeded = digests(tiny_model), digests(make_tiny_model(tmp_path, seed=1))
    assert {name for name in plain if plain[name] != seeded[name]} == {"model.safetensors"}
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's generator is untouched"


def test_tiny_model_loads_and_computes_a_finite_loss(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert type(network).__name__ == "Qwen2ForCausalLM"
    assert len(tokenizer) == network.config.vocab_size
    ids = tokenizer("<|im_start|>user\nHello<|im_end|>\n", add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.isfinite(network(ids, labels=ids).loss)


def test_tiny_tokenizer_takes_any_text_and_keeps_markers(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for text in ("héllo, wörld", "日本語 🙂", "tabs\tand\n\nlines  12", "\x00\x7f"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    for marker in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(tokenizer(marker, add_special_tokens=False).input_ids) == 1
