"""The evaluation set as an index of rows, and the check that rows are in it."""

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from template.data.lookalikes import explain_foreign_rows
from template.data.near_duplicates import NearDuplicates
from template.data.rows import EVAL_SET_LIMITS, SUBMISSION_LIMITS, Row, RowKey, content_digest, parse_rows, read_keys
from template.errors import ConfigError, HostError, Reason, SubmissionError
from template.records import Dataset

_LINES_NAMED = 5
_LINES_EXPLAINED = 2


@dataclass(frozen=True)
class EvalSetIndex:
    """The rows of an evaluation set; contains every `Row.key`.

    `canonical` maps each key to the key of the row's first near duplicate, usually to itself. `line_keys` maps the
    sha256 of a line to its row's key: most lines of a submission are copied from the set and need no parsing.
    """

    canonical: Mapping[bytes, bytes]
    line_keys: Mapping[bytes, bytes]

    @classmethod
    def from_lines(cls, line_keys: Mapping[bytes, bytes], canonical: Mapping[bytes, bytes]) -> "EvalSetIndex":
        """Build the index; `canonical` needs entries for near duplicates only."""
        own = {key: key for key in line_keys.values()}
        return cls({key: own[canonical.get(key, key)] for key in own}, line_keys)

    def __len__(self) -> int:
        return len(self.canonical)

    def __contains__(self, row_key: object) -> bool:
        return row_key in self.canonical

    @property
    def near_duplicate_count(self) -> int:
        """Number of rows that are a near duplicate of an earlier row."""
        return sum(key != canonical for key, canonical in self.canonical.items())

    def dedup_keys(self, row_keys: Iterable[bytes]) -> tuple[bytes, ...]:
        """Map row keys to the keys that the duplicate check compares.

        Returns the index's own bytes objects, so that a stored row costs 8 bytes instead of 90.
        """
        return tuple(self.canonical.get(key, key) for key in row_keys)

    def check(self, content: bytes, *, name: str, max_rows: int) -> Dataset:
        """Check a dataset like `check_dataset`; return its digest and dedup keys."""
        rows = read_keys(content, name=name, limits=SUBMISSION_LIMITS, keys_by_line=self.line_keys)
        counted = [RowKey(row.line, row.key) for _, row in islice(rows, max_rows)]
        for _ in rows:
            pass  # Later rows do not count, but must be well-formed.
        check_membership(counted, self, max_rows=max_rows)
        return Dataset(
            digest=content_digest(row.key for row in counted), row_keys=self.dedup_keys(row.key for row in counted)
        )


def read_eval_set_index(path: Path) -> EvalSetIndex:
    """Read an evaluation file; ConfigError if it is missing or malformed."""
    near_duplicates = NearDuplicates()
    try:
        rows = read_keys(
            path.read_bytes(), name=str(path), limits=EVAL_SET_LIMITS, keys_by_line={}, on_row=near_duplicates.add
        )
        line_keys = {digest: row.key for digest, row in rows}
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: evaluation set not found") from error
    except OSError as error:
        raise HostError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SubmissionError as error:
        raise ConfigError(f"the evaluation set cannot be used: {error}") from error
    return EvalSetIndex.from_lines(line_keys, near_duplicates.canonical)


def read_distinct_lines(eval_file: Path, index: EvalSetIndex) -> list[bytes]:
    """Return the lines of the evaluation set, one of each group of near duplicates."""
    lines: dict[bytes, bytes] = {}
    for line in eval_file.read_bytes().splitlines():
        text = line.strip()
        if (key := index.line_keys.get(hashlib.sha256(text).digest())) is not None:
            lines.setdefault(index.canonical[key], text)
    return list(lines.values())


def check_dataset(
    content: bytes, eval_keys: Container[bytes], *, name: str, max_rows: int, eval_file: Path | None = None
) -> tuple[Row, ...]:
    """Return a submission's counted rows; `name` is the file's name in errors.

    eval_file: the evaluation set, read again to explain rows that only look like its rows.
    """
    rows = parse_rows(content, name=name, limits=SUBMISSION_LIMITS)[:max_rows]
    try:
        check_membership(rows, eval_keys, max_rows=max_rows)
    except SubmissionError as error:
        if eval_file is None:
            raise
        explained = explain_foreign_rows([row for row in rows if row.key not in eval_keys], eval_file)
        clauses = [f"; line {line} {text}" for line, text in list(explained.items())[:_LINES_EXPLAINED]]
        raise SubmissionError(error.reason, f"{error}{''.join(clauses)}") from error
    return rows


def check_membership(rows: Sequence[Row | RowKey], eval_keys: Container[bytes], *, max_rows: int) -> None:
    """Raise SubmissionError(NOT_IN_POOL) if a counted row is not in the set."""
    counted = rows[:max_rows]
    lines = lines_not_in_eval_set(counted, eval_keys)
    if not lines:
        return
    named = ", ".join(str(line) for line in lines[:_LINES_NAMED])
    more = ", ..." if len(lines) > _LINES_NAMED else ""
    raise SubmissionError(
        Reason.NOT_IN_POOL,
        f"{len(lines)} of the {len(counted)} counted rows are not in the evaluation set: line {named}{more}",
    )


def lines_not_in_eval_set(rows: Iterable[Row | RowKey], eval_keys: Container[bytes]) -> list[int]:
    """Return the line numbers of the rows whose keys are not in the evaluation set."""
    return [row.line for row in rows if row.key not in eval_keys]
