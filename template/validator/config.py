"""The operator's choices for a validator."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from template.competition import Competition, Incentives
from template.rules.schedule import Policy


class LuckyNumFrom(StrEnum):
    """Source of evaluation seeds."""

    RANDOM = "random"
    """Drawn from the system, once for each evaluation of a dataset."""
    CHAIN = "chain"
    """From a block's hash and the dataset: the same for every validator and auditor."""
    FIXED = "fixed"
    """A number that the operator chose."""


@dataclass(frozen=True, kw_only=True)
class ValidatorConfig:
    """Settings of one validator.

    lucky_num: seed of every evaluation, None for seeds from `lucky_num_from`, by default the competition's source.
    is_offline: never write to the chain,
    and need no registration. is_device_chosen: --device is set. poll_s: seconds between two reads of the chain while
    idle. keep_days: how long receipts and leaderboards of past rounds are kept. round_dir: folder of the signed round
    files, None to write none. publish_rounds: dataset repo that gets these files, None to publish none.
    """

    competition: Competition
    incentives: Incentives
    policy: Policy
    data_dir: Path
    eval_data_dir: Path
    cache_dir: Path | None = None
    receipt_dir: Path | None = None
    round_dir: Path | None = None
    publish_rounds: str | None = None
    is_offline: bool = False
    lucky_num: int | None = None
    lucky_num_from: LuckyNumFrom | None = None
    is_device_chosen: bool = False
    poll_s: float = 6.0
    keep_days: float = 30.0
    hub_token: str | None = field(default=None, repr=False)

    @property
    def seed_source(self) -> LuckyNumFrom:
        """The source of this validator's seeds."""
        if self.lucky_num is not None:
            return LuckyNumFrom.FIXED
        return self.lucky_num_from or LuckyNumFrom(self.incentives.seeds.value)
