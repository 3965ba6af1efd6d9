"""The validator's state: if losing it changes behaviour, it is a row here. One transaction per action."""

from template.round_tables import RoundTables
from template.submission_tables import SubmissionTables


class Store(SubmissionTables, RoundTables):
    """The state file with all its tables; see `template.state_file.StateFile` for how it is opened."""
