"""Rows as token ids, with a flag for each token that is a training target."""

from dataclasses import dataclass
from typing import Protocol

from template import constants
from template.constants import MAX_TOKENS
from template.data.chat_templates import ChatTemplate
from template.data.rows import SUBMISSION_LIMITS, Row, parse_rows
from template.errors import Reason, SubmissionError

# Upper bound on the chat format's own tokens before the first answer, for every family.
_FORMAT_TOKENS = 128

# A tokenizer may normalize to NFC, which grows some characters up to threefold in UTF-8.
# Source: https://unicode.org/faq/normalization.html
_MAX_NFC_EXPANSION = 3


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of a row, each with a flag for targets; at least one is predicted."""

    input_ids: tuple[int, ...]
    targets: tuple[bool, ...]
    line: int

    @property
    def target_count(self) -> int:
        """Number of targets but the first token, which nothing predicts."""
        return sum(self.targets[1:])


class Tokenize(Protocol):
    """Tokenizes three texts as one; content never becomes a control token."""

    def __call__(self, before: str, content: str = "", after: str = "", /) -> list[int]: ...


def encode_row(
    row: Row, template: ChatTemplate, tokenize: Tokenize, *, max_tokens: int = MAX_TOKENS
) -> EncodedRow | None:
    """Encode a row, truncated to `max_tokens`; None if no target is left.

    A last user turn without an answer is dropped.
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
    """Parse and encode the first `max_rows` rows of a submission, sorted by `Row.key`.

    The order of a file's rows is then no choice of the miner: it cannot be searched for a lower loss.
    """
    encoded = []
    counted = parse_rows(content, name=constants.DATA_FILE, limits=SUBMISSION_LIMITS)[:max_rows]
    for row in sorted(counted, key=lambda row: row.key):
        tokens = encode_row(row, template, tokenize)
        if tokens is None:
            where = f"{constants.DATA_FILE}, line {row.line}"
            raise SubmissionError(Reason.NO_TARGET, f"{where}: expected an answer within {MAX_TOKENS} tokens")
        encoded.append(tokens)
    return tuple(encoded)


def has_target_for_any_tokenizer(row: Row) -> bool:
    """Check by bytes that the first answer is within `MAX_TOKENS`; False if uncertain."""
    if len(row.messages) < 2:
        return False
    before = (row.system or "") + row.messages[0].content
    size = len(before) if before.isascii() else len(before.encode()) * _MAX_NFC_EXPANSION
    return size + _FORMAT_TOKENS < MAX_TOKENS
