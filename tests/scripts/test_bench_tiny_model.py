"""The tiny random model, fit to be trained. tests/test_train.py makes it again in another process."""

import hashlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.bench.tiny_model import make_tiny_model


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


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
