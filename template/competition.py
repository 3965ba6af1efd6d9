"""The competition of a subnet, and the record that a miner commits. Pure."""

import dataclasses
import hashlib
import json
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from template import constants
from template.errors import ConfigError, Reason, SubmissionError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_NAME}/{_NAME}")
_MAX_REPO_CHARS = 96
_MAX_FLOAT = sys.float_info.max


def is_repo_id(text: str) -> bool:
    """Check for a Hub id `owner/name`, by the rules of huggingface_hub."""
    if len(text) > _MAX_REPO_CHARS or "--" in text or ".." in text or text.endswith(".git"):
        return False
    return _REPO.fullmatch(text) is not None


def is_commit(text: str) -> bool:
    """Check for a full commit: 40 lower-case hex digits."""
    return _COMMIT.fullmatch(text) is not None


def is_content_digest(text: str) -> bool:
    """Check for a sha256: 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


def canonical_digest(values: Mapping[str, Any]) -> str:
    """Hash the canonical JSON of `values`: sha256 in hex."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_keys(values: object, source: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Return a mapping of known keys with all required ones, else raise ConfigError."""
    keys = ", ".join(required or optional)
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping with the keys {keys}")
    if unknown := [str(key) for key in values if key not in (*required, *optional)]:
        raise ConfigError(f"{source}: unknown key {unknown[0]!r}; the keys are {', '.join((*required, *optional))}")
    if missing := [key for key in required if key not in values]:
        raise ConfigError(f"{source}: key {missing[0]!r} is missing; the keys are {keys}")
    return values


@dataclass(frozen=True, kw_only=True)
class Competition:
    """The evaluation set, and the score curve of `template.rules.scoring`.

    repo, eval_commit: the evaluation set on the Hub. bench, minb, maxb: losses in nats per target token where the score
    is `bheight`, 1 and 0. pow: exponent of the curve. rows: number of a submission's first rows that are trained on.
    Raises: ConfigError naming an invalid field.
    """

    id: str
    repo: str
    eval_commit: str
    bench: float
    minb: float
    maxb: float
    bheight: float
    pow: float
    rows: int

    def __post_init__(self) -> None:
        for field in ("id", "repo", "eval_commit"):
            value = getattr(self, field)
            if not isinstance(value, str):
                raise ConfigError(f"competition.{field} must be text, not {value!r}")
        for field in ("bench", "minb", "maxb", "bheight", "pow"):
            object.__setattr__(self, field, _as_finite_float(f"competition.{field}", getattr(self, field)))
        if _ID.fullmatch(self.id) is None:
            raise ConfigError(f"competition.id must be 1 to 32 of A-Z a-z 0-9 . _ -, not {self.id!r}")
        if not is_repo_id(self.repo):
            raise ConfigError(f"competition.repo must be a Hub id like owner/name, not {self.repo!r}")
        if not is_commit(self.eval_commit):
            raise ConfigError(f"competition.eval_commit must be a full 40-hex commit, not {self.eval_commit!r}")
        if not self.minb < self.bench < self.maxb or not self.maxb - self.minb <= _MAX_FLOAT:
            raise ConfigError(f"competition must have minb < bench < maxb, not {self.minb}, {self.bench}, {self.maxb}")
        if not 0.0 <= self.bheight <= 1.0:
            raise ConfigError(f"competition.bheight must lie in [0, 1], not {self.bheight}")
        if not self.pow > 0.0:
            raise ConfigError(f"competition.pow must be positive, not {self.pow}")
        if isinstance(self.rows, bool) or not isinstance(self.rows, int) or self.rows < 1:
            raise ConfigError(f"competition.rows must be a positive integer, not {self.rows!r}")

    @classmethod
    def from_defaults(cls) -> "Competition":
        """Return the competition of this subnet."""
        return cls(
            id="1",
            repo="flock-io/flock-off-s1-character-roleplay",
            eval_commit=constants.eval_commit,
            bench=2.60,
            minb=2.40,
            maxb=2.80,
            bheight=0.05,
            pow=2,
            rows=250,
        )

    @classmethod
    def from_mapping(cls, values: object, source: str) -> "Competition":
        """Build from a mapping of all fields; `source` names its origin in errors."""
        values = check_keys(values, source, [field.name for field in dataclasses.fields(cls)])
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `from_mapping` reads them."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """sha256 over all fields, in hex."""
        return canonical_digest(self.to_dict())


class Reward(StrEnum):
    """The rule that turns losses into weights."""

    IMPROVEMENT = "improvement"
    """Each record is paid for its improvement, and the pay halves with time."""
    PROPORTIONAL = "proportional"
    """Each confirmed dataset is paid by its score."""
    WINNER = "winner"
    """The newest record takes all."""


class Seeds(StrEnum):
    """Source of the evaluations' seeds."""

    CHAIN = "chain"
    """From a block's hash and the dataset: the same for every validator."""
    RANDOM = "random"
    """Drawn by each validator, once for each evaluation of a dataset."""


