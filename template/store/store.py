"""The validator's state: if losing it changes behaviour, it is a row here. One transaction per action."""

from template.store.rounds import RoundTables
from template.store.submissions import SubmissionTables


class Store(SubmissionTables, RoundTables):
    """The state file with all its tables; see `template.store.database.StateFile` for how it is opened."""
