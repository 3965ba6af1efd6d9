"""What a validator is built from: the operator's choices."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from template.competition import Competition
from template.rules.schedule import Policy


class LuckyNumFrom(StrEnum):
    """Where the seeds of scores come from."""

    RANDOM = "random"
    """Drawn from the system, once per round."""
    CHAIN = "chain"
    """The hash of the block at which the submission came into the set: the same for every validator and auditor."""
    FIXED = "fixed"
    """The operator's own number."""


@dataclass(frozen=True, kw_only=True)
class ValidatorConfig:
    """The operator's choices. poll_s: seconds between looks at the chain when there is nothing to do.

    lucky_num: the seed of every score, None for seeds from `lucky_num_from`. is_offline: the chain is read, never
    written, and the hotkey need not be registered. is_device_chosen: the operator said where to score. keep_days: how
    long receipts and tables of past rounds are kept. round_dir: where the rounds' signed files go, None for nowhere.
    """

    competition: Competition
    policy: Policy
    data_dir: Path
    eval_data_dir: Path
    cache_dir: Path | None = None
    receipt_dir: Path | None = None
    round_dir: Path | None = None
    is_offline: bool = False
    lucky_num: int | None = None
    lucky_num_from: LuckyNumFrom = LuckyNumFrom.RANDOM
    is_device_chosen: bool = False
    poll_s: float = 6.0
    keep_days: float = 30.0
    hub_token: str | None = field(default=None, repr=False)

    @property
    def seed_source(self) -> LuckyNumFrom:
        """Where this validator's seeds come from."""
        return self.lucky_num_from if self.lucky_num is None else LuckyNumFrom.FIXED

    @property
    def seed_period(self) -> int | None:
        """Seeds from the chain come from the blocks whose numbers are multiples of this; None for other seeds."""
        return self.policy.blocks_per_epoch if self.seed_source is LuckyNumFrom.CHAIN else None
