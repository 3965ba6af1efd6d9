"""The outside systems that all parts of one validator share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from template.chain.protocols import ValidatorChain
from template.store.store import Store
from template.telemetry.wandb_tracker import Tracker
from template.validator.bootstrap import RoundHistory
from template.validator.config import ValidatorConfig
from template.validator.downloads import Downloader
from template.validator.outputs import Outputs
from template.validator.publishing import RoundPublisher
from template.workers.executor import Executor


@dataclass(frozen=True, kw_only=True)
class Context:
    """Configuration, outside systems and clock of one validator.

    outputs: the optional folders. publisher: of the round files. history: of --bootstrap_rounds.
    """

    config: ValidatorConfig
    chain: ValidatorChain
    store: Store
    executor: Executor
    downloader: Downloader
    tracker: Tracker
    outputs: Outputs
    publisher: RoundPublisher
    now: Callable[[], float]
    history: RoundHistory = field(default_factory=RoundHistory)
