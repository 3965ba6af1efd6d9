"""The exception tree, split by whose fault an error is.

::

    SubnetError
    ├── SubmissionError   the miner's: the only kind that becomes a verdict, stored with its reason
    ├── RemoteError       the chain's or the hub's: the work stays pending and is tried again
    ├── HostError         ours: this machine, its disk, its GPU, its tokens; nobody is punished
    └── ConfigError       the operator's: refused before the first tick, naming the setting

A loss is a finite float or it is absent with one of these as the reason; there are no sentinels.
"""

from enum import StrEnum

# The one exit status that is no failure and yet asks the supervisor for another start: a release was installed.
EXIT_UPDATED = 10


class Reason(StrEnum):
    """Why a submission was refused: stable codes, stored and shown to the miner."""

    BAD_COMMITMENT = "bad_commitment"
    WRONG_COMPETITION = "wrong_competition"
    BEFORE_REGISTRATION = "before_registration"
    MISSING_REPO = "missing_repo"
    MISSING_FILE = "missing_file"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    EMPTY = "empty"
    NO_TARGET = "no_target"
    NOT_IN_POOL = "not_in_pool"
    DUPLICATE = "duplicate"
    DIVERGED = "diverged"


class SubnetError(Exception):
    """Base of every error this package raises on purpose; `exit_code` is the process's status."""

    exit_code = 1


class SubmissionError(SubnetError):
    """The miner's fault. `reason` is the code, the message is the sentence shown to the miner."""

    exit_code = 6

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Reason, str]]:
        # Exceptions rebuild from `args` alone by default, which would lose `reason` across processes.
        return type(self), (self.reason, str(self))


class RemoteError(SubnetError):
    """The chain or the hub did not answer properly: nothing is known, so try again later.

    `retry_after_s` is the wait the other side asked for, in seconds, or None when it named none.
    """

    exit_code = 5

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type, tuple[str, float | None]]:
        return type(self), (str(self), self.retry_after_s)


class HostError(SubnetError):
    """Our own machine failed: CUDA fault, disk full, broken token. Never scored against a miner."""

    exit_code = 4


class ConfigError(SubnetError):
    """The operator's fault: the message names the setting and what it may be."""

    exit_code = 3
