"""Check a dataset file by the validator's own rules; report every problem."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from template.constants import MAX_TOKENS
from template.data.encoding import has_target_for_any_tokenizer
from template.data.eval_set import lines_not_in_eval_set
from template.data.lookalikes import explain_foreign_rows
from template.data.rows import SUBMISSION_LIMITS, LineError, Row, scan_rows
from template.errors import Reason, RemoteError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A reason to reject the file; line None for the file as a whole."""

    line: int | None
    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A file compared with the evaluation set.

    row_count: lines that are not blank. counted: well-formed rows among the first that count. repeats: pairs of a
    counted line and its first equal. spare_lines: rows beyond those that count. undecided_lines: rows that may have no
    target within the tokens that count, not decided for the reason `undecided_why`.
    """

    row_count: int
    counted: tuple[Row, ...]
    faults: tuple[Problem, ...]
    repeats: tuple[tuple[int, int], ...]
    spare_lines: tuple[int, ...]
    undecided_lines: tuple[int, ...]
    undecided_why: str


def inspect_file(
    content: bytes,
    eval_keys: Container[bytes],
    *,
    max_rows: int,
    has_target: Callable[[Row], bool],
    eval_file: Path | None = None,
) -> Inspection:
    """Find every problem of a file; a file without any would be trained on.

    A malformed line takes the place of a row among the first `max_rows`. `has_target` is called for rows so long that
    only the model's tokenizer can decide, until it raises RemoteError. eval_file: see `check_dataset`.
    """
    results = list(scan_rows(content, limits=SUBMISSION_LIMITS))
    counted = tuple(row for row in results[:max_rows] if isinstance(row, Row))
    faults = [
        Problem(line=error.line, reason=error.error.reason, message=str(error.error))
        for error in results
        if isinstance(error, LineError)
    ]
    foreign = set(lines_not_in_eval_set(counted, eval_keys))
    explained: dict[int, str] = {}
    if eval_file is not None:
        lookalikes = explain_foreign_rows([row for row in counted if row.line in foreign], eval_file)
        explained = {line: f"; {text}" for line, text in lookalikes.items()}
    faults += [
        Problem(line=line, reason=Reason.NOT_IN_POOL, message=f"not in the evaluation set{explained.get(line, '')}")
        for line in foreign
    ]
    long_rows = [row for row in counted if row.line not in foreign and not has_target_for_any_tokenizer(row)]
    answers, undecided_why = _answer_each(long_rows, has_target)
    no_target = f"expected an answer within {MAX_TOKENS} tokens"
    faults += [
        Problem(line=row.line, reason=Reason.NO_TARGET, message=no_target)
        for row, is_answered in zip(long_rows, answers, strict=False)
        if not is_answered
    ]
    first_lines: dict[bytes, int] = {}
    pairs = [(row.line, first_lines.setdefault(row.key, row.line)) for row in counted]
    return Inspection(
        row_count=sum(isinstance(row, Row) or row.line is not None for row in results),
        counted=counted,
        faults=tuple(sorted(faults, key=lambda fault: fault.line or 0)),
        repeats=tuple((line, first) for line, first in pairs if line != first),
        spare_lines=tuple(row.line for row in results[max_rows:] if isinstance(row, Row)),
        undecided_lines=tuple(row.line for row in long_rows[len(answers) :]),
        undecided_why=undecided_why,
    )


def _answer_each(rows: Sequence[Row], has_target: Callable[[Row], bool]) -> tuple[list[bool], str]:
    """Return the answers up to the first RemoteError, and its message."""
    answers: list[bool] = []
    try:
        for row in rows:
            answers.append(has_target(row))
    except RemoteError as error:
        return answers, str(error)
    return answers, ""
