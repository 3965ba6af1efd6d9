"""A random Qwen2 of a few hundred kilobytes with its own tokenizer.

It is made in about a second without a download, and one seed gives the same files on every run.
"""

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

_VOCAB_SIZE = 512
_END_OF_TEXT, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

_TEXT = (
    "You are a helpful assistant. Answer the user in one or two short sentences and stay in character.",
    "system, user and assistant take turns; the user asks first and the assistant gives the answer.",
    "The lighthouse keeper lit the lamp before the storm came in from the sea that night.",
    "What is the capital of France? The capital of France is Paris, which lies on the river Seine.",
    "She opened the old book, read the first page twice, and then closed it with a smile.",
    "How many days are there in a week? There are seven days in a week, and two of them are for rest.",
    "Boil the water, add the leaves, wait for three minutes and pour it through the strainer.",
    "I would rather walk home in the rain than wait another hour for that bus, he said.",
    "Could you tell me where the station is? Go straight on, then turn left at the second light.",
    "Nothing in the room had been moved, but the window was open and the letter was gone.",
)


def make_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a float32 model folder with 512 tokens and 2 layers, and return it.

    The tokenizer takes any text. Weights depend on `seed` alone; torch's global generator does not change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=_VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Construction draws from the CPU generator; the values are then replaced from a private one.
    with torch.random.fork_rng(devices=[]):
        model = Qwen2ForCausalLM(config)
    _randomize(model, seed)
    model.save_pretrained(folder)
    return folder


def make_tiny_tokenizer() -> Qwen2Tokenizer:
    """Train a byte-level BPE with Qwen's splitter and whole chat markers."""
    # Qwen's own class, because AutoTokenizer loads that one for a qwen2 model.
    untrained = Qwen2Tokenizer(eos_token=_END, pad_token=_END_OF_TEXT)
    trained: Qwen2Tokenizer = untrained.train_new_from_iterator(
        _TEXT, _VOCAB_SIZE, new_special_tokens=[_START], min_frequency=1, show_progress=False
    )
    return trained


def _randomize(model: torch.nn.Module, seed: int) -> None:
    """Draw weights of standard deviation 0.1, so that logits differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.normal_(0.0, 0.1, generator=generator)
