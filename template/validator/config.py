"""The operator's choices for a validator."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from template.competition import Competition
from template.rules.schedule import Policy


class LuckyNumFrom(StrEnum):
    """Source of evaluation seeds."""

    RANDOM = "random"
    """Drawn from the system once per round."""
    CHAIN = "chain"
    """From the hash of the submission's seed block: the same for every validator and auditor."""
    FIXED = "fixed"
    """A number that the operator chose."""


@dataclass(frozen=True, kw_only=True)
class ValidatorConfig:
    """Settings of one validator.

    lucky_num: seed of every evaluation, None for seeds from `lucky_num_from`. is_offline: never write to the chain,
    and need no registration. is_device_chosen: --device is set. poll_s: seconds between two reads of the chain while
    idle. keep_days: how long receipts and leaderboards of past rounds are kept. round_dir: folder of the signed round
    files, None to write none.
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
        """The source of this validator's seeds."""
        return self.lucky_num_from if self.lucky_num is None else LuckyNumFrom.FIXED

    @property
    def seed_period(self) -> int | None:
        """Distance of the blocks that give seeds from the chain; None for other seeds."""
        return self.policy.blocks_per_epoch if self.seed_source is LuckyNumFrom.CHAIN else None
