"""The validator's state: if losing it changes behaviour, it is a row here. One transaction per action."""

from dataclasses import dataclass
from pathlib import Path

from template.records import EvalConfig, WeightIntent
from template.store.rounds import RoundTables
from template.store.submissions import SubmissionTables


class Store(SubmissionTables, RoundTables):
    """The state file with all its tables; see `template.store.database.StateFile` for how it is opened."""


# Rounds, of those with weights, whose submissions are looked at: a day and more.
_ROUNDS = 30


@dataclass(frozen=True, kw_only=True)
class EvalConfigRow:
    """A contest and the model that it is about."""

    eval_config: EvalConfig
    model: str


class StatusStore(Store):
    """The state file read-only, also while its validator writes. Raises: as `StateFile`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, is_read_only=True)

    def current_config(self) -> EvalConfigRow | None:
        """The newest round's contest; before the first round the newest contest, None before that one."""
        found = self.rows(
            "SELECT id, digest, model FROM contests"
            " ORDER BY id = (SELECT contest_id FROM rounds ORDER BY id DESC LIMIT 1) DESC, id DESC LIMIT 1"
        )
        return next(
            (EvalConfigRow(eval_config=EvalConfig(row["id"], row["digest"]), model=row["model"]) for row in found), None
        )

    def recent_intents(self) -> list[WeightIntent]:
        """The weight submissions of the last rounds that have any, oldest first."""
        found = self.rows("SELECT DISTINCT round_id AS id FROM weight_intents ORDER BY id DESC LIMIT ?", _ROUNDS)
        return sorted((one for row in found for one in self.intents(row["id"])), key=lambda one: one.id)