@dataclass(frozen=True, kw_only=True)
class Incentives:
    """Rules by which evaluations become weights; see docs/incentives.md.

    epsilon: part of an improvement that is not paid, in nats. sd: standard deviation of a dataset's loss between seeds,
    in nats. evaluations: of a dataset until it is confirmed. hold: of a record in all. slots: of a round.
    half_life_blocks: time in which a credit halves. update_blocks: time from one dataset of a hotkey to its next.
    blocks_per_epoch: length of a round; rounds start at multiples of it, from start_block on. season_block: datasets
    are evaluated in rounds from here on; 0 for start_block. Raises: ConfigError naming an invalid field.
    """

    reward: Reward = Reward.IMPROVEMENT
    seeds: Seeds = Seeds.CHAIN
    epsilon: float = 0.005
    sd: float = 0.01
    evaluations: int = 48
    hold: int = 128
    slots: int = 30
    half_life_blocks: int = 100_800
    update_blocks: int = 7200
    blocks_per_epoch: int = 360
    start_block: int = 0
    season_block: int = 0

    def __post_init__(self) -> None:
        for field, kind in (("reward", Reward), ("seeds", Seeds)):
            names = [member.value for member in kind]
            if getattr(self, field) not in names:
                raise ConfigError(f"incentives.{field} must be one of {', '.join(names)}, not {getattr(self, field)!r}")
            object.__setattr__(self, field, kind(getattr(self, field)))
        for field in ("epsilon", "sd"):
            object.__setattr__(self, field, _as_finite_float(f"incentives.{field}", getattr(self, field)))
            if getattr(self, field) < 0.0:
                raise ConfigError(f"incentives.{field} must not be negative, not {getattr(self, field)}")
        for field, least in _LEAST.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**32:
                raise ConfigError(f"incentives.{field} must be an integer of at least {least}, not {value!r}")
        if self.hold < self.evaluations:
            raise ConfigError(f"incentives.hold must be at least evaluations ({self.evaluations}), not {self.hold}")
        if 0 < self.season_block < self.start_block:
            raise ConfigError(
                f"incentives.season_block must not be before start_block ({self.start_block}), not {self.season_block}"
            )


_LEAST = {
    **dict.fromkeys(("evaluations", "hold", "slots", "half_life_blocks", "blocks_per_epoch"), 1),
    **dict.fromkeys(("update_blocks", "start_block", "season_block"), 0),
}


def _as_finite_float(field: str, value: object) -> float:
    # math.isfinite raises OverflowError for an int too large for a float, so compare.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MAX_FLOAT <= value <= _MAX_FLOAT:
        raise ConfigError(f"{field} must be a finite number, not {reprlib.repr(value)}")
    return float(value)


def bind_digest(sha256: str, hotkey: str) -> str:
    """Bind a file's sha256 to a hotkey.

    The result is the sha256, in hex, of hotkey, line feed and `sha256`. A plain commitment is readable before it is in
    a block: without the hotkey in it, another miner could copy its text and commit first.
    """
    return hashlib.sha256(f"{hotkey}\n{sha256}".encode()).hexdigest()


@dataclass(frozen=True, order=True)
class CommitmentRecord:
    """A miner's commitment, on chain `namespace:competition_id:commit`.

    `namespace` is the dataset's Hub id. `commit` is a Hub commit (40 hex digits), or a digest (64) of the data.jsonl on
    `main`: its sha256, or that bound to the hotkey. Raises SubmissionError(BAD_COMMITMENT) for invalid parts or more
    than 128 bytes.
    """

    namespace: str
    competition_id: str
    commit: str
    hotkey: str | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not is_repo_id(self.namespace):
            raise _bad_commitment(f"{self.namespace!r} is not a Hub dataset id like owner/name")
        if _ID.fullmatch(self.competition_id) is None:
            raise _bad_commitment(f"{self.competition_id!r} is not a competition id")
        if not is_commit(self.commit) and not is_content_digest(self.commit):
            raise _bad_commitment(
                f"{self.commit!r} is neither a full commit of 40 lower-case hex digits nor a sha256 of 64"
            )
        size = len(str(self).encode())
        if size > constants.MAX_COMMITMENT_BYTES:
            raise _bad_commitment(f"{size} bytes long, the chain's limit is {constants.MAX_COMMITMENT_BYTES}")

    def __str__(self) -> str:
        return f"{self.namespace}:{self.competition_id}:{self.commit}"

    @property
    def is_content_addressed(self) -> bool:
        """Whether `commit` is a digest of the file instead of a Hub commit."""
        return is_content_digest(self.commit)

    @classmethod
    def parse(cls, text: str, hotkey: str | None = None) -> "CommitmentRecord":
        """Parse the exact text that `str` returns, of this hotkey."""
        parts = text.split(":", 3)
        if len(parts) != 3:
            raise _bad_commitment("expected namespace:competition_id:commit")
        namespace, competition_id, commit = parts
        return cls(namespace, competition_id, commit, hotkey)


def _bad_commitment(why: str) -> SubmissionError:
    return SubmissionError(Reason.BAD_COMMITMENT, f"invalid commitment: {why}")
