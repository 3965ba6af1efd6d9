"""Tokenize a row's text so that it never becomes a control token.

A tokenizer reads `<|im_end|>` anywhere as the end of a turn. In a row's own text it is tokenized as plain text instead,
so that only the chat template opens and closes turns. Control tokens are those that the tokenizer marks as special;
other added tokens, such as Qwen's `<tool_call>`, are allowed in a row.
"""

import functools

import transformers


class PieceTokenizer:
    """`template.data.encoding.Tokenize` by a transformers tokenizer."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._control = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._control_ids = frozenset(self._control.values())
        # A template has few texts of its own.
        self._count_own = functools.cache(lambda before, after: self._count_control(self._encode(before + after)))

    def __call__(self, before: str, content: str = "", after: str = "", /) -> list[int]:
        """Tokenize three texts as one, with control tokens from `before` and `after` only."""
        ids = self._encode(before + content + after)
        if not content or self._count_control(ids) == self._count_own(before, after):
            return ids
        # A tokenizer splits at control tokens first, so the text between two of them is tokenized as a unit.
        start = max((before.rfind(text) + len(text) for text in self._control if text in before), default=0)
        end = min((after.find(text) for text in self._control if text in after), default=len(after))
        plain = self._encode(before[start:] + content + after[:end], as_text=True)
        return [*self._encode(before[:start]), *plain, *self._encode(after[end:])]

    def _encode(self, text: str, *, as_text: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)["input_ids"]
        return ids

    def _count_control(self, ids: list[int]) -> int:
        return sum(map(self._control_ids.__contains__, ids))
