"""Starts and ends of the validator: they tell a crash loop from a stop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from template.errors import HostError, SubnetError, describe_error
from template.files import pid_namespace
from template.store.database import StateFile

_KEPT_RUNS = 100


@dataclass(frozen=True, kw_only=True)
class Run:
    """One start of the validator.

    namespace: of its process ids, as `template.files.pid_namespace` names it. error, error_at: of the last failure
    that it retried, or that ended it. ended_at, status: None while it runs, and after a kill.
    """

    id: int
    started_at: float
    namespace: str
    version: str
    error: str
    error_at: float | None
    ended_at: float | None
    status: int | None


class RunTable(StateFile):
    """The table of starts."""

    @contextmanager
    def recorded_run(self, version: str, now: Callable[[], float]) -> Iterator[int]:
        """Record start and end of the block; yield the id of the run."""
        with self.atomic() as db:
            values = (now(), pid_namespace(), version)
            cursor = db.execute("INSERT INTO runs (started_at, namespace, version) VALUES (?, ?, ?)", values)
            run_id = int(cursor.lastrowid or 0)
            db.execute("DELETE FROM runs WHERE id <= ?", (run_id - _KEPT_RUNS,))
        try:
            yield run_id
        except BaseException as error:
            # The first error is the one to report, also where this file is its cause.
            with suppress(HostError):
                self.record_run_error(run_id, error, now())
                self._end_run(run_id, error.exit_code if isinstance(error, SubnetError) else 1, now())
            raise
        self._end_run(run_id, 0, now())

    def record_run_error(self, run_id: int, error: BaseException, now: float) -> None:
        """Record the last failure of a run."""
        with self.atomic() as db:
            db.execute("UPDATE runs SET error = ?, error_at = ? WHERE id = ?", (describe_error(error), now, run_id))

    def _end_run(self, run_id: int, status: int, now: float) -> None:
        with self.atomic() as db:
            db.execute("UPDATE runs SET ended_at = ?, status = ? WHERE id = ?", (now, status, run_id))

    def runs(self) -> list[Run]:
        """Return the last starts, newest first."""
        return [Run(**dict(row)) for row in self.rows("SELECT * FROM runs ORDER BY id DESC")]
