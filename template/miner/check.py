"""All that can be held against a dataset before it is committed: its file by line, and the datasets of others. Pure.

The rules are the validator's own (`template.data.rows`, `template.rules.duplicates`). A validator stops at the first
fault; here
every fault is told, and what could not be found out is told as that.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from template.constants import MAX_TOKENS
from template.data.encoding import has_target_for_any_tokenizer
from template.data.eval_set import lines_not_in_eval_set
from template.data.rows import SUBMISSION_LIMITS, LineError, Row, scan_rows
from template.errors import Reason, RemoteError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing for which a validator refuses the file; line None when it is the whole file's."""

    line: int | None
    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A file against the pool.

    row_count: its lines that are not blank, as far as they are read. counted: the rows that count. faults: by line.
    repeats: (line, line of its first equal) of rows that count. spare_lines: of rows beyond those that count.
    undecided_lines: of rows that may have no answer within the tokens that count, which `undecided_why` kept from
    being found out.
    """

    row_count: int
    counted: tuple[Row, ...]
    faults: tuple[Problem, ...]
    repeats: tuple[tuple[int, int], ...]
    spare_lines: tuple[int, ...]
    undecided_lines: tuple[int, ...]
    undecided_why: str


def inspect_file(
    content: bytes, pool_keys: Container[bytes], *, max_rows: int, has_target: Callable[[Row], bool]
) -> Inspection:
    """Every fault of a miner's file; none exactly when a validator that has it alone would train on it.

    pool_keys: the `Row.key` of every pool row. A line that is no row takes the place of one among the first
    `max_rows`. has_target: see `template.data.encoding.encode_row`; asked only about rows so long that it is in doubt,
    and no
    more once it raises RemoteError.
    """
    found = list(scan_rows(content, limits=SUBMISSION_LIMITS))
    counted = tuple(one for one in found[:max_rows] if isinstance(one, Row))
    faults = [
        Problem(line=one.line, reason=one.error.reason, message=str(one.error))
        for one in found
        if isinstance(one, LineError)
    ]
    foreign = set(lines_not_in_eval_set(counted, pool_keys))
    faults += [Problem(line=line, reason=Reason.NOT_IN_POOL, message="not in the evaluation pool") for line in foreign]
    in_doubt = [row for row in counted if row.line not in foreign and not has_target_for_any_tokenizer(row)]
    asked, why = _ask(in_doubt, has_target)
    no_target = f"expected an answer within {MAX_TOKENS} tokens"
    faults += [
        Problem(line=row.line, reason=Reason.NO_TARGET, message=no_target)
        for row, is_answered in zip(in_doubt, asked, strict=False)
        if not is_answered
    ]
    return Inspection(
        row_count=sum(isinstance(one, Row) or one.line is not None for one in found),
        counted=counted,
        faults=tuple(sorted(faults, key=lambda fault: fault.line or 0)),
        repeats=_find_repeats(counted),
        spare_lines=tuple(one.line for one in found[max_rows:] if isinstance(one, Row)),
        undecided_lines=tuple(row.line for row in in_doubt[len(asked) :]),
        undecided_why=why,
    )


def _ask(rows: Sequence[Row], has_target: Callable[[Row], bool]) -> tuple[list[bool], str]:
    """The answers up to the first that could not be had, and why it could not."""
    answers: list[bool] = []
    try:
        for row in rows:
            answers.append(has_target(row))
    except RemoteError as error:
        return answers, str(error)
    return answers, ""


def _find_repeats(rows: Sequence[Row]) -> tuple[tuple[int, int], ...]:
    first_lines: dict[bytes, int] = {}
    places = [(row.line, first_lines.setdefault(row.key, row.line)) for row in rows]
    return tuple((line, first) for line, first in places if line != first)
