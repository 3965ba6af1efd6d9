"""Starts and ends of the validator: they tell a crash loop from a stop."""

from dataclasses import dataclass

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

    def begin_run(self, *, namespace: str, version: str, now: float) -> int:
        """Record a start and return its id."""
        with self.atomic() as db:
            cursor = db.execute(
                "INSERT INTO runs (started_at, namespace, version) VALUES (?, ?, ?)", (now, namespace, version)
            )
            run_id = int(cursor.lastrowid or 0)
            db.execute("DELETE FROM runs WHERE id <= ?", (run_id - _KEPT_RUNS,))
        return run_id

    def record_run_error(self, run_id: int, error: str, now: float) -> None:
        """Record the last failure of a run, empty for none."""
        with self.atomic() as db:
            db.execute("UPDATE runs SET error = ?, error_at = ? WHERE id = ?", (error, now, run_id))

    def end_run(self, run_id: int, *, status: int, now: float) -> None:
        """Record the end of a run with its exit status."""
        with self.atomic() as db:
            db.execute("UPDATE runs SET ended_at = ?, status = ? WHERE id = ?", (now, status, run_id))

    def runs(self) -> list[Run]:
        """Return the last starts, newest first."""
        return [Run(**dict(row)) for row in self.rows("SELECT * FROM runs ORDER BY id DESC")]
