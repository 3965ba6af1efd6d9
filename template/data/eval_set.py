"""The evaluation set as validator, miner and offline script get it: downloaded at its commit, and as a pool of rows."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from template.data.near_duplicates import NearDuplicates
from template.data.rows import POOL_LIMITS, SUBMISSION_LIMITS, Row, RowKey, parse_rows, read_keys
from template.errors import ConfigError, HostError, Reason, SubmissionError

Pool = frozenset[bytes]
"""The `Row.key` of every row of an evaluation set."""


_LINES_NAMED = 5


@dataclass(frozen=True)
class EvalSetIndex:
    """A pool for checking many files against. lines: `Row.key` by the sha256 of the line that holds it.

    Most rows of a miner's file are the evaluation file's own lines, byte for byte, and need not be parsed again.
    pool: what every `Row.key` counts as in the duplicate check: as itself, or as the first row of the pool that looks
    like it (`template.data.near_duplicates`). All who hold a row hold the same object: see `share`.
    """

    pool: Mapping[bytes, bytes]
    lines: Mapping[bytes, bytes]

    @classmethod
    def of(cls, lines: Mapping[bytes, bytes], twins: Mapping[bytes, bytes]) -> "EvalSetIndex":
        """The index of these lines. twins: as `template.data.near_duplicates.NearDuplicates` finds them."""
        own = {key: key for key in lines.values()}
        return cls({key: own[twins.get(key, key)] for key in own}, lines)

    @property
    def near_duplicates(self) -> int:
        """How many rows count as another row of the evaluation set."""
        return sum(key != canonical for key, canonical in self.pool.items())

    def share(self, row_keys: Iterable[bytes]) -> tuple[bytes, ...]:
        """What the rows count as in the duplicate check, as the pool's own objects: 8 bytes a row, not 90."""
        return tuple(self.pool.get(key, key) for key in row_keys)

    def check(self, content: bytes, *, name: str, max_rows: int) -> tuple[bytes, ...]:
        """What the rows that `check_dataset` would return count as. Raises: as it does."""
        rows = [row for _, row in read_keys(content, name=name, limits=SUBMISSION_LIMITS, known=self.lines)]
        check_membership(rows, self.pool, max_rows=max_rows)
        return self.share(row.key for row in rows[:max_rows])


def read_pool(path: Path) -> Pool:
    """The pool in an evaluation file. Raises: ConfigError when it is missing or not well formed, naming the line."""
    return frozenset(read_eval_set_index(path).pool)


def read_eval_set_index(path: Path) -> EvalSetIndex:
    """The pool in an evaluation file, with its lines and its rows that look alike. Raises: as `read_pool`."""
    alike = NearDuplicates()
    try:
        found = read_keys(path.read_bytes(), name=str(path), limits=POOL_LIMITS, known={}, note=alike.add)
        lines = {digest: row.key for digest, row in found}
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no evaluation set there") from error
    except OSError as error:
        raise HostError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SubmissionError as error:
        raise ConfigError(f"the evaluation set cannot be used: {error}") from error
    return EvalSetIndex.of(lines, alike.twins)


def check_dataset(content: bytes, pool: Container[bytes], *, name: str, max_rows: int) -> tuple[Row, ...]:
    """The rows of a miner's file that count, after every check that a file can pass alone.

    name: what to call the file in an error. Raises: SubmissionError, the verdict a validator would give.
    """
    rows = parse_rows(content, name=name, limits=SUBMISSION_LIMITS)[:max_rows]
    check_membership(rows, pool, max_rows=max_rows)
    return rows


def check_membership(rows: Sequence[Row | RowKey], pool_keys: Container[bytes], *, max_rows: int) -> None:
    """Raises: SubmissionError (NOT_IN_POOL) when one of the first `max_rows` rows is not in the evaluation pool.

    pool_keys: the `Row.key` of every pool row.
    """
    counted = rows[:max_rows]
    lines = lines_not_in_pool(counted, pool_keys)
    if not lines:
        return
    named = ", ".join(str(line) for line in lines[:_LINES_NAMED])
    more = ", ..." if len(lines) > _LINES_NAMED else ""
    raise SubmissionError(
        Reason.NOT_IN_POOL,
        f"{len(lines)} of the {len(counted)} rows that count are not in the evaluation pool: line {named}{more}",
    )


def lines_not_in_pool(rows: Iterable[Row | RowKey], pool_keys: Container[bytes]) -> list[int]:
    """The lines of the rows that are not in the evaluation pool."""
    return [row.line for row in rows if row.key not in pool_keys]
