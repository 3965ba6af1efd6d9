"""TODO"""

from dataclasses import dataclass
from typing import Protocol

from template import constants
from template.constants import MAX_TOKENS
from template.data.chat_templates import ChatTemplate
from template.data.rows import SUBMISSION_LIMITS, Row, parse_rows
from template.errors import Reason, SubmissionError

# Tokens of the chat format itself that may stand before the first answer; generous for every family.
_FORMAT_TOKENS = 128


# A tokenizer may bring characters into Unicode's composed form first, which spells some of them longer, in UTF-8 up to
# three times. Source: https://unicode.org/faq/normalization.html.
_MOST_EXPANSION = 3


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row as a model reads it: token ids, and for each whether it is to be predicted; never without a target."""

    input_ids: tuple[int, ...]
    targets: tuple[bool, ...]
    line: int

    @property
    def target_count(self) -> int:
        """Targets that can be predicted: a token is predicted from those before it, so the first one cannot be."""
        return sum(self.targets[1:])


class Tokenize(Protocol):
    """Token ids of `before + content + after`, nothing added around them.

    before and after are the template's own, whose markers are control tokens; text of `content` never becomes one.
    """

    def __call__(self, before: str, content: str = "", after: str = "", /) -> list[int]: ...


def encode_row(
    row: Row, template: ChatTemplate, tokenize: Tokenize, *, max_tokens: int = MAX_TOKENS
) -> EncodedRow | None:
    """`row` in the template's pieces, cut at `max_tokens`; None when no target is left.

    A last user turn without an answer is not used.
    """
    contents = [message.content for message in row.messages]
    answered = contents[: len(contents) - len(contents) % 2]
    input_ids: list[int] = []
    targets: list[bool] = []
    for before, content, after, is_target in template.pieces(row.system, answered):
        ids = tokenize(before, content, after)
        input_ids += ids
        targets += [is_target] * len(ids)
        if len(input_ids) >= max_tokens:
            break
    encoded = EncodedRow(tuple(input_ids[:max_tokens]), tuple(targets[:max_tokens]), row.line)
    return encoded if encoded.target_count else None


def encode_submission(
    content: bytes, template: ChatTemplate, tokenize: Tokenize, *, max_rows: int
) -> tuple[EncodedRow, ...]:
    """The rows of a miner's file that count, the first `max_rows`, as tokens.

    Raises: SubmissionError as `parse_rows` does, and NO_TARGET for a row that keeps no answer.
    """
    encoded = []
    for row in parse_rows(content, name=constants.DATA_FILE, limits=SUBMISSION_LIMITS)[:max_rows]:
        tokens = encode_row(row, template, tokenize)
        if tokens is None:
            raise SubmissionError(
                Reason.NO_TARGET,
                f"{constants.DATA_FILE} line {row.line}: expected an assistant answer within the tokens that are read",
            )
        encoded.append(tokens)
    return tuple(encoded)


def has_target_for_any_tokenizer(row: Row) -> bool:
    """True when no tokenizer can cut the first answer off: a token covers one byte or more. False decides nothing."""
    if len(row.messages) < 2:
        return False
    before = (row.system or "") + row.messages[0].content
    size = len(before) if before.isascii() else len(before.encode()) * _MOST_EXPANSION
    return size + _FORMAT_TOKENS < MAX_TOKENS
