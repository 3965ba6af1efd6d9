"""What can be seen of a validator from outside, and what follows from it: what is due, what fails. Pure."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from template.competition import CommitmentRecord
from template.errors import SubmissionError
from template.rules.schedule import MAX_HOST_FAILURES
from template.state import Attempt, Gauges, Round, Standing, SubmissionKey, WeightIntent
from template.terminal import plain


@dataclass(frozen=True, kw_only=True)
class DiskUse:
    """Bytes of a kind of files, at `path` in the --state_dir."""

    name: str
    path: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """What can be seen of a validator at POSIX time `now`.

    state_dir: where the state is. holder: the process that holds it, None when none is seen. newest: the round in hand
    or the last one; newest_intents are its weights. current: the last round that has a table; standings and intents are
    its own. recent: weights of the last rounds, oldest first. accepted: the last that the chain took, however old.
    attempts: of the submissions in `newest`. free_bytes: on the volume of the state.
    """

    now: float
    state_dir: str
    holder: int | None
    activity: Gauges | None
    model: str | None
    contest_digest: str | None
    newest: Round | None
    newest_intents: Sequence[WeightIntent]
    current: Round | None
    standings: Sequence[Standing]
    intents: Sequence[WeightIntent]
    recent: Sequence[WeightIntent]
    accepted: WeightIntent | None
    attempts: Mapping[SubmissionKey, Attempt]
    disk: Sequence[DiskUse]
    free_bytes: int

    @property
    def refused(self) -> WeightIntent | None:
        """The last weights that the chain did not take, of the recent ones."""
        return next((one for one in reversed(self.recent) if one.outcome and not _is_taken(one)), None)

    @property
    def due_block(self) -> int | None:
        """From here on new weights should be on chain; None when this validator was never seen to set any.

        That is where the open round is to set them, or where the next one should long be under way; earlier when some
        were refused since the last that the chain took. Weights given again are no new ones.
        """
        own = [one for one in self.recent if not one.is_repeat]
        if self.activity is None or self.newest is None or (self.accepted is None and not own):
            return None
        taken = max((at for at, one in enumerate(own) if _is_taken(one)), default=-1)
        due = [one.block for one in own[taken + 1 :][:1]]
        if self.activity.round_id is None:
            due.append(2 * self.newest.end_block - self.newest.start_block)
        elif self.weights_block is not None and not self.is_set:
            due.append(self.weights_block)
        return min(due, default=None)

    @property
    def weights_block(self) -> int | None:
        """From here on the open round's weights are due, None when no round is open."""
        is_newest = self.activity is not None and self.newest is not None and self.activity.round_id == self.newest.id
        return self.activity.weights_block if self.activity is not None and is_newest else None

    @property
    def is_set(self) -> bool:
        """True when the chain took the newest round's own weights."""
        return any(_is_taken(one) and not one.is_repeat for one in self.newest_intents)

    def parked(self) -> dict[SubmissionKey, Attempt]:
        """What this machine failed at again and again, and leaves alone for a while."""
        return {
            key: one
            for key, one in self.attempts.items()
            if one.host_failures >= MAX_HOST_FAILURES and one.next_at > self.now
        }

    def pending(self) -> dict[SubmissionKey, Attempt]:
        """What is tried again at the next chance."""
        parked = self.parked()
        return {key: one for key, one in self.attempts.items() if key not in parked}


def _is_taken(intent: WeightIntent) -> bool:
    return intent.outcome is not None and intent.outcome.is_accepted


def find_trouble(status: Status, *, max_age_s: float, max_overdue_blocks: int) -> str | None:
    """Why the operator should look, None when all is well."""
    activity = status.activity
    if activity is None:
        return "the validator has not said what it is doing"
    age_s = status.now - activity.now
    if age_s > max_age_s:
        who = "no process holds the state" if status.holder is None else f"process {status.holder} holds the state"
        return f"no word from the validator for {span(age_s)}; {who}"
    due = status.due_block
    if due is not None and activity.block - due > max_overdue_blocks:
        return plain(f"weights are overdue by {activity.block - due} blocks{_explain_refusal(status)}")
    return None


def _explain_refusal(status: Status) -> str:
    refused = status.refused
    if refused is None or refused.outcome is None:
        return ""
    return f"; the last were refused at block {refused.block}: {refused.outcome.error}: {refused.outcome.message}"


def count_refusals(status: Status) -> dict[str, int]:
    """Of the last table, how many were refused for each reason, the commonest first."""
    return dict(Counter(str(line.reason) for line in status.standings if line.reason is not None).most_common())


def name_cause(key: SubmissionKey, attempt: Attempt) -> str:
    """The last error of an attempt without what names the submission, so that equal causes are equal texts."""
    cause = attempt.last_error
    with contextlib.suppress(SubmissionError):
        record = CommitmentRecord.parse(key.entry)
        cause = cause.replace(record.namespace, "REPO").replace(record.commit, "COMMIT")
    return cause.replace(key.hotkey, "HOTKEY")


def span(seconds: float) -> str:
    """A length of time, as roughly as one would say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
