"""Text to token ids, without a way for a row's own text to become a control token.

A tokenizer reads `<|im_end|>` as the end of a turn wherever it stands. In a row it is a word that somebody wrote: there
it is spelt out in ordinary tokens, so that only the template opens and closes turns. Rows without such a word, which
are nearly all, are tokenized piece by piece as they are.

Control tokens are those that the tokenizer calls special. Others that were added to a vocabulary whole, such as Qwen's
`<tool_call>`, are words to it, and may be written.
"""

import functools

import transformers


class PieceTokenizer:
    """`template.data.encoding.Tokenize` by one of transformers' tokenizers."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._control = {added.content: at for at, added in tokenizer.added_tokens_decoder.items() if added.special}
        self._control_ids = frozenset(self._control.values())
        # Both are the template's own texts, so there are few of them.
        self._count_own = functools.cache(lambda before, after: self._count_control(self._encode(before + after)))

    def __call__(self, before: str, content: str = "", after: str = "", /) -> list[int]:
        """The ids of the three as one text, with no control tokens but those of `before` and `after`."""
        ids = self._encode(before + content + after)
        if not content or self._count_control(ids) == self._count_own(before, after):
            return ids
        # A tokenizer cuts at control tokens before it does anything else, so what stands between two is one text.
        opened = max((before.rfind(text) + len(text) for text in self._control if text in before), default=0)
        closed = min((after.find(text) for text in self._control if text in after), default=len(after))
        written = self._encode(before[opened:] + content + after[:closed], as_text=True)
        return [*self._encode(before[:opened]), *written, *self._encode(after[closed:])]

    def _encode(self, text: str, *, as_text: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)["input_ids"]
        return ids

    def _count_control(self, ids: list[int]) -> int:
        return sum(map(self._control_ids.__contains__, ids))
