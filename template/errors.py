"""Exceptions, split by whose fault an error is.

::

    SubnetError
    ├── SubmissionError   the miner's: the dataset is rejected with a reason
    ├── RemoteError       the chain's or the Hub's: the work stays pending and is retried
    │   └── NotSubmittedError   of a call that the chain has nothing of, so that it may be sent again at once
    ├── HostError         this machine's disk, GPU or token: the process stops, no miner is rejected
    ├── ConfigError       the operator's: a setting is wrong, reported before the first tick
    └── SubnetGoneError   nobody's: the subnet of this state does not exist any more

A loss is a finite float, or one of these is raised. There are no sentinel values.
"""

from enum import StrEnum

# Not a failure: a release was installed, and the supervisor must restart the process.
EXIT_UPDATED = 10


class Reason(StrEnum):
    """Stable codes for why a submission is rejected, stored and shown to the miner."""

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
    """Base class of this package's errors; `exit_code` is the process's exit status."""

    exit_code = 1


class SubmissionError(SubnetError):
    """The miner's fault; the message is shown to the miner."""

    exit_code = 6

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Reason, str]]:
        # Unpickling calls the class with `args` alone, which does not hold the reason.
        return type(self), (self.reason, str(self))


class RemoteError(SubnetError):
    """The chain or the Hub failed; `retry_after_s` is the delay that it asked for."""

    exit_code = 5

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type, tuple[str, float | None]]:
        return type(self), (str(self), self.retry_after_s)


class NotSubmittedError(RemoteError):
    """A signed call did not reach the chain: it failed before it was sent, or the transaction pool refused it."""


class HostError(SubnetError):
    """This machine failed: CUDA, disk, memory or a token."""

    exit_code = 4


class ConfigError(SubnetError):
    """The operator's fault; the message names the setting and its valid values."""

    exit_code = 3


class UnknownSubnetError(ConfigError):
    """The network has no such netuid, by two reads of one block."""


class SubnetGoneError(SubnetError):
    """The subnet was dissolved, or its netuid given to another."""

    exit_code = 7


def describe_error(error: BaseException) -> str:
    """Return an error in one line. Only a bug's has the class, without which its text may mean nothing."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return text if text and isinstance(error, SubnetError | OSError) else f"unexpected {type(error).__name__}: {text}"
