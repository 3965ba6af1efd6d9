"""The text that each public chat family wraps around a conversation.

A conversation becomes pieces, each tokenized on its own, so that no token straddles the border between what is
trained on and what is not. Joined, the pieces are what the family's public chat template renders; where a score
must differ from it, the template below says so.

Content is concatenated, never formatted into a pattern: braces and percent signs in a row are literal. It is kept apart
from what stands around it up to the tokenizer, so that no row can write a control token.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from template.errors import ConfigError


class Piece(NamedTuple):
    """What is tokenized at a time: a row's own text between two texts of the template, either of which may be empty.

    is_target: its tokens are to be predicted.
    """

    before: str
    content: str
    after: str
    is_target: bool = False


@dataclass(frozen=True)
class Wrap:
    """What stands before and after one content."""

    before: str
    after: str

    def __call__(self, content: str, *, is_target: bool = False) -> Piece:
        """`content`, stripped, between the two."""
        return Piece(self.before, content.strip(), self.after, is_target)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """One family's pieces.

    bos: a piece of its own at the very start, or empty. system: None when the family has no system role, in which
    case a system text opens the first user turn, a blank line above the user's. user: ends with the header that
    asks for an answer, so `assistant` holds only what the model must write. default_system: what a row without a
    system text gets; None gives it no system piece at all, "" one without text.
    """

    family: str
    bos: str = ""
    system: Wrap | None
    user: Wrap
    assistant: Wrap
    default_system: str | None = None

    def pieces(self, system: str | None, turns: Sequence[str]) -> list[Piece]:
        """The texts to tokenize in order.

        turns: contents alternating user, assistant, user, ... Only assistant pieces are targets.
        """
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


def _chatml(family: str, default_system: str) -> ChatTemplate:
    return ChatTemplate(
        family=family,
        system=Wrap("<|im_start|>system\n", "<|im_end|>\n"),
        user=Wrap("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        assistant=Wrap("", "<|im_end|>\n"),
        default_system=default_system,
    )


def _llama3(family: str, system_header: str, default_system: str | None) -> ChatTemplate:
    return ChatTemplate(
        family=family,
        bos="<|begin_of_text|>",
        system=Wrap(f"<|start_header_id|>system<|end_header_id|>\n\n{system_header}", "<|eot_id|>"),
        user=Wrap(
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        assistant=Wrap("", "<|eot_id|>"),
        default_system=default_system,
    )


# The score's contract fixes this default for both generations. The public templates differ there: Qwen1.5 leaves
# out the full stop, Qwen2.5 introduces itself as Qwen.
_QWEN1_5 = _chatml("Qwen1.5", "You are a helpful assistant.")
_QWEN2_5 = _chatml("Qwen2.5", "You are a helpful assistant.")
_SMOLLM2 = _chatml("SmolLM2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")

_LLAMA3 = _llama3("Llama 3", "", None)
# From 3.1 on the template dates every system header, an empty one included. 3.2 asks the clock; a score must not
# depend on it, so both keep the date that the template falls back to without one.
_LLAMA3_1 = _llama3("Llama 3.1/3.2", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", "")

# The template of Gemma 3, which folds a system text into the first user turn. Those of 1.1 and 2 refuse a system
# text and render everything else alike.
_GEMMA = ChatTemplate(
    family="Gemma",
    bos="<bos>",
    system=None,
    user=Wrap("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    assistant=Wrap("", "<end_of_turn>\n"),
)

_TINYLLAMA = ChatTemplate(
    family="TinyLlama",
    system=Wrap("<|system|>\n", "</s>\n"),
    user=Wrap("<|user|>\n", "</s>\n<|assistant|>\n"),
    assistant=Wrap("", "</s>\n"),
)


def _named(template: ChatTemplate, pattern: str, sizes: Iterable[str]) -> dict[str, ChatTemplate]:
    return {pattern.replace("*", size): template for size in sizes}


# Gemma 3 from 4b up sees images too; only its text models are scored.
model2template: Mapping[str, ChatTemplate] = MappingProxyType(
    {
        **_named(_QWEN1_5, "Qwen/Qwen1.5-*-Chat", ["0.5B", "1.8B", "4B", "7B", "14B", "32B", "72B", "110B"]),
        **_named(_QWEN2_5, "Qwen/Qwen2.5-*-Instruct", ["0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"]),
        **_named(_GEMMA, "google/gemma-1.1-*-it", ["2b", "7b"]),
        **_named(_GEMMA, "google/gemma-2-*-it", ["2b", "9b", "27b"]),
        **_named(_GEMMA, "google/gemma-3-*-it", ["270m", "1b"]),
        **_named(_LLAMA3, "meta-llama/Meta-Llama-3-*-Instruct", ["8B", "70B"]),
        **_named(_LLAMA3_1, "meta-llama/Llama-3.1-*-Instruct", ["8B", "70B"]),
        **_named(_LLAMA3_1, "meta-llama/Meta-Llama-3.1-*-Instruct", ["8B", "70B"]),
        **_named(_LLAMA3_1, "meta-llama/Llama-3.2-*-Instruct", ["1B", "3B"]),
        **_named(_TINYLLAMA, "TinyLlama/TinyLlama-*-Chat-v1.0", ["1.1B"]),
        **_named(_SMOLLM2, "HuggingFaceTB/SmolLM2-*-Instruct", ["135M", "360M", "1.7B"]),
    }
)
"""Hub id -> the template its rows are written in."""


def template_for(model_id: str) -> ChatTemplate:
    """The template of the model with this Hub id.

    Raises: ConfigError when there is none, naming the families that have one.
    """
    if (template := model2template.get(model_id)) is not None:
        return template
    families = ", ".join(dict.fromkeys(known.family for known in model2template.values()))
    raise ConfigError(f"no chat template for the model {model_id!r}; the chat models with one are of {families}")
