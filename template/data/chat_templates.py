"""The text that each chat family wraps around a conversation.

A conversation becomes pieces that are tokenized separately, so that no token crosses the border between prompt and
target. Joined, the pieces equal what the family's public chat template renders; exceptions are commented below.

Content is concatenated, never formatted, so braces and percent signs are literal. It stays separate from the template's
own text up to the tokenizer, so that a row cannot write a control token.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from template.errors import ConfigError


class Piece(NamedTuple):
    """Text that is tokenized at once; a target is trained on."""

    before: str
    content: str
    after: str
    is_target: bool = False


@dataclass(frozen=True)
class Wrap:
    """Text of the template before and after a content."""

    before: str
    after: str

    def __call__(self, content: str, *, is_target: bool = False) -> Piece:
        """Wrap the stripped content."""
        return Piece(self.before, content.strip(), self.after, is_target)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The pieces of one chat family.

    A family without a system role has no `system`; a system text then opens the first user turn. `user` ends with the
    header of the answer, so that `assistant` holds only what the model writes. `default_system` is for rows
    without one. `model_type` is the one in the model's config.json.
    """

    family: str
    model_type: str
    bos: str = ""
    system: Wrap | None
    user: Wrap
    assistant: Wrap
    default_system: str | None = None

    def pieces(self, system: str | None, turns: Sequence[str]) -> list[Piece]:
        """Split a conversation into pieces; `turns` alternate between user and assistant."""
        pieces = [Piece(self.bos, "", "")] if self.bos else []
        text = self.default_system if system is None else system
        opening = ""
        if text is not None and self.system is None:
            opening = text.strip() + "\n\n"
        elif text is not None and self.system is not None:
            pieces.append(self.system(text))
        for index, content in enumerate(turns):
            if index % 2:
                pieces.append(self.assistant(content, is_target=True))
            else:
                pieces.append(Piece(self.user.before, opening + content.strip(), self.user.after))
                opening = ""
        return pieces


def _chatml(family: str, model_type: str, default_system: str | None) -> ChatTemplate:
    return ChatTemplate(
        family=family,
        model_type=model_type,
        system=Wrap("<|im_start|>system\n", "<|im_end|>\n"),
        user=Wrap("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        assistant=Wrap("", "<|im_end|>\n"),
        default_system=default_system,
    )


def _llama3(family: str, system_header: str, default_system: str | None) -> ChatTemplate:
    return ChatTemplate(
        family=family,
        model_type="llama",
        bos="<|begin_of_text|>",
        system=Wrap(f"<|start_header_id|>system<|end_header_id|>\n\n{system_header}", "<|eot_id|>"),
        user=Wrap(
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        assistant=Wrap("", "<|eot_id|>"),
        default_system=default_system,
    )


# The protocol fixes this default system text. The public templates differ: Qwen1.5 has no full stop, Qwen2.5
# introduces itself as Qwen.
_QWEN1_5 = _chatml("Qwen1.5", "qwen2", "You are a helpful assistant.")
_QWEN2_5 = _chatml("Qwen2.5", "qwen2", "You are a helpful assistant.")
# Without thinking, unlike the other models of Qwen3.
_QWEN3 = _chatml("Qwen3 Instruct", "qwen3", None)
_SMOLLM2 = _chatml("SmolLM2", "llama", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")

_LLAMA3 = _llama3("Llama 3", "", None)
# Since 3.1 the template writes a date into every system header. 3.2 takes today's date, on which a loss must not
# depend, so both use the template's fallback date.
_LLAMA3_1 = _llama3("Llama 3.1/3.2", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", "")

# Gemma 3, which puts a system text into the first user turn. Gemma 1.1 and 2 reject a system text and are equal else.
_GEMMA = ChatTemplate(
    family="Gemma",
    model_type="gemma",
    bos="<bos>",
    system=None,
    user=Wrap("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    assistant=Wrap("", "<end_of_turn>\n"),
)
_GEMMA2 = replace(_GEMMA, model_type="gemma2")
_GEMMA3 = replace(_GEMMA, model_type="gemma3_text")

_TINYLLAMA = ChatTemplate(
    family="TinyLlama",
    model_type="llama",
    system=Wrap("<|system|>\n", "</s>\n"),
    user=Wrap("<|user|>\n", "</s>\n<|assistant|>\n"),
    assistant=Wrap("", "</s>\n"),
)


def _named(template: ChatTemplate, pattern: str, sizes: Iterable[str]) -> dict[str, ChatTemplate]:
    return {pattern.replace("*", size): template for size in sizes}


# Gemma 3 from 4b up is multimodal; only the text models are supported.
model2template: Mapping[str, ChatTemplate] = MappingProxyType(
    {
        **_named(_QWEN1_5, "Qwen/Qwen1.5-*-Chat", ["0.5B", "1.8B", "4B", "7B", "14B", "32B", "72B", "110B"]),
        **_named(_QWEN2_5, "Qwen/Qwen2.5-*-Instruct", ["0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"]),
        **_named(_QWEN3, "Qwen/Qwen3-*-Instruct-2507", ["4B"]),
        **_named(_GEMMA, "google/gemma-1.1-*-it", ["2b", "7b"]),
        **_named(_GEMMA2, "google/gemma-2-*-it", ["2b", "9b", "27b"]),
        **_named(_GEMMA3, "google/gemma-3-*-it", ["270m", "1b"]),
        **_named(_LLAMA3, "meta-llama/Meta-Llama-3-*-Instruct", ["8B", "70B"]),
        **_named(_LLAMA3_1, "meta-llama/Llama-3.1-*-Instruct", ["8B", "70B"]),
        **_named(_LLAMA3_1, "meta-llama/Meta-Llama-3.1-*-Instruct", ["8B", "70B"]),
        **_named(_LLAMA3_1, "meta-llama/Llama-3.2-*-Instruct", ["1B", "3B"]),
        **_named(_TINYLLAMA, "TinyLlama/TinyLlama-*-Chat-v1.0", ["1.1B"]),
        **_named(_SMOLLM2, "HuggingFaceTB/SmolLM2-*-Instruct", ["135M", "360M", "1.7B"]),
    }
)
"""Hub id -> chat template."""


def template_for(model_id: str) -> ChatTemplate:
    """Return a Hub model's chat template; ConfigError lists the supported families."""
    if (template := model2template.get(model_id)) is not None:
        return template
    families = ", ".join(dict.fromkeys(template.family for template in model2template.values()))
    raise ConfigError(f"no chat template for the model {model_id!r}; supported are chat models of {families}")
