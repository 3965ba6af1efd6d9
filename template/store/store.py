"""The validator's persistent state."""

from pathlib import Path

from template.records import EvalConfig, WeightIntent
from template.store.outbox import OutboxTable
from template.store.rounds import RoundTables
from template.store.runs import RunTable
from template.store.submissions import SubmissionTables
from template.store.subnet import SubnetTable

# Newest rounds with weights that `status` reads: more than a day.
_RECENT_ROUNDS = 30


class Store(SubmissionTables, RoundTables, OutboxTable, RunTable, SubnetTable):
    """The state file with all its tables."""


class StatusStore(Store):
    """The state file read-only, also while its validator writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, is_read_only=True)

    def current_config(self) -> tuple[EvalConfig, str] | None:
        """Return the newest round's config, or the newest config, and its model."""
        rows = self.rows(
            "SELECT id, digest, model FROM contests"
            " ORDER BY id = (SELECT contest_id FROM rounds ORDER BY id DESC LIMIT 1) DESC, id DESC LIMIT 1"
        )
        return (EvalConfig(*rows[0][:2]), rows[0]["model"]) if rows else None

    def recent_intents(self) -> list[WeightIntent]:
        """Return the weight submissions of the newest rounds that have any, oldest first."""
        recent = "SELECT DISTINCT round_id FROM weight_intents ORDER BY round_id DESC LIMIT ?"
        return self._intents(f"WHERE round_id IN ({recent}) ORDER BY id", _RECENT_ROUNDS)

    def evaluation_seconds(self, count: int) -> list[float]:
        """Return the seconds of the newest evaluations of the current config's model."""
        config = self.current_config()
        query = "SELECT seconds FROM evaluations WHERE contest_id = ? ORDER BY finished_at DESC LIMIT ?"
        return [] if config is None else [float(row["seconds"]) for row in self.rows(query, config[0].id, count)]

    def evaluation_totals(self) -> tuple[int, float]:
        """Return the number of all recorded evaluations and their seconds."""
        (row,) = self.rows("SELECT count(*) AS number, total(seconds) AS seconds FROM evaluations")
        return int(row["number"]), float(row["seconds"])
